"""What every rule is: a config with a limit, and a look at the evidence, with the errors of what it would say."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from temper.gate.evidence import Evidence
from temper.report.verdict import Answer

POINTS = "points"
MIN_POINTS = 0.05
"""No smaller limit is taken: it would take hundreds of thousands of images, and was meant as a share."""


@dataclass(frozen=True, kw_only=True)
class More:
    """What would decide."""

    num: int
    """Test images, or rounds."""
    given: str
    """What that follows from, beside the power, in words."""
    what: str = "test images"
    """Or `rounds`."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One figure held against its limit, before it is known how many others there are."""

    name: str
    """What was looked at, in words."""
    limit: float
    """What the figure is held against."""
    unit: str
    """Of figure, interval and limit."""
    figure: float | None = None
    """What was measured."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end of the interval."""
    num_images: int | None = None
    """Images that it was measured on."""
    kept: float = 1.0
    """Error (p-value) of saying that the limit is kept, 0 to 1."""
    broken: float = 1.0
    """Error of saying that it is broken."""
    needs: Callable[[float, float], More | None] | None = None
    """What would say that the limit is kept, of a confidence and a power; None where no number would."""
    sure: Answer | None = None
    """What follows without a test: of a plain figure, or of none."""
    said: str = ""
    """Why that follows, in one sentence."""


class Rule(abc.ABC):
    """A table of `[gate]`; each kind is a frozen dataclass."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    title: ClassVar[str]
    """What it looks at, in words."""
    unit: ClassVar[str] = ""
    """Of its limit."""
    needs_labels: ClassVar[bool] = True
    """Whether it looks at who was right."""

    @property
    @abc.abstractmethod
    def limit(self) -> float:
        """What its figure is held against."""

    @abc.abstractmethod
    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Looks at the evidence.

        Args:
            evidence: What was measured.
            confidence: Of either end of an interval.
        """

    def look(self, *, name: str = "", **found: Any) -> Look:
        """Makes a look with this rule's title, limit and unit."""
        return Look(name=name or self.title, limit=self.limit, unit=self.unit, **found)

    def nothing(self, why: str, *, name: str = "", **found: Any) -> Look:
        """Makes a look that saw nothing that could be judged."""
        return self.look(name=name, sure="NOT ENOUGH DATA", said=why, **found)


def check_points(field: str, value: float) -> None:
    """Refuses a limit that is no percentage points or percent.

    Raises:
        ValueError: Names the field.
    """
    if not MIN_POINTS <= value < 100:
        hint = f": it is in points, so a share of {value:g} is {100 * value:g}" if 0 < value < MIN_POINTS else ""
        raise ValueError(f"{field}: got {value:g}, expected points (percent) from {MIN_POINTS} to 100{hint}")


def check_share(field: str, value: float, example: str) -> None:
    """Refuses a limit that is no share between 0 and 1.

    Raises:
        ValueError: Names the field.
    """
    if not 0 < value < 1:
        raise ValueError(f"{field}: got {value:g}, expected a share between 0 and 1, such as {example}")


def check_above(field: str, value: float, low: float, high: float, what: str) -> None:
    """Refuses what is outside of two numbers, or is none.

    Raises:
        ValueError: Names the field.
    """
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f"{field}: got {value:g}, expected {what}, {low:g} to {high:g}")
