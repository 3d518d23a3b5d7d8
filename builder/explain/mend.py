"""What a suggestion gives when it is tried: a variant that was quantised anew with some layers left high."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.engines.latency import open_graph, ratio_in_turns, time_in_turns
from temper.builder.explain.activations import RunsIn, run_logits
from temper.builder.explain.loss import logit_errors, share_gone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.engines.kind import EngineConfig

ANSWERS_FILE = "answers.npy"


def measure_mended(
    graphs: Sequence[Path],
    images: NDArray[np.uint8],
    runs_in: RunsIn,
    timed: EngineConfig | None,
    folder: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Runs the float32 graph, the compressed one and the mended one on the same images.

    Args:
        graphs: The three, in this order.
        images: uint8 [N, H, W, 3]; they may be mapped from a file.
        runs_in: What runs them.
        timed: The engine that latencies are taken in; None where none runs in process.
        folder: Receives answers.npy, int64 [3, N].
        progress: Called with (images done, images in all), of the three graphs together.

    Returns:
        recovered (share of the loss of the logits), latency_ms of one image, latency_ratio (over the compressed
        one's, in turns); shares and ratios with their 95 % interval, the last two None where nothing is timed.
    """
    logits: list[NDArray[np.float32]] = []

    def step(done: int) -> None:
        progress(len(logits) * len(images) + done, len(graphs) * len(images))

    for path in graphs:
        logits.append(run_logits(runs_in, onnx.load(path), images, progress=step))
    np.save(folder / ANSWERS_FILE, np.stack([each.argmax(1) for each in logits]))
    before, left = (logit_errors(logits[0], each) for each in logits[1:])
    figures: dict[str, Any] = {"recovered": share_gone(left, before, seed=0)}
    if timed is None:
        return {**figures, "latency_ms": None, "latency_ratio": None}
    times = time_in_turns([open_graph(path, timed) for path in graphs[1:]], images[:1])
    return {**figures, "latency_ms": median(times[1]), "latency_ratio": ratio_in_turns(times[1], times[0])}
