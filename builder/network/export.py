"""PyTorch to ONNX: one graph, preprocessing inside, compared with PyTorch before anything is built from it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import nn

from temper.builder.contract import INPUT_NAME, NUM_CHANNELS, OUTPUT_NAME
from temper.builder.errors import ExportError
from temper.builder.network.served import Served, predict
from temper.imaging.preprocess import Size, sides

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET = 19  # the first with every Q/DQ type that ModelOpt writes
# Float32 convolutions in another order differ by about 1e-6 of the largest logit; a wrong graph by far more.
_RELATIVE_TOLERANCE = 1e-3
_BATCH = 32


def export_onnx(
    model: nn.Module, path: Path, *, image_size: Size, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Writes a model as ONNX: input `image` UINT8 [N, H, W, 3], output `logits` FP32 [N, classes], N free.

    Batch normalisation is folded into the convolutions.

    Args:
        model: Takes float32 [N, 3, H, W], normalised.
        path: The file to write.
        image_size: H and W in pixels, or one number for both.
        mean: Mean per channel, RGB, on a scale of 0 to 1.
        std: Standard deviation per channel, RGB, on a scale of 0 to 1.

    Raises:
        ExportError: The model cannot be traced, or the graph is no valid ONNX.
    """
    served = Served(model, mean=mean, std=std).cpu().eval()
    example = torch.zeros((2, *sides(image_size), NUM_CHANNELS), dtype=torch.uint8)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # ModelOpt reads the graphs of this exporter only, so its deprecations tell us nothing to act on.
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, message="You are using the legacy Torch"
            )
            warnings.filterwarnings("ignore", category=DeprecationWarning, message="The feature will be removed")
            torch.onnx.export(
                served,
                (example,),
                buffer,  # type: ignore[arg-type]  # takes a file object when dynamo is False
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
        graph = onnx.load_from_string(buffer.getvalue())
        _fold_identities(graph)
        onnx.checker.check_model(graph, full_check=True)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"{path}: the export to ONNX failed: {reason}") from error
    path.write_bytes(graph.SerializeToString())


def _fold_identities(model: onnx.ModelProto) -> None:
    """Gives constants their own name again, where the exporter made equal ones share one behind an Identity.

    ModelOpt takes a bias behind an Identity for an activation.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Identity" and node.input[0] in constants]:
        copy = onnx.TensorProto()
        copy.CopyFrom(constants[node.input[0]])
        copy.name = node.output[0]
        model.graph.initializer.append(copy)
        model.graph.node.remove(node)


def run_onnx(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Runs an exported or quantised graph exactly as it is written: the reference for every engine.

    ONNX Runtime on the CPU, without any optimisation: Q/DQ pairs stay where they are, and what lies between them
    is computed in float32 on dequantised values, so nothing saturates, whatever the CPU.

    Args:
        path: The ONNX file.
        images: uint8 [N, H, W, 3].

    Returns:
        Logits, float32 [N, classes].
    """
    return run_graph(path.read_bytes(), images)


def run_graph(graph: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Runs a serialised graph, as `run_onnx` does a file."""
    session = open_session(graph)
    parts = [
        session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(images[start : start + _BATCH])})[0]
        for start in range(0, len(images), _BATCH)
    ]
    return np.concatenate(parts)


def open_session(graph: bytes) -> Any:
    """Opens a serialised graph with ONNX Runtime on the CPU."""
    import onnxruntime  # type: ignore[import-untyped]  # ships none

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns about every missing GPU
    # Even the basic optimisations move Q/DQ pairs, and a digits network's logits by 1.7 % of their spread; further
    # ones take int8 kernels, which saturate too, and for fp8 there are none.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def compare_logits(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> dict[str, float | int]:
    """Returns how far two sets of logits [N, classes] are apart, and on what share the largest one agrees.

    For `relative_rms` see the function.
    """
    return {
        "num_images": len(expected),
        "max_abs_diff": float(np.abs(expected - actual).max()),
        "max_abs_logit": float(np.abs(expected).max()),
        "relative_rms": relative_rms(expected, actual),
        "agreement": float((expected.argmax(1) == actual.argmax(1)).mean()),
    }


def relative_rms(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """Returns the root mean square of the differences over the standard deviation of what was expected.

    Over 1 where that is 0: the difference as it is.
    """
    return float(np.sqrt(((expected - actual) ** 2).mean())) / (float(expected.std()) or 1.0)


def verify_onnx(
    path: Path,
    model: nn.Module,
    images: NDArray[np.uint8],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Any]:
    """Compares an exported graph with PyTorch on real images.

    Args:
        path: What `export_onnx` wrote.
        model: The same model, with the same mean and std.
        images: uint8 [N, H, W, 3], at least one.
        mean: Mean per channel, RGB, on a scale of 0 to 1.
        std: Standard deviation per channel, RGB, on a scale of 0 to 1.

    Returns:
        num_images, max_abs_diff, max_abs_logit, agreement (share of equal top-1 answers).

    Raises:
        ExportError: The logits differ by more than 0.1 % of the largest one, or are not finite.
    """
    if len(images) == 0:
        raise ExportError(f"{path}: got no image to compare with PyTorch, expected at least one")
    expected = predict(Served(model, mean=mean, std=std).cpu(), images)
    figures = compare_logits(expected, run_onnx(path, images))
    tolerance = _RELATIVE_TOLERANCE * max(1.0, figures["max_abs_logit"])
    if not figures["max_abs_diff"] <= tolerance:  # also when it is NaN
        raise ExportError(
            f"{path}: its logits differ from PyTorch's by {figures['max_abs_diff']:.3g} on {len(images)} images, "
            f"expected at most {tolerance:.3g}; do not use this graph"
        )
    return figures
