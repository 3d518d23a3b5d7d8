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
        """Compares the errors by a paired bootstrap, the shares image by image.

        Images that either of the two gave no score are left out.
        """
        sides = (evidence.reference, evidence.candidate)
        sure = [one.confidence for one in sides if one.confidence is not None]
        if len(sure) < len(sides):
            return [self.nothing("an endpoint answers no probabilities")]
        scored = np.isfinite(sure[0]) & np.isfinite(sure[1])
        if not scored.any():
            return [self.nothing("no image has scores of both")]
        before, after = (one[scored] for one in sure)
        parts = [
            _parts(one, right(answers, evidence)[scored])
            for one, answers in zip((before, after), sides, strict=True)
        ]
        return [self._error(np.stack(parts), confidence), *self._shares(before, after, confidence)]

    def _error(self, parts: npt.NDArray[np.float64], confidence: float) -> Look:
        """The look at the error, from float64 [2, bins, n]."""
        n = parts.shape[-1]
        seen = _difference(parts.mean(axis=-1))
        drawn = _difference(bootstrap_means(parts).transpose(2, 0, 1))
        # A mean of absolute values is too large by what chance adds to it, in a resample as in the sample.
        drawn = drawn - 2 * (drawn.mean() - seen)
        low, high = np.quantile(drawn, [1 - confidence, confidence])
        figure, spread = float(seen), float(drawn.std())

        def needs(confidence: float, power: float) -> More | None:
            wide = (NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)) * spread * math.sqrt(n)
            given = f"margin {self.max_increase:g}, a spread as the bootstrap's"
            if (num := math.ceil((wide / self.max_increase) ** 2)) > n:
                return More(num=num, given=given)
            if figure >= self.max_increase:
                return None
            num = math.ceil((wide / (self.max_increase - max(figure, 0.0))) ** 2)
            return More(num=max(num, n + 1), given=given)

        return self.look(
            figure=figure,
            low=float(low),
            high=float(high),
            num_images=n,
            kept=float(1 + np.count_nonzero(drawn >= self.max_increase)) / (1 + len(drawn)),
            broken=float(1 + np.count_nonzero(drawn <= self.max_increase)) / (1 + len(drawn)),
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


def _difference(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Candidate's error minus the reference's, from float64 [..., 2, bins]."""
    errors = np.abs(means).sum(axis=-1)
    return np.asarray(errors[..., 1] - errors[..., 0])
