"""Each rule: its figure, interval, answer and what it asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from temper.gate.config import GateConfig
from temper.gate.decide import decide
from temper.gate.evidence import Answers, Attacked, Evidence
from temper.gate.rules.accuracy import AccuracyRule, WorstClassRule
from temper.gate.rules.calibration import CalibrationRule
from temper.gate.rules.engine import EngineRule
from temper.gate.rules.flips import FlipsRule
from temper.gate.rules.performance import LatencyRule, SizeRule, ThroughputRule
from temper.gate.rules.robustness import RobustnessRule
from temper.report.verdict import Finding


def finding(evidence: Evidence, **rules: Any) -> Finding:
    answer, (found,), _ = decide(GateConfig(**rules), evidence)
    assert found.answer == answer
    assert found.needed is None or answer == "NOT ENOUGH DATA"
    return found


@pytest.mark.parametrize(
    ("n", "lost", "won", "answer", "needed", "reason"),
    [
        (
            10_000,
            40,
            40,
            "SHIP",
            None,
            "at the limit less than 0.01 % of samples would look this good; 5 % are allowed",
        ),
        (
            10_000,
            150,
            20,
            "HOLD",
            None,
            "at the limit less than 0.01 % of samples would look this bad; 5 % are allowe",
        ),
        (
            1000,
            5,
            4,
            "NOT ENOUGH DATA",
            2800,
            "2,800 test images would decide: margin 0.5 points, 1 % disagreeing,",
        ),
        (
            1000,
            7,
            2,
            "NOT ENOUGH DATA",
            2800,
            "2,800 test images would decide, if nothing is lost in truth: margin 0.5 points, 1 % disagr",
        ),
        (
            4000,
            35,
            20,
            "NOT ENOUGH DATA",
            56_500,
            "56,500 test images would decide: margin 0.5 points, 1.4 % disag",
        ),
        (
            10_000,
            80,
            30,
            "NOT ENOUGH DATA",
            None,
            "the figure is at the limit or beyond it, so no number would dec",
        ),
        (
            100,
            0,
            0,
            "NOT ENOUGH DATA",
            2800,
            "2,800 test images would decide: margin 0.5 points, 1 % disagreeing, power",
        ),
    ],
)
def test_accuracy_answers_by_the_drop(
    counted: Any, n: int, lost: int, won: int, answer: str, needed: int | None, reason: str
) -> None:
    found = finding(counted(n, lost, won), accuracy=AccuracyRule(max_drop=0.5))
    assert (found.answer, found.needed, found.num_images, found.unit) == (answer, needed, n, "points")
    assert found.figure == pytest.approx(100 * (lost - won) / n) and found.figure is not None
    assert found.low is not None and found.high is not None and found.low <= found.figure <= found.high
    assert found.reason.startswith(reason)


def test_shown_intervals_have_the_confidence_at_either_end(counted: Any) -> None:
    from temper.client.noninferiority import paired_interval

    found = finding(counted(1000, 9, 3), accuracy=AccuracyRule(max_drop=0.5))
    low, high = paired_interval(9, 3, 1000, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high))


def test_an_answer_without_a_score_is_wrong(counted: Any) -> None:
    evidence = counted(1000)
    broken = Answers(classes=np.where(np.arange(1000) < 100, -1, evidence.labels))
    lost = Evidence(
        class_names=["cat", "dog"], labels=evidence.labels, reference=evidence.reference, candidate=broken
    )
    assert finding(lost, accuracy=AccuracyRule(max_drop=0.5)).figure == pytest.approx(10)


@pytest.mark.parametrize(
    ("lost", "won", "of_class", "answer", "name", "figure"),
    [
        (60, 0, 2, "HOLD", "bird, 250 images, of 4 classes", 24.0),
        (10, 10, 1, "NOT ENOUGH DATA", "dog, 250 images, of 4 classes", 0.0),
        (0, 0, 0, "SHIP", "cat, 250 images, of 4 classes", 0.0),
    ],
)
def test_worst_class_names_the_class_that_decides(
    counted: Any, lost: int, won: int, of_class: int, answer: str, name: str, figure: float
) -> None:
    evidence = counted(1000, lost, won, classes=4, of_class=of_class)
    found = finding(evidence, worst_class=WorstClassRule(max_drop=3.0))
    assert (found.answer, found.num_images) == (answer, 1000) and found.figure == pytest.approx(figure)
    assert found.name == f"drop of accuracy in the worst class: {name}"


def test_worst_class_asks_for_whole_test_sets(counted: Any) -> None:
    found = finding(counted(400, 2, 2, classes=4, of_class=1), worst_class=WorstClassRule(max_drop=3.0))
    assert found.needed is not None and found.needed > 4 * 250
    assert "4 % disagreeing in dog, 25 % of the images" in found.reason


def test_a_class_that_does_not_occur_is_not_asked_for(counted: Any) -> None:
    evidence = counted(1000, classes=2)
    more = Evidence(
        class_names=["cat", "dog", "none"],
        **{key: vars(evidence)[key] for key in ("labels", "reference", "candidate")},
    )
    found = finding(more, worst_class=WorstClassRule(max_drop=3.0))
    assert found.answer == "SHIP" and found.name.endswith("of 2 classes")


@pytest.mark.parametrize(
    ("n", "lost", "won", "answer", "needed"),
    [
        (2000, 8, 0, "SHIP", None),
        (2000, 60, 60, "HOLD", None),
        (200, 0, 0, "NOT ENOUGH DATA", 301),
        (200, 1, 1, "NOT ENOUGH DATA", 2080),
        (200, 3, 1, "NOT ENOUGH DATA", None),
        (2000, 22, 22, "NOT ENOUGH DATA", None),
    ],
)
def test_flips_count_what_was_right_whatever_was_won(
    counted: Any, n: int, lost: int, won: int, answer: str, needed: int | None
) -> None:
    found = finding(counted(n, lost, won), flips=FlipsRule(max=1.0))
    assert (found.answer, found.unit) == (answer, "%") and found.figure == pytest.approx(100 * lost / n)
    assert found.needed is None if needed is None else found.needed == pytest.approx(needed, rel=0.03)


def attacked(lost: int, doubt: str | None = None, epsilon: float = 8, name: str = "worst_case") -> Attacked:
    before = np.arange(1000) < 500
    return Attacked(
        name=name,
        norm="linf",
        epsilon=epsilon,
        reference=before,
        candidate=before & (np.arange(1000) >= lost),
        doubt=doubt,
    )


def test_robustness_is_judged_at_every_budget(counted: Any) -> None:
    evidence = counted(1000, attacked=[attacked(1), attacked(90, epsilon=16), attacked(90, name="pgd")])
    answer, found, _ = decide(GateConfig(robustness=RobustnessRule(max_drop=2.0)), evidence)
    assert answer == "HOLD" and [(one.answer, one.figure) for one in found] == [("SHIP", 0.1), ("HOLD", 9.0)]
    assert [one.name[-9:] for one in found] == [" L∞ 8/255", "L∞ 16/255"]


@pytest.mark.parametrize(
    ("attacks", "reason"),
    [
        ([attacked(90, doubt="gradients are masked")], "the two cannot be compared: gradients are masked"),
        ([attacked(90, name="pgd")], "no attack called worst_case was measured on both"),
        ([], "no attack called worst_case was measured on both"),
    ],
)
def test_robustness_that_cannot_be_compared_is_none(counted: Any, attacks: list[Attacked], reason: str) -> None:
    found = finding(counted(1000, attacked=attacks), robustness=RobustnessRule(max_drop=2.0))
    assert (found.answer, found.reason, found.needed) == ("NOT ENOUGH DATA", reason, None)


def sure(n: int, right: float, said: tuple[float, float], seed: int = 0) -> Evidence:
    """Two that answer alike, right in so many cases, and say that they are."""
    rng = np.random.default_rng(seed)
    classes = np.where(rng.random(n) < right, 0, 1)
    first, second = (Answers(classes=classes, confidence=np.full(n, one, dtype=np.float32)) for one in said)
    return Evidence(class_names=["cat", "dog"], labels=np.zeros(n, int), reference=first, candidate=second)


@pytest.mark.parametrize(
    ("n", "said", "answer"),
    [
        (2000, (0.83, 0.83), "SHIP"),
        (4000, (0.87, 0.99), "HOLD"),
        (60, (0.81, 0.85), "NOT ENOUGH DATA"),
        (4000, (0.95, 0.85), "SHIP"),
    ],
)
def test_calibration_answers_by_the_rise_of_the_error(n: int, said: tuple[float, float], answer: str) -> None:
    found = finding(sure(n, 0.8, said), calibration=CalibrationRule(max_increase=0.02))
    hits = (sure(n, 0.8, said).candidate.classes == 0).mean()
    assert found.answer == answer
    assert found.figure == pytest.approx(abs(said[1] - hits) - abs(said[0] - hits), abs=1e-6)
    assert found.needed is None or found.needed > n


def test_calibration_of_few_images_or_missing_scores_is_not_shipped() -> None:
    one = finding(sure(1, 1.0, (1.0, 1.0)), calibration=CalibrationRule(max_increase=0.01))
    assert one.answer == "NOT ENOUGH DATA"
    evidence = sure(2000, 0.8, (0.83, 0.83))
    assert evidence.candidate.confidence is not None
    silent = np.where(np.arange(2000) % 2, evidence.candidate.confidence, np.nan)
    classes = np.where(np.arange(2000) % 2, evidence.candidate.classes, -1)
    broken = replace(evidence, candidate=Answers(classes=classes, confidence=silent))
    assert finding(broken, calibration=CalibrationRule(max_increase=0.02)).answer == "HOLD"


def test_calibration_error_is_a_mean_over_fifteen_bins() -> None:
    """Against the definition written out: bins of equal width, open below."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1.0, 500).astype(np.float32)
    classes = np.where(rng.random(500) < confidence**2, 0, 1)
    first = Answers(classes=np.zeros(500, int), confidence=np.ones(500, dtype=np.float32))
    evidence = Evidence(
        class_names=["cat", "dog"],
        labels=np.zeros(500, int),
        reference=first,
        candidate=Answers(classes=classes, confidence=confidence),
    )
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - (classes[inside] == 0).mean())
    found = finding(evidence, calibration=CalibrationRule(max_increase=0.5))
    assert found.figure == pytest.approx(error, abs=1e-6)


