"""A sweep: one variant of a recipe with some of its settings varied, as a recipe with one variant per combination.

    quantize.method=entropy,max   low_rank.flops=0.8,0.6

makes four variants of the one that is swept. A step that the variant has not is put where the order of the steps
wants it; `none` leaves a step out.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from temper.builder.compress.step import REGISTRY, rank
from temper.builder.compress.variant import VariantConfig
from temper.errors import RecipeError
from temper.run.recipe_errors import format_errors

if TYPE_CHECKING:
    from temper.run.recipe import Recipe

_LEFT_OUT = "none"


@dataclasses.dataclass(frozen=True)
class Over:
    """One setting and the values it takes."""

    step: str
    """The step, for example `low_rank`."""
    field: str | None
    """The step's setting, or None when only `none` and the step's defaults are told apart."""
    values: tuple[str, ...]
    """As they were written; TOML numbers, words without quotes."""


def parse_over(text: str) -> Over:
    """Reads `STEP.FIELD=VALUE,...`.

    Raises:
        RecipeError: It is not of this form, or names no step.
    """
    match = re.fullmatch(r"([a-z_]+)\.([a-z_]+)=(.+)", text)
    if match is None:
        raise RecipeError(f"--over {text}: expected STEP.FIELD=VALUE,... as in low_rank.flops=0.8,0.6")
    step, field, values = match.groups()
    if step not in REGISTRY.names():
        raise RecipeError(f"--over {text}: got the step {step}, expected one of {', '.join(REGISTRY.names())}")
    return Over(step, field, tuple(value.strip() for value in values.split(",")))


def sweep_recipe(recipe: Recipe, overs: Sequence[Over], *, variant: str | None = None) -> Recipe:
    """Returns the recipe with its first variant, what the swept one is compared with, and every combination.

    Args:
        recipe: The recipe; its name gets `-sweep`, so that its own run stays as it is.
        overs: What is varied; every combination is built.
        variant: The variant that is varied; the last one when not given.

    Raises:
        RecipeError: There is no such variant, or a combination is not possible.
    """
    choices = {one.name: one for one in recipe.variants if not one.ensemble}
    if variant is not None and variant not in choices:
        raise RecipeError(f"--variant {variant}: expected one of {', '.join(choices)}")
    swept = choices[variant if variant is not None else list(choices)[-1]]
    found = {one.name: one for one in _carried(recipe, swept)}
    for combination in itertools.product(*(over.values for over in overs)):
        one = _combine(swept, list(zip(overs, combination, strict=True)))
        if any(one.compress == other.compress for other in found.values()):
            continue  # two ways to write the same thing, mostly because a step is left out
        found[one.name] = one
    return with_variants(
        dataclasses.replace(recipe, name=f"{recipe.name}-sweep", explain=None, gate=None), tuple(found.values())
    )


def _carried(recipe: Recipe, swept: VariantConfig) -> Iterator[VariantConfig]:
    """Yields the first variant, and the one that the swept one is compared with, after its members."""
    first, *others = recipe.variants
    yield first
    baseline = next((one for one in others if one.name == swept.against), None)
    if baseline is not None:
        yield from (one for one in others if one.name in baseline.ensemble)
        yield dataclasses.replace(baseline, against=None)


def with_variants(recipe: Recipe, variants: tuple[VariantConfig, ...]) -> Recipe:
    """Returns the recipe with these variants alone.

    Raises:
        RecipeError: An attack needs another one, as its surrogate.
    """
    try:
        return dataclasses.replace(recipe, variants=variants)
    except ValueError as error:
        raise RecipeError(
            f"{error}; a sweep builds the first variant, what is varied, and what that is compared with"
        ) from error


def _combine(swept: VariantConfig, chosen: list[tuple[Over, str]]) -> VariantConfig:
    steps = [(step.name, _given(step.config)) for step in swept.compress]
    left_out = {over.step for over, value in chosen if value == _LEFT_OUT}
    for over, value in chosen:
        if over.step in left_out or over.field is None:
            continue
        position = _position(steps, over.step)
        if position is None:
            position = _place(steps, over.step)
            steps.insert(position, (over.step, {}))
        # A budget is given in one of several ways; the swept one replaces the others.
        steps[position] = (over.step, _replaced(over.step, steps[position][1], over.field, _parse(value)))
    steps = [step for step in steps if step[0] not in left_out]
    name = "_".join([swept.name, *_labels(chosen)])
    return _checked({"name": name, "compress": [{step: config} for step, config in steps]}, swept)


def _given(config: Any) -> dict[str, Any]:
    """Returns the settings that differ from their defaults."""
    return {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }


def _replaced(step: str, config: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    budgets = REGISTRY.get(step).budgets
    kept = {name: old for name, old in config.items() if not (field in budgets and name in budgets)}
    return {**kept, field: value}


def _position(steps: list[tuple[str, dict[str, Any]]], name: str) -> int | None:
    return next((index for index, step in enumerate(steps) if step[0] == name), None)


def _place(steps: list[tuple[str, dict[str, Any]]], name: str) -> int:
    own = rank(REGISTRY.get(name))
    return next((index for index, step in enumerate(steps) if rank(REGISTRY.get(step[0])) > own), len(steps))


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _labels(chosen: list[tuple[Over, str]]) -> Iterator[str]:
    """Names a combination: `flops0-6` for low_rank.flops=0.6, `no-distil` for a step that is left out."""
    for over, value in chosen:
        if value == _LEFT_OUT:
            yield f"no-{over.step}"
        else:
            yield re.sub(r"[^a-z0-9-]", "-", f"{over.field}{value}".lower())


def _checked(content: dict[str, Any], swept: VariantConfig) -> VariantConfig:
    from pydantic import TypeAdapter, ValidationError

    limits = {"min_agreement": swept.min_agreement, "max_logit_diff": swept.max_logit_diff}
    content |= {name: limit for name, limit in limits.items() if limit is not None}
    content |= {"against": swept.against} if swept.against is not None else {}
    try:
        return TypeAdapter(VariantConfig).validate_json(
            json.dumps(content, default=dataclasses.asdict), strict=True
        )
    except ValidationError as error:
        lines = format_errors(error.errors(include_url=False), VariantConfig)
        raise RecipeError("\n".join(f"sweep, {content['name']}: {line}" for line in lines)) from None
