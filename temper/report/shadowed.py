"""shadow.json, typed: two versions of a model that answered the same images, and where they disagree."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from temper.report.measured import Paired, Record, Share

FORMAT: Literal[1] = 1
"""Raised when a key goes or changes its meaning."""


@dataclass(frozen=True, kw_only=True)
class ShadowAnswer(Record):
    """What one version answered to one image."""

    index: int | None
    """The class; null where the answer was no score."""
    label: str | None
    """Its name, or its index where the server gave no name; null as above."""
    confidence: float | None
    """Its probability, 0 to 1; null of an endpoint without scores."""


@dataclass(frozen=True, kw_only=True)
class ShadowImage(Record):
    """An image that the two give other classes."""

    index: int
    """Its place in the order of the images, from 0."""
    image: str | None
    """The file's path within the folder of images; null of an array."""
    picture: str | None
    """The PNG of what was sent, relative to shadow.json; null where it could not be read again."""
    label: str | None
    """Its true class; null without labels."""
    answers: tuple[ShadowAnswer, ShadowAnswer]
    """Of the first version and the second."""
    difference: float
    """Total variation between the two answers' probabilities, 0 to 1; what is kept is sorted by it."""


@dataclass(frozen=True, kw_only=True)
class ShadowSide(Record):
    """One of the two versions."""

    version: int
    """The version."""
    accuracy: Share | None
    """Null without labels."""
    errors: dict[str, int]
    """Images whose answer was no score, by kind; each counts as wrong."""
    retries: dict[str, int]
    """Requests that were sent again, by the kind of error that made it necessary."""


@dataclass(frozen=True, kw_only=True)
class Shadow(Record):
    """What two versions answered to the same images."""

    format: Literal[1] = FORMAT
    """Of this file."""
    model: str
    """The served model's name."""
    sides: tuple[ShadowSide, ShadowSide]
    """The first version and the second."""
    disagreement: Share
    """Of the images: the two give other classes."""
    difference: Paired | None
    """Of the accuracies, second minus first; `num_only_first` images went from right to wrong. Null without
    labels."""
    unreadable: int
    """Image files that cannot be used, and were not sent."""
    kept: tuple[ShadowImage, ...]
    """Disagreements, the most different first."""
    num_disagreements: int
    """All of them, kept or not."""
    server: str
    """What answered, in words."""
    created: str
    """When, to the second, in UTC."""

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON."""
        return dataclasses.asdict(self)
