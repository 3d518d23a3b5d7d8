"""From the stages' figures to the report's variants, and the paired comparison of every one with the first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from temper.builder.store.artifacts import Artifact
from temper.client.corruptions.compare import compare_corruptions
from temper.client.corruptions.result import Vectors
from temper.client.stats import compare_paired
from temper.report.measured import (
    Accuracy,
    Attack,
    ClassShare,
    CorruptedShare,
    Corruptions,
    CurvePoint,
    Differential,
    Distance,
    Estimate,
    Latency,
    LoadRun,
    Paired,
    PairedCorruptions,
    Picture,
    QueriesToSuccess,
    ServerTimes,
    Share,
)
from temper.report.model import Comparison, Variant
from temper.run.measure import CORRECT_FILE
from temper.run.worst_case import compare_attacks, compare_worst_cases, named_pairs


def with_accuracy(variant: Variant, measured: Artifact, class_names: Sequence[str]) -> Variant:
    """Returns a variant with its accuracy on all test images, and per class."""
    per_class = tuple(_by_name(measured.info["per_class"], class_names))
    return replace(variant, accuracy=Accuracy.of(measured.info), per_class=per_class)


def with_load(variant: Variant, runs: Sequence[Mapping[str, Any]]) -> Variant:
    """Returns a variant with its load runs, its best closed-loop throughput, and one latency.

    The latency is the first open loop's, whose arrivals do not wait for the server; without one, the first closed
    loop's.
    """
    load = tuple(map(_load_run, runs))
    answered = [run for run in load if run.completed]
    closed = [run for run in answered if run.mode == "closed"]
    opened = [run for run in answered if run.mode == "open"]
    best_ips = max((run.throughput_ips for run in closed or answered), default=0.0)
    variant = replace(variant, load=load, throughput_ips=best_ips if answered else None)
    for run in (opened or closed)[:1]:
        variant = replace(variant, latency_ms=run.latency_ms, latency_from=_source(run, best_ips))
    return variant


def _load_run(run: Mapping[str, Any]) -> LoadRun:
    latency, server = run["latency_ms"], run["server"]
    return LoadRun.of(
        run,
        latency_ms=Latency.of(latency) if latency else None,
        server=ServerTimes.of(server) if server else None,
    )


def _source(run: LoadRun, best_ips: float) -> str:
    if run.rate_rps is None:
        return f"closed loop, {run.concurrency} in flight"
    share = run.rate_rps * run.batch_size / best_ips
    return f"open loop (Poisson) at {100 * share:.0f} % of the variant's best throughput"


def with_attack(
    variant: Variant, measured: Artifact, class_names: Sequence[str], folder: Path, reference: str | None = None
) -> Variant:
    """Returns a variant with one more attack; the gallery's paths become relative to `folder`.

    Args:
        variant: The variant.
        measured: The attack stage.
        class_names: The names of the classes.
        folder: The report's.
        reference: The variant that the attack compares with, if it does.
    """
    info, place = measured.info, os.path.relpath(measured.path / "gallery", folder)
    success = info["queries_to_success"]
    share = Share.of(info["accuracy"])
    figures: dict[str, Any] = dict(
        accuracy=share.value,
        low=share.low,
        high=share.high,
        num_images=share.num_images,
        clean_accuracy=Share.of(info["clean_accuracy"]),
        per_class=tuple(_by_name(info["per_class"], class_names)),
        queries_to_success=QueriesToSuccess.of(success) if success else None,
        distance=Distance.of(info["distance"]) if info["distance"] else None,
        curve=tuple(map(CurvePoint.of, info["curve"])),
        pairs=tuple(named_pairs(info["pairs"], class_names)),
        gallery=tuple(moved(Picture.of(picture), place) for picture in info["gallery"]),
    )
    if reference is None:
        return replace(variant, robustness=(*variant.robustness, Attack.of(info, **figures)))
    figures |= {"reference": reference, "success": Share.of(info["success"])}
    return replace(variant, differential=(*variant.differential, Differential.of(info, **figures)))


def with_corruptions(variant: Variant, measured: Artifact) -> Variant:
    """Returns a variant with its accuracy on corrupted images."""
    info = measured.info
    corruptions = Corruptions.of(
        info,
        clean_accuracy=Share.of(info["clean_accuracy"]),
        accuracy=Estimate.of(info["accuracy"]),
        cells=tuple(map(CorruptedShare.of, info["cells"])),
    )
    return replace(variant, corruptions=corruptions)


def with_corruption_errors(
    comparisons: Iterator[Comparison], measured: Mapping[str, Artifact]
) -> Iterator[Comparison]:
    """Yields the comparisons with the mean corruption error, of those where both variants were measured.

    Args:
        comparisons: As `compare` yields them.
        measured: The stage of the corruptions by variant.
    """
    for comparison in comparisons:
        names = (comparison.baseline, comparison.variant)
        if all(name in measured for name in names):
            found = compare_corruptions(*(Vectors.load(measured[name].path) for name in names))
            corruptions = PairedCorruptions.of(
                found.to_json(),
                mce=_estimate(found.mce),
                relative_mce=_estimate(found.relative_mce),
                difference=Estimate.of(found.difference),
            )
            comparison = replace(comparison, corruptions=corruptions)
        yield comparison


def _estimate(found: Mapping[str, Any] | None) -> Estimate | None:
    return None if found is None else Estimate.of(found)


def moved(picture: Picture, place: str) -> Picture:
    """Returns a picture whose files are named from another folder, in which their own is at `place`."""
    files = {kind: os.path.normpath(f"{place}/{name}") for kind, name in picture.files.items()}
    return Picture.of(vars(picture) | files)


def _by_name(per_class: Mapping[str, Any], class_names: Sequence[str]) -> Iterator[ClassShare]:
    for index, figures in per_class.items():
        yield ClassShare.of(figures, label=class_names[int(index)])


def compare(
    variants: Sequence[Variant],
    accuracies: Mapping[str, Artifact],
    attacks: Mapping[str, Sequence[Artifact]],
    baselines: Mapping[str, str],
) -> Iterator[Comparison]:
    """Compares every further variant with another, on the same images, from what was measured on both.

    Args:
        variants: The variants.
        accuracies: The accuracy stage by variant.
        attacks: The attack stages by variant, in the recipe's order.
        baselines: What a variant is compared with; the first one where it is not named.

    Yields:
        Per variant: the differences (variant minus baseline) with 95 % intervals and exact McNemar p-values, and
        the ratios of throughput and size.
    """
    by_name = {variant.name: variant for variant in variants}
    for variant in variants[1:]:
        first = by_name[baselines.get(variant.name, variants[0].name)]
        throughput_ratio = accuracy = None
        if first.throughput_ips and variant.throughput_ips:
            throughput_ratio = variant.throughput_ips / first.throughput_ips
        if first.name in accuracies and variant.name in accuracies:
            accuracy = Paired.of(_paired(accuracies[first.name], accuracies[variant.name], CORRECT_FILE))
        both = attacks.get(first.name, ()), attacks.get(variant.name, ())
        yield Comparison(
            variant=variant.name,
            baseline=first.name,
            size_ratio=variant.size_bytes / first.size_bytes,
            throughput_ratio=throughput_ratio,
            accuracy=accuracy,
            robustness=tuple(compare_attacks(*both, (first, variant))),
            worst_case=tuple(compare_worst_cases(*both, (first, variant))),
        )


def _paired(first: Artifact, second: Artifact, file: str) -> dict[str, Any]:
    return compare_paired(np.load(first.path / file), np.load(second.path / file)).to_json()
