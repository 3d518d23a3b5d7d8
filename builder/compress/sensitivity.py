"""Mixed precision: which layers a quantisation hurts most, and how many of them must stay high to keep a budget.

Every layer is quantised alone, with the scales of the whole quantised graph, and the harm is the mean squared
change of the logits on calibration images, over their variance. The worst layers are kept high, as few as the
budget allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.compress.qdq import WEIGHTED_OPS, weighted_nodes
from temper.builder.errors import QuantizeError
from temper.builder.network.export import run_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_IMAGES = 256

Progress = Callable[[int, int], None]
Quantize = Callable[[Sequence[str]], dict[str, Any]]
"""Quantises the graph with these nodes kept high and returns its figures, `kept_high` among them."""


def quantize_within(
    src: Path,
    dst: Path,
    calibration: NDArray[np.uint8],
    quantize: Quantize,
    *,
    max_loss: float,
    keep_high: Sequence[str] = (),
    progress: Progress,
) -> dict[str, Any]:
    """Quantises a graph, with as few layers kept high as `max_loss` allows.

    Args:
        src: The float32 graph.
        dst: The file that `quantize` writes.
        calibration: Real images, uint8 [M, H, W, 3].
        quantize: Quantises `src` into `dst`.
        max_loss: In percentage points of agreement with float32 on the calibration images.
        keep_high: Nodes, or patterns, that are kept high in any case.
        progress: Called with (done, total) of the scan.

    Returns:
        As `quantize`, and `loss` (percentage points), `sensitivity` (harm by layer, the worst first).

    Raises:
        QuantizeError: Not even with one layer quantised the loss is small enough; names the smallest reachable.
    """
    images = calibration[:_MAX_IMAGES]
    expected = run_graph(src.read_bytes(), images).argmax(1)

    def measure(kept: Sequence[str]) -> dict[str, Any]:
        info = quantize(kept)
        answers = run_graph(dst.read_bytes(), images).argmax(1)
        return {**info, "loss": 100 * float((answers != expected).mean()), "sensitivity": {}}

    best = measure(keep_high)
    if best["loss"] <= max_loss:
        return best
    harm = scan_layers(src, dst, images, progress)
    asked = best["kept_high"]
    order = [*asked, *(name for name in harm if name not in asked)]
    low, high = len(asked), len(order) - 1  # one layer at least is quantised
    latest = best = measure(order[:high])
    if best["loss"] > max_loss:
        raise QuantizeError(
            f"{src.name}: max_loss: got {max_loss:g} points, but with all layers but one kept high the "
            f"loss is still {best['loss']:g}; allow more"
        )
    while high - low > 1:  # `low` layers are too few, `high` are enough
        middle = (low + high) // 2
        latest = measure(order[:middle])
        if latest["loss"] <= max_loss:
            high, best = middle, latest
        else:
            low = middle
    if latest is not best:
        best = measure(order[:high])
    return {**best, "sensitivity": harm}


def scan_layers(src: Path, quantized: Path, images: NDArray[np.uint8], progress: Progress) -> dict[str, float]:
    """Returns the harm that quantising each layer alone does, the worst first.

    Args:
        src: The float32 graph.
        quantized: The same graph with every layer quantised.
        images: uint8 [N, H, W, 3].
        progress: Called with (layers done, layers in all).

    Returns:
        Mean squared change of the logits over their variance, by the node's name.
    """
    model, float_model = onnx.load(quantized), onnx.load(src)
    names = [node.name for node in model.graph.node if node.op_type in (*WEIGHTED_OPS, "Add")]
    weighted = [node.name for node in weighted_nodes(model.graph)]
    expected = run_graph(src.read_bytes(), images)
    variance = float(expected.var()) or 1.0
    harm = {}
    for position, name in enumerate(weighted):
        progress(position, len(weighted))
        alone = with_float(model, float_model, [other for other in names if other != name])
        logits = run_graph(alone.SerializeToString(), images)
        harm[name] = float(((logits - expected) ** 2).mean()) / variance
    progress(len(weighted), len(weighted))
    return dict(sorted(harm.items(), key=lambda item: -item[1]))


def with_float(model: onnx.ModelProto, float_model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Returns a copy of a quantised graph in which some nodes read float inputs and weights again.

    Args:
        model: With Q/DQ pairs, made from `float_model`.
        float_model: The float32 graph.
        names: Nodes of both; one that is not quantised stays as it is.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    producers = {name: node for node in changed.graph.node for name in node.output}
    float_inputs = {node.name: node.input for node in float_model.graph.node}
    wanted = set()
    for node in changed.graph.node:
        if node.name not in names:
            continue
        for index, name in enumerate(node.input):
            pair = producers.get(name)
            if pair is None or pair.op_type != "DequantizeLinear":
                continue
            quantize = producers.get(pair.input[0])
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                node.input[index] = quantize.input[0]
            else:  # a weight that is stored quantised
                wanted.add(float_inputs[node.name][index])
                node.input[index] = f"{float_inputs[node.name][index]}_float"
    for tensor in float_model.graph.initializer:
        if tensor.name in wanted:
            added = changed.graph.initializer.add()
            added.CopyFrom(tensor)
            added.name = f"{tensor.name}_float"
    return changed
