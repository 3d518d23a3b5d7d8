"""From the stages' figures to the report's rows, and the paired comparison of every variant with the first one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from temper.builder.store.artifacts import Artifact
from temper.client.stats import compare_paired
from temper.run.measure import CORRECT_FILE, INDICES_FILE, SURVIVED_FILE

Row = dict[str, Any]
_LATENCIES = ("p50", "p90", "p99", "p999", "mean", "max")


def add_accuracy(row: Row, measured: Artifact, class_names: Sequence[str]) -> None:
    """Puts the accuracy on all test images, and per class, into a variant's row."""
    figures = ("value", "low", "high", "num_images", "errors", "retries")
    row["accuracy"] = {name: measured.info[name] for name in figures}
    row["per_class"] = _by_name(measured.info["per_class"], class_names)


def add_load(row: Row, runs: Sequence[Mapping[str, Any]]) -> None:
    """Puts the load tests into a variant's row: the best closed-loop throughput, and one latency.

    The latency is the first open loop's, whose arrivals do not wait for the server; without one, the first closed
    loop's.
    """
    answered = [run for run in runs if run["completed"]]
    closed = [run for run in answered if run["mode"] == "closed"]
    opened = [run for run in answered if run["mode"] == "open"]
    row["load"] = [dict(run) for run in runs]
    row["throughput_ips"] = max((run["throughput_ips"] for run in closed or answered), default=None)
    row["latency_ms"] = row["latency_from"] = None
    for run in (opened or closed)[:1]:
        row["latency_ms"] = {name: run["latency_ms"][name] for name in _LATENCIES}
        row["latency_from"] = _source(run, row["throughput_ips"])


def _source(run: Mapping[str, Any], best_ips: float) -> str:
    if run["mode"] == "closed":
        return f"closed loop, {run['concurrency']} in flight"
    share = run["rate_rps"] * run["batch_size"] / best_ips
    return f"open loop (Poisson) at {100 * share:.0f} % of the variant's best throughput"


def add_attack(row: Row, measured: Artifact, class_names: Sequence[str], folder: Path) -> None:
    """Appends an attack to a variant's row; the gallery's paths become relative to `folder`."""
    info = dict(measured.info)
    accuracy = info.pop("accuracy")
    gallery = measured.path / "gallery"
    files = ("original", "adversarial", "difference")
    row["robustness"].append(
        {
            **info,
            "accuracy": accuracy["value"],
            "low": accuracy["low"],
            "high": accuracy["high"],
            "num_images": accuracy["num_images"],
            "per_class": _by_name(info["per_class"], class_names),
            "gallery": [
                {**entry, **{kind: os.path.relpath(gallery / entry[kind], folder) for kind in files}}
                for entry in info["gallery"]
            ],
        }
    )


def _by_name(per_class: Mapping[str, Any], class_names: Sequence[str]) -> list[Row]:
    return [{"label": class_names[int(index)], **figures} for index, figures in per_class.items()]


def compare(
    rows: Sequence[Row], accuracies: Mapping[str, Artifact], attacks: Mapping[str, Sequence[Artifact]]
) -> list[Row]:
    """Compares every further variant with the first one, on the same images, from what was measured on both.

    Args:
        rows: The variants' rows.
        accuracies: The accuracy stage by variant.
        attacks: The attack stages by variant, in the recipe's order.

    Returns:
        Per variant: the differences (variant minus baseline) with 95 % intervals and exact McNemar p-values, and
        the ratios of throughput and size.
    """
    found = []
    first = rows[0]
    for row in rows[1:]:
        comparison: Row = {"variant": row["name"], "baseline": first["name"]}
        comparison["size_ratio"] = row["size_bytes"] / first["size_bytes"]
        if first.get("throughput_ips") and row.get("throughput_ips"):
            comparison["throughput_ratio"] = row["throughput_ips"] / first["throughput_ips"]
        if first["name"] in accuracies and row["name"] in accuracies:
            pair = accuracies[first["name"]], accuracies[row["name"]]
            comparison["accuracy"] = _paired(*pair, CORRECT_FILE)
        both = zip(attacks.get(first["name"], ()), attacks.get(row["name"], ()), strict=False)
        comparison["robustness"] = [_paired_attack(one, two) for one, two in both]
        found.append(comparison)
    return found


def _paired(first: Artifact, second: Artifact, file: str) -> Row:
    return compare_paired(np.load(first.path / file), np.load(second.path / file)).to_json()


def _paired_attack(first: Artifact, second: Artifact) -> Row:
    indices = [np.load(artifact.path / INDICES_FILE) for artifact in (first, second)]
    assert np.array_equal(*indices), "the seed draws the same images for every variant"
    budget = {name: first.info[name] for name in ("attack", "norm", "epsilon")}
    return {**budget, **_paired(first, second, SURVIVED_FILE)}
