"""An engine's latency for one image, of networks timed in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from temper.builder.contract import INPUT_NAME, NUM_CHANNELS
from temper.builder.errors import CompressError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.engines.config import EngineConfig, EngineKind

CompareLatency = Callable[["nn.Module", "nn.Module"], tuple[float, float]]
"""Takes two networks, float32 [N, 3, S, S] to logits, and returns their latencies in ms at batch 1."""
Run = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]

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

        from temper.builder.network.export import export_onnx

        image = np.random.default_rng(0).integers(0, 256, (1, image_size, image_size, NUM_CHANNELS), np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            runs = []
            for name, network in (("candidate", candidate), ("original", original)):
                path = Path(folder) / f"{name}.onnx"
                export_onnx(network, path, image_size=image_size, mean=mean, std=std)
                runs.append(open_graph(path, config.precision_hint))
            candidate_ms, original_ms = (median(times) for times in time_in_turns(runs, image))
        return candidate_ms, original_ms

    return compare


def open_graph(path: Path, precision_hint: str) -> Run:
    """Compiles a graph in OpenVINO as the plugin does for one request at a time.

    Args:
        path: The ONNX file.
        precision_hint: OpenVINO's INFERENCE_PRECISION_HINT.

    Returns:
        A function from uint8 [N, S, S, 3] to float32 logits [N, classes].
    """
    import numpy as np

    from temper.builder.engines.openvino import open_core

    settings = {"INFERENCE_PRECISION_HINT": precision_hint, "NUM_STREAMS": "1"}
    request = open_core().compile_model(path, "CPU", settings).create_infer_request()

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = request.infer({INPUT_NAME: np.ascontiguousarray(batch)})[0]
        return logits

    return run


def time_in_turns(runs: Sequence[Run], image: NDArray[np.uint8]) -> list[list[float]]:
    """Returns the latencies in ms of every graph, 40 each after a warm-up; those of one round stand together."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_WARMUP + _ROUNDS):
        for run, taken in zip(runs, times, strict=True):
            started = time.perf_counter()
            run(image)
            taken.append(1e3 * (time.perf_counter() - started))
    return [taken[_WARMUP:] for taken in times]
