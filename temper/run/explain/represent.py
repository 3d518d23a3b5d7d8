"""What every network's blocks know, how alike the networks are, and which of the last features matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from temper.report.explained import (
    Block,
    CurveOfFeatures,
    FeatureImportance,
    NetworkView,
    Selection,
    Similarity,
)
from temper.run.explain.look import Look, Network, Progress, interval, paired, share


def represent(look: Look, networks: Sequence[Network]) -> tuple[tuple[NetworkView, ...], tuple[Similarity, ...]]:
    """Describes every network block by block, and compares each with the original, the first one."""
    original = networks[0]
    # Rows are the original's, but for what came before it.
    pairs = [(each, original) if each.kind in ("initial", "snapshot") else (original, each) for each in networks]
    views, similarities = [], []
    for each in networks:
        with look.leaving_out(f"{each.name}: what its blocks know", "representation", each.variant):
            views.append(_describe(look, each))
    for one, two in pairs:
        with look.leaving_out(_alike(one, two), "representation", one.variant or two.variant):
            similarities.append(_compare(look, one, two))
    return tuple(views), tuple(similarities)


def _describe(look: Look, network: Network) -> NetworkView:
    from temper.builder.explain.networks import CORRECT_FILE

    def make(folder: Path, progress: Progress) -> Mapping[str, Any]:
        from temper.builder.explain.networks import describe_blocks

        return describe_blocks(network.run.path, look.images.path, folder, progress, seed=look.config.seed)

    found = look.stage(
        "blocks",
        f"{network.name}: what its blocks know",
        {"seed": look.config.seed},
        [network.run, look.images],
        make,
        code=("temper.builder.explain.networks",),
        libraries=("torch", "scikit-learn", "scipy"),
    )
    if found.info["not_converged"]:
        late = ", ".join(found.info["not_converged"])
        words = f"{network.name}: the probes of {late} ran out of steps: they may know more"
        look.note(words, "representation", network.variant)
    with np.load(found.path / CORRECT_FILE) as correct:
        probes = {name: share(correct[name]) for name in correct.files}
    blocks = tuple(
        Block.of(
            figures,
            name=name,
            probe=probes.get(name),
            effective_rank=interval(figures["effective_rank"]),
        )
        for name, figures in found.info["blocks"].items()
    )
    return NetworkView(
        name=network.name,
        kind=network.kind,
        epoch=network.epoch,
        runs_in=network.run.info["runs_in"],
        accuracy=share(network.answers == look.labels),
        blocks=blocks,
    )


def _compare(look: Look, first: Network, second: Network) -> Similarity:
    def make(folder: Path, progress: Progress) -> Mapping[str, Any]:
        from temper.builder.explain.networks import compare_networks

        return compare_networks(first.run.path, second.run.path, progress, seed=look.config.seed)

    found = look.stage(
        "similarity",
        _alike(first, second),
        {"seed": look.config.seed},
        [first.run, second.run],
        make,
        code=("temper.builder.explain.networks",),
    ).info
    values = tuple(tuple(None if cell is None else interval(cell) for cell in row) for row in found["values"])
    return Similarity(
        first=first.name,
        second=second.name,
        rows=tuple(found["rows"]),
        columns=tuple(found["columns"]),
        num_images=found["num_images"],
        values=values,
    )


def _alike(first: Network, second: Network) -> str:
    return f"{first.name} with {'itself' if first is second else second.name}: how alike"


def select_features(look: Look, original: Network) -> Selection:
    """Which features of the original network its head needs."""
    from temper.builder.explain.selection import CORRECT_FILE

    def make(folder: Path, progress: Progress) -> Mapping[str, Any]:
        from temper.builder.explain.selection import run_selection
        from temper.builder.network.stage import open_network

        network = open_network(look.setting, look.data, look.weights)
        return run_selection(network, original.run.path, look.images.path, folder, progress, seed=look.config.seed)

    found = look.stage(
        "selection",
        "which features matter",
        {"seed": look.config.seed},
        [look.data, look.weights, original.run, look.images],
        make,
        code=("temper.builder.explain.selection",),
        libraries=("torch", "scikit-learn", "scipy"),
    )
    curves = []
    with np.load(found.path / CORRECT_FILE) as correct:
        for figures in found.info["curves"]:
            right = correct[figures["method"]]
            curves.append(
                CurveOfFeatures(
                    method=figures["method"],
                    num_features=tuple(figures["num_features"]),
                    accuracy=tuple(share(row) for row in right),
                    change=tuple(paired(right[-1], row) for row in right),
                    stability=interval(figures["stability"]) if figures["stability"] else None,
                )
            )
    return Selection(
        num_train=found.info["num_train"],
        num_images=len(look.labels),
        importance=tuple(
            FeatureImportance(method=method, values=tuple(values))
            for method, values in found.info["importance"].items()
        ),
        curves=tuple(curves),
        note=found.info["note"],
    )