def test_a_calibrated_reference_does_not_hide_a_rise_at_the_limit() -> None:
    """The plain difference of two estimated errors would ship a third of these."""
    shipped = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = 0.15 + 0.75 * rng.beta(6, 1, 500)
        first, second = (
            Answers(
                classes=np.where(rng.random(500) < truth, 0, 1),
                confidence=np.asarray(truth + more, dtype=np.float32),
            )
            for more in (0, 0.05)
        )
        evidence = Evidence(
            class_names=["cat", "dog"], labels=np.zeros(500, int), reference=first, candidate=second
        )
        shipped += finding(evidence, calibration=CalibrationRule(max_increase=0.05)).answer == "SHIP"
    assert shipped <= 6  # 3 expected at most


def test_calibration_also_counts_answers_beyond_a_threshold() -> None:
    rule = CalibrationRule(max_increase=0.5, threshold=0.9, max_share_drop=2.0)
    _, found, _ = decide(GateConfig(calibration=rule), sure(1000, 0.8, (0.95, 0.85)))
    assert [(one.answer, one.unit) for one in found] == [("SHIP", ""), ("HOLD", "points")]
    assert found[1].figure == 100.0 and "probability of 0.9 or more" in found[1].name


def test_calibration_without_probabilities_says_so(counted: Any) -> None:
    found = finding(counted(100), calibration=CalibrationRule(max_increase=0.01))
    assert (found.answer, found.reason) == ("NOT ENOUGH DATA", "an endpoint answers no probabilities")


