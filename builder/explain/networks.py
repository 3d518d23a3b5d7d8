"""Runs a network for what its blocks give, and describes these block by block: the stages behind its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.contract import TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.errors import ExplainError
from temper.builder.explain.activations import (
    BATCH,
    RunsIn,
    block_outputs,
    run_logits,
    try_reading,
    with_pooled,
)
from temper.builder.explain.cka import compare
from temper.builder.explain.dimension import measure_dimensions
from temper.builder.explain.features import Features, FeaturesWriter
from temper.builder.explain.images import TRAIN_IMAGES_FILE, TRAIN_LABELS_FILE
from temper.builder.explain.probes import probe_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]
ANSWERS_FILE = "answers.npy"
CORRECT_FILE = "correct.npz"
TEST, TRAIN = "test", "train"


def run_network(graph: Path, images: Path, runs_in: RunsIn, folder: Path, progress: Progress) -> dict[str, Any]:
    """Runs a graph on the test and the training images, and keeps what every block gives, averaged over the image.

    Args:
        graph: The ONNX file.
        images: The folder of `images.write_images`.
        runs_in: What runs it.
        folder: Receives answers.npy (to the test images, int64 [N]; of the graph as it is, which gives out no
            blocks), and the features in `test` and `train`.
        progress: Called with (images done, images in all); test images count twice, for answers and for features.

    Returns:
        runs_in (what gave the blocks), blocks (number of features by block), note (why that was not the engine;
        else empty).

    Raises:
        ExplainError: It has no residual blocks.
        EngineError: The engine refuses it.
    """
    model = onnx.load(graph)
    blocks = block_outputs(model)
    if not blocks:
        raise ExplainError(
            f"{graph.name}: has no residual blocks, expected a ResNet; only the part blame can look at it"
        )
    pooling, pooled = with_pooled(model, list(blocks.values()))
    sets: dict[str, NDArray[np.uint8]] = {
        name: np.load(images / file, mmap_mode="r")
        for name, file in ((TEST, TEST_IMAGES_FILE), (TRAIN, TRAIN_IMAGES_FILE))
    }
    done = len(sets[TEST])
    total = done + sum(len(each) for each in sets.values())
    logits = run_logits(runs_in, model, sets[TEST], progress=lambda answered: progress(answered, total))
    np.save(folder / ANSWERS_FILE, logits.argmax(1))
    reading = try_reading(runs_in, pooling, list(pooled.values()), sets[TEST])
    run = reading.runs_in.open(pooling, list(pooled.values()))
    first = run(sets[TEST][:1])
    widths = {block: first[pooled[tensor]].shape[1] for block, tensor in blocks.items()}
    for name, each in sets.items():
        with FeaturesWriter(folder / name, widths, len(each)) as writer:
            for start in range(0, len(each), BATCH):
                batch = each[start : start + BATCH]
                found = run(batch)
                writer.append({block: found[pooled[tensor]] for block, tensor in blocks.items()})
                done += len(batch)
                progress(done, total)
    return {"runs_in": reading.runs_in.title, "blocks": widths, "note": reading.note}


def describe_blocks(network: Path, images: Path, folder: Path, progress: Progress, *, seed: int) -> dict[str, Any]:
    """Measures what each block's features hold.

    Args:
        network: The folder of `run_network`.
        images: The folder of `images.write_images`.
        folder: Receives correct.npz: by block, where its linear probe is right, bool [test images].
        progress: Called with (blocks done, blocks in all).
        seed: Decides the resamples and what probes hold out.

    Returns:
        blocks: by name num_features, num_dead, effective_rank (value, low, high), rank_limited; and not_converged,
        the probes that ran out of steps.
    """
    test, train = Features(network / TEST), Features(network / TRAIN)
    count = len(test.blocks)
    dimensions = measure_dimensions(test, seed=seed, progress=lambda done, total: progress(done, 2 * count))
    probes = probe_blocks(
        train,
        np.load(images / TRAIN_LABELS_FILE),
        test,
        np.load(images / TEST_LABELS_FILE),
        seed=seed,
        progress=lambda done, total: progress(count + done, 2 * count),
    )
    np.savez(folder / CORRECT_FILE, **{name: probe.correct for name, probe in probes.items()})
    return {
        "blocks": {name: asdict(found) for name, found in dimensions.items()},
        "not_converged": [name for name, probe in probes.items() if not probe.converged],
    }


def compare_networks(first: Path, second: Path, progress: Progress, *, seed: int) -> dict[str, Any]:
    """Measures how alike the blocks of two networks are on the test images.

    Args:
        first: The folder of `run_network`.
        second: The other's.
        progress: Called with (images done, images in all).
        seed: Decides the order of the images.

    Returns:
        rows, columns (blocks), num_images, values ([rows][columns] of [value, low, high] or None).
    """
    found = compare(Features(first / TEST), Features(second / TEST), seed=seed, progress=progress)
    cells = [[found.at(row, column) for column in range(len(found.columns))] for row in range(len(found.rows))]
    return {
        "rows": list(found.rows),
        "columns": list(found.columns),
        "num_images": found.num_images,
        "values": cells,
    }
