"""Turns another's ONNX graph into the project's own form, one pass after the other, each in place.

What a pass cannot know, such as whether a number is a batch size, is proven afterwards: `onnx_import.py` compares
the result with the original.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from temper.builder.contract import INPUT_NAME, NUM_CHANNELS, OUTPUT_NAME
from temper.builder.names import is_printable
from temper.builder.network.onnx_read import Layout, attribute

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto

_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_MIN_IR = 8  # since its fourth version initializers are no inputs
BATCH = "batch"
"""What the first dimension of the image is called."""
FRONT = "/front/"
"""Before the names of what is put before a graph."""
_OTHER = "/other"


def inline_constants(model: ModelProto) -> None:
    """Makes every constant an initializer, and no initializer an input, so that the passes see one kind alone."""
    model.ir_version = max(model.ir_version, _MIN_IR)
    _make_room(model.graph)
    graph, known = model.graph, {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in graph.input if one.name not in known]
    del graph.input[:]
    graph.input.extend(inputs)
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = attribute(node, "value")
        if tensor is None:
            (given,) = node.attribute
            kind = np.float32 if given.name.startswith("value_float") else np.int64
            tensor = numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(given), kind))
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = node.output[0]
        graph.node.remove(node)


def _make_room(graph: GraphProto) -> None:
    """Gives up the names that a front needs: a graph may have one already, from an import before."""
    for node in graph.node:
        node.name = renamed(node.name)
        for names in (node.input, node.output):
            names[:] = [renamed(name) for name in names]
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = renamed(value.name)


def renamed(name: str) -> str:
    """Returns what `inline_constants` calls a tensor of the file."""
    return f"{_OTHER}{name}" if name.startswith((FRONT, _OTHER)) else name


def forget(model: ModelProto) -> None:
    """Drops what describes a graph and does not decide it: shapes that may no longer hold, and paths."""
    graph = model.graph
    del graph.value_info[:], graph.quantization_annotation[:], graph.metadata_props[:], model.metadata_props[:]
    graph.doc_string = model.doc_string = ""
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def to_float32(model: ModelProto) -> None:
    """Computes in float32 what was another floating-point type."""
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS:
            tensor.CopyFrom(_float32(tensor))
    for node in model.graph.node:
        for given in node.attribute:
            if given.name in ("to", "dtype", "output_dtype") and given.i in _FLOATS:
                given.i = TensorProto.FLOAT
            elif given.type == onnx.AttributeProto.TENSOR and given.t.data_type in _FLOATS:
                given.t.CopyFrom(_float32(given.t))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _float32(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def cut(model: ModelProto, end: str) -> None:
    """Ends a graph at a tensor; what only led further is dropped."""
    graph = model.graph
    graph.output[0].name = end
    producers = {name: node for node in graph.node for name in node.output}
    wanted, todo = set[str](), [end]
    while todo:
        node = producers.get(todo.pop())
        if node is not None and node.output[0] not in wanted:
            wanted.add(node.output[0])
            todo += [name for name in node.input if name]
    keep(graph, [node for node in graph.node if node.output[0] in wanted])


def shapes_of(model: ModelProto) -> dict[str, list[int | None]]:
    """Returns the shapes that follow from a graph's input; None for a dimension that is free."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {
        value.name: [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def fold(model: ModelProto) -> ModelProto:
    """Works out what depends on no image and folds BatchNorms into convolutions; returns what is left.

    onnxslim does it, which ModelOpt prepares graphs with as well. What it cannot simplify is left as it is, and so
    is a MatMul of more than two dimensions: a Gemm in its place would hold the batch in a number.
    """
    import onnxslim  # type: ignore[import-untyped]  # ships none

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            slim: ModelProto = onnxslim.slim(model, skip_fusion_patterns=["FusionGemm"])
    except Exception:  # a graph that it does not know is only not simplified
        return model
    return model if slim is None else slim


def raise_opset(model: ModelProto, opset: int) -> ModelProto:
    """Returns the model in a later opset; as it is when it is as late already, or cannot be converted."""
    current = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if current >= opset:
        return model
    try:
        converted: ModelProto = onnx.version_converter.convert_version(model, opset)
        onnx.checker.check_model(converted, full_check=True)
    except Exception:  # RuntimeError of an operator without an adapter, the checker's own of a wrong one
        return model
    converted.ir_version = max(converted.ir_version, onnx.helper.find_min_ir_version_for(converted.opset_import))
    return converted


def name_nodes(model: ModelProto) -> None:
    """Gives every node a name of its own that can be printed: what is kept high is called by it."""
    counts = Counter(node.name for node in model.graph.node)
    for index, node in enumerate(model.graph.node):
        if not node.name or counts[node.name] > 1 or not is_printable(node.name):
            node.name = f"{node.op_type}_{index}"


def put_front(
    model: ModelProto, layout: Layout, *, mean: Sequence[float], std: Sequence[float], bgr: bool
) -> None:
    """Puts the preprocessing before a graph: `image` UINT8 [N, H, W, 3], cast, transposed, scaled, shifted.

    A graph that takes uint8 gets the pixels as they are. The channels of one trained on BGR are turned round, in
    its first convolution where that is what reads the image.

    Args:
        model: Its input is free in the batch, and a float32 or uint8.
        layout: The input's.
        mean: Mean per channel, RGB, on a scale of 0 to 1.
        std: Standard deviation per channel, RGB, on a scale of 0 to 1.
        bgr: Whether it wants blue first.
    """
    graph, image = model.graph, model.graph.input[0]
    is_float = image.type.tensor_type.elem_type == TensorProto.FLOAT
    dims = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    _rename(graph, INPUT_NAME, f"{FRONT}other_image")
    _rename(graph, OUTPUT_NAME, f"{FRONT}other_logits")
    entry = _rename(graph, image.name, f"{FRONT}entry")
    size = dims[2:] if layout == "NCHW" else dims[1:3]
    given = onnx.helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, [BATCH, *size, NUM_CHANNELS])
    image.CopyFrom(given)
    if layout == "NHWC" and (second := _only_transposed(graph, entry)) is not None:
        entry, layout = second, "NCHW"
    front = _Front(graph)
    as_float = is_float or _takes_float(model, entry)
    if as_float:
        front.add("Cast", to=TensorProto.FLOAT)
    if layout == "NCHW":
        front.add("Transpose", perm=[0, 3, 1, 2])
    shape = (1, NUM_CHANNELS, 1, 1) if layout == "NCHW" else (1, 1, 1, NUM_CHANNELS)
    if is_float:
        means, stds = np.array(mean, np.float32), np.array(std, np.float32)
        front.add("Mul", constant=(1 / (255 * stds)).reshape(shape))
        front.add("Add", constant=(-means / stds).reshape(shape))
    if bgr and not (is_float and _turn_weights(graph, entry, layout)):
        front.add("Gather", constant=np.array([2, 1, 0], np.int64), axis=shape.index(NUM_CHANNELS))
    front.put_before(entry)


