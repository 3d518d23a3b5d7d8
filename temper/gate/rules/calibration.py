"""Whether the answered probabilities still mean what they meant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from temper.client.stats import bootstrap_means
from temper.gate.evidence import BoolArray, Evidence, Float32Array
from temper.gate.rules.base import POINTS, Look, More, Rule, check_points, check_share
from temper.gate.rules.paired import Drop, right

NUM_BINS = 15
"""Equal in width."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRule(Rule):
    """How much the expected calibration error may rise, and how many confident answers may be lost.

    Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
    arXiv:1706.04599.
    """

    title: ClassVar[str] = "rise of the calibration error"

    max_increase: float
    """Of the expected calibration error, which is a share between 0 and 1 (15 bins of equal width)."""
    threshold: float | None = None
    """A probability, between 0 and 1, at which an answer is taken without a second look; not looked at when not
    given."""
    max_share_drop: float | None = None
    """With `threshold`: percentage points, 0.05 to 100, that the share of answers at least so sure may lose."""

    def __post_init__(self) -> None:
        """Checks all of them."""
        check_share("max_increase", self.max_increase, "0.01 for a point")
        if (self.threshold is None) != (self.max_share_drop is None):
            raise ValueError("threshold: got one of threshold and max_share_drop, expected both or none")
        if self.threshold is not None:
            check_share("threshold", self.threshold, "0.9")
        if self.max_share_drop is not None:
            check_points("max_share_drop", self.max_share_drop)

    @property
    def limit(self) -> float:
        """A share."""
        return self.max_increase

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Compares the errors with the spread of a paired bootstrap, the shares image by image.

        Images that the reference gave no score are left out; one that the candidate gave none has no probability.
        """
        sides = (evidence.reference, evidence.candidate)
        sure = [one.confidence for one in sides if one.confidence is not None]
        if len(sure) < len(sides):
            return [self.nothing("an endpoint answers no probabilities")]
        scored = np.isfinite(sure[0])
        if not scored.any():
            return [self.nothing("no image has scores of the reference")]
        # Without a score it is as wrong as sure: the worst that an answer can be.
        before, after = sure[0][scored], np.nan_to_num(sure[1][scored], nan=1.0)
        parts = [
            _parts(one, right(answers, evidence)[scored])
            for one, answers in zip((before, after), sides, strict=True)
        ]
        return [self._error(np.stack(parts), confidence), *self._shares(before, sure[1][scored], confidence)]

    def _error(self, parts: npt.NDArray[np.float64], confidence: float) -> Look:
        """The look at the error, from float64 [2, bins, n]."""
        n, means = parts.shape[-1], parts.mean(axis=-1)
        errors = np.abs(means).sum(axis=-1)
        figure = float(errors[1] - errors[0])
        resampled = np.abs(bootstrap_means(parts)).sum(axis=1)
        spread = float((resampled[1] - resampled[0]).std())
        noise = parts.std(axis=-1) / math.sqrt(n)
        most, least = _most(means[1], means[0], noise[0]), -_most(means[0], means[1], noise[1])
        reach = NormalDist().inv_cdf(confidence) * spread
        # With few images a rise may show in none of them, and there is no spread to tell.
        unseen = (1 - self.max_increase) ** n

        def needs(confidence: float, power: float) -> More | None:
            normal, seen = NormalDist(), max(figure, 0.0)
            fewest = math.ceil(math.log(1 - confidence) / math.log(1 - self.max_increase))
            # Of all that is added to what was seen, both parts shrink as the root of the images.
            wide = (normal.inv_cdf(confidence) + normal.inv_cdf(power)) * spread + max(most - figure, 0.0)
            for true in (0.0, seen):
                if (
                    true < self.max_increase
                    and (num := max(fewest, math.ceil(n * (wide / (self.max_increase - true)) ** 2))) > n
                ):
                    return More(num=num, given=f"margin {self.max_increase:g}, a spread as in these images")
            return More(num=n + 1, given="more than these") if seen < self.max_increase else None

        return self.look(
            figure=figure,
            low=least - reach,
            high=most + reach,
            num_images=n,
            kept=max(_beyond(self.max_increase - most, spread), unseen),
            broken=max(_beyond(least - self.max_increase, spread), unseen),
            needs=needs,
        )

    def _shares(self, before: Float32Array, after: Float32Array, confidence: float) -> Sequence[Look]:
        if self.threshold is None or self.max_share_drop is None:
            return []
        drop = Drop.of(before >= self.threshold, after >= self.threshold, self.max_share_drop)
        return [
            Look(
                name=f"drop of the share of answers with a probability of {self.threshold:g} or more",
                limit=self.max_share_drop,
                unit=POINTS,
                **drop.found(confidence),
                needs=drop.needs,
            )
        ]


def _parts(sure: Float32Array, hits: BoolArray) -> npt.NDArray[np.float64]:
    """Confidence minus accuracy of each image in its bin's row, 0 elsewhere, float64 [bins, n]."""
    bins = np.clip(np.ceil(NUM_BINS * sure.astype(np.float64)).astype(np.int64) - 1, 0, NUM_BINS - 1)
    return np.where(np.arange(NUM_BINS)[:, None] == bins, sure - hits, 0.0)


def _most(error: npt.NDArray[np.float64], other: npt.NDArray[np.float64], noise: npt.NDArray[np.float64]) -> float:
    """How much larger the first error may be than another, but for its spread, of float64 [bins] each.

    An estimated error is too large by what chance adds to the absolute value of each bin: up to sqrt(2 / pi) of
    its standard error where the truth is 0, nothing where it is far from 0. So a well calibrated model's may be
    smaller than it looks by as much, and the plain difference hides that. But two sums of absolute values lie no
    further apart than the values do, which is the closer bound for two that answer alike.
    """
    added = math.sqrt(2 / math.pi) * noise
    return float(min(np.abs(error - other).sum(), (np.abs(error) - np.abs(other) + added).sum()))


def _beyond(distance: float, spread: float) -> float:
    """The normal error of saying that the truth lies on this side of a limit."""
    if spread <= 0:
        return 0.0 if distance > 0 else 1.0
    return NormalDist().cdf(-distance / spread)
