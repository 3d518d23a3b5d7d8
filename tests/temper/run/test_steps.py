"""The audit of a compression's steps, on real graphs in OpenVINO."""

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
from temper.run.steps import audit_steps

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
        engine_why="",
        size_bytes=1,
        path=folder,
        reused=False,
        data=artifact_of("data", folder),
        digest="",
        snapshots=list(snapshots),
    )


@pytest.fixture(scope="module")
def built(sample: Sample, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample network, then the same graph again (a step that gains nothing), then int8."""
    folder = tmp_path_factory.mktemp("audit")
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


def audit(built: Built, store: Path, sample: Sample, **changes: Any) -> tuple[list[dict[str, Any]], list[bool]]:
    labels = changes.get("labels", np.asarray(sample.labels, np.int64)[:120])
    with Display(quiet=True) as display:
        rows = audit_steps(built, Store(store), sample.images[:120], labels, OpenVinoConfig(), display)
        return rows, [stage.reused for stage in display.finished]


def test_every_step_has_its_figures(built: Built, sample: Sample, tmp_path: Path) -> None:
    rows, reused = audit(built, tmp_path, sample)
    assert [row["name"] for row in rows] == ["float32", "cast", "quantize"]
    assert reused == [False, False, False]
    for row in rows:
        assert row.keys() >= {"flops", "num_parameters", "size_bytes", "agreement", "verdict"}
        assert row["accuracy"].keys() == {"value", "low", "high", "num_images"}
        assert row["accuracy"]["num_images"] == 120
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
        assert row["latency_ms"] > 0
    first, same, int8 = rows
    assert (first["agreement"], first["latency_ratio"], first["accuracy_change"]) == (1.0, None, None)
    assert (same["agreement"], same["accuracy_change"]["difference"]) == (1.0, 0.0)
    assert int8["size_bytes"] < 0.3 * first["size_bytes"]
    assert 0.9 < int8["agreement"] <= 1.0
    assert int8["latency_ratio"] > 0


def test_accuracy_is_counted_against_the_labels(built: Built, sample: Sample, tmp_path: Path) -> None:
    wrong = (np.asarray(sample.labels, np.int64)[:120] + 1) % 10
    right, _ = audit(built, tmp_path, sample)
    rows, reused = audit(built, tmp_path, sample, labels=wrong)
    # What was measured are answers; the labels are compared with them afterwards.
    assert reused == [True, True, True]
    assert right[0]["accuracy"]["value"] > 0.9
    assert rows[0]["accuracy"]["value"] < 0.1


def test_variant_without_steps_has_no_rows(built: Built, sample: Sample, tmp_path: Path) -> None:
    plain = built_of(tmp_path, built.snapshots[0])
    assert audit(plain, tmp_path, sample) == ([], [])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"name": "quantize", "latency_ratio": 0.4}, None),
        ({"name": "sparsify", "latency_ratio": 1.01}, "no gain in speed in OpenVINO on this machine (1.01"),
        ({"name": "distil", "latency_ratio": 1.0, "low": 0.01}, None),
        ({"name": "distil", "latency_ratio": 1.0, "low": -0.01}, "no measurable gain in accuracy ("),
    ],
)
def test_step_that_gains_nothing_is_said_so(row: dict[str, Any], expected: str | None) -> None:
    from temper.run.steps import _verdict

    change = {"difference": 0.02, "low": row.get("low", 0.0), "high": 0.03}
    verdict = _verdict({**row, "accuracy_change": change}, "OpenVINO")
    assert verdict is None if expected is None else str(verdict).startswith(expected)
