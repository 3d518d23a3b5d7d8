"""Accuracy under attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from temper.gate.evidence import WORST_CASE, Attacked, Evidence
from temper.gate.rules.base import POINTS, Look, Rule, check_points
from temper.gate.rules.paired import Drop
from temper.report import text


@dataclass(frozen=True, kw_only=True)
class RobustnessRule(Rule):
    """How much accuracy under attack may be lost, at every budget that was tried."""

    title: ClassVar[str] = "drop of accuracy under attack"
    unit: ClassVar[str] = POINTS

    attack: str = WORST_CASE
    """An attack of the recipe by its name, or `worst_case`: what is left by all of them together."""
    max_drop: float
    """Percentage points, 0.05 to 100; shipped is what surely loses less at every budget."""

    def __post_init__(self) -> None:
        """Checks both."""
        if not self.attack:
            raise ValueError(
                f'attack: got "", expected an attack of the recipe, or "{WORST_CASE}" for all of them'
            )
        check_points("max_drop", self.max_drop)

    @property
    def limit(self) -> float:
        """In points."""
        return self.max_drop

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Compares at each budget, image by image; two that cannot be compared are none."""
        looks = [self._at(one, confidence) for one in evidence.attacked if one.name == self.attack]
        return looks or [self.nothing(f"no attack called {self.attack} was measured on both")]

    def _at(self, attacked: Attacked, confidence: float) -> Look:
        name = f"{self.title}, {self.attack} at {text.budget(attacked.norm, attacked.epsilon)}"
        if not len(attacked.reference):
            return self.nothing("no image was attacked in both", name=name)
        drop = Drop.of(attacked.reference, attacked.candidate, self.max_drop)
        found = drop.found(confidence)
        if attacked.doubt is not None:
            shown = {key: found[key] for key in ("figure", "low", "high", "num_images")}
            return self.nothing(f"the two cannot be compared: {attacked.doubt}", name=name, **shown)
        return self.look(name=name, **found, needs=drop.needs)
