"""Refuses an ONNX graph that would fill the memory, before anything of it is computed.

A few bytes can ask for a tensor of any size, such as `ConstantOfShape` of 2^40, and every library that opens such
a file works its constants out at once. So their sizes are found first: from shapes, and from values that short.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from temper.builder.contract import NUM_CHANNELS
from temper.builder.errors import reason_of
from temper.builder.network.onnx_read import MAX_BYTES, Classifier, wrong
from temper.imaging.errors import show

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto, ValueInfoProto

_MAX_SHORT = 256
"""Numbers in a value that is worked out here: a shape, or what is computed on the way to it."""
_ROUNDS = 8
"""How often a size may follow from a value whose own size follows from another."""
_SHAPES = ("Shape", "Size")
# What exporters compute shapes with; none takes more memory than its inputs and outputs do.
_ARITHMETIC = (
    "Abs Add And Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Flatten Floor Gather Greater "
    "Identity Less Max Min Mod Mul Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Slice "
    "Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where"
).split()


def check_bounds(found: Classifier, size: tuple[int, int]) -> None:
    """Refuses constants that take more memory than the largest file together, or a tensor that does alone.

    Args:
        found: What was read.
        size: Height and width of the images, of which there is one where the batch is free.

    Raises:
        ModelError: Names the operator and what it would take.
    """
    model, infos = _without_weights(found, size), dict[str, onnx.ValueInfoProto]()
    fixed, total = {tensor.name for tensor in found.model.graph.initializer}, 0
    for _ in range(_ROUNDS):
        try:  # without `data_prop`, which makes all values of a Range
            inferred = onnx.shape_inference.infer_shapes(model).graph
        except Exception as error:  # InferenceError, and RuntimeError and ValueError from below it
            raise wrong(found.path, f"its sizes cannot be told: {reason_of(error)}; export it again") from error
        infos = {one.name: one for one in (*inferred.value_info, *inferred.input, *inferred.output)}
        if not _work_out(model, infos):
            break
    fixed |= {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        is_fixed = node.op_type in _SHAPES or fixed.issuperset(filter(None, node.input))
        for name in filter(None, node.output):
            num_bytes = _num_bytes(infos.get(name))
            if is_fixed:
                fixed.add(name)
                if num_bytes is None:
                    raise wrong(found.path, f"nothing tells the size of {_named(node)}; export it again")
                total += num_bytes
            if max(total, num_bytes or 0) > MAX_BYTES:
                takes = f"with {_named(node)} it takes {max(total, num_bytes or 0):,} bytes of memory"
                raise wrong(found.path, f"{takes}, expected at most {MAX_BYTES:,}")


def _without_weights(found: Classifier, size: tuple[int, int]) -> ModelProto:
    """Returns the graph with nothing of what the file says about sizes, and with long constants as inputs."""
    make_info, known = onnx.helper.make_tensor_value_info, found.model.graph
    dims = [NUM_CHANNELS, *size] if found.layout == "NCHW" else [*size, NUM_CHANNELS]
    kinds = {one.name: one.type.tensor_type.elem_type for one in known.input}
    inputs = [make_info(found.input_name, kinds[found.input_name], [found.batch or 1, *dims])]
    short = []
    for tensor in known.initializer:
        if math.prod(tensor.dims) <= _MAX_SHORT:
            short.append(tensor)
        else:
            inputs.append(make_info(tensor.name, tensor.data_type, list(tensor.dims)))
    outputs = [onnx.ValueInfoProto(name=found.output_name)]
    graph = onnx.helper.make_graph(known.node, known.name, inputs, outputs, short)
    return onnx.helper.make_model(graph, opset_imports=found.model.opset_import)


def _work_out(model: ModelProto, infos: Mapping[str, ValueInfoProto]) -> bool:
    """Makes initializers of short values that depend on no image; tells whether there were any."""
    graph, nodes = model.graph, list[onnx.NodeProto]()
    short = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        results = _computed(model, node, short, infos)
        short |= results
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in results.items())
        if not results:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    is_new = len(nodes) < len(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return is_new


def _computed(
    model: ModelProto, node: NodeProto, short: Mapping[str, NDArray[Any]], infos: Mapping[str, ValueInfoProto]
) -> dict[str, NDArray[Any]]:
    """Returns the outputs of an operator that are short values, and nothing where one is not."""
    given: dict[str, NDArray[Any]]
    if node.op_type in _SHAPES and (dims := _dims(infos.get(node.input[0]))) is not None:
        given = {node.input[0]: np.broadcast_to(np.float32(0), dims)}
    elif node.op_type in _ARITHMETIC and short.keys() >= set(filter(None, node.input)):
        given = {name: short[name] for name in node.input if name}
    else:
        return {}
    made = [_dims(infos.get(name)) for name in node.output]
    if any(dims is None or math.prod(dims) > _MAX_SHORT for dims in made):
        return {}
    ends = [onnx.ValueInfoProto(name=name) for name in (*given, *node.output)]
    graph = onnx.helper.make_graph([node], "one", ends[: len(given)], ends[len(given) :])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = onnx.helper.make_model(graph, opset_imports=model.opset_import)
            results = ReferenceEvaluator(alone).run(None, given)
    except Exception:  # whatever the evaluator does not know stays as it is
        return {}
    return dict(zip(node.output, map(np.asarray, results), strict=True))


def _named(node: NodeProto) -> str:
    return f"{node.op_type} {show(repr(node.name or node.output[0]))}"


def _dims(info: ValueInfoProto | None) -> list[int] | None:
    """Returns a tensor's dimensions; None where one is not known."""
    if info is None or not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    return [max(dim.dim_value, 0) for dim in dims] if all(dim.HasField("dim_value") for dim in dims) else None


def _num_bytes(info: ValueInfoProto | None) -> int | None:
    dims = _dims(info)
    if info is None or dims is None:
        return None
    size: int = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).itemsize
    return math.prod(dims) * size
