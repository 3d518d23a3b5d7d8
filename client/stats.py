"""Proportions with their uncertainty, and the paired comparison of two variants on the same images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
_CLEAR, _TIMES = 0.1, 2.0
"""An accuracy that may lie this share of the way from chance to 1, or is at least so many times chance, lies
clearly above it."""


class Proportion(TypedDict):
    """A share of images between 0 and 1 with its Wilson 95 % interval, ready for JSON."""

    value: float
    low: float
    high: float
    num_images: int


class Estimate(TypedDict):
    """A figure with its 95 % interval, ready for JSON."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial proportion.

    Unlike the normal interval it stays inside [0, 1] and keeps its coverage near 0 % and 100 %.

    Args:
        successes: number of successes, 0 to n.
        n: number of trials, at least 1.
        confidence: two-sided coverage, between 0 and 1.

    Returns:
        Lower and upper bound, both in [0, 1].

    Raises:
        ValueError: n < 1, successes outside 0..n, or confidence outside (0, 1).

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1 trial")
    if not 0 <= successes <= n:
        raise ValueError(f"successes: got {successes}, expected 0 to {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, expected a number between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the bound is exactly 0 or 1; rounding would leave 1e-17 instead.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def proportion(hits: BoolArray) -> Proportion:
    """Return the share of True in a non-empty vector with its 95 % interval.

    Raises:
        ValueError: the vector is empty.
    """
    successes, n = int(np.count_nonzero(hits)), int(hits.size)
    low, high = wilson_interval(successes, n)
    return Proportion(value=successes / n, low=low, high=high, num_images=n)


def is_above_chance(low: float, high: float, chance: float) -> bool:
    """Tell whether an accuracy, by the ends of its interval, lies clearly above what a constant answer gets right.

    Of many classes little above it may still be many times as much.
    """
    return high > chance + _CLEAR * (1 - chance) or low > _TIMES * chance


def proportion_per_class(hits: BoolArray, labels: npt.NDArray[np.integer[Any]]) -> dict[int, Proportion]:
    """Return the share of True among the images of each class that occurs in `labels`, by class index."""
    return {int(label): proportion(hits[labels == label]) for label in np.unique(labels)}


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two variants judged on the same images; every difference is second minus first."""

    difference: float
    """share of True in the second minus the share in the first, -1 to 1"""
    low: float
    """lower end of the 95 % interval of the difference"""
    high: float
    """upper end of the 95 % interval of the difference"""
    p_value: float
    """exact two-sided McNemar test of "no difference" """
    num_images: int
    """images judged by both"""
    num_only_first: int
    """images that only the first gets right"""
    num_only_second: int
    """images that only the second gets right"""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return asdict(self)


def compare_paired(first: npt.ArrayLike, second: npt.ArrayLike) -> PairedComparison:
    """Compare two variants on the same images.

    Args:
        first: bool [N], True where the first variant is right (or survived the attack).
        second: bool [N], the same images in the same order for the second variant.

    Returns:
        The difference second - first with its 95 % interval (Newcombe's score method for paired data) and the
        exact two-sided McNemar p-value.

    Raises:
        ValueError: the vectors are empty, not one-dimensional, or of different lengths.

    Source: Q. McNemar, Psychometrika 1947; R. G. Newcombe, "Improved confidence intervals for the difference
    between binomial proportions based on paired data", Statistics in Medicine 17 (1998), method 10.
    """
    one, two = np.asarray(first, dtype=np.bool_), np.asarray(second, dtype=np.bool_)
    if one.ndim != 1 or one.shape != two.shape:
        raise ValueError(
            f"paired vectors: got shapes {one.shape} and {two.shape}, expected one answer per image from both"
        )
    if one.size == 0:
        raise ValueError("paired comparison: got no images, expected at least 1")
    both = int(np.count_nonzero(one & two))
    only_first = int(np.count_nonzero(one & ~two))
    only_second = int(np.count_nonzero(two & ~one))
    neither = int(one.size) - both - only_first - only_second
    low, high = _newcombe_paired(both, only_second, only_first, neither)
    return PairedComparison(
        difference=(only_second - only_first) / one.size,
        low=low,
        high=high,
        p_value=mcnemar_exact(only_first, only_second),
        num_images=int(one.size),
        num_only_first=only_first,
        num_only_second=only_second,
    )


def images_needed(difference: float, discordant: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Return how many images a paired comparison needs to find a difference of two accuracies.

    Args:
        difference: of the shares, other than 0.
        discordant: share of the images that the two judge otherwise, at least the size of the difference.
        confidence: 1 - the two-sided error of finding a difference where there is none.
        power: probability of finding it.

    Raises:
        ValueError: the shares are not possible.

    Source: R. J. Connor, "Sample size for testing differences in proportions for the paired-sample design",
    Biometrics 43 (1987), 207-211.
    """
    if not 0 < abs(difference) <= discordant <= 1:
        raise ValueError(
            f"difference and discordant: got {difference:g} and {discordant:g}, "
            "expected 0 < difference <= discordant <= 1"
        )
    alpha, beta = NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(power)
    spread = alpha * math.sqrt(discordant) + beta * math.sqrt(discordant - difference**2)
    return math.ceil((spread / difference) ** 2)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the exact two-sided McNemar p-value of two counts of discordant pairs.

    It is twice the lower tail of Binomial(only_first + only_second, 1/2), at most 1.

    Raises:
        ValueError: a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"discordant pairs: got {only_first} and {only_second}, expected counts of at least 0")
    n, fewer = only_first + only_second, min(only_first, only_second)
    # In logarithms, because 2**-n underflows above a thousand pairs.
    k = np.arange(1, fewer + 1, dtype=np.float64)
    log_terms = np.concatenate(([0.0], np.cumsum(np.log((n - k + 1) / k)))) - n * math.log(2)
    return min(1.0, 2 * float(np.exp(log_terms).sum()))


def _newcombe_paired(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of share(a) - share(b): Wilson's two intervals joined through their correlation."""
    n = both + only_a + only_b + neither
    share_a, share_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson_interval(both + only_a, n)
    low_b, high_b = wilson_interval(both + only_b, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = float(both * neither - only_a * only_b)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)  # the method's continuity correction
    phi = covariance / math.sqrt(margins) if margins else 0.0
    below_a, above_a = share_a - low_a, high_a - share_a
    below_b, above_b = share_b - low_b, high_b - share_b
    down = math.sqrt(max(below_a**2 - 2 * phi * below_a * above_b + above_b**2, 0.0))
    up = math.sqrt(max(above_a**2 - 2 * phi * above_a * below_b + below_b**2, 0.0))
    return share_a - share_b - down, share_a - share_b + up


_RESAMPLES = 2000
_CHUNK = 100


def bootstrap_means(values: npt.NDArray[np.floating[Any]], seed: int = 0) -> npt.NDArray[np.float64]:
    """Return float64 [..., 2000]: the means over samples drawn from the images with replacement.

    One call resamples all rows alike, so that what is made of several rows stays paired.

    Args:
        values: [..., n], one value per image.
        seed: of the draws.

    Source: B. Efron, R. J. Tibshirani, "An introduction to the bootstrap", 1993.
    """
    n, rng = values.shape[-1], np.random.default_rng(seed)
    # In parts, as the counts of all samples are 2000 n numbers.
    parts = [
        values @ rng.multinomial(n, np.full(n, 1 / n), size=_CHUNK).T / n for _ in range(_RESAMPLES // _CHUNK)
    ]
    return np.concatenate(parts, axis=-1)


def estimate(value: float, resampled: npt.NDArray[np.float64]) -> Estimate:
    """Return a figure with the 95 % percentile interval of its resamples, float64 [r]."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high))


def bootstrap_mean(values: npt.NDArray[np.floating[Any]]) -> Estimate:
    """Return the mean of one value per image, [n], with its 95 % interval by resampling the images."""
    return estimate(float(values.mean()), bootstrap_means(values))
