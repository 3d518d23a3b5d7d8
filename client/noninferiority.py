"""Is one of two no worse than a limit allows? Tests against a limit, and the images that they need.

A paired difference is first minus second throughout: what is lost where the second takes the first one's place.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_REACH = 9.0
"""Standard deviations around the mean outside which a table's probability is nothing."""
_BLOCK = 1 << 16  # tables counted at once
_MAX_EXACT = 1_000_000
"""Trials up to which a power is counted out; the normal approximation is as good beyond."""


def paired_score(only_first: npt.ArrayLike, only_second: npt.ArrayLike, n: int, difference: float) -> Floats:
    """Return Tango's score statistic: how far an observed difference lies from a true one, about standard normal.

    Args:
        only_first: images that only the first gets right; any shape.
        only_second: images that only the second gets right; the same shape.
        n: images judged by both.
        difference: the true difference, -1 to 1.

    Returns:
        float64 of that shape, above 0 where the observed difference lies above; infinite where what was observed
        is impossible.

    Source: T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998), 891-908.
    """
    first, second = np.asarray(only_first, dtype=np.float64), np.asarray(only_second, dtype=np.float64)
    away = first - second - n * difference
    variance = n * (2 * _fitted(first, second, n, difference) + difference * (1 - difference))
    # Without variance only the difference itself is possible; rounding leaves a trace of both.
    some = variance > 1e-12
    alone = np.where(np.abs(away) < 1e-9, 0.0, np.copysign(np.inf, away))
    return np.where(some, away / np.sqrt(np.where(some, variance, 1.0)), alone)


def _fitted(first: Floats, second: Floats, n: int, difference: float) -> Floats:
    """The likeliest share of images that only the second gets right, of all that go with a difference."""
    linear = -first - second + (2 * n - first + second) * difference
    constant = -second * difference * (1 - difference)
    root = np.sqrt(np.maximum(linear * linear - 8 * n * constant, 0.0))
    return np.asarray(np.maximum((root - linear) / (4 * n), max(0.0, -difference)))


