"""The worst case over several attacks, and what shows that one of them saw only a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from temper.builder.store.artifacts import Artifact
from temper.client.robustness.result import INDICES_FILE, SURVIVED_FILE, TAKEN_FOR_FILE
from temper.report.model import Variant
from temper.run.worst_case import compare_attacks, compare_worst_cases, with_worst_case

NAMES = ["zero", "one"]
LABELS = np.arange(400) % 2


def blank(name: str) -> Variant:
    return Variant(
        name=name,
        model=name,
        version=1,
        engine="openvino",
        engine_reason="",
        size_bytes=1,
        calibration=None,
        int8=None,
        build=(),
    )


@pytest.fixture
def attacked(tmp_path: Path) -> Any:
    """Makes an attack's stage: which images of `of` survived."""
    made = iter(range(1000))

    def make(name: str, survived: Any, epsilon: float = 8.0, of: Any = None, **info: Any) -> Artifact:
        folder = tmp_path / str(next(made))
        folder.mkdir()
        indices = np.arange(400) if of is None else np.asarray(of)
        vector = np.isin(indices, np.asarray(survived, dtype=np.int64))
        np.save(folder / INDICES_FILE, indices)
        np.save(folder / SURVIVED_FILE, vector)
        np.save(folder / TAKEN_FOR_FILE, np.where(vector, -1, 1 - LABELS[indices]))
        share = float(vector.mean())
        curve = [
            {"num_queries": count, "accuracy": 1 - (1 - share) * count / 100} for count in (0, 1, 10, 50, 100)
        ]
        told = {
            "attack": name,
            "norm": "linf",
            "epsilon": epsilon,
            "white_box": name == "pgd",
            "draws": False,
            "stuck": 0.0,
            "max_queries": 100,
            "curve": curve,
        }
        return Artifact(path=folder, digest="", info={**told, **info}, reused=False)

    return make


def judged(name: str, *attacks: Artifact) -> Variant:
    return with_worst_case(blank(name), attacks, LABELS, NAMES)


def test_an_image_is_robust_when_no_attack_within_the_budget_fooled_the_endpoint(attacked: Any) -> None:
    variant = judged(
        "v",
        attacked("pgd", range(200), epsilon=4.0),
        attacked("pgd", range(100, 250), epsilon=8.0),
        attacked("square", range(150, 400), epsilon=8.0),
    )
    small, large = variant.worst_case
    assert (small.epsilon, small.value, small.attacks) == (4.0, 0.5, ("pgd",))
    # What fooled it within 4 does so within 8.
    assert (large.epsilon, large.value, large.attacks) == (8.0, 50 / 400, ("pgd", "square"))
    assert [(share.label, share.num_images, share.value) for share in large.per_class] == [
        ("zero", 200, 25 / 200),
        ("one", 200, 25 / 200),
    ]
    assert large.doubt is None and variant.masks == ()


def test_an_attack_on_fewer_images_counts_on_those(attacked: Any) -> None:
    variant = judged("v", attacked("pgd", range(400)), attacked("hop-skip-jump", range(39), of=range(40)))
    (case,) = variant.worst_case
    assert (case.num_images, case.value, case.doubt) == (400, 399 / 400, None)
    variant = judged("v", attacked("square", range(400)), attacked("pgd", range(10), of=range(40)))
    assert variant.worst_case[0].doubt == "gradients were followed on 40 of the 400 images alone"


def test_norms_are_kept_apart(attacked: Any) -> None:
    variant = judged("v", attacked("pgd", range(10)), attacked("pgd", range(300), norm="l2", epsilon=100.0))
    assert [(case.norm, case.num_images, case.value) for case in variant.worst_case] == [
        ("linf", 400, 10 / 400),
        ("l2", 400, 300 / 400),
    ]


MASKED: dict[str, tuple[list[tuple[str, Any, dict[str, Any]]], str, str]] = {
    "scores that are equal": (
        [("square", range(300), {"stuck": 0.62})],
        "square",
        "62.0 % of its scores were equal to those before",
    ),
    "gradients that are zero": (
        [("pgd", range(300), {"stuck": 0.5})],
        "pgd",
        "50.0 % of its gradients were zero",
    ),
    "a black box that beats the white one": (
        [("pgd", range(300), {}), ("square", range(100), {})],
        "pgd",
        "square leaves 25.0 %, all that follow gradients 75.0 %",
    ),
    "more budget that leaves more": (
        [("pgd", range(100), {"epsilon": 4.0}), ("pgd", range(300), {"epsilon": 8.0})],
        "pgd",
        "leaves 75.0 % where it left 25.0 % at L∞ 4/255",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_what_shows_a_mask(name: str, attacked: Any) -> None:
    attacks, masked, evidence = MASKED[name]
    variant = judged("v", *(attacked(attack, survived, **info) for attack, survived, info in attacks))
    assert [(mask.attack, mask.evidence) for mask in variant.masks] == [(masked, evidence)]


NO_GRADIENTS = "no attack followed the gradients of all that is served at this budget, step by step"
DOUBTS: dict[str, tuple[list[tuple[str, dict[str, Any]]], str | None]] = {
    "gradients were followed": ([("pgd", {}), ("square", {"stuck": 0.6})], None),
    "scores alone": ([("square", {})], NO_GRADIENTS),
    "one step, or another network's gradients": ([("fgsm", {}), ("square", {})], NO_GRADIENTS),
    "gradients through random draws": (
        [("pgd", {"white_box": False, "draws": True}), ("square", {})],
        "gradients were followed through random draws, where luck fools and spares images too",
    ),
    "noise alone": ([("noise", {})], "nothing but noise was tried"),
    "a mask alone": (
        [("square", {"stuck": 0.6})],
        "gradients or scores are masked (square: 60.0 % of its scores were equal to those before)",
    ),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_worst_case_that_may_be_none_says_why(name: str, attacked: Any) -> None:
    attacks, doubt = DOUBTS[name]
    first, second = ([attacked(one, range(size), **info) for one, info in attacks] for size in (200, 300))
    both = judged("first", *first), judged("second", *second)
    assert both[1].worst_case[0].doubt == doubt
    (paired,) = compare_worst_cases(first, second, both)
    assert (paired.difference, paired.doubt) == (0.25, doubt)
    assert (paired.num_only_first, paired.num_only_second) == (0, 100)


def test_white_box_at_a_smaller_budget_vouches_for_no_larger_one(attacked: Any) -> None:
    variant = judged("v", attacked("pgd", range(390), epsilon=1.0), attacked("pgd", range(380), stuck=0.9))
    assert [case.doubt is None for case in variant.worst_case] == [True, False]


def test_difference_under_an_attack_that_saw_a_mask_of_either_says_so(attacked: Any) -> None:
    one, two = [attacked("square", range(100))], [attacked("square", range(300), stuck=0.6)]
    for first, second in ((one, two), (two, one)):
        (paired,) = compare_attacks(first, second, (judged("a", *first), judged("b", *second)))
        assert paired.masked == "60.0 % of its scores were equal to those before"
    (paired,) = compare_attacks(one, one, (judged("a", *one), judged("b", *one)))
    assert paired.masked is None and paired.difference == 0


def test_attack_that_one_of_them_went_through_alone_is_left_out(attacked: Any) -> None:
    """A run that stopped early."""
    first = [attacked("pgd", range(200)), attacked("square", range(20))]
    second = [attacked("pgd", range(200))]
    (paired,) = compare_worst_cases(first, second, (judged("a", *first), judged("b", *second)))
    assert paired.difference == 0
