"""OpenVINO reads the Q/DQ ONNX as it is: nothing is compiled ahead of time, but the graph is loaded once."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.contract import INPUT_NAME
from temper.builder.engines.isa import instruction_set
from temper.builder.errors import EngineError
from temper.builder.network.export import compare_logits, run_onnx

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from temper.builder.engines.config import EngineConfig

FILE = "model.onnx"


@functools.cache
def open_core() -> Any:
    """Returns the one `openvino.Core` of this process.

    A second one is dangerous: the CPU plugin of each gives the thread its own stack for signal handlers and, when
    it goes, brings back the one it had found. Unless the last to come goes first, that one is unmapped by then,
    and the next signal kills the process without a word (OpenVINO 2026.4; torch's data loader handles SIGCHLD).
    """
    import openvino  # type: ignore[import-untyped]  # ships none

    return openvino.Core()


def build(
    onnx_path: Path, folder: Path, config: EngineConfig, images: NDArray[np.uint8] | None = None
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Copies the graph, compiles it with OpenVINO, and compares it with exact arithmetic when there are images.

    Args:
        onnx_path: The graph.
        folder: Receives model.onnx.
        config: `precision_hint` and `max_batch`.
        images: uint8 [N, S, S, 3].

    Returns:
        file, precision_hint, runtime, device, isa (the instruction set that it was verified on, None when it is
        not x86-64), and with images the agreement with the exact arithmetic; and the logits, float32 [N, classes],
        or None without images.

    Raises:
        EngineError: OpenVINO refuses the graph or gives logits that are not finite.
    """
    import numpy as np
    import openvino

    shutil.copyfile(onnx_path, folder / FILE)
    core = open_core()
    try:
        compiled = core.compile_model(
            core.read_model(folder / FILE), "CPU", {"INFERENCE_PRECISION_HINT": config.precision_hint}
        )
        info: dict[str, Any] = {
            "file": FILE,
            "precision_hint": config.precision_hint,
            "runtime": f"OpenVINO {openvino.get_version().split('-')[0]}",
            "isa": instruction_set(),
            "device": str(core.get_property("CPU", "FULL_DEVICE_NAME")),
        }
        logits = None
        if images is not None and len(images) > 0:
            logits = np.concatenate(
                [
                    compiled({INPUT_NAME: np.ascontiguousarray(images[start : start + config.max_batch])})[0]
                    for start in range(0, len(images), config.max_batch)
                ]
            )
            if not bool(np.isfinite(logits).all()):
                raise EngineError(f"engine openvino: {onnx_path.name} gives logits that are not finite")
            info["against_exact"] = compare_logits(run_onnx(onnx_path, images), logits)
    except RuntimeError as error:
        raise EngineError(f"engine openvino: cannot compile {onnx_path.name}: {_last_line(str(error))}") from error
    return info, logits


def _last_line(text: str) -> str:
    """OpenVINO's messages begin with its source files; the reason is at the end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
