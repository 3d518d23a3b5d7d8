"""Mixed precision: the scan finds the layer that was made fragile, and the budget decides how many stay high."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from temper.builder.compress.qdq import audit_qdq
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.compress.sensitivity import quantize_within, scan_layers
from temper.builder.errors import QuantizeError
from temper.builder.network.export import run_onnx

if TYPE_CHECKING:
    from benchmarks.sample import Sample

FRAGILE = "/model/layer2/layer2.0/conv2/Conv"


@pytest.fixture(scope="module")
def fragile(toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with one layer whose weights hold an outlier per channel: int8 rounds all others away."""
    model = onnx.load(toy_onnx)
    (node,) = [node for node in model.graph.node if node.name == FRAGILE]
    (weight,) = [each for each in model.graph.initializer if each.name == node.input[1]]
    values = numpy_helper.to_array(weight).copy()
    values[:, 0, 0, 0] += 80 * np.abs(values).max()
    # A channel that is always zero takes the outliers, so that float32 answers as before.
    (before,) = [each for each in model.graph.node if each.name == "/model/layer2/layer2.0/conv1/Conv"]
    for each in model.graph.initializer:
        if each.name in before.input[1:]:
            silent = numpy_helper.to_array(each).copy()
            silent[0] = 0
            each.CopyFrom(numpy_helper.from_array(silent, each.name))
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path = tmp_path_factory.mktemp("fragile") / "model.onnx"
    onnx.save(model, path)
    return path


def within(src: Path, dst: Path, images: Any, max_loss: float) -> dict[str, Any]:
    def quantize(kept: Sequence[str]) -> dict[str, Any]:
        return quantize_onnx(src, dst, images, QuantizeConfig(method="max", keep_high=tuple(kept)))

    return quantize_within(src, dst, images, quantize, max_loss=max_loss, progress=lambda done, total: None)


@pytest.mark.slow
def test_scan_finds_the_fragile_layer(fragile: Path, sample: Sample, tmp_path: Path) -> None:
    quantized = tmp_path / "int8.onnx"
    quantize_onnx(fragile, quantized, sample.calibration[:64], QuantizeConfig(method="max"))
    calls: list[tuple[int, int]] = []
    harm = scan_layers(fragile, quantized, sample.calibration[:64], lambda *call: calls.append(call))
    assert len(harm) == 21
    assert next(iter(harm)) == FRAGILE
    values = list(harm.values())
    assert values == sorted(values, reverse=True)
    assert values[0] > 5 * values[1] > 0
    assert calls[0] == (0, 21)
    assert calls[-1] == (21, 21)


@pytest.mark.slow
def test_budget_keeps_the_fragile_layer_high(fragile: Path, sample: Sample, tmp_path: Path) -> None:
    target, images = tmp_path / "model.onnx", sample.calibration[:64]
    info = within(fragile, target, images, 6.0)
    assert FRAGILE in info["kept_high"]
    assert len(info["kept_high"]) < 20
    assert info["loss"] <= 6.0
    agreement = (run_onnx(target, images).argmax(1) == run_onnx(fragile, images).argmax(1)).mean()
    assert 100 * (1 - agreement) == pytest.approx(info["loss"])
    report = audit_qdq(target, kept_high=info["kept_high"])
    assert [one.name for one in report.kept_high if one.name == FRAGILE] == [FRAGILE]


def test_generous_budget_quantises_everything(toy_onnx: Path, sample: Sample, tmp_path: Path) -> None:
    info = within(toy_onnx, tmp_path / "model.onnx", sample.calibration[:32], 100.0)
    assert (info["kept_high"], info["sensitivity"]) == ([], {})


def test_budget_out_of_reach_says_what_was_reached(sample: Sample, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Ten outputs that are all but equal: rounding the one layer decides between them.
    weight = (rng.normal(0, 1, (48, 1)) + rng.normal(0, 1e-4, (48, 10))).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], "gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "one_layer",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.zeros(10, np.float32), "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), tmp_path / "tie.onnx")
    images = rng.integers(0, 256, (64, 4, 4, 3), np.uint8)
    with pytest.raises(QuantizeError, match=r"tie.onnx: max_loss: got 1 points, but with all layers but one kept"):
        within(tmp_path / "tie.onnx", tmp_path / "m.onnx", images, 1.0)