@pytest.mark.parametrize(
    ("rounds", "answer", "figure", "reason"),
    [
        ((10.0, 11.0, 10.5, 12.0, 10.0), "SHIP", 10.7, "of samples would look this good"),
        ((20.0, 21.0, 19.0, 22.0), "HOLD", 20.5, "of samples would look this bad"),
        (
            (9.0, 14.0, 19.0),
            "NOT ENOUGH DATA",
            14.0,
            "rounds (gate.rounds) would decide: their spread as it is, power 80 %",
        ),
        (
            (9.0, 14.0, 25.0),
            "NOT ENOUGH DATA",
            16.0,
            "the figure is at the limit or beyond it, so no number would",
        ),
        ((12.0,), "NOT ENOUGH DATA", None, "1 of at least 2 rounds was measured"),
        ((12.0, 12.0), "SHIP", 12.0, "at the limit less than 0.01 % of samples would look this good"),
    ],
)
def test_latency_is_judged_over_rounds(
    counted: Any, rounds: tuple[float, ...], answer: str, figure: float | None, reason: str
) -> None:
    found = finding(counted(100, p99_ms=rounds), latency=LatencyRule(p99_ms=15, rate=100))
    assert (found.answer, found.needed, found.unit) == (answer, None, "ms")
    assert found.figure == (None if figure is None else pytest.approx(figure)) and reason in found.reason
    assert found.name == "99th percentile of latency at 100 requests/s"


