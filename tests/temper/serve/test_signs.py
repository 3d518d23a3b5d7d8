"""When a promoted version goes back: the decision as a table, without a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from temper.serve.signs import (
    RATE_RPS,
    Before,
    Limits,
    Probe,
    Traffic,
    changed_images,
    find_sign,
    images_needed,
    summarise,
)

LIMITS = Limits(changed=0.1)
SWITCHED_S = 1000.0
NUM_IMAGES = 100


def probes(outcomes: Sequence[int | str | None], *, latency_ms: float = 3.0, skip_s: float = 0.0) -> list[Probe]:
    """A probe for each: a class that it answers, why it failed, or None while it is on the way."""
    return [
        Probe(
            image=index % NUM_IMAGES,
            due_s=SWITCHED_S + skip_s + index / RATE_RPS,
            latency_s=latency_ms / 1000,
            answer=outcome if isinstance(outcome, int) else None,
            error=outcome if isinstance(outcome, str) else None,
        )
        for index, outcome in enumerate(outcomes)
    ]


BEFORE = summarise(probes([0] * NUM_IMAGES), Traffic(num=500))
FAILS_A_LITTLE = replace(BEFORE, failed=8, traffic=Traffic(num=500, failed=40))
LATE = 2.0
GONE: list[int | str | None] = ["gone"]

# The version before, the probes after, all requests after, and the sign that is expected.
CASES: dict[str, tuple[Before, list[Probe], Traffic, str | None]] = {
    "nothing came back yet": (BEFORE, [], Traffic(), None),
    "as before": (BEFORE, probes([0] * 1200), Traffic(num=60_000), None),
    "two failed": (BEFORE, probes([0, 0, "gone", "gone"]), Traffic(num=400, failed=2), None),
    "three failed at once": (
        BEFORE,
        probes(["gone"] * 3),
        Traffic(),
        "3 of 3 probes failed, 0 of 100 before: gone",
    ),
    "three failed late": (
        BEFORE,
        probes([0] * 1000 + ["gone"] * 3),
        Traffic(),
        "the last 3 probes failed, 0 of 100 before: gone",
    ),
    "three failed here and there": (BEFORE, probes(([0] * 300 + GONE) * 3 + [0]), Traffic(), None),
    "every fifth fails": (
        BEFORE,
        probes([0, 0, 0, 0, "gone"] * 12),
        Traffic(),
        "12 of 60 probes failed, 0 of 100 before: gone",
    ),
    "it failed before as well": (
        FAILS_A_LITTLE,
        probes([*([0] * 11), "gone"] * 20),
        Traffic(num=5000, failed=400),
        None,
    ),
    "three in a row where they fail anyway": (FAILS_A_LITTLE, probes([0] * 50 + ["gone"] * 3), Traffic(), None),
    "requests of others fail": (
        BEFORE,
        probes([0] * 20),
        Traffic(num=2000, failed=60),
        "60 of 2,000 requests failed, 0 of 500 before",
    ),
    "requests of others fail as before": (FAILS_A_LITTLE, probes([0]), Traffic(num=2000, failed=170), None),
    "slow": (
        BEFORE,
        probes([0] * 40, latency_ms=30, skip_s=LATE),
        Traffic(),
        "took 30 ms in the median, expected",
    ),
    "slow in the switch alone": (BEFORE, probes([0] * 20, latency_ms=900), Traffic(), None),
    "slow for a second": (
        BEFORE,
        [*probes([0] * 200), *probes([0] * 20, latency_ms=900, skip_s=10)],
        Traffic(),
        None,
    ),
    "twice as slow": (BEFORE, probes([0] * 1000, latency_ms=6), Traffic(), None),
    "slow half of the time": (
        BEFORE,
        [
            replace(probe, latency_s=0.030 if index % 2 else 0.003)
            for index, probe in enumerate(probes([0] * 1000, skip_s=LATE))
        ],
        Traffic(),
        None,
    ),
    "nothing answers": (
        BEFORE,
        probes([None] * 40, latency_ms=1000, skip_s=LATE),
        Traffic(),
        "the last 40 probes took 1e+03 ms in the median",
    ),
    "on the way": (BEFORE, probes([None] * 40, latency_ms=1, skip_s=LATE), Traffic(), None),
    "half of the images": (
        BEFORE,
        probes([0, 1] * 10),
        Traffic(),
        "10 of 20 images are answered otherwise than before, expected at most 10 %",
    ),
    "one image of ten": (BEFORE, probes([*([0] * 9), 1] * 120), Traffic(), None),
    "two images": (BEFORE, probes([1] * 2), Traffic(), None),
    "one image again and again": (
        BEFORE,
        [replace(probe, image=7) for probe in probes([1] * 1000)],
        Traffic(),
        None,
    ),
    "images that nothing was known of": (
        replace(BEFORE, answers={0: 0}),
        probes([1] * 100),
        Traffic(),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sign_is_found_only_where_it_is_sure(case: str) -> None:
    before, after, traffic, expected = CASES[case]
    now_s = SWITCHED_S + 60
    sign = find_sign(before, after, traffic, LIMITS, switched_s=SWITCHED_S, now_s=now_s)
    if expected is None:
        assert sign is None
        return
    assert sign is not None
    assert expected in sign.reason
    shown = [
        probe.due_s
        for probe in after
        if probe.error is not None or probe.latency_s > LIMITS.latency_s(before) or probe.answer not in (0, None)
    ]
    assert sign.first_s == (now_s if "requests" in expected else shown[0])


@pytest.mark.parametrize(
    ("limits", "case"),
    [
        (Limits(changed=0.5), "half of the images"),
        (Limits(changed=None), "half of the images"),
        (Limits(changed=0.1, p99_ms=40), "slow"),
        # A look of many may err less.
        (Limits(changed=0.1, num_looks=10**9), "three failed at once"),
    ],
)
def test_limits_allow_what_else_would_be_a_sign(limits: Limits, case: str) -> None:
    before, after, traffic, _ = CASES[case]
    assert find_sign(before, after, traffic, limits, switched_s=SWITCHED_S, now_s=SWITCHED_S) is None


@pytest.mark.parametrize(("minutes", "num"), [(1, 3), (14, 3), (15, 4), (60, 4)])
def test_some_in_a_row_are_enough_however_long_it_is_watched(minutes: int, num: int) -> None:
    """Among all probes of an hour, a version that fails from then on is no sign for minutes."""
    limits = Limits(changed=0.1, num_looks=120 * minutes)
    found = [
        find_sign(BEFORE, probes([0] * 2000 + GONE * failed), Traffic(), limits, switched_s=SWITCHED_S, now_s=0)
        for failed in (num - 1, num)
    ]
    assert found[0] is None
    assert found[1] is not None
    assert found[1].reason == f"the last {num} probes failed, 0 of 100 before: gone"


def test_baseline_knows_what_came_back() -> None:
    found = summarise([*probes([4, "gone", 5, None]), replace(probes([6])[0], latency_s=0.1)], Traffic(num=9))
    assert (found.num, found.failed, found.answers, found.traffic.num) == (4, 1, {0: 6, 2: 5}, 9)
    assert 0.09 < found.p99_s <= 0.1


def test_last_answer_to_an_image_counts() -> None:
    there, and_back = probes([0, 1, 2]), [replace(probe, answer=0) for probe in probes([0, 0])]
    both = changed_images(BEFORE, [*there, *and_back])
    assert {image: probe and probe.answer for image, probe in both.items()} == {0: None, 1: None, 2: 2}


@pytest.mark.parametrize(("changed", "needed"), [(0.1, 3), (0.5, 7), (None, 1)])
def test_so_many_images_are_needed(changed: float | None, needed: int) -> None:
    limits = Limits(changed=changed)
    assert images_needed(limits) == needed
    for num in (needed - 1, needed):
        before = replace(BEFORE, answers=dict.fromkeys(range(num), 0))
        sign = find_sign(before, probes([1] * num), Traffic(), limits, switched_s=SWITCHED_S, now_s=SWITCHED_S)
        assert (sign is not None) == (changed is not None and num == needed)


def _good_runs(rng: np.random.Generator, num: int) -> Iterator[bool]:
    """Whether a version that fails as often as the one before goes back within 120 looks."""
    for _ in range(num):
        fails = rng.random(100 + 1200) < 0.03
        outcomes: list[int | str | None] = ["gone" if failed else 0 for failed in fails]
        before, after = summarise(probes(outcomes[:100]), Traffic()), probes(outcomes[100:])
        yield any(
            find_sign(before, after[: 10 * look], Traffic(), LIMITS, switched_s=SWITCHED_S, now_s=SWITCHED_S)
            for look in range(1, 121)
        )


def test_version_that_is_no_worse_stays_in_all_but_one_of_twenty_cases() -> None:
    """Three in a hundred requests fail before and after: the looks together err in 5 % at most."""
    assert sum(_good_runs(np.random.default_rng(0), 60)) <= 3
