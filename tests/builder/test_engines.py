"""Engines, built for real: OpenVINO runs here, TensorRT-RTX compiles without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from builder.engines import EngineConfig, build_engine, count_gpus, pick_engine
from builder.errors import EngineError

if TYPE_CHECKING:
    from builder.sample import Sample


def test_openvino_keeps_the_graph_and_runs_it(sample: Sample, toy_int8: Path, tmp_path: Path) -> None:
    info = build_engine("openvino", toy_int8, tmp_path, EngineConfig(), sample.images[:40])
    assert (info["kind"], info["file"], info["precision_hint"]) == ("openvino", "model.onnx", "f32")
    assert info["size_bytes"] == toy_int8.stat().st_size
    assert info["runtime"].startswith("OpenVINO 20")
    assert (tmp_path / "model.onnx").read_bytes() == toy_int8.read_bytes()
    assert info["against_onnxruntime"]["num_images"] == 40
    assert info["against_onnxruntime"]["agreement"] > 0.95


def test_openvino_refuses_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"engine openvino: cannot compile bad.onnx: \S") as caught:
        build_engine("openvino", tmp_path / "bad.onnx", tmp_path, EngineConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tensorrt_rtx_compiles_without_a_gpu(
    toy_onnx: Path, toy_int8: Path, tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = toy_onnx if precision == "fp32" else toy_int8
    info = build_engine("tensorrt-rtx", source, tmp_path, EngineConfig(opt_batch=4, max_batch=16))
    engine = tmp_path / "model.rtx"
    assert info["file"] == "model.rtx"
    assert info["size_bytes"] == engine.stat().st_size
    assert 0.9 * source.stat().st_size < engine.stat().st_size < 1.5 * source.stat().st_size
    assert (info["min_batch"], info["opt_batch"], info["max_batch"]) == (1, 4, 16)
    assert info["runtime"].startswith("TensorRT-RTX 1.")


def test_tensorrt_rtx_refuses_what_is_no_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"engine tensorrt-rtx: cannot parse bad.onnx: \S") as caught:
        build_engine("tensorrt-rtx", tmp_path / "bad.onnx", tmp_path, EngineConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(count_gpus() > 0, reason="there is a GPU")
def test_auto_takes_the_cpu_without_a_gpu() -> None:
    assert pick_engine(EngineConfig()) == ("openvino", "no NVIDIA GPU found, so the CPU")


def test_asked_for_engine_is_taken() -> None:
    assert pick_engine(EngineConfig(kind="openvino")) == ("openvino", "asked for in the recipe")


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were not installed: the import system's own way to say so.
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        EngineError, match=r"the package tensorrt_rtx is not installed; run `pip install 'temper\[rtx\]'`"
    ):
        pick_engine(EngineConfig(kind="tensorrt-rtx"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "onnx"}, r"kind: got 'onnx', expected one of 'auto', 'openvino', 'tensorrt-rtx'"),
        ({"min_batch": 2}, r"min_batch: got 2, expected 1, as a request may come alone"),
        ({"opt_batch": 64}, r"opt_batch: got 64, expected 1 \(min_batch\) to 32 \(max_batch\)"),
        ({"precision_hint": "f16"}, r"precision_hint: got 'f16', expected 'f32' or 'bf16'"),
        ({"num_instances": 0}, r"num_instances: got 0, expected at least 1"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**changes)
