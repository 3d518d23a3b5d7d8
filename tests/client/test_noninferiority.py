"""Tests against a limit: published intervals, errors counted out over all tables, and the images they need."""

from __future__ import annotations

import math

import numpy as np
import pytest

from temper.client.noninferiority import (
    paired_errors,
    paired_interval,
    paired_score,
    pairs_needed,
    rise_error,
    share_errors,
    share_interval,
    trials_needed,
)


@pytest.mark.parametrize(
    ("only_first", "only_second", "n", "low", "high"),
    [
        # Fagerland, Lydersen, Laake, "Recommended tests and confidence intervals for paired binomial proportions"
        # (Statistics in Medicine 2014), Tango's: airway hyper-responsiveness (Bentur 2009).
        (1, 7, 21, -0.517, -0.026),
        # Their book, "Statistical analysis of contingency tables" (2017), chapter 8: response (Cavo 2012).
        (6, 16, 161, -0.1240, -0.0054),
    ],
)
def test_paired_interval_equals_published_values(
    only_first: int, only_second: int, n: int, low: float, high: float
) -> None:
    digits = 5e-4 if abs(low) > 0.5 else 5e-5
    assert paired_interval(only_first, only_second, n) == pytest.approx((low, high), abs=digits)


@pytest.mark.parametrize("counts", [(1, 7, 21), (40, 20, 160), (12, 2, 50), (0, 4, 32), (5, 0, 450), (3, 1, 8)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_paired_interval_is_that_of_a_likelihood_maximised_by_hand(
    counts: tuple[int, int, int], confidence: float
) -> None:
    """At both ends the score, at the shares that scipy finds likeliest, is the normal quantile."""
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # ships none
    from scipy.stats import norm  # type: ignore[import-untyped]

    only_first, only_second, n = counts
    for end, sign in zip(paired_interval(*counts, confidence=confidence), (1, -1), strict=True):

        def unlikelihood(share: float, end: float = end) -> float:
            cells = [share + end, share, 1 - 2 * share - end]
            pairs = zip((only_first, only_second, n - only_first - only_second), cells, strict=True)
            return -sum(count * math.log(max(cell, 1e-300)) for count, cell in pairs if count)

        inside = (max(0.0, -end) + 1e-12, (1 - end) / 2 - 1e-12)
        share = minimize_scalar(unlikelihood, bounds=inside, method="bounded", options={"xatol": 1e-12}).x
        variance = n * (2 * share + end - end**2)
        score = (only_first - only_second - n * end) / math.sqrt(variance)
        assert score == pytest.approx(sign * norm.ppf((1 + confidence) / 2), abs=2e-3)


def test_paired_interval_turns_with_the_order_and_is_exact_at_the_ends() -> None:
    low, high = paired_interval(9, 2, 100)
    assert paired_interval(2, 9, 100) == pytest.approx((-high, -low), abs=1e-8)
    assert paired_interval(20, 0, 20)[1] == 1.0 and paired_interval(0, 20, 20)[0] == -1.0
    z = 1.959964  # no discordant pair at all: z^2 / (n + z^2)
    assert paired_interval(0, 0, 50) == pytest.approx((-(z**2) / (50 + z**2), z**2 / (50 + z**2)), abs=1e-6)


def test_without_a_difference_the_score_is_mcnemars() -> None:
    assert paired_score(16, 6, 161, 0.0) == pytest.approx(10 / math.sqrt(22))
    assert paired_score([0, 5], [0, 5], 50, 0.0).tolist() == [0.0, 0.0]
    assert paired_score([4, 5], [0, 0], 5, 1.0).tolist() == [-math.inf, 0.0]


def size_of(n: int, limit: float, discordant: float, error: float) -> tuple[float, float]:
    """The probability of either finding with a true difference at the limit, summed over all tables."""
    from scipy.stats import binom

    first, second = (discordant + limit) / 2, (discordant - limit) / 2
    below = above = 0.0
    for losses in range(n + 1):
        chance = binom.pmf(losses, n, first)
        if chance < 1e-6:
            continue
        for wins in range(n - losses + 1):
            both = chance * binom.pmf(wins, n - losses, second / (1 - first))
            if both > 1e-7:
                errors = paired_errors(losses, wins, n, limit)
                below, above = below + both * (errors[0] <= error), above + both * (errors[1] <= error)
    return below, above


@pytest.mark.parametrize(
    ("n", "limit", "discordant"),
    [
        (30, 0.03, 0.23),
        (100, 0.03, 0.03),
        (100, 0.03, 0.04),
        (100, 0.005, 0.02),
        (545, 0.005, 0.005),
        (545, 0.005, 0.009),
    ],
)
@pytest.mark.parametrize("error", [0.05, 0.005])
def test_paired_errors_are_kept_at_the_limit(n: int, limit: float, discordant: float, error: float) -> None:
    """Counted out over 30 to 545 images and up to 20 % discordant: never above 0.0505, and 0.0056 at 0.005.

    The normal distribution would err in 6.5 % (below, 545 images, no wins) and 8.8 % (above, 100 images, 4 %).
    """
    below, above = size_of(n, limit, discordant, error)
    assert max(below, above) <= 1.02 * error + 0.0006


@pytest.mark.parametrize("counts", [(2, 0, 3), (1, 1, 4), (0, 3, 6), (3, 1, 5)])
def test_paired_errors_are_the_tails_over_all_tables(counts: tuple[int, int, int]) -> None:
    """Against a sum written out: multinomial coefficients, and a share found by trying all."""
    (only_first, only_second, n), limit = counts, 0.2
    grid = np.linspace(1e-9, (1 - limit) / 2 - 1e-9, 400_001)
    likelihood = (
        only_first * np.log(grid + limit)
        + only_second * np.log(grid)
        + (n - only_first - only_second) * np.log(1 - 2 * grid - limit)
    )
    share = float(grid[likelihood.argmax()])
    seen, tails = float(paired_score(only_first, only_second, n, limit)), [0.0, 0.0]
    for first in range(n + 1):
        for second in range(n - first + 1):
            chance = float(math.comb(n, first) * math.comb(n - first, second))
            chance *= (share + limit) ** first * share**second * (1 - 2 * share - limit) ** (n - first - second)
            score = float(paired_score(first, second, n, limit))
            tails[0] += chance * (score <= seen + 1e-9)
            tails[1] += chance * (score >= seen - 1e-9)
    assert paired_errors(*counts, limit) == pytest.approx(tails, abs=1e-4)


@pytest.mark.parametrize(("only_first", "only_second", "n"), [(500, 400, 50_000), (0, 0, 20_000), (3, 3, 3_000)])
def test_paired_errors_of_many_images_are_near_the_normal_ones(only_first: int, only_second: int, n: int) -> None:
    from scipy.stats import norm

    below, above = paired_errors(only_first, only_second, n, 0.0025)
    score = float(paired_score(only_first, only_second, n, 0.0025))
    assert below == pytest.approx(norm.cdf(score), abs=0.01) and above == pytest.approx(norm.sf(score), abs=0.01)


@pytest.mark.parametrize(
    ("limit", "discordant", "difference"),
    [(0.005, 0.01, 0.0), (0.005, 0.03, 0.0), (0.03, 0.05, 0.01), (0.03, 0.02, 0.0), (0.005, 0.0, 0.0)],
)
def test_as_many_pairs_as_are_needed_find_it_four_times_of_five(
    limit: float, discordant: float, difference: float
) -> None:
    n, rng = pairs_needed(limit, discordant, difference=difference), np.random.default_rng(0)
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    found = [
        paired_errors(int(first), int(second), n, limit)[0] <= 0.05
        for first, second, _ in rng.multinomial(n, shares, size=400)
    ]
    assert np.mean(found) == 1.0 if discordant == 0 else 0.74 <= np.mean(found) <= 0.88


def test_pairs_needed_is_nams_and_somewhat_more_than_the_rule_of_thumb() -> None:
    rule_of_thumb = (1.645 + 0.842) ** 2 * 0.01 / 0.005**2
    assert pairs_needed(0.005, 0.01) == 2800 > rule_of_thumb == pytest.approx(2474, abs=1)
    assert pairs_needed(0.005, 0.01, difference=0.002) > 2 * 2800
    # Without a discordant pair at all: (1 - limit)^n is the error.
    assert pairs_needed(0.005, 0.0) == 598 and (1 - 0.005) ** 598 <= 0.05 < (1 - 0.005) ** 597


@pytest.mark.parametrize(
    ("successes", "n", "confidence", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 5.
        (81, 263, 0.95, 0.2527, 0.3676),
        (15, 148, 0.95, 0.0578, 0.1617),
        (0, 20, 0.95, 0.0, 0.1684),
        (1, 29, 0.95, 0.0009, 0.1776),
        (0, 100, 0.90, 0.0, 1 - 0.05**0.01),
    ],
)
def test_share_interval_equals_published_values(
    successes: int, n: int, confidence: float, low: float, high: float
) -> None:
    assert share_interval(successes, n, confidence=confidence) == pytest.approx((low, high), abs=5e-5)
    assert share_interval(n - successes, n, confidence=confidence) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("n", [30, 300, 545, 2000])
def test_share_errors_are_kept_where_wilsons_are_not(n: int) -> None:
    from scipy.stats import binom

    from temper.client.stats import wilson_interval

    exact, wilson = [], []
    for share in np.linspace(0.001, 0.02, 77):
        chance = binom.pmf(np.arange(n + 1), n, share)
        few = range(min(n, int(n * share)) + 1)  # none above says that the share lies below
        exact.append(sum(chance[k] for k in few if share_errors(k, n, float(share))[0] <= 0.05))
        wilson.append(sum(chance[k] for k in few if wilson_interval(k, n, confidence=0.9)[1] <= share))
    assert max(exact) <= 0.05 and (n < 300 or max(wilson) > 0.055)


@pytest.mark.parametrize(("limit", "share"), [(0.01, 0.0), (0.01, 0.004), (0.2, 0.1)])
def test_as_many_trials_as_are_needed_find_it_four_times_of_five(limit: float, share: float) -> None:
    from scipy.stats import binom

    n = trials_needed(limit, share)
    most = max(k for k in range(n + 1) if binom.cdf(k, n, limit) <= 0.05)
    assert 0.8 <= binom.cdf(most, n, share) and (share == 0 or binom.cdf(most, n, share) < 0.86)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_errors(3, 3, 5, 0.1), "got 3 and 3 of 5, expected counts of at least 0 that"),
        (lambda: paired_interval(-1, 3, 5), "got -1 and 3 of 5"),
        (lambda: paired_interval(1, 3, 5, confidence=95), "confidence: got 95, expected a number between 0 and 1"),
        (lambda: paired_errors(1, 3, 5, 1.0), "limit: got 1.0, expected a difference of shares between -1 and 1"),
        (lambda: pairs_needed(0.005, 0.01, difference=0.005), "expected .* max.difference, 0. < limit < 1"),
        (lambda: pairs_needed(0.005, 0.001, difference=0.002), "expected .difference. <= discordant"),
        (lambda: share_errors(3, 2, 0.1), "successes: got 3 of 2, expected 0 to n, and n at least 1"),
        (lambda: share_errors(1, 2, 1.5), "limit: got 1.5, expected a number between 0 and 1"),
        (lambda: trials_needed(0.01, 0.01), "got 0.01 and 0.01, expected 0 <= share < limit < 1"),
    ],
)
def test_impossible_figures_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("first", "num_first", "second", "num_second"),
    [(0, 100, 3, 3), (8, 100, 3, 3), (2, 30, 9, 41), (0, 500, 60, 2000), (40, 500, 170, 2000), (3, 10, 10, 10)],
)
def test_rise_error_is_fishers(first: int, num_first: int, second: int, num_second: int) -> None:
    from scipy.stats import fisher_exact  # type: ignore[import-untyped]  # ships none

    table = [[second, num_second - second], [first, num_first - first]]
    expected = fisher_exact(table, alternative="greater").pvalue
    found = rise_error(first, num_first, second, num_second)
    assert found == pytest.approx(expected, rel=1e-6) if second * num_first > first * num_second else found == 1


def test_rise_error_without_trials_says_nothing() -> None:
    assert (rise_error(0, 0, 5, 5), rise_error(0, 9, 0, 0), rise_error(0, 10**6, 10**6, 10**6)) == (1, 1, 0)
    with pytest.raises(ValueError, match="successes: got 3 of 2 and 0 of 1, expected 0 to n"):
        rise_error(3, 2, 0, 1)
