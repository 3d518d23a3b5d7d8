"""`temper load` against NVIDIA's perf_analyzer: same server, models and concurrency, windows of one length."""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import (
    CACHE,
    ROOT,
    interleave,
    perf_analyzer,
    random_images,
    ratio,
    resnet50_repository,
    run_perf_analyzer,
    write_results,
)
from temper.client.load import LoadConfig, run_closed_loop
from temper.serve.server import TritonServer


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--models", nargs="+", default=["echo", "resnet50_int8"])
    options = parser.parse_args()
    repository = CACHE / "load_repository"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks" / "models" / "echo", repository / "echo")
    if "resnet50_int8" in options.models:
        shutil.copytree(resnet50_repository() / "resnet50_int8", repository / "resnet50_int8")
    perf_analyzer()
    results: dict[str, Any] = {}
    with TritonServer(repository, only_published=False) as server:
        for model in options.models:
            for concurrency in (1, 16, 64):
                contenders: dict[str, Callable[[], dict[str, float]]] = {
                    "temper": _temper(server.grpc_url, model, concurrency, options.seconds),
                    "perf_analyzer": functools.partial(
                        run_perf_analyzer, server.grpc_url, model, concurrency, window_s=options.seconds
                    ),
                }
                results[f"{model}, concurrency {concurrency}"] = interleave(options.rounds, contenders)
    for name, row in results.items():
        row["ratios"] = {
            figure: ratio(row, "temper", "perf_analyzer", figure) for figure in ("ips", "p50_ms", "p99_ms")
        }
        shown = "  ".join(f"{figure} {value['median']:.3f}" for figure, value in row["ratios"].items())
        print(
            f"{name:30} temper {row['temper']['ips_median']:8.1f}/s  "
            f"perf_analyzer {row['perf_analyzer']['ips_median']:8.1f}/s  temper / perf_analyzer: {shown}"
        )
    write_results("load", {"measured": results})


def _temper(url: str, model: str, concurrency: int, seconds: float) -> Callable[[], dict[str, float]]:
    payload: Any = np.zeros((1, 3, 32, 32), np.float32) if model == "echo" else random_images(32)
    config = LoadConfig(duration_s=seconds, warmup_s=0.5)

    def run() -> dict[str, float]:
        result = run_closed_loop(url, model, payload, concurrency=concurrency, config=config)
        assert not (result.errors or result.shed or result.interrupted), result
        return {
            "ips": result.throughput_ips,
            "p50_ms": result.latency_ms["p50"],
            "p99_ms": result.latency_ms["p99"],
        }

    return run


if __name__ == "__main__":
    main()
