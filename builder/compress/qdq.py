"""Checks where a quantised graph has its Q/DQ pairs, from the ONNX file alone.

The rules (TensorRT's "Working with Quantized Types"): the input of every Conv, Gemm and MatMul is int8 or fp8 per
tensor, its weight too with one scale per output channel, and of a residual Add after a convolution exactly one
branch is quantised: the one that is not fused into that convolution. A float input makes a runtime fall back to a
float kernel without a word, so a layer that is left in float must have a reason and is named with it. What
multiplies by an activation, as attention does, has no weight in the place of one and is left in float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.errors import AuditError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")
_TYPES = {"int8": "INT8", "fp8": "FLOAT8E4M3FN"}
# ModelOpt's limits for convolutions on tensor cores.
_MAX_FP8_KERNEL = 32
_MIN_CHANNELS = 16
# They move values and do not change them, so int8 passes through.
_LAYOUT_OPS = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Identity", "Cast")
_PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class NodeReport:
    """One weighted node that keeps the rules."""

    name: str
    """The node's name in the graph."""
    op: str
    """Its operator."""
    activation_scale: float
    """Scale of its quantised input."""
    num_weight_scales: int
    """Scales of its quantised weight: one per output channel."""


@dataclass(frozen=True)
class KeptHigh:
    """One weighted node that is left unquantised."""

    name: str
    """The node's name in the graph."""
    op: str
    """Its operator."""
    reason: str
    """Why that is no mistake."""


@dataclass(frozen=True)
class QdqReport:
    """What the audit of a whole graph found; every rule is kept."""

    num_residual_adds: int
    """Adds after a quantised convolution; each has exactly one quantised branch."""
    nodes: list[NodeReport] = field(default_factory=list)
    """Every quantised Conv, Gemm and MatMul, in the graph's order."""
    kept_high: list[KeptHigh] = field(default_factory=list)
    """Every one that is not quantised, with the reason."""

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON, with a count per operator."""
        counts = {f"num_{op.lower()}": sum(node.op == op for node in self.nodes) for op in WEIGHTED_OPS}
        return {**counts, **asdict(self)}


def audit_qdq(path: Path, precision: str = "int8", *, kept_high: Sequence[str] = ()) -> QdqReport:
    """Checks a quantised graph, also after its rest was cast to half precision.

    Args:
        path: The ONNX file.
        precision: `int8` or `fp8` (E4M3), the type of the quantised layers.
        kept_high: Names of nodes that were left unquantised on purpose.

    Returns:
        The counts, every quantised node, and every one that is not with the reason.

    Raises:
        AuditError: A rule is broken; names the node and what is wrong with it.
    """
    import onnx

    content = onnx.load(path).graph
    graph = _Graph(content, path, precision)
    weighted = weighted_nodes(content)
    if not weighted:
        raise AuditError(f"{path}: has no Conv, Gemm or MatMul; expected a quantised network")
    reports = list[NodeReport]()
    high = [KeptHigh(node.name, node.op_type, why) for node, why in _multiplying(content) if why is not None]
    for node in weighted:
        reason = "kept on request" if node.name in kept_high else graph.why_high(node)
        if reason is not None and not graph.has_quantized_weight(node):
            high.append(KeptHigh(node.name, node.op_type, reason))
        else:
            reports.append(graph.check_weighted(node))
    if not reports:
        raise AuditError(f"{path.name}: every layer is left unquantised, expected {precision} layers")
    convolutions = {node.name for node in reports if node.op == "Conv"}
    adds = [node for node in residual_adds(content) if convolutions & graph.sources(node)]
    for node in adds:
        graph.check_residual(node, may_be_float=bool(kept_high))
    return QdqReport(num_residual_adds=len(adds), nodes=reports, kept_high=high)


def weighted_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the convolutions and linear layers, in the graph's order."""
    return [node for node, why in _multiplying(graph) if why is None]


