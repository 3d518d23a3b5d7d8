"""An engine's latency for one image, of networks timed in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from temper.builder.contract import NUM_CHANNELS
from temper.builder.engines.kind import ENGINES, EngineConfig, Run
from temper.builder.errors import CompressError
from temper.builder.estimate import Estimate
from temper.imaging.preprocess import Size, sides

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

CompareLatency = Callable[["nn.Module", "nn.Module"], tuple[float, float]]
"""Takes two networks, float32 [N, 3, H, W] to logits, and returns their latencies in ms at batch 1."""

_WARMUP = 5
_ROUNDS = 40


def timing_engine(config: EngineConfig) -> EngineConfig | None:
    """Returns the engine in which steps are timed in process.

    Args:
        config: Of the engine that serves, from `pick_engine`.

    Returns:
        That one where it runs in process, else the first installed kind that does; None without any.
    """
    if ENGINES.get(config.kind).runs_in_process:
        return config
    others = (kind for kind in ENGINES.all().values() if kind.runs_in_process and kind.is_installed)
    return next((kind.config() for kind in others), None)


def open_graph(path: Path, config: EngineConfig) -> Run:
    """Opens a graph in this process as the server does for one request at a time.

    Args:
        path: The ONNX file.
        config: Of a kind that runs in process.

    Raises:
        EngineError: This kind does not, or it refuses the graph.
    """
    return ENGINES.get(config.kind).open_graph(path, config)


def compare_in_engine(
    config: EngineConfig,
    *,
    image_size: Size,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> CompareLatency:
    """Returns the function that times two networks in the engine that will serve.

    Args:
        config: Of that engine, from `pick_engine`.
        image_size: Height and width in pixels, or one number for both.
        mean: Mean per channel, RGB, on a scale of 0 to 1.
        std: Standard deviation per channel, RGB, on a scale of 0 to 1.

    Raises:
        CompressError: This engine does not run in process.
    """
    if not ENGINES.get(config.kind).runs_in_process:
        known = " or ".join(name for name, kind in ENGINES.all().items() if kind.runs_in_process)
        raise CompressError(
            f"prune: latency: is measured in {known} only, not in {config.kind}; give flops or params"
        )

    def compare(candidate: nn.Module, original: nn.Module) -> tuple[float, float]:
        import numpy as np

        from temper.builder.network.export import export_onnx

        image = np.random.default_rng(0).integers(0, 256, (1, *sides(image_size), NUM_CHANNELS), np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            runs = []
            for name, network in (("candidate", candidate), ("original", original)):
                path = Path(folder) / f"{name}.onnx"
                export_onnx(network, path, image_size=image_size, mean=mean, std=std)
                runs.append(open_graph(path, config))
            candidate_ms, original_ms = (median(times) for times in time_in_turns(runs, image))
        return candidate_ms, original_ms

    return compare


def time_in_turns(runs: Sequence[Run], image: NDArray[np.uint8]) -> list[list[float]]:
    """Returns the latencies in ms of every graph, 40 each after a warm-up; those of one round stand together."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_WARMUP + _ROUNDS):
        for run, taken in zip(runs, times, strict=True):
            started = time.perf_counter()
            run(image)
            taken.append(1e3 * (time.perf_counter() - started))
    return [taken[_WARMUP:] for taken in times]


def ratio_in_turns(times: Sequence[float], others: Sequence[float]) -> Estimate:
    """Returns the median ratio of two graphs' latencies, paired by round, with its 95 % interval.

    The interval is that of the sign test, which takes the rounds for independent (Conover, "Practical
    Nonparametric Statistics", 1999, section 3.2, in SciPy's implementation).

    Args:
        times: From `time_in_turns`.
        others: Of the graph that is the measure.
    """
    from scipy.stats import quantile_test  # type: ignore[import-untyped]  # ships none

    ratios = [one / two for one, two in zip(times, others, strict=True)]
    bounds = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return Estimate(median(ratios), float(bounds.low), float(bounds.high))
