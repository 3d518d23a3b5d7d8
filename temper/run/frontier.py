"""Which variants nothing else beats: the Pareto frontier of accuracy, accuracy under attack, latency and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def mark_frontier(variants: Sequence[dict[str, Any]]) -> None:
    """Sets `frontier` of every variant's row; what was not measured on one of two variants does not count.

    A variant is on the frontier unless another one is at least as good in every figure and better in one.
    """
    goals = [_goals(variant) for variant in variants]
    for index, variant in enumerate(variants):
        others = (other for position, other in enumerate(goals) if position != index)
        variant["frontier"] = not any(_beats(other, goals[index]) for other in others)


def _goals(variant: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures, each turned so that more is better."""
    goals = {"size": -float(variant["size_bytes"])}
    if variant.get("accuracy"):
        goals["accuracy"] = variant["accuracy"]["value"]
    if variant.get("latency_ms"):
        goals["latency"] = -variant["latency_ms"]["p50"]
    for attack in variant.get("robustness", []):
        goals[f"{attack['attack']} {attack['norm']} {attack['epsilon']}"] = attack["accuracy"]
    return goals


def _beats(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    common = [(one[name], other[name]) for name in one if name in other]
    return all(mine >= theirs for mine, theirs in common) and any(mine > theirs for mine, theirs in common)
