"""The layers of a quantised graph: how each is quantised, and what its scale does to the values that it reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from temper.builder.compress.qdq import residual_adds, weighted_nodes
from temper.builder.errors import ExplainError
from temper.builder.estimate import Estimate
from temper.builder.explain.activations import activated

if TYPE_CHECKING:
    from numpy.typing import NDArray

# From where on a finding is said. Entropy calibration clips up to about a thousandth on purpose.
_CLIPPED = 0.005
_RANGE_USED = 0.3
_OUTLIER = 10.0
_DEAD = 0.25
_WEIGHT_DB = 20.0
_LARGEST: dict[int, tuple[float, float]] = {
    TensorProto.INT8: (-128.0, 127.0),
    TensorProto.UINT8: (0.0, 255.0),
    TensorProto.FLOAT8E4M3FN: (-448.0, 448.0),
}


@dataclass
class Layer:
    """One layer of a quantised graph; see `temper.report.explained.LayerBlame` for what the figures mean."""

    name: str
    op: str
    quantized: bool
    source: str
    """The tensor that it reads, in the float32 graph."""
    output: str
    """The tensor that it gives."""
    limits: tuple[float, float] | None = None
    """The least and the largest value that its input's scale allows."""
    is_even: bool = False
    """The steps of its input's scale are of one size, as those of int8 and not of fp8."""
    weight_db: float | None = None
    """Signal to noise of its quantised weights, in dB."""
    signal: float = 0.0
    noise: float = 0.0
    cosines: list[float] = field(default_factory=list)
    num_values: int = 0
    num_clipped: int = 0
    peaks: NDArray[np.float32] | None = None
    """The largest absolute value of every channel of the input."""
    alive: NDArray[np.bool_] | None = None
    """The channels of the output that were not always zero."""
    num_images: int = 0
    share: Estimate | None = None

    def read_input(self, values: NDArray[np.float32]) -> None:
        """Takes the input of some images, as the float32 graph has it: [N, C, ...]."""
        others = tuple(axis for axis in range(values.ndim) if axis != 1)
        peaks = np.abs(values).max(axis=others)
        self.peaks = peaks if self.peaks is None else np.maximum(self.peaks, peaks)
        if self.limits is not None:
            self.num_values += values.size
            self.num_clipped += int(((values < self.limits[0]) | (values > self.limits[1])).sum())

    def read_output(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Takes the output of some images, in float32 and quantised: [N, C, ...]."""
        others = tuple(axis for axis in range(expected.ndim) if axis != 1)
        alive = (expected != 0).any(axis=others)
        self.alive = alive if self.alive is None else self.alive | alive
        for one, two in zip(expected.reshape(len(expected), -1), found.reshape(len(found), -1), strict=True):
            difference, signal, other = one - two, float(one @ one), float(two @ two)
            self.signal += signal
            self.noise += float(difference @ difference)
            if signal > 0 and other > 0:
                self.cosines.append(float(one @ two) / math.sqrt(signal * other))

    def figures(self) -> dict[str, Any]:
        """Returns the figures as JSON."""
        ratio = self.signal / self.noise if self.signal > 0 and self.noise > 0 else None
        range_used = outlier = channel = None
        if self.peaks is not None and self.peaks.size > 0:
            typical = float(np.median(self.peaks))
            channel = int(self.peaks.argmax())
            outlier = float(self.peaks[channel]) / typical if typical > 0 else None
            if self.limits is not None:
                range_used = self._peak() / max(-self.limits[0], self.limits[1])
        figures: dict[str, Any] = {
            "name": self.name,
            "op": self.op,
            "quantized": self.quantized,
            "signal_to_noise_db": None if ratio is None else 10 * math.log10(ratio),
            "cosine": float(np.mean(self.cosines)) if self.cosines else None,
            "share": self.share,
            "num_images": self.num_images,
            "clipped": self.num_clipped / self.num_values if self.num_values else None,
            "range_used": range_used,
            "outlier": outlier,
            "outlier_channel": channel,
            "num_dead": int((~self.alive).sum()) if self.alive is not None else 0,
            "num_channels": len(self.alive) if self.alive is not None else 0,
        }
        return {**figures, "findings": list(self._findings(figures))}

    def _peak(self) -> float:
        return 0.0 if self.peaks is None else float(self.peaks.max(initial=0))

    def _findings(self, figures: dict[str, Any]) -> Iterator[str]:
        clipped, used, outlier = figures["clipped"], figures["range_used"], figures["outlier"]
        if self.weight_db is not None and self.weight_db < _WEIGHT_DB:
            changed = "what their quantisation changed"
            yield (
                f"its weights are {-self.weight_db:.0f} dB below {changed}"
                if self.weight_db < 0
                else f"its weights are only {self.weight_db:.0f} dB above {changed}"
            )
        if self.limits is not None and clipped is not None and clipped > _CLIPPED:
            yield (
                f"{100 * clipped:.1f} % of its input is clipped: values reach {self._peak():.3g}, "
                f"its scale allows {self.limits[1]:.3g}"
            )
        if self.is_even and self.limits is not None and used is not None and 0 < used < _RANGE_USED:
            yield (
                f"its input uses {100 * used:.0f} % of the range that its scale allows ({self.limits[1]:.3g}): "
                "most steps are never taken"
            )
        if self.is_even and outlier is not None and outlier > _OUTLIER:
            yield (
                f"channel {figures['outlier_channel']} of its input is {outlier:.0f} times as large as the "
                "typical one, and all share a scale"
            )
        if figures["num_dead"] > _DEAD * max(1, figures["num_channels"]):
            yield f"{figures['num_dead']} of {figures['num_channels']} channels of its output are always zero"


def read_layers(float_model: onnx.ModelProto, model: onnx.ModelProto, name: str) -> list[Layer]:
    """Lists the layers of a quantised graph, with their tensors in the float32 one, in its order.

    Args:
        float_model: The graph before the quantisation.
        model: The same after it.
        name: The file's, for errors.

    Raises:
        ExplainError: The two are not of one network, or no layer is quantised.
    """
    adds = {node.name for node in residual_adds(float_model.graph)}
    weights = {node.name: node.input[1] for node in weighted_nodes(float_model.graph)}
    floats = {each.name: each for each in float_model.graph.initializer}
    graph, layers = _Quantized(model), []
    for node in float_model.graph.node:
        if node.name not in adds and node.name not in weights:
            continue
        output = activated(float_model.graph, node)
        if node.name not in graph.nodes or output not in graph.producers:
            raise ExplainError(
                f"{name}: has no layer {node.name!r} with the output {output!r}, expected those of the "
                "float32 graph that it was quantised from; give that graph"
            )
        inputs = graph.nodes[node.name].input
        at = next((index for index, each in enumerate(inputs) if graph.quantizer(each) is not None), None)
        # A layer's weight may be left high while an addition reads the same quantised input.
        is_quantized = at is not None and (node.name in adds or graph.is_dequantized(inputs[1]))
        layer = Layer(node.name, node.op_type, is_quantized, source=node.input[at or 0], output=output)
        if at is not None and is_quantized:
            layer.limits, layer.is_even = graph.limits(inputs[at]), graph.is_even(inputs[at])
            if node.name in weights:
                layer.weight_db = graph.weight_db(inputs[1], floats.get(weights[node.name]))
        layers.append(layer)
    if not any(layer.quantized for layer in layers):
        raise ExplainError(
            f"{name}: has no quantised layer, expected a graph with Q/DQ pairs; give one that quantize made"
        )
    return layers


class _Quantized:
    """A graph with Q/DQ pairs, its nodes and tensors by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.name: node for node in model.graph.node}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self._constants = {each.name: each for each in model.graph.initializer}

    def is_dequantized(self, tensor: str) -> bool:
        return tensor in self.producers and self.producers[tensor].op_type == "DequantizeLinear"

    def quantizer(self, tensor: str) -> onnx.NodeProto | None:
        """The QuantizeLinear of the pair that an activation comes from."""
        if not self.is_dequantized(tensor):
            return None
        quantize = self.producers.get(self.producers[tensor].input[0])
        return quantize if quantize is not None and quantize.op_type == "QuantizeLinear" else None

    def is_even(self, tensor: str) -> bool:
        """Whether an activation's steps are of one size, as integers' are: a large value then costs all others."""
        quantize = self.quantizer(tensor)
        zero = self._constants.get(quantize.input[2]) if quantize is not None and len(quantize.input) > 2 else None
        return quantize is not None and (zero is None or zero.data_type in (TensorProto.INT8, TensorProto.UINT8))

    def limits(self, tensor: str) -> tuple[float, float] | None:
        """The least and the largest value that the scale of an activation allows."""
        quantize = self.quantizer(tensor)
        if quantize is None or quantize.input[1] not in self._constants:
            return None
        scale = float(np.max(self._values(quantize.input[1])))
        zero = self._constants.get(quantize.input[2]) if len(quantize.input) > 2 else None
        kind = zero.data_type if zero is not None else TensorProto.UINT8
        low, high = _LARGEST.get(kind, _LARGEST[TensorProto.INT8])
        is_integer = zero is not None and kind in (TensorProto.INT8, TensorProto.UINT8)
        shift = float(np.max(self._values(zero.name))) if zero is not None and is_integer else 0.0
        return (low - shift) * scale, (high - shift) * scale

    def weight_db(self, tensor: str, original: onnx.TensorProto | None) -> float | None:
        """Signal to noise of stored int8 weights; None of others, and where nothing was changed."""
        pair = self.producers[tensor]
        stored = self._constants.get(pair.input[0])
        if original is None or stored is None or pair.input[1] not in self._constants:
            return None
        if stored.data_type != TensorProto.INT8 or tuple(stored.dims) != tuple(original.dims):
            return None
        weight, scale = numpy_helper.to_array(original).astype(np.float64), self._values(pair.input[1])
        shape = [1] * weight.ndim
        if scale.size > 1:
            shape[next((each.i for each in pair.attribute if each.name == "axis"), 1)] = scale.size
        energy = float(((weight - self._values(stored.name) * scale.reshape(shape)) ** 2).sum())
        return 10 * math.log10(float((weight**2).sum()) / energy) if energy > 0 and weight.any() else None

    def _values(self, name: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = numpy_helper.to_array(self._constants[name]).astype(np.float64)
        return values
