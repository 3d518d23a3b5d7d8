"""Engines: what runs a graph, one module per kind, each with a `build`.

`openvino` runs the ONNX file itself on a CPU; `tensorrt-rtx` compiles it ahead of time for NVIDIA GPUs.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from builder.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EngineKind = Literal["openvino", "tensorrt-rtx"]
KINDS: tuple[EngineKind, ...] = ("openvino", "tensorrt-rtx")
_MODULES = {"openvino": "openvino", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS = {"openvino": "embedded", "tensorrt-rtx": "rtx"}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What runs the variants, and for which batches it is built."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["auto", "openvino", "tensorrt-rtx"] = "auto"
    """The engine; `auto` takes the best one that this machine can run."""
    min_batch: int = 1
    """The smallest batch that the engine takes."""
    opt_batch: int = 8
    """The batch that a compiled engine is tuned for."""
    max_batch: int = 32
    """The largest batch that Triton puts together."""
    precision_hint: Literal["f32", "bf16"] = "f32"
    """`openvino`: the type of what is not quantised. Left to itself it takes bf16 where the CPU has it."""
    num_instances: int = 2
    """Triton's model instances: batches in flight at once."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if self.kind not in ("auto", *KINDS):
            raise ValueError(f"kind: got {self.kind!r}, expected one of 'auto', 'openvino', 'tensorrt-rtx'")
        if self.min_batch != 1:
            # Triton sends what has arrived; a lone request is a batch of one.
            raise ValueError(f"min_batch: got {self.min_batch}, expected 1, as a request may come alone")
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"opt_batch: got {self.opt_batch}, expected {self.min_batch} (min_batch) to "
                f"{self.max_batch} (max_batch)"
            )
        if self.precision_hint not in ("f32", "bf16"):
            raise ValueError(f"precision_hint: got {self.precision_hint!r}, expected 'f32' or 'bf16'")
        if self.num_instances < 1:
            raise ValueError(f"num_instances: got {self.num_instances}, expected at least 1")


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
    _require("openvino")
    # A model.rtx can be built anywhere, but the plugin has no runner for it: picking it would publish what no
    # server here can load.
    why = "no NVIDIA GPU found" if count_gpus() == 0 else "the plugin does not run TensorRT-RTX engines yet"
    return "openvino", f"{why}, so the CPU"


def build_engine(
    kind: EngineKind,
    onnx_path: Path,
    folder: Path,
    config: EngineConfig,
    images: NDArray[np.uint8] | None = None,
) -> dict[str, Any]:
    """Builds the engine of a graph and loads it once where that is possible here.

    Args:
        kind: From `pick_engine`.
        onnx_path: The graph, float32 or Q/DQ.
        folder: Receives the engine file.
        config: Batch sizes and precision.
        images: uint8 [N, S, S, 3] to run it on, where this machine can.

    Returns:
        kind, file (model.onnx or model.rtx, in `folder`), size_bytes, and what the kind adds.

    Raises:
        EngineError: The library is missing, or it refuses the graph; names the node where the library does.
    """
    _require(kind)
    if kind == "openvino":
        from builder.engines import openvino

        info = openvino.build(onnx_path, folder, config, images)
    else:
        from builder.engines import tensorrt_rtx

        info = tensorrt_rtx.build(onnx_path, folder, config)
    return {"kind": kind, "size_bytes": (folder / info["file"]).stat().st_size, **info}


def count_gpus() -> int:
    """Returns how many NVIDIA GPUs this process may use: the driver's answer, 0 without one.

    `CUDA_VISIBLE_DEVICES` counts, as the driver reads it.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _installed(kind: EngineKind) -> bool:
    return importlib.util.find_spec(_MODULES[kind]) is not None


def _require(kind: EngineKind) -> None:
    if not _installed(kind):
        raise EngineError(
            f"engine {kind}: the package {_MODULES[kind]} is not installed; "
            f"run `pip install 'temper[{_EXTRAS[kind]}]'` or choose another engine.kind"
        )
