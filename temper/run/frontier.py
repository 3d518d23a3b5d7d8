"""Which variants nothing else beats: the Pareto frontier of accuracy, robustness, latency and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from temper.report.model import Variant


def mark_frontier(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Returns the variants with `frontier`; what was not measured on one of two variants does not count.

    A variant is on the frontier unless another one is at least as good in every figure and better in one.
    """
    goals = [_goals(variant) for variant in variants]
    # No variant beats itself.
    return tuple(
        replace(variant, frontier=not any(_beats(other, mine) for other in goals))
        for variant, mine in zip(variants, goals, strict=True)
    )


def _goals(variant: Variant) -> dict[object, float]:
    """Returns the figures, each turned so that more is better."""
    goals: dict[object, float] = {"size": -float(variant.size_bytes)}
    if variant.accuracy is not None:
        goals["accuracy"] = variant.accuracy.value
    if variant.latency_ms is not None:
        goals["latency"] = -variant.latency_ms.p50
    return goals | {case.budget: case.value for case in variant.worst_case if case.doubt is None}


def _beats(one: Mapping[object, float], other: Mapping[object, float]) -> bool:
    common = [(one[name], other[name]) for name in one if name in other]
    return all(mine >= theirs for mine, theirs in common) and any(mine > theirs for mine, theirs in common)
