"""Runs a network for what its blocks give, and describes these block by block: the stages behind its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.contract import OUTPUT_NAME, TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.errors import ExplainError
from temper.builder.explain.activations import EXACT, RunsIn, block_outputs, with_pooled
from temper.builder.explain.blame import MAX_TAP_CHANGE, spread_change
from temper.builder.explain.cka import compare
from temper.builder.explain.dimension import measure_dimensions
from temper.builder.explain.features import Features, FeaturesWriter
from temper.builder.explain.images import TRAIN_IMAGES_FILE, TRAIN_LABELS_FILE
from temper.builder.explain.probes import probe_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.engines.kind import RunOutputs

Progress = Callable[[int, int], None]
ANSWERS_FILE = "answers.npy"
CORRECT_FILE = "correct.npz"
TEST, TRAIN = "test", "train"
_BATCH = 16


def run_network(graph: Path, images: Path, runs_in: RunsIn, folder: Path, progress: Progress) -> dict[str, Any]:
    """Runs a graph on the test and the training images, and keeps what every block gives, averaged over the image.

    Args:
        graph: The ONNX file.
        images: The folder of `images.write_images`.
        runs_in: What runs it.
        folder: Receives answers.npy (to the test images, int64 [N]), and the features in `test` and `train`.
        progress: Called with (images done, images in all).

    Returns:
        runs_in, blocks (number of features by block), note (why another than the engine ran it; else empty).

    Raises:
        ExplainError: It has no residual blocks.
        EngineError: The engine refuses it.
    """
    model = onnx.load(graph)
    blocks = block_outputs(model)
    if not blocks:
        raise ExplainError(f"{graph.name}: has no residual blocks, expected a ResNet")
    pooling, pooled = with_pooled(model, list(blocks.values()))
    sets = [(name, np.load(images / file, mmap_mode="r")) for name, file in _IMAGES.items()]
    total, done, answers = sum(len(each) for _, each in sets), 0, []
    widths: dict[str, int] = {}
    run, note = runs_in.open(pooling, list(pooled.values())), ""
    if runs_in.engine is not None and (change := _changed_by_reading(model, pooling, pooled, run, runs_in, sets)):
        note = f"giving out its blocks changes what {runs_in.title} computes: {change}"
        runs_in = RunsIn(EXACT, None, note)
        run = runs_in.open(pooling, list(pooled.values()))
    for name, each in sets:
        first = run(each[:1])
        widths = {block: first[pooled[tensor]].shape[1] for block, tensor in blocks.items()}
        with FeaturesWriter(folder / name, widths, len(each)) as writer:
            for start in range(0, len(each), _BATCH):
                found = run(each[start : start + _BATCH])
                writer.append({block: found[pooled[tensor]] for block, tensor in blocks.items()})
                if name == TEST:
                    answers.append(found[OUTPUT_NAME].argmax(1))
                done += len(each[start : start + _BATCH])
                progress(done, total)
    np.save(folder / ANSWERS_FILE, np.concatenate(answers))
    return {"runs_in": runs_in.title, "blocks": widths, "note": note}


def _changed_by_reading(
    model: onnx.ModelProto,
    pooling: onnx.ModelProto,
    pooled: dict[str, str],
    run: RunOutputs,
    runs_in: RunsIn,
    sets: Sequence[tuple[str, NDArray[np.uint8]]],
) -> str:
    """Says by how much the engine's blocks are off the exact arithmetic, where its answers are not; else empty."""
    images = sets[0][1][:_BATCH]
    exact = RunsIn(EXACT, None, "").open(pooling, list(pooled.values()))(images)
    plain, found = runs_in.open(model)(images)[OUTPUT_NAME], run(images)
    usual = spread_change(plain - exact[OUTPUT_NAME], exact[OUTPUT_NAME])
    worst = max(spread_change(found[name] - exact[name], exact[name]) for name in pooled.values())
    return (
        f"a block's features by {100 * worst:.0f} % of their spread"
        if worst > max(MAX_TAP_CHANGE, 3 * usual)
        else ""
    )


_IMAGES = {TEST: TEST_IMAGES_FILE, TRAIN: TRAIN_IMAGES_FILE}


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
        progress: Called with (batches done, batches in all).
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
