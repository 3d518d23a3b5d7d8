"""Images that were right and are wrong now, whatever was gained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from temper.client.noninferiority import share_errors, share_interval, trials_needed
from temper.gate.evidence import Evidence
from temper.gate.rules.base import Look, More, Rule, check_points
from temper.gate.rules.paired import right


@dataclass(frozen=True, kw_only=True)
class FlipsRule(Rule):
    """How many of the test images may be right before and wrong now."""

    title: ClassVar[str] = "right before, wrong now"
    unit: ClassVar[str] = "%"

    max: float
    """Percent of all test images, 0.05 to 100; shipped is what surely has fewer."""

    def __post_init__(self) -> None:
        """Checks it."""
        check_points("max", self.max)

    @property
    def limit(self) -> float:
        """In percent."""
        return self.max

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Counts them."""
        before, after = (right(answers, evidence) for answers in (evidence.reference, evidence.candidate))
        count, n = int(np.count_nonzero(before & ~after)), len(before)
        low, high = (100 * end for end in share_interval(count, n, confidence=2 * confidence - 1))
        kept, broken = share_errors(count, n, self.max / 100)
        share = 100 * count / n

        def needs(confidence: float, power: float) -> More | None:
            # If nothing is lost, half of those that the two judge otherwise are; else as many as seen.
            for true in (np.count_nonzero(before != after) / 2 / n, count / n):
                if true < self.max / 100:
                    num = trials_needed(self.max / 100, true, confidence=confidence, power=power)
                    if num > n:
                        return More(num=num, given=f"at most {self.max:g} %, {100 * true:.2g} % in truth")
            return None

        return [
            self.look(
                figure=share,
                low=low,
                high=high,
                num_images=n,
                kept=kept,
                broken=broken,
                needs=needs,
            )
        ]
