"""Queries per second of an attack against images per second of a load test: same server, batch and concurrency.

A model with random weights would fall, or never fall, to the first query; so Square runs against an endpoint whose
labels are what the server itself answers, and a budget too small to change them: every image uses all its queries,
and the harness does all its work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import interleave, random_images, ratio, resnet50_repository, write_results
from temper.client import Client
from temper.client.load import LoadConfig, run_closed_loop
from temper.client.robustness import attack
from temper.client.robustness.attacks.square import SquareConfig
from temper.serve.server import TritonServer

_MODEL = "resnet50_int8"
_CONCURRENCY = 4


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    images = random_images(64)
    results: dict[str, Any] = {}
    with TritonServer(resnet50_repository(), models=[_MODEL]) as server:
        with Client(server.grpc_url) as client:
            labels = client.infer(_MODEL, images).argmax(axis=1)
        for batch_size in (1, 8, 32):
            contenders = {
                "square": _attack(server.grpc_url, images, labels, batch_size, options.seconds),
                "load": _load(server.grpc_url, images, batch_size, options.seconds),
            }
            results[f"batch {batch_size}"] = interleave(options.rounds, contenders)
    for name, row in results.items():
        row["ratio"] = ratio(row, "square", "load", "ips")
        print(
            f"{name:10} square {row['square']['ips_median']:6.1f} queries/s  "
            f"load {row['load']['ips_median']:6.1f} images/s  "
            f"ratio {row['ratio']['median']:.3f}  {row['ratio']['rounds']}"
        )
    write_results("attack", {"model": _MODEL, "concurrency": _CONCURRENCY, "measured": results})


def _attack(
    url: str, images: Any, labels: np.ndarray[Any, Any], batch_size: int, seconds: float
) -> Callable[[], dict[str, float]]:
    # Enough queries for about `seconds` at 90 per second.
    config = SquareConfig(
        epsilon=1,
        max_queries=max(2, int(seconds * 90 / len(images))),
        batch_size=batch_size,
        concurrency=_CONCURRENCY,
    )
    return lambda: {"ips": attack(url, _MODEL, images, labels, config).queries_per_s}


def _load(url: str, images: Any, batch_size: int, seconds: float) -> Callable[[], dict[str, float]]:
    config = LoadConfig(duration_s=seconds, warmup_s=1.0, batch_size=batch_size)
    return lambda: {
        "ips": run_closed_loop(url, _MODEL, images, concurrency=_CONCURRENCY, config=config).throughput_ips
    }


if __name__ == "__main__":
    main()