def products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns what multiplies by an activation, as attention does; int8 would make no weight smaller."""
    return [node for node, why in _multiplying(graph) if why is not None]


def _multiplying(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, str | None]]:
    """Every Conv, Gemm and MatMul, and why it has no weight; None where what it multiplies by is a constant."""
    constants = _constants(graph)
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in WEIGHTED_OPS:
            first, second = (_stored(name, producers) in constants for name in node.input[:2])
            product = "multiplies a constant by an activation" if first else "multiplies two activations"
            yield node, None if second else product


def _stored(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """Returns what a tensor is before pairs and layouts."""
    while name in producers and producers[name].op_type in (*_LAYOUT_OPS, *_PAIR):
        name = producers[name].input[0]
    return name


def residual_adds(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the additions of two activations, quantised or not, in the graph's order."""
    constants = _constants(graph)
    constants |= {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    return [node for node in graph.node if node.op_type == "Add" and not constants & set(node.input)]


def _constants(graph: onnx.GraphProto) -> set[str]:
    found = {tensor.name for tensor in graph.initializer}
    return found | {node.output[0] for node in graph.node if node.op_type == "Constant"}


class _Graph:
    """A graph with its tensors indexed by name."""

    def __init__(self, graph: onnx.GraphProto, path: Path, precision: str) -> None:
        self.path = path
        self.precision = precision
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}

    def check_weighted(self, node: onnx.NodeProto) -> NodeReport:
        quantize = self._activation_quantizer(node.input[0])
        if quantize is None:
            raise self._broken(node, f"its input {node.input[0]!r} is not quantised", "a Q/DQ pair before it")
        scales = self._scales(node, quantize.input[1])
        if scales.size != 1:
            raise self._broken(node, f"its input has {scales.size} scales", "one per tensor")
        num_weight_scales = self._check_weight(node)
        return NodeReport(node.name, node.op_type, float(scales.reshape(-1)[0]), num_weight_scales)

    def has_quantized_weight(self, node: onnx.NodeProto) -> bool:
        """Returns whether a node was meant to be quantised.

        Its input does not tell: a residual Add may share it, and its branch is quantised for the Add alone.
        """
        weight = self.producers.get(node.input[1])
        return weight is not None and weight.op_type == "DequantizeLinear"

    def why_high(self, node: onnx.NodeProto) -> str | None:
        """Returns why ModelOpt leaves a convolution in float, None when it must not.

        Source: `find_nodes_from_convs_to_exclude` of ModelOpt 0.47; TensorRT has no faster kernels for these.
        """
        weight = self.constants.get(node.input[1])
        if node.op_type != "Conv" or weight is None:
            return None
        outputs, inputs, *kernel = weight.dims
        if self.precision == "fp8":
            if math.prod(kernel) > _MAX_FP8_KERNEL:
                return f"no fp8 convolution for a kernel of {'x'.join(map(str, kernel))}"
            narrow = min(outputs, inputs) <= _MIN_CHANNELS
            return f"fp8 does not pay for {inputs} input and {outputs} output channels" if narrow else None
        group = next((each.i for each in node.attribute if each.name == "group"), 1)
        fits = outputs % 8 == 0 or inputs % 8 == 0
        if group > 1:
            fits = outputs % 8 == 0 and min(kernel) > 2
        elif max(outputs, inputs) < _MIN_CHANNELS or len(set(kernel)) > 1:
            fits = False
        if fits or min(outputs, inputs) >= _MIN_CHANNELS:
            return None
        return f"no int8 convolution for {inputs} input and {outputs} output channels"

    def sources(self, node: onnx.NodeProto) -> set[str]:
        """Returns the names of the nodes that compute what a node reads, quantised or not."""
        found = (self._source(name, (*_LAYOUT_OPS, *_PAIR)) for name in node.input)
        return {source.name for source in found if source is not None}

    def check_residual(self, node: onnx.NodeProto, *, may_be_float: bool) -> None:
        quantized = sum(self._activation_quantizer(name) is not None for name in node.input)
        if quantized != 1 and not (may_be_float and quantized == 0):
            found = "none of its branches is quantised" if quantized == 0 else "both of its branches are quantised"
            raise self._broken(node, found, "exactly one")

    def _check_weight(self, node: onnx.NodeProto) -> int:
        from onnx import TensorProto

        dequantize = self.producers.get(node.input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            raise self._broken(
                node,
                f"its weight {node.input[1]!r} is not quantised",
                f"{self.precision} and a scale per channel",
            )
        weight = self.constants.get(dequantize.input[0])
        if weight is None or weight.data_type != TensorProto.DataType.Value(_TYPES[self.precision]):
            found = f"its weight {node.input[1]!r} is not stored as {self.precision}"
            raise self._broken(node, found, f"{self.precision} in the file")
        axis = self._channel_axis(node, len(weight.dims))
        channels = weight.dims[axis]
        scales = self._scales(node, dequantize.input[1])
        used = next((each.i for each in dequantize.attribute if each.name == "axis"), 1)
        if scales.size != channels or (channels > 1 and used % len(weight.dims) != axis):
            raise self._broken(
                node,
                f"its weight has {scales.size} scales along axis {used}",
                f"one for each of {channels} output channels along axis {axis}",
            )
        return int(scales.size)

    @staticmethod
    def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        return 0 if node.op_type == "Conv" or transposed else rank - 1

    def _activation_quantizer(self, name: str) -> onnx.NodeProto | None:
        """Returns the QuantizeLinear of the pair that a tensor comes from, or None when it is float."""
        node = self._source(name, _LAYOUT_OPS)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        node = self.producers.get(node.input[0])
        return node if node is not None and node.op_type == "QuantizeLinear" else None

    def _source(self, name: str, passed: Sequence[str]) -> onnx.NodeProto | None:
        """Returns what a tensor comes from, before the operators that are passed over."""
        node = self.producers.get(name)
        while node is not None and node.op_type in passed:
            node = self.producers.get(node.input[0])
        return node

    def _scales(self, node: onnx.NodeProto, name: str) -> NDArray[np.float32]:
        import numpy as np
        from onnx import numpy_helper

        if name not in self.constants:
            raise self._broken(node, f"its scale {name!r} is not a constant", "one from calibration")
        scales = np.asarray(numpy_helper.to_array(self.constants[name]), np.float32)
        if not bool((np.isfinite(scales) & (scales > 0)).all()):
            raise self._broken(node, f"its scale {name!r} has a value that is not positive", "positive scales")
        return scales

    def _broken(self, node: onnx.NodeProto, found: str, expected: str) -> AuditError:
        return AuditError(
            f"{self.path.name}: {node.op_type} {node.name!r}: {found}, expected {expected}; "
            "do not serve this graph"
        )
