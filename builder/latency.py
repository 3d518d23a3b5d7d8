"""An engine's latency for one image, of two networks timed in turns, so that a busy machine slows both alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from builder.errors import CompressError
from builder.triton_config import INPUT_NAME, NUM_CHANNELS

if TYPE_CHECKING:
    from torch import nn

    from builder.engines import EngineConfig, EngineKind

CompareLatency = Callable[["nn.Module", "nn.Module"], tuple[float, float]]
"""Takes two networks, float32 [N, 3, S, S] to logits, and returns their latencies in ms at batch 1."""

_WARMUP = 5
_ROUNDS = 40


def compare_in_engine(
    kind: EngineKind,
    config: EngineConfig,
    *,
    image_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> CompareLatency:
    """Returns the function that times two networks in the engine that will serve.

    Args:
        kind: The engine.
        config: With OpenVINO's `precision_hint`.
        image_size: Height and width, in pixels.
        mean: Mean per channel, RGB, on a scale of 0 to 1.
        std: Standard deviation per channel, RGB, on a scale of 0 to 1.

    Raises:
        CompressError: This engine is not timed yet.
    """
    if kind != "openvino":
        raise CompressError(f"prune: latency: is measured in openvino only, not in {kind}; give flops or params")

    def compare(candidate: nn.Module, original: nn.Module) -> tuple[float, float]:
        import numpy as np

        from builder.export import export_onnx

        image = np.random.default_rng(0).integers(0, 256, (1, image_size, image_size, NUM_CHANNELS), np.uint8)
        runs = []
        with tempfile.TemporaryDirectory() as folder:
            for network in (candidate, original):
                path = Path(folder) / "model.onnx"
                export_onnx(network, path, image_size=image_size, mean=mean, std=std)
                runs.append(_open(path, config.precision_hint))
        times: list[list[float]] = [[], []]
        for _ in range(_WARMUP + _ROUNDS):
            for run, taken in zip(runs, times, strict=True):
                started = time.perf_counter()
                run({INPUT_NAME: image})
                taken.append(1e3 * (time.perf_counter() - started))
        candidate_ms, original_ms = (median(taken[_WARMUP:]) for taken in times)
        return candidate_ms, original_ms

    return compare


def _open(path: Path, precision_hint: str) -> Callable[[dict[str, Any]], object]:
    from builder.engines.openvino import open_core

    settings = {"INFERENCE_PRECISION_HINT": precision_hint, "NUM_STREAMS": "1"}
    # From memory: the file is gone before the network runs.
    model = open_core().read_model(path.read_bytes(), b"")
    infer: Callable[[dict[str, Any]], object] = (
        open_core().compile_model(model, "CPU", settings).create_infer_request().infer
    )
    return infer