def test_the_interval_over_rounds_is_students() -> None:
    from scipy.stats import t, ttest_1samp  # type: ignore[import-untyped]  # ships none

    rounds = np.array([10.0, 11.0, 10.5, 12.0, 10.0])
    evidence = Evidence(
        class_names=[],
        labels=np.zeros(1, int),
        reference=Answers(classes=np.zeros(1, int)),
        candidate=Answers(classes=np.zeros(1, int)),
        p99_ms=list(rounds),
    )
    (look,) = LatencyRule(p99_ms=15, rate=100).judge(evidence, 0.95)
    assert look.high is not None
    assert look.high == pytest.approx(rounds.mean() + t.ppf(0.95, 4) * rounds.std(ddof=1) / 5**0.5)
    assert look.kept == pytest.approx(ttest_1samp(rounds, 15, alternative="less").pvalue)


def test_requests_that_failed_hold_a_candidate(counted: Any) -> None:
    evidence = counted(100, p99_ms=(1.0, 1.0), latency_note="12 of 2,000 requests were shed")
    found = finding(evidence, latency=LatencyRule(p99_ms=15, rate=100))
    assert (found.answer, found.reason) == ("HOLD", "12 of 2,000 requests were shed")


@pytest.mark.parametrize(
    ("pairs", "answer", "figure"),
    [
        ([(100, 200), (80, 164), (120, 236)], "SHIP", 2.0),
        ([(100, 120), (80, 98), (120, 143)], "HOLD", 1.2),
        ([(100, 200), (80, 130), (120, 170)], "NOT ENOUGH DATA", 1.66),
        ([(100, 200), (80, 0)], "NOT ENOUGH DATA", None),
        ([], "NOT ENOUGH DATA", None),
    ],
)
def test_throughput_is_the_ratio_in_the_same_round(
    counted: Any, pairs: list[tuple[float, float]], answer: str, figure: float | None
) -> None:
    found = finding(counted(100, throughput_ips=pairs), throughput=ThroughputRule(min_ratio=1.5))
    assert (found.answer, found.unit) == (answer, "x")
    assert found.figure == (None if figure is None else pytest.approx(figure, abs=0.02))
    if figure is not None:
        assert found.low is not None and found.high is not None and found.low < figure < found.high


@pytest.mark.parametrize(
    ("sizes", "answer", "figure"),
    [
        ((4_000_000, 1_000_000), "SHIP", 0.25),
        ((4_000_000, 2_000_000), "HOLD", 0.5),
        (None, "NOT ENOUGH DATA", None),
    ],
)
def test_size_is_a_plain_ratio(
    counted: Any, sizes: tuple[int, int] | None, answer: str, figure: float | None
) -> None:
    found = finding(counted(100, size_bytes=sizes), size=SizeRule(max_ratio=0.3))
    assert (found.answer, found.figure, found.low, found.high) == (answer, figure, None, None)
    assert found.reason == {"SHIP": "1.0 MB against 4.0 MB", "HOLD": "2.0 MB against 4.0 MB"}.get(
        answer, "the engines' files are not at hand"
    )


@pytest.mark.parametrize(
    ("n", "other", "answer", "needed"),
    [
        (2000, 2, "SHIP", None),
        (2000, 30, "HOLD", None),
        (200, 0, "NOT ENOUGH DATA", 598),
        (2000, 10, "NOT ENOUGH DATA", None),
    ],
)
def test_engine_agrees_with_pytorch(counted: Any, n: int, other: int, answer: str, needed: int | None) -> None:
    evidence = counted(10, same_as_torch=np.arange(n) >= other)
    found = finding(evidence, engine=EngineRule(agreement_with_torch=0.995))
    assert (found.answer, found.num_images) == (answer, n) and found.figure == pytest.approx(1 - other / n)
    assert found.needed is None if needed is None else found.needed == pytest.approx(needed, rel=0.02)
    assert found.low is not None and found.high is not None and found.low <= 1 - other / n <= found.high
