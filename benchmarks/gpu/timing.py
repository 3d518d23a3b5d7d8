"""How a contender is timed: alone on the device, and with the images' way there and the answers' way back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

_WARM_UP = 3


class Contender(Protocol):
    """Something that turns a batch of uint8 images into logits, with buffers that it made before."""

    batch: int
    """Images per call."""

    def time_device(self, count: int) -> float:
        """Seconds for `count` batches on the device, one after the other, images and logits staying there."""

    def infer(self) -> None:
        """One batch from pinned host memory to logits in host memory, waited for."""

    def close(self) -> None:
        """Gives its memory back."""


def measure(contender: Contender, seconds: float) -> dict[str, float]:
    """Measures a contender twice for about so many seconds.

    Returns:
        device_ips and ips: images per second on the device alone, and with both transfers; p50_ms and p99_ms: of a
        batch with both transfers, waited for.
    """
    for _ in range(_WARM_UP):
        contender.infer()
    count, taken = 1, contender.time_device(1)
    while taken < seconds / 2:
        # Towards the wanted length in few steps, never by more than 10 at once: the first calls tell little.
        count = max(count + 1, min(count * 10, int(count * seconds / max(taken, 1e-9))))
        taken = contender.time_device(count)
    device_ips = contender.batch * count / taken
    latencies: list[float] = []
    begin = time.perf_counter()
    while (start := time.perf_counter()) < begin + seconds or len(latencies) < 3:
        contender.infer()
        latencies.append(time.perf_counter() - start)
    elapsed = time.perf_counter() - begin
    return {
        "device_ips": device_ips,
        "ips": contender.batch * len(latencies) / elapsed,
        "p50_ms": 1e3 * float(np.quantile(latencies, 0.5)),
        "p99_ms": 1e3 * float(np.quantile(latencies, 0.99)),
    }


def interleave(contenders: Mapping[str, Contender], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Measures each contender once per round, in turn, so that what the GPU's clock does hits all of them.

    Returns:
        Per contender: the median of each figure, and under `rounds` what each round gave.
    """
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            seen[name].append(measure(contender, seconds))
    return {
        name: {**{figure: statistics.median(row[figure] for row in rows) for figure in rows[0]}, "rounds": rows}
        for name, rows in seen.items()
    }
