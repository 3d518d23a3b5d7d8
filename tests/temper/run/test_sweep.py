"""The grid of a sweep, the frontier over its variants, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from temper.builder.compress.distil import DistilConfig
from temper.builder.compress.variant import ChosenStep, VariantConfig
from temper.builder.network.adversarial import AdversarialConfig
from temper.client.robustness.base import ATTACKS
from temper.errors import RecipeError
from temper.report.model import Failure, Report, Variant
from temper.report.read import read_report
from temper.run.frontier import mark_frontier
from temper.run.recipe import Recipe, load_recipe
from temper.run.sweep import parse_over, sweep_recipe, with_variants
from temper.run.sweep_run import Outcome, pairs_of, run_sweep

ROOT = Path(__file__).parents[3]
TEXT = """
name = "toy"
[data]
source = "digits"
[[variants]]
name = "fp32"
[[variants]]
name = "small"
compress = [{ low_rank = { energy = 0.9 } }, { quantize = { precision = "int8" } }]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "toy.toml"
    path.write_text(TEXT)
    return load_recipe(path)


def compressed(recipe: Recipe) -> dict[str, list[tuple[str, Any]]]:
    return {one.name: [(step.name, step.config) for step in one.compress] for one in recipe.variants}


def test_sweep_makes_every_combination_beside_the_first(recipe: Recipe) -> None:
    overs = [parse_over("low_rank.flops=0.8,0.6"), parse_over("quantize.method=entropy,max")]
    swept = sweep_recipe(recipe, overs)
    assert swept.name == "toy-sweep"
    found = compressed(swept)
    assert list(found) == [
        "fp32",
        "small_flops0-8_methodentropy",
        "small_flops0-8_methodmax",
        "small_flops0-6_methodentropy",
        "small_flops0-6_methodmax",
    ]
    (_, low_rank), (_, quantize) = found["small_flops0-6_methodmax"]
    assert (low_rank.flops, low_rank.energy, quantize.method) == (0.6, None, "max")


def test_sweep_compares_with_what_the_swept_variant_does() -> None:
    swept = sweep_recipe(load_recipe(ROOT / "recipes" / "robust.toml"), [parse_over("low_rank.flops=0.8,0.6")])
    names = ["fp32", "robust", "robust_low_rank_flops0-8", "robust_low_rank_flops0-6"]
    assert [one.name for one in swept.variants] == names
    assert [one.against for one in swept.variants] == [None, None, "robust", "robust"]
    pairs = [[one.name for one in pair.variants] for pair in pairs_of(swept)]
    assert pairs == [["fp32", "robust", name] for name in names[2:]]


def test_sweep_brings_the_members_of_what_it_compares_with(recipe: Recipe) -> None:
    fp32, small = recipe.variants
    both = VariantConfig(name="both", ensemble=("fp32", "small"))
    varied = replace(recipe, variants=(fp32, small, both, replace(small, name="tiny", against="both")))
    swept = sweep_recipe(varied, [parse_over("low_rank.flops=0.8")], variant="tiny")
    assert [one.name for one in swept.variants] == ["fp32", "small", "both", "tiny_flops0-8"]
    assert [len(pair.variants) for pair in pairs_of(swept)] == [4]


def test_missing_step_is_put_where_the_order_wants_it(recipe: Recipe) -> None:
    swept = sweep_recipe(recipe, [parse_over("distil.epochs=1,none")])
    steps = {name: [step for step, _ in found] for name, found in compressed(swept).items()}
    assert steps == {
        "fp32": [],
        "small_epochs1": ["low_rank", "distil", "quantize"],
        "small_no-distil": ["low_rank", "quantize"],
    }


def test_combinations_that_are_the_same_are_built_once(recipe: Recipe) -> None:
    overs = [parse_over("distil.epochs=1,none"), parse_over("distil.temperature=2,none")]
    assert list(compressed(sweep_recipe(recipe, overs))) == [
        "fp32",
        "small_epochs1_temperature2",
        "small_epochs1_no-distil",
    ]


def test_table_within_a_step_stays_as_it_is(recipe: Recipe) -> None:
    robust = DistilConfig(adversarial=AdversarialConfig(method="pgd", steps=3))
    small = replace(recipe.variants[1], compress=(*recipe.variants[1].compress[:1], ChosenStep(distil=robust)))
    swept = sweep_recipe(replace(recipe, variants=(small,)), [parse_over("distil.epochs=5")])
    assert compressed(swept)["small_epochs5"][1] == ("distil", replace(robust, epochs=5))


