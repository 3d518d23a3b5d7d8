"""ResNet-50 at 224x224 on CPU: served through the plugin against the same runtime in process, int8 against fp32.

In process at concurrency 1: one OpenVINO stream, batch 1, one call after the other. At concurrency 16: two streams
at batch 1, and one stream at batch 8; the better of the two is what serving is held against.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import interleave, random_images, ratio, resnet50_repository, write_results
from temper.client.load import LoadConfig, run_closed_loop
from temper.serve.server import TritonServer


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    repository = resnet50_repository()
    results = {}
    with TritonServer(repository) as server:
        images = random_images(32)
        for concurrency in (1, 16):
            contenders = {
                model: _served(server.grpc_url, model, concurrency, options.seconds, images)
                for model in ("resnet50_int8", "resnet50_int8_x1", "resnet50_fp32", "resnet50_bf16")
            }
            contenders |= _in_process(
                repository / "resnet50_int8" / "1" / "model.onnx", concurrency, options.seconds
            )
            results[concurrency] = interleave(options.rounds, contenders)
    figures: dict[str, Any] = {}
    for concurrency, measured in results.items():
        reference = [name for name in measured if name.startswith("in process")]
        best = max(reference, key=lambda name: float(measured[name]["ips_median"]))
        for name in reference:
            figures[f"served / {name}, concurrency {concurrency}"] = ratio(measured, "resnet50_int8", name, "ips")
        figures[f"served / best in process, concurrency {concurrency}"] = ratio(
            measured, "resnet50_int8", best, "ips"
        )
        for other in ("int8_x1", "fp32", "bf16"):
            figures[f"int8 / {other}, both served, concurrency {concurrency}"] = ratio(
                measured, "resnet50_int8", f"resnet50_{other}", "ips"
            )
        for name, row in measured.items():
            print(f"concurrency {concurrency:2}  {name:28} {row['ips_median']:7.1f} images/s")
    for name, value in figures.items():
        print(f"{name:60} {value['median']:.3f}  {value['rounds']}")
    write_results("serving", {"measured": {str(key): value for key, value in results.items()}, "ratios": figures})


def _served(url: str, model: str, concurrency: int, seconds: float, images: Any) -> Callable[[], dict[str, float]]:
    config = LoadConfig(duration_s=seconds, warmup_s=1.0)

    def run() -> dict[str, float]:
        result = run_closed_loop(url, model, images, concurrency=concurrency, config=config)
        assert not (result.errors or result.shed or result.interrupted), result
        return {
            "ips": result.throughput_ips,
            "p50_ms": result.latency_ms["p50"],
            "p99_ms": result.latency_ms["p99"],
        }

    return run


def _in_process(file: Path, concurrency: int, seconds: float) -> dict[str, Callable[[], dict[str, float]]]:
    ways = [(1, 1)] if concurrency == 1 else [(2, 1), (1, 8)]
    return {
        f"in process, {streams} stream(s), batch {batch}": _openvino(file, streams, batch, seconds)
        for streams, batch in ways
    }


def _openvino(file: Path, streams: int, batch: int, seconds: float) -> Callable[[], dict[str, float]]:
    import openvino as ov  # type: ignore[import-untyped]  # ships none

    from temper.builder.engines.openvino import open_core

    options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": str(streams)}
    compiled = open_core().compile_model(str(file), "CPU", options)
    queue = ov.AsyncInferQueue(compiled, streams)
    images = random_images(batch)

    def spin(duration_s: float) -> float:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < duration_s:
            queue.start_async([ov.Tensor(images, shared_memory=True)])
            count += batch
        queue.wait_all()
        return count / (time.perf_counter() - start)

    def run() -> dict[str, float]:
        spin(1.0)
        return {"ips": spin(seconds)}

    return run


if __name__ == "__main__":
    main()
