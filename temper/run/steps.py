"""What each step of a compression did to a model: accuracy, agreement, size, and speed in the engine that serves.

The graph that every step left runs in process with the settings of the plugin on the test images: in the engine
that serves, or in OpenVINO where that one does not run in process.
Its speed is taken in turns with that of the graph before it, so that a busy machine slows both. A step that gains
nothing is said to gain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.engines.kind import ENGINES, EngineConfig
from temper.builder.engines.latency import open_graph, time_in_turns
from temper.builder.store.artifacts import Artifact, Store
from temper.client.stats import compare_paired, proportion
from temper.host.machine import machine_id
from temper.report import text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.built import Built, Snapshot
    from temper.progress import Display, Stage

ANSWERS_FILE = "answers.npy"
_MAX_IMAGES = 2000
_BATCH = 16
_GAIN = 0.97
"""A step is faster when it takes less than this share of the time: below it lies the noise of a quiet machine."""

Row = dict[str, Any]


def audit_steps(
    built: Built,
    store: Store,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    engine: EngineConfig,
    display: Display,
) -> list[Row]:
    """Measures every step of a variant; a variant without steps has none.

    Args:
        built: The variant.
        store: Keeps the measurements.
        images: Test images, uint8 [N, S, S, 3]; the first 2,000 are used.
        labels: Their labels, int64 [N].
        engine: From `latency.timing_engine`.
        display: Shows one line for each measurement that has to run.

    Returns:
        One row per snapshot, the float32 network first: name, flops, num_parameters, size_bytes, accuracy (with
        its 95 % interval), agreement (share of the float32 network's answers), latency_ms (median, one image),
        and against the row before: accuracy_change (paired), latency_ratio, verdict (a sentence, or None).
    """
    snapshots, title = built.snapshots, ENGINES.get(engine.kind).title
    if len(snapshots) < 2:
        return []
    images, labels = images[:_MAX_IMAGES], np.asarray(labels[:_MAX_IMAGES])
    measured = []
    for position, snapshot in enumerate(snapshots):
        before = snapshots[max(0, position - 1)]
        label = f"{built.variant}: audit of {snapshot.step.replace('_', ' ')}"
        with display.stage(label) as shown:
            artifact = _measure(store, snapshot, before, built.data, images, engine, shown)
            shown.reused = artifact.reused
            shown.note = f"{text.number(artifact.info['latency_ms'])} ms in {title}"
        measured.append(artifact)
    return _rows(snapshots, measured, labels, title)


def _measure(
    store: Store,
    snapshot: Snapshot,
    before: Snapshot,
    data: Artifact,
    images: NDArray[np.uint8],
    engine: EngineConfig,
    shown: Stage,
) -> Artifact:
    def make(folder: Path) -> Row:
        runs = [open_graph(one.graph.path / "model.onnx", engine) for one in (snapshot, before)]
        answers = []
        for start in range(0, len(images), _BATCH):
            answers.append(runs[0](images[start : start + _BATCH]).argmax(1))
            shown(start, len(images))
        np.save(folder / ANSWERS_FILE, np.concatenate(answers))
        taken, taken_before = time_in_turns(runs, images[:1])
        ratio = median(one / two for one, two in zip(taken, taken_before, strict=True))
        return {
            "latency_ms": median(taken),
            "latency_ratio": None if snapshot is before else ratio,
            "num_images": len(images),
        }

    config = {"engine": engine, "machine": machine_id(), "num_images": len(images)}
    code = ("temper.builder.engines.latency",)
    return store.run("audit", config, [snapshot.graph, before.graph, data], make, code=code)


def _rows(
    snapshots: Sequence[Snapshot], measured: Sequence[Artifact], labels: NDArray[np.int64], title: str
) -> list[Row]:
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
            row["verdict"] = _verdict(row, title)
        rows.append(row)
    return rows


def _verdict(row: Row, title: str) -> str | None:
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
    return f"no gain in speed in {title} on this machine ({text.times(ratio)} the latency of the step before)"
