"""Part `gradients`: what a white-box attack costs its attacker, steps of PGD on the graph that an engine has."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.context import ARCHS, Context, Results
from benchmarks.gpu.engine import find_graph
from benchmarks.gpu.networks import make_images
from temper.client.robustness.attacks.transfer import PgdConfig
from temper.client.robustness.surrogate import Surrogate

# A row is not begun with less.
_LEAST_S = 15.0
_BATCHES = (64, 8)
_PRECISIONS = ("int8", "fp32")
_STEPS = 10


def run(context: Context, results: Results) -> None:
    """Measure every graph that is here, until the time is up."""
    results.begin(rounds=context.rounds, steps=_STEPS)
    for precision in context.precisions or _PRECISIONS:
        for batch in context.batches or _BATCHES:
            key = f"{(context.archs or ARCHS)[0]} {context.image_size} {batch} {precision}"
            if results.has(key):
                continue
            if context.left_s < _LEAST_S:
                results.end("stopped", f"no time left before {key}; run again to go on")
                return
            results.attempt(key)
            try:
                row = _measure(context, precision, batch)
            except Exception as error:  # no ModelOpt and no skeleton, or no memory: the other rows need neither
                row = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:400]}
            results.put(key, row)
            shown = f"{row['ips']:.0f} gradients/s" if "ips" in row else row["error"]
            print(f"{key}: {shown}", file=sys.stderr, flush=True)
    results.end("complete")


def _measure(context: Context, precision: str, batch: int) -> dict[str, Any]:
    """Images times steps a second; every call ends with the images on the host, so nothing is left to wait for."""
    on_gpu = context.device.startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    graph = find_graph(context, (context.archs or ARCHS)[0], precision)
    surrogate = Surrogate([graph], device=context.device)
    images = make_images(batch, context.image_size)
    indices, attack = np.arange(batch), PgdConfig(epsilon=8, steps=_STEPS)

    def climb() -> None:
        attack.make(surrogate, images, indices, indices, 0)

    climb()
    rounds = []
    for _ in range(context.rounds):
        begin = time.perf_counter()
        climb()
        rounds.append(_STEPS * batch / (time.perf_counter() - begin))
    ips = statistics.median(rounds)
    peak = torch.cuda.max_memory_allocated() >> 20 if on_gpu else None
    return {"error": None, "ips": ips, "ms": 1e3 * batch / ips, "rounds": rounds, "peak_mib": peak}
