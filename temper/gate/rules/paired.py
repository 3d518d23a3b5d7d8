"""Two answers to each image: how much is lost from the reference to the candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from temper.client.noninferiority import paired_errors, paired_interval, pairs_needed
from temper.gate.evidence import Answers, BoolArray, Evidence
from temper.gate.rules.base import More


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A paired drop of a share of n images, held against a limit."""

    only_reference: int
    """Images that only the reference gets right."""
    only_candidate: int
    """Images that only the candidate gets right."""
    num_images: int
    """Images, at least 1."""
    limit: float
    """Of the drop, 0 to 1."""

    @classmethod
    def of(cls, reference: BoolArray, candidate: BoolArray, points: float) -> Drop:
        """Counts two bool [n], held against points."""
        return cls(
            only_reference=int(np.count_nonzero(reference & ~candidate)),
            only_candidate=int(np.count_nonzero(candidate & ~reference)),
            num_images=len(reference),
            limit=points / 100,
        )

    @property
    def share(self) -> float:
        """What is lost, -1 to 1."""
        return (self.only_reference - self.only_candidate) / self.num_images

    @property
    def discordant(self) -> float:
        """The share of the images that the two judge otherwise."""
        return (self.only_reference + self.only_candidate) / self.num_images

    @property
    def likely_discordant(self) -> float:
        """The same with one image more, so that what luck left out of some hundreds makes no number too small."""
        return min((self.only_reference + self.only_candidate + 1) / self.num_images, 1.0)

    @property
    def errors(self) -> tuple[float, float]:
        """Of saying that the limit is kept, and that it is broken."""
        return paired_errors(self.only_reference, self.only_candidate, self.num_images, self.limit)

    def found(self, confidence: float) -> dict[str, Any]:
        """Figure, interval and errors, in points, as fields of a `Look`."""
        counts = (self.only_reference, self.only_candidate, self.num_images)
        low, high = (100 * end for end in paired_interval(*counts, confidence=2 * confidence - 1))
        kept, broken = self.errors
        return {
            "figure": 100 * self.share,
            "low": low,
            "high": high,
            "num_images": self.num_images,
            "kept": kept,
            "broken": broken,
        }

    def needed(self, confidence: float, power: float, discordant: float | None = None) -> int | None:
        """Images that say that the limit is kept, if nothing is lost; where there are as many, if as much as seen.

        Args:
            confidence: 1 minus the error of saying so.
            power: Probability of saying so.
            discordant: Share that the two judge otherwise; `likely_discordant` when not given.

        Returns:
            None where as much is lost as the limit allows, or more.
        """
        seen = max(self.share, 0.0)
        apart = max(self.likely_discordant if discordant is None else discordant, seen)

        def number(true: float) -> int:
            return pairs_needed(self.limit, apart, difference=true, confidence=confidence, power=power)

        if (num := number(0.0)) > self.num_images:
            return num
        return max(number(seen), self.num_images + 1) if seen < self.limit else None

    def needs(self, confidence: float, power: float) -> More | None:
        """The same with what it follows from."""
        num = self.needed(confidence, power)
        given = f"margin {100 * self.limit:g} points, {100 * self.likely_discordant:.2g} % disagreeing"
        return None if num is None else More(num=num, given=given)


def right(answers: Answers, evidence: Evidence) -> BoolArray:
    """Which images are answered right, bool [n]; an answer without a score is not."""
    return np.asarray(answers.classes == evidence.labels)
