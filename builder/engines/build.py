"""Picks the kind of engine, builds it, and compares it with PyTorch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from temper.builder.engines.config import EngineConfig, EngineKind
from temper.builder.engines.gpu import compute_capability
from temper.builder.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

_MODULES = {"openvino": "openvino", "tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_EXTRAS = {"openvino": "embedded", "tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True, kw_only=True)
class AgreementLimits:
    """How far an engine may be from PyTorch."""

    min_agreement: float | None = None
    """The smallest share of images on which it gives PyTorch's label, 0 to 1; None for no limit."""
    max_logit_diff: float | None = None
    """The largest difference of a logit; None for no limit."""


def pick_engine(config: EngineConfig) -> tuple[EngineKind, str]:
    """Decides what runs the variants.

    Args:
        config: With the wanted kind, or `auto`.

    Returns:
        The kind, and in a few words why.

    Raises:
        EngineError: The library of the kind is not installed.
    """
    if config.kind != "auto":
        _require(config.kind)
        return config.kind, "asked for in the recipe"
    capability = compute_capability()
    if capability is None:
        _require("openvino")
        return "openvino", "no NVIDIA GPU found, so the CPU"
    refusals = []
    for kind in ("tensorrt", "tensorrt-rtx"):
        reason = why_not(kind, capability)
        if reason is None:
            return kind, f"a GPU of compute capability {capability}"
        refusals.append(reason)
    _require("openvino")
    return "openvino", f"the CPU, as {' and '.join(refusals)}"


def why_not(kind: Literal["tensorrt", "tensorrt-rtx"], capability: str) -> str | None:
    """Says why a kind cannot run on the GPU that is here; None when it can."""
    if not _installed(kind):
        return f"{_MODULES[kind]} is not installed"
    from temper.builder.engines import tensorrt

    try:
        return tensorrt.why_not(kind, capability)
    except EngineError as error:
        return str(error)


def build_engine(
    kind: EngineKind,
    onnx_path: Path,
    folder: Path,
    config: EngineConfig,
    images: NDArray[np.uint8] | None = None,
    *,
    reference: NDArray[np.float32] | None = None,
    limits: AgreementLimits | None = None,
    precision: str = "fp32",
    sparse_weights: bool = False,
    timing_cache: Path | None = None,
    module: nn.Module | None = None,
) -> dict[str, Any]:
    """Builds the engine of a graph, and loads, runs and inspects it once where that is possible here.

    Args:
        kind: From `pick_engine`.
        onnx_path: The graph, float32, half precision or Q/DQ.
        folder: Receives the engine file.
        config: Batch sizes, precision, portability, limits.
        images: uint8 [N, S, S, 3] to run it on, where this machine can.
        reference: PyTorch's logits of the images, float32 [N, classes].
        limits: How far the engine may be from them.
        precision: The variant's, `fp32`, `fp16`, `bf16`, `int8` or `fp8`: what the engine's audit expects.
        sparse_weights: TensorRT may use the sparse kernels; the weights must be 2:4.
        timing_cache: TensorRT's timings, read when there and written back; builds get shorter and more alike.
        module: `frontend = "torch-tensorrt"`: uint8 [N, S, S, 3] to logits, with its quantisers.

    Returns:
        kind, file (model.onnx, model.rtx or model.plan, in `folder`), size_bytes, and what the kind adds.

    Raises:
        EngineError: The library is missing, it refuses the graph (names the node where the library does), or a
            limit is passed.
    """
    _require(kind)
    if kind == "openvino":
        from temper.builder.engines import openvino

        info, logits = openvino.build(onnx_path, folder, config, images)
    else:
        from temper.builder.engines import tensorrt

        info, logits = tensorrt.build(
            kind,
            onnx_path,
            folder,
            config,
            images,
            precision=precision,
            sparse_weights=sparse_weights,
            timing_cache=timing_cache,
            module=module,
        )
    if logits is not None and reference is not None:
        info["against_pytorch"] = _compare(kind, reference, logits, limits or AgreementLimits())
    return {"kind": kind, "size_bytes": (folder / info["file"]).stat().st_size, **info}


def _compare(
    kind: EngineKind, reference: NDArray[np.float32], logits: NDArray[np.float32], limits: AgreementLimits
) -> dict[str, Any]:
    from temper.builder.network.export import compare_logits

    figures: dict[str, Any] = compare_logits(reference, logits)
    agreement, diff = figures["agreement"], figures["max_abs_diff"]
    if limits.min_agreement is not None and agreement < limits.min_agreement:
        raise EngineError(
            f"engine {kind}: gives PyTorch's label on {100 * agreement:.1f} % of {len(logits)} images, expected "
            f"at least {100 * limits.min_agreement:.1f} % (min_agreement); do not serve it"
        )
    if limits.max_logit_diff is not None and not diff <= limits.max_logit_diff:
        raise EngineError(
            f"engine {kind}: a logit differs from PyTorch's by {diff:.3g}, expected at most "
            f"{limits.max_logit_diff:g} (max_logit_diff); do not serve it"
        )
    return figures


def _installed(kind: EngineKind) -> bool:
    return importlib.util.find_spec(_MODULES[kind]) is not None


def _require(kind: EngineKind) -> None:
    if not _installed(kind):
        raise EngineError(
            f"engine {kind}: the package {_MODULES[kind]} is not installed; "
            f"run `pip install 'temper[{_EXTRAS[kind]}]'` or choose another engine.kind"
        )
