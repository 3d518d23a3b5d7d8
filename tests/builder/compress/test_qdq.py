"""The audit, on ModelOpt's own output and on graphs broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from temper.builder.compress.qdq import audit_qdq
from temper.builder.errors import AuditError

CONV = "/model/layer2/layer2.0/conv2/Conv"
ADD = "/model/layer3/layer3.1/Add"


def find(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    node: onnx.NodeProto
    (node,) = [node for node in graph.node if node.name == name]
    return node


def producer(graph: onnx.GraphProto, tensor: str) -> onnx.NodeProto:
    node: onnx.NodeProto
    (node,) = [node for node in graph.node if tensor in node.output]
    return node


def replace_constant(graph: onnx.GraphProto, name: str, values: npt.NDArray[Any]) -> None:
    (old,) = [tensor for tensor in graph.initializer if tensor.name == name]
    old.CopyFrom(numpy_helper.from_array(values, name))


def drop_activation_pair(graph: onnx.GraphProto, name: str = CONV) -> None:
    node = find(graph, name)
    quantize = producer(graph, producer(graph, node.input[0]).input[0])
    node.input[0] = quantize.input[0]


def drop_head_pair(graph: onnx.GraphProto) -> None:
    """The pair may be before the layout operators, so they are taken out with it."""
    name = find(graph, "/model/fc/Gemm").input[0]
    while (node := producer(graph, name)).op_type != "QuantizeLinear":
        name = node.input[0]
    graph.node.append(helper.make_node("Flatten", [node.input[0]], ["float_features"], "flatten_float"))
    find(graph, "/model/fc/Gemm").input[0] = "float_features"


def quantize_both_branches(graph: onnx.GraphProto) -> None:
    node = find(graph, ADD)
    quantized = [producer(graph, name).op_type == "DequantizeLinear" for name in node.input]
    pair = producer(graph, node.input[quantized.index(True)])
    scale, zero = pair.input[1:]
    branch = quantized.index(False)
    graph.node.append(helper.make_node("QuantizeLinear", [node.input[branch], scale, zero], ["q"], "more_q"))
    graph.node.append(helper.make_node("DequantizeLinear", ["q", scale, zero], ["dq"], "more_dq"))
    node.input[branch] = "dq"


def quantize_no_branch(graph: onnx.GraphProto) -> None:
    node = find(graph, ADD)
    for index, name in enumerate(node.input):
        pair = producer(graph, name)
        if pair.op_type == "DequantizeLinear":
            node.input[index] = producer(graph, pair.input[0]).input[0]


def one_weight_scale(graph: onnx.GraphProto) -> None:
    pair = producer(graph, find(graph, CONV).input[1])
    replace_constant(graph, pair.input[1], np.array(0.01, np.float32))
    replace_constant(graph, pair.input[2], np.array(0, np.int8))


def wrong_weight_axis(graph: onnx.GraphProto) -> None:
    (axis,) = [each for each in producer(graph, find(graph, CONV).input[1]).attribute if each.name == "axis"]
    axis.i = 1


def float_weight(graph: onnx.GraphProto) -> None:
    node = find(graph, CONV)
    weight = numpy_helper.from_array(np.zeros((128, 128, 3, 3), np.float32), "float_weight")
    graph.initializer.append(weight)
    node.input[1] = "float_weight"


def weight_quantized_at_run_time(graph: onnx.GraphProto) -> None:
    pair = producer(graph, find(graph, CONV).input[1])
    weight = numpy_helper.from_array(np.zeros((128, 128, 3, 3), np.float32), "float_weight")
    graph.initializer.append(weight)
    graph.node.append(
        helper.make_node("QuantizeLinear", ["float_weight", *pair.input[1:]], ["late"], "late_q", axis=0)
    )
    pair.input[0] = "late"


def activation_per_channel(graph: onnx.GraphProto) -> None:
    pair = producer(graph, find(graph, CONV).input[0])
    replace_constant(graph, pair.input[1], np.full(128, 0.01, np.float32))


def zero_scale(graph: onnx.GraphProto) -> None:
    pair = producer(graph, find(graph, CONV).input[0])
    replace_constant(graph, pair.input[1], np.array(0, np.float32))


def test_modelopt_output_passes(toy_int8: Path) -> None:
    report = audit_qdq(toy_int8)
    figures = report.to_json()
    assert (figures["num_conv"], figures["num_gemm"], figures["num_matmul"]) == (20, 1, 0)
    assert report.num_residual_adds == 8
    assert {node.name for node in report.nodes} >= {CONV, "/model/conv1/Conv", "/model/fc/Gemm"}
    scales = {node.name: node.num_weight_scales for node in report.nodes}
    assert (scales[CONV], scales["/model/fc/Gemm"]) == (128, 10)
    assert all(node.activation_scale > 0 for node in report.nodes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            drop_activation_pair,
            rf"Conv '{CONV}': its input '.*Relu_output_0' is not quantised, expected a Q/DQ pair",
        ),
        (drop_head_pair, r"Gemm '/model/fc/Gemm': its input 'float_features' is not quantised"),
        (quantize_both_branches, rf"Add '{ADD}': both of its branches are quantised, expected exactly one"),
        (quantize_no_branch, rf"Add '{ADD}': none of its branches is quantised, expected exactly one"),
        (one_weight_scale, rf"Conv '{CONV}': its weight has 1 scales along axis 0, expected one for each of 128"),
        (wrong_weight_axis, rf"Conv '{CONV}': its weight has 128 scales along axis 1, expected .* along axis 0"),
        (float_weight, rf"Conv '{CONV}': its weight 'float_weight' is not quantised"),
        (weight_quantized_at_run_time, rf"Conv '{CONV}': its weight '.*' is not stored as int8"),
        (activation_per_channel, rf"Conv '{CONV}': its input has 128 scales, expected one per tensor"),
        (zero_scale, rf"Conv '{CONV}': its scale '.*' has a value that is not positive"),
    ],
)
def test_broken_graph_names_its_node(
    toy_int8: Path, tmp_path: Path, damage: Callable[[onnx.GraphProto], None], message: str
) -> None:
    model = onnx.load(toy_int8)
    damage(model.graph)
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(AuditError, match=f"^broken.onnx: {message}.*; do not serve this graph$"):
        audit_qdq(tmp_path / "broken.onnx")


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        (("left", "float_features"), "multiplies a constant by an activation"),
        (("float_features", "float_features"), "multiplies two activations"),
    ],
)
def test_product_without_a_weight_says_of_what(
    toy_int8: Path, tmp_path: Path, factors: tuple[str, str], reason: str
) -> None:
    model = onnx.load(toy_int8)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 2), np.float32), "left"))
    model.graph.node.append(helper.make_node("MatMul", factors, ["more"], "/product"))
    onnx.save(model, tmp_path / "product.onnx")
    (kept,) = audit_qdq(tmp_path / "product.onnx").kept_high
    assert (kept.name, kept.reason) == ("/product", reason)


def test_float_graph_fails(toy_onnx: Path) -> None:
    with pytest.raises(AuditError, match=r"Conv '/model/conv1/Conv': its input '.*' is not quantised"):
        audit_qdq(toy_onnx)


def test_graph_without_weights_fails(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    onnx.save(helper.make_model(graph), tmp_path / "empty.onnx")
    with pytest.raises(AuditError, match=r"has no Conv, Gemm or MatMul; expected a quantised network"):
        audit_qdq(tmp_path / "empty.onnx")
