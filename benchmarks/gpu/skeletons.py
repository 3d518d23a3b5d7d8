"""Graphs without their weights: a hundredth of the size, and put together again where they are needed.

The weights of networks.py are made from their names. A skeleton holds the graph with its weights left out, and for
each of them how it is made: the parameter's name, the type it is converted to, and the scales it is divided by. A
skeleton is only written when that gives the graph back bit for bit, and putting it together checks the digest.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.networks import make_weights

SUFFIX = ".skeleton"
_GRAPH, _RECIPES, _SCALES = "graph.onnx", "recipes.json", "scales.npz"
_SMALL_BYTES = 4096


def write_skeleton(
    graph: Path, quantized: Path | None, names: Mapping[str, str], target: Path, parameters: Mapping[str, Any]
) -> None:
    """Writes the skeleton of a graph.

    Args:
        graph: The complete ONNX file.
        quantized: The same graph before its rest was cast; it holds the weights' scales in float32.
        names: Initialiser to the parameter that it holds, from `name_weights`.
        target: The file to write.
        parameters: Parameter's name to its shape.

    Raises:
        ValueError: A large initialiser cannot be made from a parameter.
    """
    import onnx

    model = onnx.load(graph)
    scales = {} if quantized is None else _read_scales(quantized)
    recipes: dict[str, dict[str, Any]] = {}
    kept: dict[str, npt.NDArray[np.float32]] = {}
    digest = _digest(model)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= _SMALL_BYTES or tensor.name not in names:
            continue
        recipe = {"parameter": names[tensor.name], "shape": list(parameters[names[tensor.name]])}
        if tensor.name in scales:
            kept[tensor.name] = scales[tensor.name]
        recipe["type"] = onnx.TensorProto.DataType.Name(tensor.data_type)
        if _make(recipe, kept.get(tensor.name)) != tensor.raw_data:
            raise ValueError(f"{graph.name}: {tensor.name} is not made from {recipe['parameter']}")
        recipes[tensor.name] = recipe
        tensor.raw_data = b""
    content = io.BytesIO()
    np.savez(content, **{name: scale for name, scale in kept.items()})
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as file:
        file.writestr(_GRAPH, model.SerializeToString())
        file.writestr(_RECIPES, json.dumps({"sha256": digest, "weights": recipes}))
        file.writestr(_SCALES, content.getvalue())


def read_skeleton(skeleton: Path, target: Path) -> Path:
    """Puts a graph together.

    Args:
        skeleton: From `write_skeleton`.
        target: The ONNX file to write.

    Returns:
        `target`.

    Raises:
        ValueError: The result is not the graph that the skeleton was made of.
    """
    import onnx

    with zipfile.ZipFile(skeleton) as file:
        model = onnx.load_from_string(file.read(_GRAPH))
        described = json.loads(file.read(_RECIPES))
        with np.load(io.BytesIO(file.read(_SCALES))) as scales:
            for tensor in model.graph.initializer:
                recipe = described["weights"].get(tensor.name)
                if recipe is not None:
                    tensor.raw_data = _make(recipe, scales[tensor.name] if tensor.name in scales else None)
    if _digest(model) != described["sha256"]:
        raise ValueError(f"{skeleton.name}: the weights made here are not those it was written with")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(model.SerializeToString())
    return target


def name_weights(graph: Path, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Returns which parameter each large initialiser of the float32 graph holds.

    Args:
        graph: What was exported from `build_network`.
        parameters: Parameter's name to its shape.

    Raises:
        ValueError: One of them holds none.
    """
    import onnx

    made: dict[bytes, str] = {}
    for name, shape in parameters.items():
        if math.prod(shape) * 4 > _SMALL_BYTES:
            made[hashlib.sha256(make_weights(name, shape).tobytes()).digest()] = name
    names = {}
    for tensor in onnx.load(graph).graph.initializer:
        if len(tensor.raw_data) > _SMALL_BYTES:
            found = made.get(hashlib.sha256(tensor.raw_data).digest())
            # Biases are small enough to travel.
            if found is None and len(tensor.dims) > 1:
                raise ValueError(f"{graph.name}: {tensor.name} holds no parameter as it was made")
            if found is not None:
                names[tensor.name] = found
    return names


def _read_scales(quantized: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Weights to their float32 scale per output channel, out of the DequantizeLinear behind each of them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(quantized).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    return {
        node.input[0]: numpy_helper.to_array(values[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values and node.input[1] in values
    }


def _make(recipe: Mapping[str, Any], scale: npt.NDArray[np.float32] | None) -> bytes:
    weights = make_weights(recipe["parameter"], tuple(recipe["shape"]))
    kind = recipe["type"]
    if kind == "FLOAT":
        return weights.tobytes()
    if kind == "FLOAT16":
        return weights.astype(np.float16).tobytes()
    assert scale is not None, kind
    divided = weights / scale.reshape(-1, *([1] * (weights.ndim - 1)))
    if kind == "INT8":
        return np.clip(np.rint(divided), -128, 127).astype(np.int8).tobytes()
    assert kind == "FLOAT8E4M3FN", kind
    import ml_dtypes

    content: bytes = np.clip(divided, -448, 448).astype(ml_dtypes.float8_e4m3fn).tobytes()
    return content


def _digest(model: Any) -> str:
    """SHA-256 of the weights, in the graph's order; the rest is in the skeleton as it is."""
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.name.encode())
        digest.update(tensor.raw_data)
    return digest.hexdigest()