def test_other_variant_is_swept_when_named(recipe: Recipe) -> None:
    swept = sweep_recipe(recipe, [parse_over("cast.precision=fp16,bf16")], variant="fp32")
    assert list(compressed(swept)) == ["fp32", "fp32_precisionfp16", "fp32_precisionbf16"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("low_rank=3", r"--over low_rank=3: expected STEP.FIELD=VALUE,... as in low_rank.flops=0.8,0.6"),
        ("shrink.by=3", r"got the step shrink, expected one of prune, select, low_rank"),
        ("low_rank.flops=2", r"sweep, small_flops2: .*flops: got 2"),
        ("quantize.methd=max", r"sweep, small_methdmax: .*methd: no such key, did you mean \"method\""),
        ("quantize.precision=int4", r"expected one of \"int8\", \"fp8\""),
    ],
)
def test_impossible_sweep_is_refused(recipe: Recipe, over: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sweep_recipe(recipe, [parse_over(over)])


def test_unknown_variant_is_refused(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"--variant big: expected one of fp32, small"):
        sweep_recipe(recipe, [parse_over("quantize.method=max")], variant="big")


@pytest.fixture
def measured(report: dict[str, Any]) -> Callable[..., Variant]:
    """Makes a variant of these figures."""
    like = TypeAdapter(Report).validate_json(json.dumps(report), strict=True).variants[0]
    assert like.accuracy is not None
    assert like.latency_ms is not None
    accuracy, latency, worst = like.accuracy, like.latency_ms, like.worst_case[0]

    def make(size: int, value: float, p50: float | None, robust: float) -> Variant:
        return replace(
            like,
            size_bytes=size,
            accuracy=replace(accuracy, value=value),
            latency_ms=None if p50 is None else replace(latency, p50=p50),
            worst_case=(replace(worst, value=robust),),
        )

    return make


def test_frontier_keeps_what_nothing_beats(measured: Callable[..., Variant]) -> None:
    variants = [
        measured(40, 0.98, 10.0, 0.5),
        measured(10, 0.97, 4.0, 0.5),  # smaller and faster
        measured(10, 0.97, 5.0, 0.5),  # beaten by the one before
        measured(40, 0.90, 11.0, 0.6),  # worse in all but under attack
        measured(50, 0.98, None, 0.4),  # beaten by the first in all that both have
    ]
    assert [one.frontier for one in mark_frontier(variants)] == [True, True, False, True, False]


def test_equal_variants_are_both_on_the_frontier(measured: Callable[..., Variant]) -> None:
    variants = [measured(10, 0.9, 5.0, 0.5), measured(10, 0.9, 5.0, 0.5)]
    assert [one.frontier for one in mark_frontier(variants)] == [True, True]


def test_reports_of_the_runs_become_one(recipe: Recipe, report: dict[str, Any], tmp_path: Path) -> None:
    overs = [parse_over("low_rank.flops=0.8,0.6"), parse_over("quantize.method=max")]
    swept = sweep_recipe(recipe, overs)
    _, good, bad = (variant.name for variant in swept.variants)
    report["variants"][1]["name"] = good
    part = TypeAdapter(Report).validate_json(json.dumps(report), strict=True)
    outcomes = [
        Outcome(variant=bad, report=None, reason="too small"),
        Outcome(variant=good, report=part, reason=None),
    ]
    joined = run_sweep(swept, runs=tmp_path, run_all=lambda pairs: iter(outcomes))
    assert [(one.name, one.frontier) for one in joined.variants] == [("fp32", True), (good, True)]
    assert joined.failed == (Failure(variant=bad, reason="too small"),)
    assert joined.stopped == f"{bad}: too small"
    assert (joined.comparisons, joined.timings) == (part.comparisons, part.timings)
    before, after = (one.variants[1].robustness[1].gallery[0].original for one in (part, joined))
    assert after == f"variants/{good}/{before}"
    assert read_report(tmp_path / swept.name).variants == joined.variants


def test_what_several_runs_share_is_in_the_joined_report_once(report: dict[str, Any], tmp_path: Path) -> None:
    swept = sweep_recipe(load_recipe(ROOT / "recipes" / "robust.toml"), [parse_over("low_rank.flops=0.8,0.6")])
    first, baseline, *names = (variant.name for variant in swept.variants)
    (row, other), (compared,) = report["variants"], report["comparisons"]

    def outcome(name: str) -> Outcome:
        variants = [row | {"name": first}, other | {"name": baseline}, other | {"name": name}]
        comparisons = [compared | {"variant": baseline}, compared | {"variant": name, "baseline": baseline}]
        part = json.dumps(report | {"variants": variants, "comparisons": comparisons})
        return Outcome(variant=name, report=TypeAdapter(Report).validate_json(part, strict=True), reason=None)

    joined = run_sweep(swept, runs=tmp_path, run_all=lambda pairs: iter([outcome(name) for name in names]))
    assert [one.name for one in joined.variants] == [first, baseline, *names]
    assert [one.variant for one in joined.comparisons] == [baseline, *names]


def test_sweep_without_a_variant_that_an_attack_follows_is_one_line(quick_recipe: Path) -> None:
    recipe = load_recipe(quick_recipe)
    follows = ATTACKS.get("pgd").config(surrogates=("int8",))
    recipe = replace(recipe, attacks=(follows,))
    with pytest.raises(RecipeError, match='surrogates: got "int8".*; a sweep builds the first variant, what is'):
        with_variants(recipe, recipe.variants[:1])
