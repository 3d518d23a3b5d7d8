"""The measurement of a compression's steps, on real graphs in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from temper.builder.built import Built, Snapshot
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.engines.openvino import OpenVinoConfig
from temper.builder.store.artifacts import Artifact, Store
from temper.progress import Display
from temper.report.measured import Paired, Share
from temper.report.model import Step
from temper.run.steps import measure_steps

if TYPE_CHECKING:
    from benchmarks.sample import Sample


def artifact_of(name: str, path: Path) -> Artifact:
    return Artifact(path=path, digest=name, info={}, reused=True)


def built_of(folder: Path, *snapshots: Snapshot) -> Built:
    return Built(
        variant="int8",
        model="toy_int8",
        version=1,
        engine="openvino",
        engine_reason="",
        size_bytes=1,
        path=folder,
        reused=False,
        served=1,
        data=artifact_of("data", folder),
        digest="",
        snapshots=list(snapshots),
    )


@pytest.fixture(scope="module")
def built(sample: Sample, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample network, then the same graph again (a step that gains nothing), then int8."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "int8").mkdir()
    config = QuantizeConfig(method="max", reduce_range=True)  # right on every CPU
    quantize_onnx(toy_onnx, folder / "int8" / "model.onnx", sample.calibration[:32], config)
    float32, int8 = artifact_of("float32", toy_onnx.parent), artifact_of("int8", folder / "int8")
    return built_of(
        folder,
        Snapshot(step="float32", graph=float32, flops=100, num_parameters=10),
        Snapshot(step="cast", graph=artifact_of("cast", toy_onnx.parent), flops=100, num_parameters=10),
        Snapshot(step="quantize", graph=int8, flops=100, num_parameters=10),
    )


def measure(built: Built, store: Path, sample: Sample, **changes: Any) -> tuple[tuple[Step, ...], list[bool]]:
    labels = changes.get("labels", np.asarray(sample.labels, np.int64)[:120])
    with Display(quiet=True) as display:
        steps = measure_steps(built, Store(store), sample.images[:120], labels, OpenVinoConfig(), display)
        return steps, [stage.reused for stage in display.finished]


def test_every_step_has_its_figures(built: Built, sample: Sample, tmp_path: Path) -> None:
    steps, reused = measure(built, tmp_path, sample)
    assert [step.name for step in steps] == ["float32", "cast", "quantize"]
    assert reused == [False, False, False]
    for step in steps:
        assert step.accuracy.num_images == 120
        assert step.accuracy.low <= step.accuracy.value <= step.accuracy.high
        assert step.latency_ms > 0
    first, same, int8 = steps
    assert (first.agreement, first.latency_ratio, first.accuracy_change) == (1.0, None, None)
    assert same.accuracy_change is not None
    assert (same.agreement, same.accuracy_change.difference) == (1.0, 0.0)
    assert int8.size_bytes < 0.3 * first.size_bytes
    assert 0.9 < int8.agreement <= 1.0
    assert int8.latency_ratio is not None
    assert int8.latency_ratio > 0
    assert first.latency_before_ms is None and int8.latency_before_ms is not None
    assert int8.latency_ms / int8.latency_before_ms == pytest.approx(int8.latency_ratio, rel=0.5)


def test_accuracy_is_counted_against_the_labels(built: Built, sample: Sample, tmp_path: Path) -> None:
    wrong = (np.asarray(sample.labels, np.int64)[:120] + 1) % 10
    right, _ = measure(built, tmp_path, sample)
    steps, reused = measure(built, tmp_path, sample, labels=wrong)
    # What was measured are answers; the labels are compared with them afterwards.
    assert reused == [True, True, True]
    assert right[0].accuracy.value > 0.9
    assert steps[0].accuracy.value < 0.1


def test_variant_without_steps_has_no_rows(built: Built, sample: Sample, tmp_path: Path) -> None:
    plain = built_of(tmp_path, built.snapshots[0])
    assert measure(plain, tmp_path, sample) == ((), [])


@pytest.mark.parametrize(
    ("name", "ratio", "low", "expected"),
    [
        ("quantize", 0.4, 0.0, None),
        ("sparsify", 1.01, 0.0, "no gain in speed in OpenVINO on this machine (1.01"),
        ("distil", 1.0, 0.01, None),
        ("distil", 1.0, -0.01, "no measurable gain in accuracy ("),
    ],
)
def test_step_that_gains_nothing_is_said_so(name: str, ratio: float, low: float, expected: str | None) -> None:
    from temper.run.steps import _verdict

    counts = {"num_images": 120, "num_only_first": 0, "num_only_second": 2}
    share = Share(value=0.9, low=0.8, high=1.0, num_images=120)
    sizes: dict[str, Any] = {"flops": 1, "num_parameters": 1, "size_bytes": 1, "latency_ms": 1.0, "agreement": 1.0}
    step = Step(name=name, engine="OpenVINO", accuracy=share, latency_ratio=ratio, **sizes)
    verdict = _verdict(step, Paired(difference=0.02, low=low, high=0.03, p_value=0.5, **counts))
    assert verdict is None if expected is None else str(verdict).startswith(expected)