def paired_interval(only_first: int, only_second: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Tango's score interval of a paired difference of shares; either end alone is a one-sided bound.

    Args:
        only_first: images that only the first gets right.
        only_second: images that only the second gets right.
        n: images judged by both, at least 1.
        confidence: two-sided coverage; an end alone has (1 + confidence) / 2.

    Raises:
        ValueError: impossible counts or confidence.
    """
    _check_pairs(only_first, only_second, n)
    z = _quantile((1 + _checked("confidence", confidence)) / 2)

    def bound(wanted: float) -> float:
        low, high = -1.0, 1.0
        while high - low > 1e-9:  # the statistic falls as the difference rises
            middle = (low + high) / 2
            above = float(paired_score(only_first, only_second, n, middle)) > wanted
            low, high = (middle, high) if above else (low, middle)
        return round((low + high) / 2, 9)

    return bound(z), bound(-z)


def paired_errors(only_first: int, only_second: int, n: int, limit: float) -> tuple[float, float]:
    """Return the errors (p-values) of saying that the true difference lies below a limit, and that it lies above.

    It is the probability, with a true difference of `limit`, of a table whose score is at least as extreme,
    counted out over all tables, at the likeliest share of the images that the two judge otherwise. By the normal
    distribution the same statistic errs in up to 9 % where it says 5, when few images tell the two apart; so it
    stays below 5.1 (tests/client/test_noninferiority.py).

    Args:
        only_first: images that only the first gets right.
        only_second: images that only the second gets right.
        n: images judged by both, at least 1.
        limit: of the difference, between -1 and 1.

    Raises:
        ValueError: impossible counts or limit.

    Source: C. J. Lloyd, M. V. Moldovan, "A more powerful exact test of noninferiority from binary matched-pairs
    data", Statistics in Medicine 27 (2008), 3540-3549: the estimated p-value.
    """
    _check_pairs(only_first, only_second, n)
    if not -1 < limit < 1:
        raise ValueError(f"limit: got {limit}, expected a difference of shares between -1 and 1")
    seen = float(paired_score(only_first, only_second, n, limit))
    share = float(_fitted(np.array(only_first, float), np.array(only_second, float), n, limit))
    first, second = _likely(n, share + limit), _likely(n, share)
    factorial = _log_factorials(n)
    below = above = 0.0
    rows = max(1, _BLOCK // len(second))
    for start in range(0, len(first), rows):
        some = first[start : start + rows, None]
        score = paired_score(some, second, n, limit)
        chance = np.exp(_log_trinomial(factorial, some, second, share + limit, share))
        below += float(chance[score <= seen + 1e-9].sum())
        above += float(chance[score >= seen - 1e-9].sum())
    return min(1.0, below), min(1.0, above)


def _likely(n: int, share: float) -> npt.NDArray[np.int64]:
    """The counts of n trials that occur at all."""
    around = _REACH * math.sqrt(n * share) + _REACH
    return np.arange(max(0, math.floor(n * share - around)), min(n, math.ceil(n * share + around)) + 1)


def _log_trinomial(
    factorial: Floats, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], one: float, two: float
) -> Floats:
    n = len(factorial) - 1
    rest, neither = n - first - second, 1 - one - two
    with np.errstate(divide="ignore", invalid="ignore"):
        power = [
            np.where(count > 0, count * np.log(max(share, 0.0)), 0.0)
            for count, share in ((first, one), (second, two), (rest, neither))
        ]
    found = factorial[n] - factorial[first] - factorial[second] - factorial[np.maximum(rest, 0)] + sum(power)
    return np.where(rest >= 0, found, -np.inf)


def _log_factorials(n: int) -> Floats:
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))))


def pairs_needed(
    limit: float, discordant: float, *, difference: float = 0.0, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Return how many images it takes to say that a paired difference lies below a limit.

    Args:
        limit: of the difference, above 0 and below 1.
        discordant: share of the images that the two judge otherwise, at least the size of the difference.
        difference: the true one, below the limit.
        confidence: 1 minus the one-sided error of saying so where it is not.
        power: probability of saying so.

    Raises:
        ValueError: the shares are not possible.

    Source: J.-M. Nam, "Establishing equivalence of two treatments and sample size requirements in matched-pairs
    design", Biometrics 53 (1997), 1422-1430: the variance is that of Tango's statistic, which is larger than the
    observed one, so it asks for some more than (z + z')^2 discordant / limit^2, and reaches the power.
    """
    if not abs(difference) <= discordant <= 1 or not max(difference, 0) < limit < 1:
        raise ValueError(
            f"limit, discordant and difference: got {limit:g}, {discordant:g} and {difference:g}, "
            "expected |difference| <= discordant <= 1 and max(difference, 0) < limit < 1"
        )
    first, second = (discordant + difference) / 2, (discordant - difference) / 2
    fitted = 2 * float(_fitted(np.array(first), np.array(second), 1, limit)) + limit * (1 - limit)
    alpha, beta = _quantile(_checked("confidence", confidence)), _quantile(_checked("power", power))
    spread = alpha * math.sqrt(fitted) + beta * math.sqrt(discordant - difference**2)
    # With fewer, not even a table without a difference says so.
    least = math.log(1 - confidence) / math.log(1 - limit)
    return math.ceil(max((spread / (limit - difference)) ** 2, least))


def share_errors(successes: int, n: int, limit: float) -> tuple[float, float]:
    """Return the exact errors (p-values) of saying that a share lies below a limit, and that it lies above.

    Wilson's bound would err in 6.7 % of samples where it says 5, with a share near 0.

    Raises:
        ValueError: impossible counts or limit.

    Source: C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 26 (1934), 404-413.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes: got {successes} of {n}, expected 0 to n, and n at least 1")
    chance = _binomial(n, _checked("limit", limit))
    return min(1.0, float(chance[: successes + 1].sum())), min(1.0, float(chance[successes:].sum()))


def share_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share; either end alone is a one-sided bound.

    Raises:
        ValueError: impossible counts or confidence.
    """
    error = (1 - _checked("confidence", confidence)) / 2

    def bound(side: int) -> float:
        low, high = 0.0, 1.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            inside = share_errors(successes, n, middle)[side] > error
            low, high = (middle, high) if inside == (side == 0) else (low, middle)
        return round((low + high) / 2, 9)

    return 0.0 if successes == 0 else bound(1), 1.0 if successes == n else bound(0)


def rise_error(first: int, num_first: int, second: int, num_second: int) -> float:
    """Return the exact error (p-value) of saying that the second share lies above the first.

    Args:
        first: successes in the first sample.
        num_first: its trials.
        second: successes in the second sample.
        num_second: its trials; no trials say nothing, and give 1.

    Raises:
        ValueError: impossible counts.

    Source: R. A. Fisher, "The logic of inductive inference", Journal of the Royal Statistical Society 98 (1935),
    39-82: the exact test of a table of two by two.
    """
    if not 0 <= first <= num_first or not 0 <= second <= num_second:
        raise ValueError(f"successes: got {first} of {num_first} and {second} of {num_second}, expected 0 to n")
    if second * num_first <= first * num_second:
        return 1.0
    total = first + second
    chance = _choose(num_first, first) + _choose(num_second, second) - _choose(num_first + num_second, total)
    term = error = math.exp(chance)
    # Above the mean of the tables with these sums the terms only fall.
    for count in range(second, min(total, num_second)):
        term *= (num_second - count) * (total - count) / ((count + 1) * (num_first - total + count + 1))
        error += term
        if term < 1e-9 * error:
            break
    return min(1.0, error)


def _choose(n: int, k: int) -> float:
    """The logarithm of a binomial coefficient."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def trials_needed(limit: float, share: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Return how many images it takes to say by `share_errors` that a share lies below a limit.

    Args:
        limit: of the share, between 0 and 1.
        share: the true one, below the limit.
        confidence: 1 minus the error of saying so where it is not.
        power: probability of saying so.

    Raises:
        ValueError: the shares are not possible.
    """
    if not 0 <= share < limit < 1:
        raise ValueError(f"share and limit: got {share:g} and {limit:g}, expected 0 <= share < limit < 1")
    alpha, beta = _quantile(_checked("confidence", confidence)), _quantile(_checked("power", power))
    spread = alpha * math.sqrt(limit * (1 - limit)) + beta * math.sqrt(share * (1 - share))
    n = math.ceil((spread / (limit - share)) ** 2)
    while n < _MAX_EXACT:
        said = np.cumsum(_binomial(n, limit)) <= 1 - confidence
        if _binomial(n, share)[said].sum() >= power:
            break
        n = math.ceil(1.01 * n)
    return n


def _binomial(n: int, share: float) -> Floats:
    """float64 [n + 1], the probability of each count."""
    counts, factorial = np.arange(n + 1), _log_factorials(n)
    if share <= 0:
        return np.asarray(counts == 0, dtype=np.float64)
    logs = counts * math.log(share) + (n - counts) * math.log1p(-share)
    return np.asarray(np.exp(factorial[n] - factorial - factorial[::-1] + logs))


def _quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)


def _checked(name: str, value: Any) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name}: got {value}, expected a number between 0 and 1")
    return float(value)


def _check_pairs(only_first: int, only_second: int, n: int) -> None:
    if n < 1 or min(only_first, only_second) < 0 or only_first + only_second > n:
        raise ValueError(
            f"discordant pairs: got {only_first} and {only_second} of {n}, expected counts of at least 0 that "
            "are no more than the images together"
        )
