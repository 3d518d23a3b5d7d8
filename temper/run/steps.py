"""What each step of a compression did to a model: accuracy, agreement, size, and speed.

The graph that every step left runs in process on the test images: in the engine that serves, as it answers one
request at a time, or in one that runs in process where that one does not. Its speed is taken in turns with that of
the graph before it, so that a busy machine slows both. A step that gains nothing is said to gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from temper.builder.compress.step import REGISTRY
from temper.builder.contract import GRAPH_FILE
from temper.builder.engines.kind import ENGINES, EngineConfig
from temper.builder.engines.latency import open_graph, time_in_turns
from temper.builder.store.artifacts import Artifact, Store
from temper.client.stats import compare_paired, proportion
from temper.host.machine import machine_id
from temper.report import text
from temper.report.measured import Paired, Share
from temper.report.model import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.built import Built, Snapshot
    from temper.progress import Display, Stage

ANSWERS_FILE = "answers.npy"
_MAX_IMAGES = 2000
_BATCH = 16
_GAIN = 0.97
"""A step is faster when it takes less than this share of the time: below it lies the noise of a quiet machine."""


def measure_steps(
    built: Built,
    store: Store,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    engine: EngineConfig,
    display: Display,
) -> tuple[Step, ...]:
    """Measures every step of a variant; a variant without steps has none.

    Args:
        built: The variant.
        store: Keeps the measurements.
        images: Test images, uint8 [N, H, W, 3]; the first 2,000 are used.
        labels: Their labels, int64 [N].
        engine: From `latency.timing_engine`.
        display: Shows one line for each measurement that has to run.

    Returns:
        One for each snapshot, the float32 network first.
    """
    snapshots, title = built.snapshots, ENGINES.get(engine.kind).title
    if len(snapshots) < 2:
        return ()
    images, labels = images[:_MAX_IMAGES], np.asarray(labels[:_MAX_IMAGES])
    measured = []
    for position, snapshot in enumerate(snapshots):
        before = snapshots[max(0, position - 1)]
        label = f"{built.variant}: step {snapshot.step.replace('_', ' ')}"
        with display.stage(label) as shown:
            artifact = _measure(store, snapshot, before, built.data, images, engine, shown)
            shown.reused = artifact.reused
            shown.note = f"{text.number(artifact.info['latency_ms'])} ms in {title}"
        measured.append(artifact)
    return tuple(_steps(snapshots, measured, labels, title))


def _measure(
    store: Store,
    snapshot: Snapshot,
    before: Snapshot,
    data: Artifact,
    images: NDArray[np.uint8],
    engine: EngineConfig,
    shown: Stage,
) -> Artifact:
    def make(folder: Path) -> dict[str, float | int | None]:
        runs = [open_graph(one.graph.path / GRAPH_FILE, engine) for one in (snapshot, before)]
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
            "latency_before_ms": None if snapshot is before else median(taken_before),
            "num_images": len(images),
        }

    config = {"engine": engine, "machine": machine_id(), "num_images": len(images)}
    kind = ENGINES.get(engine.kind)
    code, libraries = ("temper.builder.engines.latency", type(kind).__module__), kind.libraries(engine)
    return store.run("step", config, [snapshot.graph, before.graph, data], make, code=code, libraries=libraries)


def _steps(
    snapshots: Sequence[Snapshot], measured: Sequence[Artifact], labels: NDArray[np.int64], engine: str
) -> Iterator[Step]:
    answers = [np.load(artifact.path / ANSWERS_FILE) for artifact in measured]
    for position, (snapshot, artifact) in enumerate(zip(snapshots, measured, strict=True)):
        correct = answers[position] == labels
        step = Step(
            name=snapshot.step,
            engine=engine,
            flops=snapshot.flops,
            num_parameters=snapshot.num_parameters,
            size_bytes=(snapshot.graph.path / GRAPH_FILE).stat().st_size,
            accuracy=Share.of(proportion(correct)),
            agreement=float((answers[position] == answers[0]).mean()),
            latency_ms=artifact.info["latency_ms"],
            latency_ratio=artifact.info["latency_ratio"],
            latency_before_ms=artifact.info.get("latency_before_ms"),  # kept by an older Temper without
        )
        if position > 0:
            change = Paired.of(compare_paired(answers[position - 1] == labels, correct).to_json())
            step = replace(step, accuracy_change=change)
            step = replace(step, verdict=_verdict(step, change))
        yield step


def _verdict(step: Step, change: Paired) -> str | None:
    """Says so when a step gained nothing of what it is for."""
    gain = REGISTRY.get(step.name).gain
    if gain == "robustness":
        return None
    if gain == "accuracy":
        if change.low > 0:
            return None
        return f"no measurable gain in accuracy ({text.points(change.difference, change.low, change.high)})"
    if step.latency_ratio is None or step.latency_ratio < _GAIN:
        return None
    ratio = text.times(step.latency_ratio)
    return f"no gain in speed in {step.engine} on this machine ({ratio} the latency of the step before)"
