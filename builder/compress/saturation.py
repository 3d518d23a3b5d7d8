"""Keeps int8 from depending on the CPU: 7-bit weights, where a measurement shows that 8 bits saturate.

What saturates is explained in `engines/isa.py`. The measurement compares OpenVINO, held to AVX2 in a process of
its own, with the graph's exact arithmetic, so it comes out the same on every machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.engines.isa import AVX2_ONLY, MAX_SAFE_WEIGHT
from temper.builder.errors import QuantizeError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

NUM_IMAGES = 256
_MAX_INT8 = 127
# Rounding in other places moves logits a little on every CPU; saturation moves them by several times that. Below
# this share of the logits' own spread neither matters, as long as no more answers change than is promised.
_TIMES_ROUNDING = 2.0
_MIN_RMS = 0.01
_MAX_CHANGED = 0.01
_LIMIT_S = 3600.0  # only a hang takes so long


def weight_bits(graph: Path | bytes) -> int | None:
    """Returns how many bits the int8 weights of a graph use, 7 (none saturates) or 8; None when it has none."""
    import numpy as np
    from onnx import numpy_helper

    weights = [numpy_helper.to_array(weight) for _, weight, _ in _weights(_load(graph))]
    if not weights:
        return None
    largest = max(int(np.abs(each.astype(np.int16)).max(initial=0)) for each in weights)
    return 7 if largest <= MAX_SAFE_WEIGHT else 8


def reduce_weights(graph: Path, source: Path | None = None) -> None:
    """Writes a quantised graph's int8 weights again with 7 bits: -64 to 64, and a scale about twice as large.

    Args:
        graph: Q/DQ pairs, with weights stored in int8; replaced.
        source: The float32 graph that it was made from, whose weights are rounded once only; without it the
            dequantised ones are.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(graph)
    originals = {}
    if source is not None:
        originals = {each.name: each for each in onnx.load(source).graph.initializer}
    for node, weight, scale in _weights(model):
        integers, scales = numpy_helper.to_array(weight), numpy_helper.to_array(scale)
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        shape = [1] * integers.ndim
        if scales.size > 1:
            shape[axis] = scales.size
        exact = integers * scales.astype(np.float64).reshape(shape)
        original = originals.get(weight.name)
        if original is not None and tuple(original.dims) == integers.shape:
            exact = numpy_helper.to_array(original).astype(np.float64)
        wider = (scales.astype(np.float64) * _MAX_INT8 / MAX_SAFE_WEIGHT).astype(scales.dtype)
        reduced = np.clip(np.rint(exact / wider.reshape(shape)), -MAX_SAFE_WEIGHT, MAX_SAFE_WEIGHT)
        weight.CopyFrom(numpy_helper.from_array(reduced.astype(np.int8), weight.name))
        scale.CopyFrom(numpy_helper.from_array(wider, scale.name))
    onnx.save(model, graph)


def clip_weights(model: onnx.ModelProto) -> None:
    """Cuts int8 weights off at -64 and 63, as their training with 7 bits did; the scales stay."""
    import numpy as np
    from onnx import numpy_helper

    for _, weight, _ in _weights(model):
        clipped = np.clip(numpy_helper.to_array(weight), -MAX_SAFE_WEIGHT, MAX_SAFE_WEIGHT - 1)
        weight.CopyFrom(numpy_helper.from_array(clipped, weight.name))


