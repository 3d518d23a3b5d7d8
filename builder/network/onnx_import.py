"""Another's ONNX classifier as the project's own graph: `image` UINT8 [N, H, W, 3] to `logits` FP32 [N, classes].

Nothing is taken on trust: the graph that comes out answers real images, alone and in larger batches, and is
compared with the file as its owner runs it (`onnx_original.py`). What was done to it is said in one line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from temper.builder.errors import ModelError, reason_of
from temper.builder.network import onnx_rewrite as rewrite
from temper.builder.network.export import OPSET, compare_logits, run_graph
from temper.builder.network.onnx_batch import free_batch
from temper.builder.network.onnx_original import Original
from temper.builder.network.onnx_read import Classifier, attribute, read_classifier, wrong
from temper.builder.quiet import quiet_native

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

# As for an export; float16 rounds to 11 bits, layer after layer, and the import computes in float32.
_TOLERANCE = {"float32": 1e-3, "float16": 3e-2}
_ODD_BATCH = 3
_MIN_IMAGES = 5
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What becomes of a uint8 image before a network sees it."""

    size: tuple[int, int]
    """Height and width."""
    mean: Sequence[float]
    """Per channel, RGB, on a scale of 0 to 1."""
    std: Sequence[float]
    """Per channel, RGB, on a scale of 0 to 1."""
    bgr: bool = False
    """Blue comes first."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An imported graph."""

    model: ModelProto
    """`image` to `logits`."""
    original: Original
    """What it was made from."""
    note: str
    """What it was and what was done to it, in one line."""
    is_quantized: bool
    """It came with Q/DQ pairs."""
    tolerance: float
    """How far its logits may be from the original's, as a share of the largest."""

    def compare(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Compares with the original on real images.

        Args:
            images: uint8 [N, H, W, 3], at least one.

        Returns:
            The original's logits, and num_images, max_abs_diff, max_abs_logit, relative_rms, agreement.

        Raises:
            ModelError: They differ by more than the tolerance, in a batch or alone.
        """
        content = self.model.SerializeToString()
        others = [images ^ np.uint8(37 * turn) for turn in range(1, -(-_MIN_IMAGES // len(images)))]
        tried = np.concatenate([images, *others])  # a few test images are too few for several batches
        expected = self.original.logits(tried)
        allowed = self.tolerance * max(1.0, float(np.abs(expected).max(initial=0.0)))
        for at_once in (1, _ODD_BATCH, len(tried)):
            try:
                with quiet_native():
                    found = run_graph(content, tried[:at_once])
            except Exception as error:  # ONNX Runtime's own, without a common base
                raise self._wrong(f"with a batch of {at_once} {reason_of(error)}") from error
            if found.shape != expected[:at_once].shape:
                raise self._wrong(f"a batch of {at_once} gets {len(found)} answers")
            off = compare_logits(expected[:at_once], found)["max_abs_diff"]
            if not off <= allowed:  # also when it is NaN
                logits = f"the logits are off by {off:.3g}, expected at most {allowed:.3g}"
                raise self._wrong(f"with a batch of {at_once} {logits}")
        expected = expected[: len(images)]
        return expected, compare_logits(expected, found[: len(images)])

    def _wrong(self, why: str) -> ModelError:
        path, batch = self.original.path, self.original.batch
        what = "it does not answer every image for itself"
        if batch is not None:
            what = f"its batch of {batch} cannot be made free"
        return wrong(path, f"{what}: {why}; export it with a dynamic batch")


def import_onnx(path: Path, pixels: Pixels) -> Imported:
    """Reads an ONNX classifier and makes the project's own graph of it.

    Args:
        path: The file; see `read_classifier` for what it may be.
        pixels: What it was trained on. A graph that takes uint8 has its own mean and std.

    Raises:
        ModelError: It cannot be read, is no classifier of such images, or cannot be brought into that form.
    """
    found = read_classifier(path)
    check_size(found, pixels.size)
    original = Original(found, pixels.size, mean=pixels.mean, std=pixels.std, bgr=pixels.bgr)
    model = onnx.ModelProto()
    model.CopyFrom(found.model)
    before = _count(model, "BatchNormalization")
    try:
        rewrite.forget(model)
        rewrite.inline_constants(model)
        rewrite.to_float32(model)
        rewrite.cut(model, rewrite.renamed(original.logits_name))
        if (
            found.batch is not None and not found.is_quantized
        ):  # a batch that is worked out becomes a number to free
            model = rewrite.fold(model)
            rewrite.inline_constants(model)
        free_batch(model, found.batch, pixels.size, found.layout)
        model = rewrite.raise_opset(model, OPSET)
        if not found.is_quantized:  # constants of Q/DQ pairs would be worked out as well
            model = rewrite.fold(model)
        rewrite.inline_constants(model)
        rewrite.name_nodes(model)
        rewrite.put_front(model, found.layout, mean=pixels.mean, std=pixels.std, bgr=pixels.bgr)
        rewrite.put_end(model, original.logits_rank, original.num_classes)
        rewrite.forget(model)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise wrong(path, f"cannot be imported: {reason_of(error)}") from error
    return Imported(
        model=model,
        original=original,
        note=_note(found, original, (before, _count(model, "BatchNormalization"))),
        is_quantized=found.is_quantized,
        tolerance=_TOLERANCE["float16" if _has_half(found.model) else "float32"],
    )


@dataclass(frozen=True, kw_only=True)
class Described:
    """What an ONNX file is."""

    note: str
    """In one line."""
    num_classes: int
    """Length of its answer."""
    size: tuple[int, int] | None
    """Height and width that it is fixed to, in pixels."""


def describe_onnx(path: Path, usual_size: tuple[int, int]) -> Described:
    """Says what an ONNX classifier is, without importing it; where it takes any size it is asked at the usual one.

    Raises:
        ModelError: As `import_onnx`.
    """
    found = read_classifier(path)
    height, width = found.size
    size = (height or usual_size[0], width or usual_size[1])
    original = Original(found, size, mean=(0.5,) * 3, std=(0.5,) * 3, bgr=False)
    return Described(
        note=_note(found, original, None),
        num_classes=original.num_classes,
        size=None if found.size == (None, None) else size,
    )


def check_size(found: Classifier, size: tuple[int, int]) -> None:
    """Refuses images of another size than a file is fixed to.

    Raises:
        ModelError: Says which `data.image_size` it needs.
    """
    if any(own not in (None, given) for own, given in zip(found.size, size, strict=True)):
        own = found.size[0] if found.size[0] == found.size[1] else list(found.size)
        raise wrong(
            found.path,
            f"takes images of {_by(found.size)} pixels, data.image_size is {_by(size)}; "
            f"set data.image_size = {own}",
        )


def count_graph(model: ModelProto) -> dict[str, int]:
    """Counts the work and the weights of an imported graph.

    Returns:
        flops (2 x multiply-adds of every convolution and linear layer, for one image), num_parameters.
    """
    one = onnx.ModelProto()
    one.CopyFrom(model)
    one.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    one.graph.output[0].type.tensor_type.ClearField("shape")
    shapes = rewrite.shapes_of(one)
    constants = {tensor.name: tensor for tensor in one.graph.initializer}
    shapes |= {name: list(tensor.dims) for name, tensor in constants.items()}
    flops, weights = 0, set[str]()
    for node in one.graph.node:
        if node.op_type in _WEIGHTED:
            weight, output = shapes.get(node.input[1]) or [], shapes.get(node.output[0]) or []
            outer = weight[1:] if node.op_type == "Conv" else _inner(node, weight)
            flops += 2 * math.prod(dim or 1 for dim in (*output, *outer))
        skipped = 1 if node.op_type in ("QuantizeLinear", "DequantizeLinear") else len(node.input)
        weights |= {name for name in node.input[:skipped] if not node.name.startswith(rewrite.FRONT)}
    kinds = (TensorProto.FLOAT, TensorProto.INT8)
    sizes = [math.prod(one.dims) for one in constants.values() if one.name in weights and one.data_type in kinds]
    return {"flops": flops, "num_parameters": sum(sizes)}


def _inner(node: onnx.NodeProto, weight: Sequence[int | None]) -> Sequence[int | None]:
    """The dimension of a linear layer that is summed over."""
    transposed = bool(attribute(node, "transB"))
    return weight[-1:] if transposed else weight[-2:-1]


def _note(found: Classifier, original: Original, norms: tuple[int, int] | None) -> str:
    """Says what a file is, and of one that was imported what was done: how many BatchNorms there were, and are."""
    before, after = norms or (0, 0)
    kind = {"float32": "float", "uint8": "uint8"}.get(found.dtype, found.dtype)
    parts = ["ONNX", f"{found.layout} {kind} input {_by(found.size)}"]
    if found.dtype == "uint8":
        parts.append("mean and std are its own")
    if original.removed:
        parts.append(f"{original.removed} removed")
    if found.batch is not None:
        parts.append(f"fixed batch of {found.batch}" if norms is None else f"batch of {found.batch} made free")
    if found.num_training:
        parts.append(f"{_norms(found.num_training)} taken out of training mode")
    if before - after:
        parts.append(f"{_norms(before - after)} folded")
    if after:
        parts.append(f"{_norms(after)} kept")
    if found.is_quantized:
        parts.append("quantised already")
    return ", ".join(parts)


def _norms(count: int) -> str:
    return f"{count} BatchNorm{'' if count == 1 else 's'}"


def _by(size: Sequence[int | None]) -> str:
    return " x ".join("any" if each is None else str(each) for each in size)


def _count(model: ModelProto, op: str) -> int:
    return sum(node.op_type == op for node in model.graph.node)


def _has_half(model: ModelProto) -> bool:
    return any(one.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for one in model.graph.initializer)
