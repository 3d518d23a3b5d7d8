"""Refuses an ONNX graph that would fill the memory, before anything of it is computed.

A few bytes can ask for a tensor of any size, such as `ConstantOfShape` of 2^40, and every library that opens such
a file works its constants out at once. So their sizes are found first: from shapes, and from values that short.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
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
_ROUNDS = 256
"""How often a size may follow from a value whose own size follows from another; a Swin does so in every block."""
_SHAPES = ("Shape", "Size")
# What exporters compute shapes with; none takes more memory than its inputs and outputs do.
_ARITHMETIC = (
    "Abs Add And ArgMax ArgMin Cast CastLike Ceil Clip Concat Constant ConstantOfShape CumSum Div Equal Exp "
    "Expand Flatten Floor Gather GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Log "
    "Max Mean Min Mod Mul Neg Not Or Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "Relu Reshape Round ScatterElements ScatterND Sign Slice Split Sqrt Squeeze Sub Sum Tile TopK Transpose "
    "Unsqueeze Where Xor"
).split()
# The size of their answer is in the values of what they are given, and it is not much more.
_CHOOSING = ("Compress", "NonZero", "Unique")
_MAX_IMAGES = 8
"""Of a fixed batch, so many may be as large as one alone: what is computed of it is freed again."""


def check_bounds(found: Classifier, size: tuple[int, int]) -> None:
    """Refuses constants that take more memory than the largest file together, or a tensor that does alone.

    Args:
        found: What was read.
        size: Height and width of the images, of which there is one where the batch is free.

    Raises:
        ModelError: Names the operator and what it would take, or what it divides by.
    """
    model, infos = _without_weights(found, size), dict[str, onnx.ValueInfoProto]()
    values = {
        one.name: _value(found, one) for one in model.graph.initializer if one.data_type != TensorProto.STRING
    }
    for _ in range(_ROUNDS):
        try:  # without `data_prop`, which makes all values of a Range
            inferred = onnx.shape_inference.infer_shapes(model).graph
        except Exception as error:  # InferenceError, and RuntimeError and ValueError from below it
            raise wrong(found.path, f"its sizes cannot be told: {reason_of(error)}; export it again") from error
        infos = {one.name: one for one in (*inferred.value_info, *inferred.input, *inferred.output)}
        if not _work_out(model, infos, values):
            break
    _check_divisors(found, values)
    fixed = {tensor.name for tensor in (*found.model.graph.initializer, *model.graph.initializer)}
    _check_sizes(found, model.graph.node, {name: _num_bytes(info) for name, info in infos.items()}, fixed)


def _check_sizes(
    found: Classifier, nodes: Iterable[NodeProto], taken: dict[str, int | None], fixed: set[str]
) -> None:
    total, several = 0, MAX_BYTES * min(found.batch or 1, _MAX_IMAGES)
    for node in nodes:
        is_fixed = node.op_type in _SHAPES or fixed.issuperset(filter(None, node.input))
        for name in filter(None, node.output):
            num_bytes, allowed = taken.get(name), several
            if is_fixed:
                fixed.add(name)
                taken[name] = num_bytes = _fixed_bytes(node, num_bytes, taken)
                if num_bytes is None:
                    raise wrong(found.path, f"nothing tells the size of {_named(node)}; export it again")
                total += num_bytes
                num_bytes, allowed = total, MAX_BYTES
            if (num_bytes or 0) > allowed:
                takes = f"with {_named(node)} it takes {num_bytes:,} bytes of memory"
                raise wrong(found.path, f"{takes}, expected at most {allowed:,}")


def _fixed_bytes(node: NodeProto, own: int | None, taken: Mapping[str, int | None]) -> int | None:
    """Returns what a constant is kept as: a weight of a pair as it is stored, a sequence as what is in it."""
    if node.op_type == "DequantizeLinear" or (own is None and "Sequence" in node.op_type):
        return sum(taken.get(name) or _MAX_SHORT * 8 for name in node.input)
    return own


def _check_divisors(found: Classifier, values: Mapping[str, NDArray[Any]]) -> None:
    """Refuses what divides whole numbers by 0, or the least one by -1: the processor ends a process that does."""
    constants = {tensor.name: tensor for tensor in found.model.graph.initializer}
    for node in found.model.graph.node:
        name = node.input[1] if node.op_type in ("Div", "Mod") else ""
        if name in values or name in constants:
            value = values[name] if name in values else _value(found, constants[name])
            if value.dtype.kind in "iu" and bool(np.isin(value, (0, -1)).any()):
                raise wrong(found.path, f"{_named(node)} divides whole numbers by 0 or -1; export it again")


def _value(found: Classifier, tensor: TensorProto) -> NDArray[Any]:
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # too few bytes are a ValueError, a type that is none a KeyError
        what = f"its constant {show(tensor.name)} cannot be read: {reason_of(error)}"
        raise wrong(found.path, f"{what}; export it again") from error


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


def _work_out(model: ModelProto, infos: Mapping[str, ValueInfoProto], short: dict[str, NDArray[Any]]) -> bool:
    """Makes initializers of short values that depend on no image; tells whether there were any."""
    graph, nodes = model.graph, list[onnx.NodeProto]()
    for node in graph.node:
        results = _computed(model, node, short, infos)
        short.update(results)
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
    dims = _dims(infos.get(node.input[0])) if node.op_type in _SHAPES else None
    if dims is not None and math.prod(dims) <= MAX_BYTES * _MAX_IMAGES:
        given = {node.input[0]: np.broadcast_to(np.float32(0), dims)}
    elif node.op_type in (*_ARITHMETIC, *_CHOOSING) and short.keys() >= set(filter(None, node.input)):
        given = {name: short[name] for name in node.input if name}
    else:
        return {}
    names = [name for name in node.output if name]
    made = [_dims(infos.get(name)) for name in names if node.op_type not in _CHOOSING]
    if any(sides is None or math.prod(sides) > _MAX_SHORT for sides in made):
        return {}
    ends = [onnx.ValueInfoProto(name=name) for name in (*given, *names)]
    graph = onnx.helper.make_graph([node], "one", ends[: len(given)], ends[len(given) :])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = onnx.helper.make_model(graph, opset_imports=model.opset_import)
            results = [np.asarray(result) for result in ReferenceEvaluator(alone).run(None, given)]
    except Exception:  # whatever the evaluator does not know stays as it is
        return {}
    return {} if any(result.dtype.kind in "OSU" for result in results) else dict(zip(names, results, strict=True))


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
    if info is None or dims is None or info.type.tensor_type.elem_type not in TensorProto.DataType.values()[1:]:
        return None
    size: int = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).itemsize
    return math.prod(dims) * size
