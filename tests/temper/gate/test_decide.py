"""The decision over all rules, and how often it errs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.gate_planted import Planted, everywhere, in_one_class
from temper.gate.config import GateConfig
from temper.gate.decide import decide
from temper.gate.evidence import Answers, Evidence
from temper.gate.rules.accuracy import AccuracyRule, WorstClassRule
from temper.gate.rules.flips import FlipsRule
from temper.gate.rules.performance import SizeRule
from temper.gate.rules.robustness import RobustnessRule

ALL = GateConfig(
    accuracy=AccuracyRule(max_drop=0.5),
    worst_class=WorstClassRule(max_drop=3.0),
    flips=FlipsRule(max=2.0),
    size=SizeRule(max_ratio=0.3),
)
SMALL = (4_000_000, 1_000_000)


@pytest.mark.parametrize(
    ("n", "lost", "sizes", "answer"),
    [
        (20_000, 0, SMALL, "SHIP"),
        (20_000, 0, (4, 4), "HOLD"),
        (200, 0, SMALL, "NOT ENOUGH DATA"),
        (200, 0, (4, 4), "HOLD"),
        (200, 0, None, "NOT ENOUGH DATA"),
        (20_000, 2000, SMALL, "HOLD"),
    ],
)
def test_ship_needs_all_and_hold_takes_one(
    counted: Any, n: int, lost: int, sizes: tuple[int, int] | None, answer: str
) -> None:
    found, findings, correction = decide(ALL, counted(n, lost, size_bytes=sizes))
    assert found == answer and [one.rule for one in findings] == list(ALL.rules)
    assert "each tested at 5 %, which needs no correction" in correction and "Holm over rules" in correction


def test_holding_is_corrected_for_the_number_of_tests(counted: Any) -> None:
    """A drop that would hold alone is one among several tests, and says so."""
    evidence = counted(2000, 21, 3, size_bytes=SMALL)
    alone, (one,), _ = decide(GateConfig(accuracy=AccuracyRule(max_drop=0.5)), evidence)
    together, findings, _ = decide(
        GateConfig(accuracy=ALL.accuracy, worst_class=ALL.worst_class, flips=FlipsRule(max=5)), evidence
    )
    assert alone == "HOLD" and "4.2 % of samples would look this bad; 5 % are allowed" in one.reason
    assert (together, findings[0].answer) == ("NOT ENOUGH DATA", "NOT ENOUGH DATA")
    assert findings[0].reason.startswith("3,370 test images would decide, if nothing is lost in truth: margin")
    held, (first, *_), _ = decide(
        GateConfig(accuracy=ALL.accuracy, worst_class=ALL.worst_class), counted(2000, 27, 3)
    )
    assert held == "HOLD" and "0.33 % of samples would look this bad, 0.66 % among 2 tests; 5 %" in first.reason


def test_power_is_shared_by_all_that_are_open(counted: Any) -> None:
    evidence = counted(500, 2, 2, size_bytes=SMALL)
    _, (alone,), _ = decide(GateConfig(accuracy=AccuracyRule(max_drop=0.5)), evidence)
    _, findings, _ = decide(GateConfig(accuracy=AccuracyRule(max_drop=0.5), flips=FlipsRule(max=0.5)), evidence)
    assert alone.needed is not None and findings[0].needed is not None and findings[0].needed > alone.needed
    assert alone.reason.endswith("power 80 %")
    assert findings[0].reason.endswith("power 80 % for the 2 that are open together")


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        ({"missing": {"accuracy": "the labels belong to other images"}}, "the labels belong to other images"),
        ({}, "there are no test images with labels"),
    ],
)
def test_what_was_not_measured_cannot_be_shipped(counted: Any, evidence: dict[str, Any], reason: str) -> None:
    answer, (found,), _ = decide(GateConfig(accuracy=AccuracyRule(max_drop=0.5)), counted(0, **evidence))
    assert answer == "NOT ENOUGH DATA" and (found.reason, found.figure, found.needed) == (reason, None, None)


def answers(config: GateConfig, planted: Planted, n: int, draws: int) -> Counter[str]:
    rng = np.random.default_rng(0)
    return Counter(decide(config, planted.draw(n, 0.9, rng))[0] for _ in range(draws))


def planted(drop: float, gains: float = 0.01, *, one_class: bool = False) -> Planted:
    losses = in_one_class if one_class else everywhere
    return Planted(level=0, losses=losses(drop, gains), gains=gains)


ACCURACY = GateConfig(accuracy=AccuracyRule(max_drop=1.0))
BOTH = GateConfig(accuracy=AccuracyRule(max_drop=1.0), worst_class=WorstClassRule(max_drop=3.0))


@pytest.mark.parametrize(
    ("config", "variant", "n"),
    [
        (ACCURACY, planted(0.01), 2000),
        (ACCURACY, planted(0.01, 0.001), 400),
        (BOTH, planted(0.03, one_class=True), 4000),
        (BOTH, planted(0.01), 2000),
    ],
)
def test_what_is_at_a_limit_is_shipped_or_held_as_often_as_confidence_says(
    config: GateConfig, variant: Planted, n: int
) -> None:
    """300 draws: 5 % and three standard deviations of the share (1.3 %)."""
    found = answers(config, variant, n, 300)
    assert found["SHIP"] / 300 <= 0.088 and found["HOLD"] / 300 <= 0.088


@pytest.mark.parametrize(("n", "gains"), [(200, 0.02), (450, 0.01), (3000, 0.01)])
def test_what_loses_nothing_in_ten_classes_is_hardly_ever_held(n: int, gains: float) -> None:
    found = answers(BOTH, planted(0.0, gains), n, 200)
    assert found["HOLD"] / 200 <= 0.05 and (n < 3000 or found["SHIP"] > 0)


def test_what_is_at_the_limit_in_every_class_is_held_no_more_often() -> None:
    config = GateConfig(worst_class=WorstClassRule(max_drop=3.0))
    assert answers(config, planted(0.03), 1000, 300)["HOLD"] / 300 <= 0.088


def test_what_breaks_a_limit_by_far_is_held_and_what_keeps_it_by_far_is_shipped() -> None:
    assert answers(BOTH, planted(0.06), 2000, 20) == {"HOLD": 20}
    assert answers(ACCURACY, planted(0.0), 20_000, 20) == {"SHIP": 20}


def test_an_endpoint_of_other_answers_is_judged_by_budget(counted: Any) -> None:
    rule = RobustnessRule(max_drop=2.0)
    _, (found,), _ = decide(GateConfig(robustness=rule), counted(10, missing={"robustness": "no attack was run"}))
    assert (found.rule, found.limit, found.unit, found.reason) == (
        "robustness",
        2.0,
        "points",
        "no attack was run",
    )


def test_findings_fit_the_verdict(counted: Any) -> None:
    """Nothing that JSON has no word for."""
    import dataclasses
    import json

    evidence = counted(500, 1, size_bytes=SMALL, missing={"flips": "because"})
    empty = Evidence(
        class_names=[],
        labels=np.zeros(0, int),
        reference=Answers(classes=np.zeros(0, int)),
        candidate=Answers(classes=np.zeros(0, int)),
    )
    for one in (evidence, empty):
        _, findings, _ = decide(ALL, one)
        json.dumps([dataclasses.asdict(found) for found in findings], allow_nan=False)


@pytest.mark.parametrize(("right", "answer"), [(0.0, "NOT ENOUGH DATA"), (0.12, "NOT ENOUGH DATA"), (0.9, "SHIP")])
def test_two_that_are_wrong_everywhere_are_not_as_good_as_each_other(right: float, answer: str) -> None:
    labels = np.arange(2000) % 10
    classes = np.where(np.arange(2000) < 2000 * right, labels, (labels + 1) % 10)
    answers = Answers(classes=classes)
    evidence = Evidence(
        class_names=[str(index) for index in range(10)],
        labels=labels,
        reference=answers,
        candidate=answers,
        size_bytes=(2, 1),
    )
    config = GateConfig(accuracy=AccuracyRule(max_drop=2), flips=FlipsRule(max=2), size=SizeRule(max_ratio=1))
    found, findings, _ = decide(config, evidence)
    assert (found, findings[0].answer, findings[1].answer, findings[2].answer) == (answer, answer, answer, "SHIP")
    assert right > 0.5 or "not clearly above chance" in findings[0].reason
