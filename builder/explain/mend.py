"""What a suggestion gives when it is tried: a variant that was quantised anew with some layers left high."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.contract import OUTPUT_NAME
from temper.builder.engines.latency import open_graph, ratio_in_turns, time_in_turns
from temper.builder.explain.activations import RunsIn
from temper.builder.explain.loss import logit_errors, share_gone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.engines.kind import EngineConfig

ANSWERS_FILE = "answers.npy"
_BATCH = 16


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
        images: uint8 [N, S, S, 3]; they may be mapped from a file.
        runs_in: What runs them.
        timed: The engine that latencies are taken in; None where none runs in process.
        folder: Receives answers.npy, int64 [3, N].
        progress: Called with (images done, images in all).

    Returns:
        recovered (share of the loss of the logits), latency_ms of one image, latency_ratio (over the compressed
        one's, in turns); shares and ratios with their 95 % interval, the last two None where nothing is timed.
    """
    runs = [runs_in.open(onnx.load(path)) for path in graphs]
    answers: list[NDArray[np.int64]] = []
    errors: list[NDArray[np.float64]] = []
    for start in range(0, len(images), _BATCH):
        logits = [run(images[start : start + _BATCH])[OUTPUT_NAME] for run in runs]
        answers.append(np.stack([each.argmax(1) for each in logits]))
        errors.append(np.stack([logit_errors(logits[0], each) for each in logits[1:]]))
        progress(start + len(logits[0]), len(images))
    np.save(folder / ANSWERS_FILE, np.concatenate(answers, axis=1))
    before, left = np.concatenate(errors, axis=1)
    figures: dict[str, Any] = {"recovered": share_gone(left, before, seed=0)}
    if timed is None:
        return {**figures, "latency_ms": None, "latency_ratio": None}
    times = time_in_turns([open_graph(path, timed) for path in graphs[1:]], images[:1])
    return {**figures, "latency_ms": median(times[1]), "latency_ratio": ratio_in_turns(times[1], times[0])}
