"""The table `[gate]` of a recipe: what a candidate must keep to be shipped."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from temper.gate.rules.accuracy import AccuracyRule, WorstClassRule
from temper.gate.rules.base import Rule, check_above
from temper.gate.rules.calibration import CalibrationRule
from temper.gate.rules.engine import EngineRule
from temper.gate.rules.flips import FlipsRule
from temper.gate.rules.performance import LatencyRule, SizeRule, ThroughputRule
from temper.gate.rules.robustness import RobustnessRule

SERVED = "served"
"""Stands for what the endpoint answers with today."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """The gate: limits that a variant must keep, as served, to be shipped; at least one of them.

    Raises:
        ValueError: A value makes no sense; the message names the field.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    against: str = ""
    """What candidates are held against: a variant, or "served", what the endpoint answers with today. Empty: the
    first variant."""
    confidence: float = 0.95
    """1 minus the error of shipping what breaks a limit, and of holding what keeps them all. Intervals are
    two-sided, so that each of their ends has this confidence: of 90 % with 0.95."""
    power: float = 0.8
    """How likely a candidate that loses nothing is shipped with the number of images that the gate asks for."""
    promote: Literal["by-hand", "on-ship"] = "by-hand"
    """Who switches to a candidate that may be shipped: "by-hand", `temper promote`; "on-ship", the gate itself."""
    rounds: int = 5
    """Latency and throughput: rounds in which reference and candidate take turns."""
    duration_s: float = 2.0
    """Latency and throughput: seconds of load on each in every round."""
    accuracy: AccuracyRule | None = None
    """Accuracy over all test images."""
    worst_class: WorstClassRule | None = None
    """Accuracy in every class."""
    flips: FlipsRule | None = None
    """Images that were right and are wrong now."""
    robustness: RobustnessRule | None = None
    """Accuracy under attack."""
    calibration: CalibrationRule | None = None
    """What the answered probabilities mean."""
    latency: LatencyRule | None = None
    """Time to an answer at a given rate."""
    throughput: ThroughputRule | None = None
    """Images per second against the reference, in the same run."""
    size: SizeRule | None = None
    """The engine's file against the reference's."""
    engine: EngineRule | None = None
    """The served answers against PyTorch's."""

    def __post_init__(self) -> None:
        """Checks what is no rule's own."""
        for field, low in (("confidence", 0.5), ("power", 0.0)):
            value = getattr(self, field)
            if not low < value < 1:
                hint = f"; {value:g} % is {value / 100:g}" if 1 < value < 100 else ""
                raise ValueError(f"{field}: got {value:g}, expected a share above {low:g} and below 1{hint}")
        check_above("rounds", self.rounds, 3, 1000, "rounds")
        check_above("duration_s", self.duration_s, 0.1, 3600, "seconds")
        if not self.rules:
            known = ", ".join(item.name for item in dataclasses.fields(self) if "Rule" in str(item.type))
            raise ValueError(f"got no rule, expected at least one of {known}")

    @property
    def rules(self) -> dict[str, Rule]:
        """Those that are asked for, by their keys."""
        found = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Rule)}