class _Front:
    """A chain of nodes from the image on."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph, self._nodes, self._end = graph, list[Any](), INPUT_NAME

    def add(self, op: str, constant: NDArray[Any] | None = None, **attributes: Any) -> None:
        name = f"{FRONT}{op}"
        inputs = [self._end]
        if constant is not None:
            inputs.append(add_constant(self._graph, f"{name}_constant", constant))
        self._end = f"{name}_output"
        self._nodes.append(onnx.helper.make_node(op, inputs, [self._end], name, **attributes))

    def put_before(self, entry: str) -> None:
        """Leads into what a graph calls `entry`."""
        if self._nodes:
            self._nodes[-1].output[0] = entry
        else:
            _rename(self._graph, entry, INPUT_NAME)
        keep(self._graph, [*self._nodes, *self._graph.node])


def _only_transposed(graph: GraphProto, name: str) -> str | None:
    """Drops the Transpose to NCHW that alone reads a tensor; returns what it gave."""
    readers = [node for node in graph.node if name in node.input]
    if len(readers) != 1 or attribute(readers[0], "perm") != [0, 3, 1, 2]:
        return None
    graph.node.remove(readers[0])
    return str(readers[0].output[0])


def _takes_float(model: ModelProto, entry: str) -> bool:
    """Whether a graph of uint8 would take its pixels as float32: all that reads them is a Cast."""
    readers = [node for node in model.graph.node if entry in node.input]
    return bool(readers) and all(node.op_type == "Cast" for node in readers)


def _turn_weights(graph: GraphProto, entry: str, layout: Layout) -> bool:
    """Turns the channels in the weights of the convolution that alone reads the image; tells whether one does."""
    readers = [node for node in graph.node if entry in node.input]
    weight = next((one for one in graph.initializer if readers and one.name in readers[0].input[1:2]), None)
    if layout != "NCHW" or len(readers) != 1 or readers[0].op_type != "Conv" or weight is None:
        return False
    if (attribute(readers[0], "group") or 1) != 1 or sum(weight.name in node.input for node in graph.node) != 1:
        return False
    turned = numpy_helper.to_array(weight)[:, ::-1]
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), weight.name))
    return True


def put_end(model: ModelProto, rank: int, num_classes: int) -> None:
    """Makes the answer `logits` FP32 [N, classes].

    Args:
        model: Its output is a score for every class.
        rank: Of the output; 4 is [N, classes, 1, 1] or [N, 1, 1, classes].
        num_classes: Length of the output.
    """
    graph, output = model.graph, model.graph.output[0]
    if rank != 2:
        flat = onnx.helper.make_node("Flatten", [output.name], [f"{FRONT}flat"], f"{FRONT}Flatten", axis=1)
        graph.node.append(flat)
        output.name = flat.output[0]
    kind = output.type.tensor_type.elem_type
    _rename(graph, output.name, OUTPUT_NAME)
    output.CopyFrom(onnx.helper.make_tensor_value_info(OUTPUT_NAME, kind, [BATCH, num_classes]))


def add_constant(graph: GraphProto, name: str, value: NDArray[Any]) -> str:
    """Gives a graph an initializer; returns its name."""
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def _rename(graph: GraphProto, old: str, new: str) -> str:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in (*graph.initializer, *graph.input, *graph.output):
        if value.name == old:
            value.name = new
    return new


def keep(graph: GraphProto, nodes: Sequence[Any]) -> None:
    """Leaves these nodes, and the constants that they read."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for node in copies for name in node.input} | {one.name for one in graph.output}
    unread = [one for one in graph.initializer if one.name not in read]
    for one in unread:
        graph.initializer.remove(one)
