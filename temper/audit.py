"""What each step of a compression did to a model: accuracy, agreement, size, and speed in the engine that serves.

The graph that every step left runs in process, in OpenVINO with the settings of the plugin, on the test images.
Its speed is taken in turns with that of the graph before it, so that a busy machine slows both. A step that gains
nothing is said to gain nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.artifacts import Artifact, Store
from builder.triton_config import INPUT_NAME
from client.stats import compare_paired, proportion
from temper.machine import machine_id
from temper.report import text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from builder.build import Built, Snapshot
    from temper.progress import Display, Stage

ANSWERS_FILE = "answers.npy"
_MAX_IMAGES = 2000
_BATCH = 16
_ROUNDS = 40
_WARMUP = 5
_GAIN = 0.97
"""A step is faster when it takes less than this share of the time: below it lies the noise of a quiet machine."""

Row = dict[str, Any]
Run = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]


def audit_steps(
    built: Built, store: Store, images: NDArray[np.uint8], labels: NDArray[np.int64], hint: str, display: Display
) -> list[Row]:
    """Measures every step of a variant; a variant without steps has none.

    Args:
        built: The variant.
        store: Keeps the measurements.
        images: Test images, uint8 [N, S, S, 3]; the first 2,000 are used.
        labels: Their labels, int64 [N].
        hint: OpenVINO's INFERENCE_PRECISION_HINT, as the plugin gets it.
        display: Shows one line for each measurement that has to run.

    Returns:
        One row per snapshot, the float32 network first: name, flops, num_parameters, size_bytes, accuracy (with
        its 95 % interval), agreement (share of the float32 network's answers), latency_ms (median, one image),
        and against the row before: accuracy_change (paired), latency_ratio, verdict (a sentence, or None).
    """
    snapshots = built.snapshots
    if len(snapshots) < 2:
        return []
    images, labels = images[:_MAX_IMAGES], np.asarray(labels[:_MAX_IMAGES])
    measured = []
    for position, snapshot in enumerate(snapshots):
        before = snapshots[max(0, position - 1)]
        label = f"{built.variant}: audit of {snapshot.step.replace('_', ' ')}"
        with display.stage(label) as shown:
            artifact = _measure(store, snapshot, before, built.data, images, hint, shown)
            shown.reused = artifact.reused
            shown.note = f"{text.number(artifact.info['latency_ms'])} ms in OpenVINO"
        measured.append(artifact)
    return _rows(snapshots, measured, labels)


def _measure(
    store: Store,
    snapshot: Snapshot,
    before: Snapshot,
    data: Artifact,
    images: NDArray[np.uint8],
    hint: str,
    shown: Stage,
) -> Artifact:
    def make(folder: Path) -> Row:
        run = _compile(snapshot.graph, hint)
        answers = []
        for start in range(0, len(images), _BATCH):
            answers.append(run(images[start : start + _BATCH]).argmax(1))
            shown(start, len(images))
        np.save(folder / ANSWERS_FILE, np.concatenate(answers))
        first = None if snapshot is before else _compile(before.graph, hint)
        latency_ms, ratio = _time_in_turns(run, first, images[:1])
        return {"latency_ms": latency_ms, "latency_ratio": ratio, "num_images": len(images)}

    config = {"hint": hint, "machine": machine_id(), "num_images": len(images)}
    return store.run("audit", config, [snapshot.graph, before.graph, data], make)


def _compile(graph: Artifact, hint: str) -> Run:
    from builder.engines.openvino import open_core

    settings = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": "1"}
    request = open_core().compile_model(graph.path / "model.onnx", "CPU", settings).create_infer_request()

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = request.infer({INPUT_NAME: np.ascontiguousarray(batch)})[0]
        return logits

    return run


def _time_in_turns(run: Run, before: Run | None, image: NDArray[np.uint8]) -> tuple[float, float | None]:
    """Returns the median latency in ms, and the median over pairs of its ratio to the graph before."""
    runs = [run] if before is None else [before, run]
    times = []
    for _ in range(_WARMUP + _ROUNDS):
        row = []
        for each in runs:
            started = time.perf_counter()
            each(image)
            row.append(1e3 * (time.perf_counter() - started))
        times.append(row)
    kept = times[_WARMUP:]
    ratio = None if before is None else median(row[1] / row[0] for row in kept)
    return median(row[-1] for row in kept), ratio


def _rows(snapshots: Sequence[Snapshot], measured: Sequence[Artifact], labels: NDArray[np.int64]) -> list[Row]:
    answers = [np.load(artifact.path / ANSWERS_FILE) for artifact in measured]
    rows: list[Row] = []
    for position, (snapshot, artifact) in enumerate(zip(snapshots, measured, strict=True)):
        correct = answers[position] == labels
        row: Row = {
            "name": snapshot.step,
            "flops": snapshot.flops,
            "num_parameters": snapshot.num_parameters,
            "size_bytes": (snapshot.graph.path / "model.onnx").stat().st_size,
            "accuracy": dict(proportion(correct)),
            "agreement": float((answers[position] == answers[0]).mean()),
            "latency_ms": artifact.info["latency_ms"],
            "latency_ratio": artifact.info["latency_ratio"],
            "accuracy_change": None,
            "verdict": None,
        }
        if position > 0:
            row["accuracy_change"] = compare_paired(answers[position - 1] == labels, correct).to_json()
            row["verdict"] = _verdict(row)
        rows.append(row)
    return rows


def _verdict(row: Row) -> str | None:
    """Says so when a step gained nothing."""
    change, ratio = row["accuracy_change"], row["latency_ratio"]
    if row["name"] == "distil":
        if change["low"] > 0:
            return None
        return (
            f"no measurable gain in accuracy ({text.points(change['difference'], change['low'], change['high'])})"
        )
    if ratio < _GAIN:
        return None
    return f"no gain in speed in OpenVINO on this machine ({text.times(ratio)} the latency of the step before)"
