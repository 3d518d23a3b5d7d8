"""The step `clip`: cuts off the few weights that are far from all others, for which int8 would spend its range."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from temper.builder.compress.step import NetworkStep, StepContext


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How far from zero a weight may be."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    deviations: float = 4.0
    """The largest weight that stays, in standard deviations of its layer's weights."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if not self.deviations > 0:
            raise ValueError(f"deviations: got {self.deviations}, expected a positive number")


class Clip(NetworkStep[ClipConfig]):
    """Cuts off the weights of convolutions and linear layers."""

    name = "clip"
    about = "Cut off the weights that are far from all others."
    config = ClipConfig
    place = 35  # after sparsify (30), before distil (40)

    def libraries(self, config: ClipConfig) -> tuple[str, ...]:
        """Their versions are part of the stage's key."""
        return ("torch",)

    def run(
        self, network: nn.Module, config: ClipConfig, context: StepContext
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Returns the network, and how many weights were cut off."""
        num_cut = num_weights = 0
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                weight = module.weight.detach()
                limit = config.deviations * float(weight.std())
                num_cut += int((weight.abs() > limit).sum())
                num_weights += weight.numel()
                weight.clamp_(-limit, limit)
        return network.eval(), {"num_cut": num_cut, "note": f"{num_cut:,} of {num_weights:,} weights cut off"}


STEP = Clip()