def settle_range(
    asked: object,
    graph: Path,
    images: NDArray[Any],
    source: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[bool, dict[str, Any]]:
    """Decides whether a graph's weights must have 7 bits, by measuring when it is asked to.

    Args:
        asked: `QuantizeConfig.reduce_range`: "auto", True or False.
        graph: The quantised graph, with 8-bit weights; it is not changed.
        images: Calibration images, uint8 [N, H, W, 3]; the first 256 are used.
        source: As for `reduce_weights`.
        progress: Called with (runs of a graph done, runs in all) while it is measured.

    Returns:
        Whether to reduce, and as JSON: asked, used, why, and when it was measured `full` and `reduced`, each with
        num_images, changed (share of answers that are others at AVX2) and rms (of the logits' change at AVX2, as a
        share of their standard deviation).

    Raises:
        QuantizeError: OpenVINO cannot be held to AVX2, or does not run the graph.
    """
    if asked != "auto":
        why = "asked for in the recipe" if asked else "8 bits asked for, or an engine that no CPU runs"
        return bool(asked), {"asked": asked, "used": bool(asked), "why": why}
    images, report = images[:NUM_IMAGES], progress or _ignore
    with tempfile.TemporaryDirectory(prefix="range-", dir=graph.parent) as folder:
        candidate = Path(folder) / "reduced.onnx"
        shutil.copyfile(graph, candidate)
        reduce_weights(candidate, source)
        full = measure(graph, images, lambda done, total: report(done, 2 * total))
        reduced = measure(candidate, images, lambda done, total: report(total + done, 2 * total))
    used = is_worth_reducing(full, reduced)
    why = (
        f"at AVX2, without VNNI, 8-bit weights change the answer to {100 * full['changed']:.1f} % of "
        f"{len(images)} images and the logits by {100 * full['rms']:.1f} % of their spread, 7-bit "
        f"weights {100 * reduced['changed']:.1f} % and {100 * reduced['rms']:.1f} %"
    )
    return used, {"asked": "auto", "used": used, "why": why, "full": full, "reduced": reduced}


def is_worth_reducing(full: Mapping[str, float], reduced: Mapping[str, float]) -> bool:
    """Decides by what `measure` found with 8-bit and with 7-bit weights, whether the latter are taken.

    They are when 8 bits move the logits by much more than rounding does, or change the answer to more than 1 % of
    the images, the most that may differ between CPUs, and 7 bits change fewer.
    """
    return full["rms"] > max(_MIN_RMS, _TIMES_ROUNDING * reduced["rms"]) or full["changed"] > max(
        _MAX_CHANGED, reduced["changed"]
    )


def measure(
    graph: Path, images: NDArray[Any], progress: Callable[[int, int], None] | None = None
) -> dict[str, float | int]:
    """Returns how far OpenVINO's answers at AVX2 are from the graph's exact arithmetic.

    Args:
        graph: The quantised graph.
        images: uint8 [N, H, W, 3].
        progress: Called with (runs of the graph done, runs in all).

    Returns:
        num_images, changed, rms; see `settle_range`.

    Raises:
        QuantizeError: As `settle_range`.
    """
    from temper.builder.network.export import compare_logits, run_onnx

    report = progress or _ignore
    report(0, 2)
    exact = run_onnx(graph, images)
    report(1, 2)
    figures = compare_logits(exact, run_openvino(graph, images, AVX2_ONLY))
    report(2, 2)
    return {
        "num_images": figures["num_images"],
        "changed": 1 - figures["agreement"],
        "rms": figures["relative_rms"],
    }


def run_openvino(graph: Path, images: NDArray[Any], environment: dict[str, str]) -> NDArray[Any]:
    """Runs a graph in OpenVINO in a process of its own, which reads and writes beside the graph.

    Args:
        graph: The ONNX file.
        images: uint8 [N, H, W, 3].
        environment: What is added to this process's: `AVX2_ONLY`, or nothing for the best that the CPU has.

    Returns:
        Logits, float32 [N, classes].

    Raises:
        QuantizeError: The process failed; its last line says why.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="openvino-", dir=graph.parent) as folder:
        source, target = Path(folder) / "images.npy", Path(folder) / "logits.npy"
        np.save(source, images)
        # -P: this file's folder has modules with common names.
        command = [sys.executable, "-P", __file__, str(graph), str(source), str(target)]
        capped = {**os.environ, **environment}
        try:
            done = subprocess.run(command, env=capped, capture_output=True, text=True, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise QuantizeError(f"{graph.name}: OpenVINO did not end within {_LIMIT_S:g} s") from error
        if done.returncode != 0:
            reason = ([line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"])[-1]
            raise QuantizeError(
                f"{graph.name}: OpenVINO failed in a process of its own (exit {done.returncode}): {reason}; give "
                "quantize.reduce_range, true or false, to do without this measurement"
            )
        logits: NDArray[Any] = np.load(target)
    return logits


def _ignore(done: int, total: int) -> None:
    """Nobody wants to know the progress."""


def _load(graph: Path | bytes) -> onnx.ModelProto:
    import onnx

    return onnx.load_from_string(graph) if isinstance(graph, bytes) else onnx.load(graph)


def _weights(model: onnx.ModelProto) -> list[tuple[Any, Any, Any]]:
    """Returns every stored int8 weight: its DequantizeLinear, the weight and its scale."""
    from onnx import TensorProto

    constants = {each.name: each for each in model.graph.initializer}
    return [
        (node, constants[node.input[0]], constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and constants[node.input[0]].data_type == TensorProto.INT8
    ]


def _run(graph: str, source: str, target: str) -> None:
    """The process of `run_openvino`."""
    import numpy as np
    import openvino  # type: ignore[import-untyped]  # ships none

    images = np.load(source, mmap_mode="r")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    parts = [compiled(np.ascontiguousarray(images[start : start + 32]))[0] for start in range(0, len(images), 32)]
    np.save(target, np.concatenate(parts))


if __name__ == "__main__":
    _run(*sys.argv[1:])
