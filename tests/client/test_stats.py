from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.stats import (
    compare_paired,
    images_needed,
    mcnemar_exact,
    proportion,
    proportion_per_class,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_equals_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_exact_at_the_ends_and_contains_the_share() -> None:
    for n in (1, 3, 10, 1000):
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0
        for successes in range(0, n + 1, max(1, n // 7)):
            low, high = wilson_interval(successes, n)
            assert 0.0 <= low <= successes / n <= high <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "n: got 0, expected at least 1 trial"),
        ((5, 4), "successes: got 5, expected 0 to 4"),
        ((-1, 4), "successes: got -1, expected 0 to 4"),
    ],
)
def test_wilson_interval_refuses_impossible_counts(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson_interval(*arguments)


def test_wilson_interval_refuses_a_confidence_in_percent() -> None:
    with pytest.raises(ValueError, match="confidence: got 95, expected a number between 0 and 1"):
        wilson_interval(1, 2, confidence=95)


def test_proportion_per_class_splits_by_label() -> None:
    hits = np.array([True, False, True, True])
    per_class = proportion_per_class(hits, np.array([3, 3, 0, 0]))
    assert list(per_class) == [0, 3]
    assert per_class[0]["value"] == 1.0 and per_class[0]["num_images"] == 2
    assert per_class[3] == proportion(np.array([True, False]))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024), (9, 1, 22 / 1024)],
)
def test_mcnemar_exact_equals_hand_counted_tails(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p_value, rel=1e-12)


def test_mcnemar_exact_with_thousands_of_pairs_does_not_underflow_or_exceed_one() -> None:
    assert 0.3 < mcnemar_exact(4950, 5050) < 0.4
    assert mcnemar_exact(5000, 5000) == 1.0
    with pytest.raises(ValueError, match="discordant pairs: got -1 and 2, expected counts of at least 0"):
        mcnemar_exact(-1, 2)


def paired(
    both: int, only_first: int, only_second: int, neither: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    counts = [both, only_first, only_second, neither]
    return (
        np.repeat([True, True, False, False], counts),
        np.repeat([True, False, True, False], counts),
    )


@pytest.mark.parametrize(
    ("cells", "difference", "low", "high"),
    [
        # Newcombe, paired data (1998), method 10; cells are both, only second, only first, neither.
        ((36, 12, 2, 0), 0.2000, 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.2000, 0.0562, 0.3292),
    ],
)
def test_paired_interval_equals_published_values(
    cells: tuple[int, int, int, int], difference: float, low: float, high: float
) -> None:
    both, only_second, only_first, neither = cells
    result = compare_paired(*paired(both, only_first, only_second, neither))
    assert (result.difference, result.low, result.high) == pytest.approx((difference, low, high), abs=5e-5)


def test_paired_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    shares = [0.80, 0.06, 0.02, 0.12]  # both, only first, only second, neither: true difference -0.04
    covered = 0
    for cells in rng.multinomial(200, shares, size=1000):
        result = compare_paired(*paired(*(int(cell) for cell in cells)))
        covered += result.low <= -0.04 <= result.high
    assert 0.93 <= covered / 1000 <= 0.985


def test_paired_comparison_turns_its_sign_with_the_order() -> None:
    first, second = paired(50, 9, 1, 40)
    forth, back = compare_paired(first, second), compare_paired(second, first)
    assert forth.difference == -back.difference == pytest.approx(-0.08)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.to_json()["p_value"] == back.p_value == pytest.approx(22 / 1024)


def test_paired_comparison_refuses_other_images() -> None:
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(4,\), expected one answer per image"):
        compare_paired([True] * 3, [True] * 4)
    with pytest.raises(ValueError, match="got no images, expected at least 1"):
        compare_paired([], [])


@pytest.mark.parametrize(("difference", "discordant"), [(0.02, 0.05), (-0.05, 0.2)])
def test_as_many_images_as_are_needed_find_the_difference_four_times_of_five(
    difference: float, discordant: float
) -> None:
    n, rng = images_needed(difference, discordant), np.random.default_rng(0)
    shares = [(discordant - difference) / 2, (discordant + difference) / 2, 1 - discordant]
    first, second, _ = rng.multinomial(n, shares, size=20_000).T
    found = np.abs(second - first) > 1.96 * np.sqrt(np.maximum(first + second, 1))
    assert found.mean() == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(("difference", "discordant"), [(0.0, 0.1), (0.2, 0.1), (0.1, 1.1)])
def test_images_needed_refuses_impossible_shares(difference: float, discordant: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < difference <= discordant <= 1"):
        images_needed(difference, discordant)
