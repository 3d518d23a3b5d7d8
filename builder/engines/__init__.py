"""Engines: what runs a graph.

`openvino` runs the ONNX file itself on a CPU; `tensorrt-rtx` compiles it ahead of time for NVIDIA GPUs, with or
without one; `tensorrt` compiles it on the GPU that will run it. The last two are one code path, `tensorrt.py`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from builder.engines.gpu import compute_capability, count_gpus
from builder.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

__all__ = [
    "KINDS",
    "AgreementLimits",
    "EngineConfig",
    "EngineKind",
    "build_engine",
    "compute_capability",
    "count_gpus",
    "pick_engine",
]

EngineKind = Literal["openvino", "tensorrt-rtx", "tensorrt"]
KINDS: tuple[EngineKind, ...] = ("openvino", "tensorrt-rtx", "tensorrt")
_MODULES = {"openvino": "openvino", "tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_EXTRAS = {"openvino": "embedded", "tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
_OPT_BATCH = 8
# Far above what a ResNet gains from; the plugin holds one batch of this size in memory for every instance.
_LARGEST_BATCH = 4096
_MOST_INSTANCES = 256
_COMPATIBILITIES = ("none", "same_compute_capability", "ampere_plus")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What runs the variants, and for which batches and GPUs it is built."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["auto", "openvino", "tensorrt-rtx", "tensorrt"] = "auto"
    """The engine; `auto` takes the best one that this machine can run."""
    min_batch: int = 1
    """The smallest batch that the engine takes."""
    opt_batch: int = None  # type: ignore[assignment]  # an integer from __post_init__ on
    """The batch that a compiled engine is tuned for; not given: 8, or `max_batch` when that is less."""
    max_batch: int = 32
    """The largest batch that Triton puts together."""
    precision_hint: Literal["f32", "bf16"] = "f32"
    """`openvino`: the type of what is not quantised. Left to itself it takes bf16 where the CPU has it."""
    num_instances: int = 2
    """Triton's model instances: batches in flight at once."""
    frontend: Literal["onnx", "torch-tensorrt"] = "onnx"
    """TensorRT: its ONNX parser, or torch-tensorrt from the PyTorch network."""
    server_backend: Literal["temper", "tensorrt"] = "temper"
    """`tensorrt`: the plugin runs the plan, or Triton's own backend."""
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    """`tensorrt`: on which other GPUs the plan runs; more of them make it slower."""
    version_compatible: bool = False
    """`tensorrt`: whether later versions of TensorRT run the plan; it then carries code that the server runs."""
    compute_capabilities: tuple[str, ...] = ()
    """`tensorrt-rtx`: the GPUs to build for, as "8.9"; none is its portable engine, which leaves 7.5 out."""
    triton_release: str | None = None
    """`tensorrt`: the release of the tritonserver container that will serve, as "26.06"; a plan that it cannot
    load is refused."""
    max_high_precision_convs: int | None = None
    """Fail the build when more convolutions than this run in a higher precision than the variant's."""
    max_reformats: int | None = None
    """Fail the build when the engine has more layers than this that only change a tensor's format."""

    def __post_init__(self) -> None:
        """Checks every field, and the fields together.

        Raises:
            ValueError: A field is out of its range, or does not go with another.
        """
        if self.kind not in ("auto", *KINDS):
            raise ValueError(f"kind: got {self.kind!r}, expected one of 'auto', {', '.join(map(repr, KINDS))}")
        if self.min_batch != 1:
            # Triton sends what has arrived; a lone request is a batch of one.
            raise ValueError(f"min_batch: got {self.min_batch}, expected 1, as a request may come alone")
        if not 1 <= self.max_batch <= _LARGEST_BATCH:
            raise ValueError(f"max_batch: got {self.max_batch}, expected 1 to {_LARGEST_BATCH}")
        if self.opt_batch is None:
            object.__setattr__(self, "opt_batch", min(_OPT_BATCH, self.max_batch))
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"opt_batch: got {self.opt_batch}, expected {self.min_batch} (min_batch) to "
                f"{self.max_batch} (max_batch)"
            )
        if self.precision_hint not in ("f32", "bf16"):
            raise ValueError(f"precision_hint: got {self.precision_hint!r}, expected 'f32' or 'bf16'")
        if not 1 <= self.num_instances <= _MOST_INSTANCES:
            raise ValueError(f"num_instances: got {self.num_instances}, expected 1 to {_MOST_INSTANCES}")
        for name in ("max_high_precision_convs", "max_reformats"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}: got {value}, expected 0 or more")
        self._check_kind()

    def _check_kind(self) -> None:
        if self.frontend not in ("onnx", "torch-tensorrt"):
            raise ValueError(f"frontend: got {self.frontend!r}, expected 'onnx' or 'torch-tensorrt'")
        if self.server_backend not in ("temper", "tensorrt"):
            raise ValueError(f"server_backend: got {self.server_backend!r}, expected 'temper' or 'tensorrt'")
        if self.hardware_compatibility not in _COMPATIBILITIES:
            allowed = ", ".join(map(repr, _COMPATIBILITIES))
            raise ValueError(
                f"hardware_compatibility: got {self.hardware_compatibility!r}, expected one of {allowed}"
            )
        plain = EngineConfig.__dataclass_fields__
        only = {
            "frontend": ("tensorrt", "tensorrt-rtx"),
            "server_backend": ("tensorrt",),
            "hardware_compatibility": ("tensorrt",),
            "version_compatible": ("tensorrt",),
            "triton_release": ("tensorrt",),
            "compute_capabilities": ("tensorrt-rtx",),
        }
        for name, kinds in only.items():
            if getattr(self, name) != plain[name].default and self.kind not in kinds:
                allowed = " or ".join(map(repr, kinds))
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r} with kind {self.kind!r}, expected kind {allowed}"
                )
        self._check_frontend()

    def _check_frontend(self) -> None:
        """Refuses what torch-tensorrt cannot be told, or does in a way that Triton cannot load."""
        if self.frontend == "onnx":
            return
        # It leaves the lean runtime out of a version-compatible plan, and Triton has none of its own.
        unknown = {
            "version_compatible": self.version_compatible,
            "compute_capabilities": self.compute_capabilities,
            "hardware_compatibility": self.hardware_compatibility == "same_compute_capability",
        }
        for name, is_set in unknown.items():
            if is_set:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r} with frontend 'torch-tensorrt', expected frontend 'onnx'"
                )


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
    from builder.engines import tensorrt

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
        from builder.engines import openvino

        info, logits = openvino.build(onnx_path, folder, config, images)
    else:
        from builder.engines import tensorrt

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
    from builder.export import compare_logits

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
