"""The served engine against the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from temper.client.noninferiority import share_errors, share_interval, trials_needed
from temper.gate.evidence import Evidence
from temper.gate.rules.base import Look, More, Rule, check_share


@dataclass(frozen=True, kw_only=True)
class EngineRule(Rule):
    """How often the served engine must answer as the network before compression does in PyTorch."""

    title: ClassVar[str] = "agreement with PyTorch"
    needs_labels: ClassVar[bool] = False

    agreement_with_torch: float
    """A share of the images, between 0 and 1, such as 0.995; shipped is what surely agrees more often."""

    def __post_init__(self) -> None:
        """Checks it."""
        check_share("agreement_with_torch", self.agreement_with_torch, "0.995 for 99.5 %")

    @property
    def limit(self) -> float:
        """A share."""
        return self.agreement_with_torch

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Counts the images with the same answer."""
        if evidence.same_as_torch is None or not len(evidence.same_as_torch):
            return [self.nothing("no image was answered by both")]
        n, count = len(evidence.same_as_torch), int(np.count_nonzero(~evidence.same_as_torch))
        low, high = share_interval(count, n, confidence=2 * confidence - 1)
        allowed = round(1 - self.agreement_with_torch, 12)
        kept, broken = share_errors(count, n, allowed)

        def needs(confidence: float, power: float) -> More | None:
            if count / n >= allowed:
                return None
            num = trials_needed(allowed, count / n, confidence=confidence, power=power)
            given = f"at least {100 * self.agreement_with_torch:g} %, {100 - 100 * count / n:.4g} % seen"
            return More(num=max(num, n + 1), given=given)

        return [
            self.look(
                figure=1 - count / n,
                low=1 - high,
                high=1 - low,
                num_images=n,
                kept=kept,
                broken=broken,
                needs=needs,
            )
        ]
