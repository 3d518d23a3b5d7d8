"""Distillation: the network before any compression teaches the compressed one, to recover what a step cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from temper.builder.compress.step import NetworkStep, StepContext
from temper.builder.compress.teach import TeachConfig, teach

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class DistilConfig(TeachConfig):
    """How the uncompressed network teaches."""

    feature_weight: float = 0.0
    """Weight of the squared difference of the last features, over their variance; they must have one shape."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        super().__post_init__()
        if not 0 <= self.feature_weight < math.inf:
            raise ValueError(f"feature_weight: got {self.feature_weight}, expected 0 or more")


class Distil(NetworkStep[DistilConfig]):
    """Lets the uncompressed network teach the compressed one."""

    name = "distil"
    about = "Let the uncompressed network teach the compressed one, to recover what an earlier step cost."
    config = DistilConfig
    place = 40
    repeats = True
    gain = "accuracy"

    def run(
        self, network: nn.Module, config: DistilConfig, context: StepContext
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Trains the network in place; the figures are those of `teach`, and a note."""
        info = teach(network, config, context, feature_weight=config.feature_weight)
        share, num = f"{100 * info['agreement']:.1f} %", info["num_held_out"]
        return network, {**info, "note": f"agrees with its teacher on {share} of {num} held-out images"}


STEP = Distil()
