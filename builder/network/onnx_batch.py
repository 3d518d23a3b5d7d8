"""Frees the batch of an ONNX graph that was exported with a fixed one.

Which numbers are the batch can only be guessed; the comparison in `onnx_import.py` refuses a wrong guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from temper.builder.contract import NUM_CHANNELS
from temper.builder.network.onnx_read import Layout, attribute
from temper.builder.network.onnx_rewrite import BATCH, FRONT, add_constant, forget, keep, shapes_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_Shapes = dict[str, list[int | None]]
_Constants = dict[str, TensorProto]


def free_batch(model: ModelProto, batch: int | None, size: tuple[int, int], layout: Layout) -> None:
    """Frees the first dimension of the image, and gives the others their sizes.

    Reshape, Expand and Squeeze that hold the batch as a number get it from their input instead, and so does what
    Concat joins to every image.
    """
    graph = model.graph
    if batch is not None:
        shapes = shapes_of(model)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        _undo_strides(graph, shapes, constants)
        _free_joined(graph, batch, shapes, constants)
        for index, node in enumerate(graph.node):
            given = shapes.get(node.input[0]) if node.input else None
            if given:
                _free_node(graph, node, index, batch, given, shapes.get(node.output[0]) or [], constants)
    dims = [NUM_CHANNELS, *size] if layout == "NCHW" else [*size, NUM_CHANNELS]
    image = graph.input[0]
    kind = image.type.tensor_type.elem_type
    image.CopyFrom(onnx.helper.make_tensor_value_info(image.name, kind, [BATCH, *dims]))
    graph.output[0].type.tensor_type.ClearField("shape")
    forget(model)


def _undo_strides(graph: GraphProto, shapes: _Shapes, constants: _Constants) -> None:
    """Makes a Reshape of what flattens a tensor to gather all of it in order: torch's `as_strided`, exported."""
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        flat = producers.get(node.input[0]) if node.op_type == "Gather" else None
        if flat is None or flat.op_type != "Reshape" or node.input[1] not in constants or attribute(node, "axis"):
            continue
        indices = numpy_helper.to_array(constants[node.input[1]])
        if shapes.get(flat.output[0]) == [indices.size] and np.array_equal(
            indices.reshape(-1), np.arange(indices.size)
        ):
            name = add_constant(graph, f"{node.output[0]}_shape", np.array(indices.shape, np.int64))
            constants[name] = graph.initializer[-1]
            changed = onnx.helper.make_node("Reshape", [flat.input[0], name], list(node.output), node.name)
            node.CopyFrom(changed)


def _free_joined(graph: GraphProto, batch: int, shapes: _Shapes, constants: _Constants) -> None:
    """Repeats a constant that is joined to every image, such as a transformer's class token, once for each."""
    nodes = list[Any]()
    for node in graph.node:
        batched = [name for name in node.input if name not in constants and (shapes.get(name) or [0])[0] == batch]
        for index, name in enumerate(node.input if node.op_type == "Concat" and batched else ()):
            value = numpy_helper.to_array(constants[name]) if name in constants else np.zeros(0)
            is_repeated = value.ndim > 1 and len(value) == batch and bool((value == value[:1]).all())
            if not is_repeated or not attribute(node, "axis"):  # along the first axis it joins images
                continue
            start = f"{FRONT}joined_{len(nodes)}"
            one = add_constant(graph, f"{start}_one", value[:1])
            first = add_constant(graph, f"{start}_first", np.zeros(1, np.int64))
            rest = add_constant(graph, f"{start}_rest", np.array(value.shape[1:], np.int64))
            node.input[index] = start
            nodes += [
                onnx.helper.make_node("Shape", [batched[0]], [f"{start}_shape"]),
                onnx.helper.make_node("Gather", [f"{start}_shape", first], [f"{start}_batch"]),
                onnx.helper.make_node("Concat", [f"{start}_batch", rest], [f"{start}_all"], axis=0),
                onnx.helper.make_node("Expand", [one, f"{start}_all"], [start]),
            ]
        nodes.append(node)
    keep(graph, nodes)


def _free_node(
    graph: GraphProto,
    node: NodeProto,
    index: int,
    batch: int,
    given: Sequence[int | None],
    made: Sequence[int | None],
    constants: _Constants,
) -> None:
    if node.op_type == "Squeeze" and given[0] == batch and len(node.input) < 2 and not node.attribute:
        ones = [axis for axis, dim in enumerate(given) if axis > 0 and dim == 1]
        node.input.append(add_constant(graph, f"{FRONT}axes_{index}", np.array(ones, np.int64)))
    if node.op_type not in ("Reshape", "Expand") or node.input[1] not in constants or not made:
        return
    if node.op_type == "Expand":
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.size == 0 or not given[0] == shape[0] == batch:
            return
        shape[0] = 1
    elif None in made or 0 in made or (given[0] != made[0] and batch not in (given[0], made[0])):
        return
    else:
        # It stays as it was, or the batch is joined to others or parted from them, which leave it.
        shape = np.array([0 if given[0] == made[0] else -1, *made[1:]], np.int64)
        del node.attribute[:]
    node.input[1] = add_constant(graph, f"{FRONT}shape_{index}", shape)
