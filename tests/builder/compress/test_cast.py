"""Half precision: what ModelOpt makes of a graph, with and without Q/DQ pairs, and what does not fit float16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from temper.builder.compress.cast import CastConfig, cast_onnx
from temper.builder.compress.qdq import audit_qdq
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.engines.openvino import open_core
from temper.builder.errors import QuantizeError
from temper.builder.network.export import compare_logits, run_onnx

if TYPE_CHECKING:
    from benchmarks.sample import Sample


def run_openvino(path: Path, images: Any) -> Any:
    compiled = open_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"image": images})[0]


def wire(path: Path) -> list[tuple[str, int]]:
    graph = onnx.load(path).graph
    return [(each.name, each.type.tensor_type.elem_type) for each in (*graph.input, *graph.output)]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.01), ("bf16", 0.05)])
def test_cast_keeps_the_wire_and_the_answers(
    sample: Sample, toy_onnx: Path, tmp_path: Path, precision: Any, tolerance: float, capfd: Any
) -> None:
    target = tmp_path / "model.onnx"
    info = cast_onnx(toy_onnx, target, sample.calibration[:4], CastConfig(precision=precision))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert info["size_bytes"] == target.stat().st_size < 0.52 * toy_onnx.stat().st_size
    assert info["num_low"] > 40
    assert wire(target) == [("image", TensorProto.UINT8), ("logits", TensorProto.FLOAT)]
    images = sample.images[:32]
    figures = compare_logits(run_onnx(toy_onnx, images), run_openvino(target, images))
    assert figures["agreement"] == 1.0
    assert figures["max_abs_diff"] < tolerance * figures["max_abs_logit"]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_cast_leaves_the_pairs_of_a_quantised_graph(
    sample: Sample, toy_onnx: Path, tmp_path: Path, precision: Any
) -> None:
    quantized, target = tmp_path / "quantized.onnx", tmp_path / "model.onnx"
    quantize_onnx(toy_onnx, quantized, sample.calibration[:40], QuantizeConfig(precision=precision, method="max"))
    cast_onnx(quantized, target, sample.calibration[:4], CastConfig())
    before, after = audit_qdq(quantized, precision), audit_qdq(target, precision)
    assert [node.name for node in after.nodes] == [node.name for node in before.nodes]
    assert after.kept_high == before.kept_high
    scales = {each.data_type for each in onnx.load(target).graph.initializer if each.name.endswith("_scale")}
    assert scales == {TensorProto.FLOAT16}


def test_weight_that_float16_cannot_hold_is_named(toy_onnx: Path, tmp_path: Path, sample: Sample) -> None:
    model = onnx.load(toy_onnx)
    (weight,) = [each for each in model.graph.initializer if each.name.endswith("fc.weight")]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e7), weight.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(
        QuantizeError, match=r"large.onnx: weight model.fc.weight reaches .* float16 holds .* bf16"
    ):
        cast_onnx(tmp_path / "large.onnx", tmp_path / "model.onnx", sample.calibration[:1], CastConfig())
    assert not (tmp_path / "model.onnx").exists()
    cast_onnx(
        tmp_path / "large.onnx", tmp_path / "model.onnx", sample.calibration[:1], CastConfig(precision="bf16")
    )


def test_activation_that_float16_cannot_hold_is_named(toy_onnx: Path, tmp_path: Path, sample: Sample) -> None:
    model = onnx.load(toy_onnx)
    for each in model.graph.initializer:
        if each.name.endswith("fc.weight"):
            values = numpy_helper.to_array(each)
            each.CopyFrom(numpy_helper.from_array(values * np.float32(6e4 / np.abs(values).max()), each.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(QuantizeError, match=r"large.onnx: activation logits reaches .* float16 holds"):
        cast_onnx(tmp_path / "large.onnx", tmp_path / "model.onnx", sample.calibration[:2], CastConfig())


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match=r"precision: got 'fp32', expected 'fp16' or 'bf16'"):
        CastConfig(precision="fp32")  # type: ignore[arg-type]
