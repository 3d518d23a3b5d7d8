"""Accuracy, over all test images and class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from temper.gate.evidence import Evidence
from temper.gate.rules.base import POINTS, Look, More, Rule, check_points
from temper.gate.rules.paired import Drop, right


@dataclass(frozen=True, kw_only=True)
class AccuracyRule(Rule):
    """How much accuracy may be lost, over all test images."""

    title: ClassVar[str] = "drop of accuracy"
    unit: ClassVar[str] = POINTS

    max_drop: float
    """Percentage points, 0.05 to 100; shipped is what surely loses less."""

    def __post_init__(self) -> None:
        """Checks it."""
        check_points("max_drop", self.max_drop)

    @property
    def limit(self) -> float:
        """In points."""
        return self.max_drop

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Compares image by image."""
        before, after = (right(answers, evidence) for answers in (evidence.reference, evidence.candidate))
        drop = Drop.of(before, after, self.max_drop)
        return [self.look(**drop.found(confidence), needs=drop.needs)]


@dataclass(frozen=True, kw_only=True)
class WorstClassRule(Rule):
    """How much accuracy may be lost in any single class."""

    title: ClassVar[str] = "drop of accuracy in the worst class"
    unit: ClassVar[str] = POINTS

    max_drop: float
    """Percentage points, 0.05 to 100; shipped is what surely loses less in every class that occurs."""

    def __post_init__(self) -> None:
        """Checks it."""
        check_points("max_drop", self.max_drop)

    @property
    def limit(self) -> float:
        """In points."""
        return self.max_drop

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Compares class by class; says so of the class that decides.

        To ship, every class must keep the limit, whose error is the largest of all. To hold, one that breaks it
        is enough, whose error is multiplied by their number (Bonferroni).
        """
        before, after = (right(answers, evidence) for answers in (evidence.reference, evidence.candidate))
        classes = [int(label) for label in np.unique(evidence.labels)]
        drops = [
            Drop.of(before[one], after[one], self.max_drop)
            for one in (evidence.labels == label for label in classes)
        ]
        kept, broken = zip(*(drop.errors for drop in drops), strict=True)
        worst = int(np.argmin(broken) if len(drops) * min(broken) <= 1 - confidence else np.argmax(kept))
        overall = Drop.of(before, after, self.max_drop).discordant
        found = drops[worst].found(confidence)
        found |= {"num_images": len(before), "broken": min(1.0, len(drops) * min(broken))}

        def needs(confidence: float, power: float) -> More | None:
            each = 1 - (1 - power) / len(drops)  # all of them must keep it
            unsure = [index for index in range(len(drops)) if kept[index] > 1 - confidence]
            # Of some dozens of images none may disagree by luck: a class is expected to do as all do at least.
            apart = {index: max(drops[index].discordant, overall) for index in unsure}
            wanted = {index: drops[index].needed(confidence, each, apart[index]) for index in unsure}
            whole = {
                index: math.ceil(num * len(before) / drops[index].num_images)
                for index, num in wanted.items()
                if num is not None
            }
            if len(whole) < len(unsure):
                return None
            most = max(whole, key=lambda index: whole[index])
            given = (
                f"margin {self.max_drop:g} points, {100 * apart[most]:.2g} % disagreeing in "
                f"{evidence.class_names[classes[most]]}, "
                f"{100 * drops[most].num_images / len(before):.2g} % of the images"
            )
            return More(num=whole[most], given=given)

        label = evidence.class_names[classes[worst]]
        name = f"{self.title}: {label}, {drops[worst].num_images:,} images, of {len(drops)} classes"
        return [self.look(name=name, **found, needs=needs)]
