"""What a switch costs: one after another between two versions of a model, under 70 % of what it can serve.

A ResNet-18 at 32x32 on CPU behind the plugin, asked without a version by Poisson arrivals, with and without
switches in turns. Client and server share the machine. The server switches as `temper serve` does.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.asking import Asked, Asking
from benchmarks.common import write_results
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.client.load import LoadConfig, run_closed_loop
from temper.serve._stubs import read_file, read_stat
from temper.serve.server import TritonServer

MODEL = "digits"
_LOAD = 0.7
_CALM_S = 10.0
_CHUNK = 100
_QUANTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--switches", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between a switch's end and the next one")
    parser.add_argument("--instances", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        images = publish_versions(repository, instances=options.instances)
        with TritonServer(repository, reloads=True) as server:
            capacity_rps = _capacity(server, images)
            rate_rps = _LOAD * capacity_rps
            print(f"capacity {capacity_rps:.0f} requests/s, asked {rate_rps:.0f}", file=sys.stderr, flush=True)
            results = _measure(server, images, rate_rps, options.switches, options.pause)
    shown = ("requests", "failed", "shed", "p99_ms", "calm_p99_ms", "p99_ratio", "cost_ratio", "memory_mb")
    for name in shown:
        print(f"{name:12} {results[name]}")
    settings = {"pause_s": options.pause, "instances": options.instances, "capacity_rps": capacity_rps}
    write_results("hot_switch", {**settings, "rate_rps": rate_rps, "measured": results})


def publish_versions(repository: Path, *, instances: int, labels: Sequence[str] = ()) -> npt.NDArray[np.uint8]:
    """Publishes two versions of one model, which differ in their class names, and serves the first.

    Returns:
        uint8 [64, 32, 32, 3], images to ask about.
    """
    from benchmarks.sample import make_sample

    sample = make_sample()
    engine = repository.parent / "model.onnx"
    sample.export(engine)
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    config = TritonConfig(
        name=MODEL, image_size=32, num_classes=10, max_batch=8, backend=backend, num_instances=instances
    )
    for word in ("digit", "number"):
        names = labels or [f"{word} {name}" for name in sample.class_names]
        publish(repository, config, engine_file=engine, labels=names, card={"recipe": "benchmarks"})
    serve(repository, 1)
    return sample.images[:64]


def serve(repository: Path, version: int) -> None:
    """Puts a version's config.pbtxt into the model's folder, in one rename."""
    content = (repository / MODEL / str(version) / "config.pbtxt").read_bytes()
    work = repository.parent / "config.pbtxt"
    work.write_bytes(content)
    work.replace(repository / MODEL / "config.pbtxt")


def _capacity(server: TritonServer, images: npt.NDArray[np.uint8]) -> float:
    config = LoadConfig(duration_s=5.0)
    return run_closed_loop(server.grpc_url, MODEL, images, concurrency=16, config=config).throughput_ips


def _measure(
    server: TritonServer, images: npt.NDArray[np.uint8], rate_rps: float, switches: int, pause_s: float
) -> dict[str, Any]:
    """Switches in chunks, with as quiet a time before each as one chunk has of its own."""
    calm: list[tuple[float, float]] = []
    chunks: list[tuple[float, float]] = []
    took_s: list[float] = []
    cpu: list[float] = []
    memory = [memory_mb(server.pid)]
    per_chunk = max(2, min(_CHUNK, switches // 4))
    asking = Asking(server.grpc_url, MODEL, images, rate_rps)
    time.sleep(2.0)
    for chunk in range(0, switches, per_chunk):
        calm.append(_sleep(_CALM_S))
        begin, before = time.monotonic(), cpu_s(server.pid)
        for number in range(chunk, min(chunk + per_chunk, switches)):
            took_s.append(-time.monotonic())
            serve(server.repository, 2 - number % 2)
            server.reload(MODEL)
            took_s[-1] += time.monotonic()
            time.sleep(pause_s)
        chunks.append((begin, time.monotonic()))
        cpu.append(cpu_s(server.pid) - before)
        memory.append(memory_mb(server.pid))
        print(f"{number + 1} switches, {memory[-1]:.0f} MB", file=sys.stderr, flush=True)
    calm.append(_sleep(_CALM_S))
    asked = asking.end()
    busy, quiet = _joined(asked, chunks), _joined(asked, calm)
    costs_ms = [used * 1e3 / len(asked.between(*chunk).due) for used, chunk in zip(cpu, chunks, strict=True)]
    return {
        "switches": switches,
        "requests": len(asked.due),
        "failed": asked.failed,
        "shed": asked.shed,
        "reasons": list(asked.reasons),
        "switch_s_median": statistics.median(took_s),
        "requests_while_switching": len(busy.due),
        **{name: busy.quantile_ms(share) for name, share in _QUANTILES.items()},
        **{f"calm_{name}": quiet.quantile_ms(share) for name, share in _QUANTILES.items()},
        "p99_ratio": busy.quantile_ms(0.99) / quiet.quantile_ms(0.99),
        "chunk_p99_ms": [round(asked.between(*chunk).quantile_ms(0.99), 2) for chunk in chunks],
        "calm_chunk_p99_ms": [round(asked.between(*span).quantile_ms(0.99), 2) for span in calm],
        "cost_ms": [round(cost, 4) for cost in costs_ms],
        "cost_ratio": costs_ms[-1] / costs_ms[0],
        "memory_mb": [round(value, 1) for value in memory],
    }


def _sleep(seconds: float) -> tuple[float, float]:
    begin = time.monotonic()
    time.sleep(seconds)
    return begin, time.monotonic()


def _joined(asked: Asked, spans: Sequence[tuple[float, float]]) -> Asked:
    parts = [asked.between(*span) for span in spans]
    due, latency_s, version = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("due", "latency_s", "version")
    )
    return Asked(due, latency_s, version, asked.reasons)


def cpu_s(server: int) -> float:
    """CPU time that a server, its processes and those of them that have ended took, in seconds."""
    ticks = 0
    for process in _group(server):
        fields = read_stat(process)
        ticks += sum(map(int, fields[11:15] if process == server else fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(server: int) -> float:
    """Memory of a server and its processes in MB, of what they share each its part."""
    files = (read_file(f"/proc/{process}/smaps_rollup").decode() for process in _group(server))
    found = (re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE) for text in files)
    return sum(int(match[1]) for match in found if match) * 1024 / 1e6


def _group(server: int) -> list[int]:
    processes = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [process for process in processes if read_stat(process)[2:3] == [str(server)]]


if __name__ == "__main__":
    main()
