"""What a bound on the queue is worth: three times what a model can serve, for some seconds, with and without one.

A ResNet-18 at 32x32 on CPU behind the plugin. Its capacity is the throughput of a closed loop; then Poisson
arrivals come at three times that rate, whatever the answers do. The bounded entries differ from the unbounded one
in their queue policy alone (`[serving]` of a recipe).
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.common import interleave, publish_sample, write_results
from temper.builder.publish.serving import ServingConfig
from temper.client.load import LoadConfig, run_closed_loop, run_open_loop
from temper.serve.server import TritonServer

_TIMES = 3.0
_ENTRIES = {
    "without_bound": ServingConfig(max_queue=2**31 - 1, queue_timeout_ms=3_600_000),
    "default": ServingConfig(),
    "128_half_second": ServingConfig(max_queue=128, queue_timeout_ms=500),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        entries = {
            name: {"max_batch": 8, "num_instances": 2, "serving": bound} for name, bound in _ENTRIES.items()
        }
        images = publish_sample(Path(folder), entries).images[:64]
        capacity_rps = _capacity(Path(folder), images)
        print(f"capacity: {capacity_rps:.0f} requests/s", file=sys.stderr, flush=True)
        rate_rps = _TIMES * capacity_rps
        measured = interleave(
            options.rounds,
            {
                name: functools.partial(_overload, Path(folder), name, images, rate_rps, options.seconds)
                for name in _ENTRIES
            },
        )
    for name, row in measured.items():
        print(
            f"{name:16} p99 {row['p99_ms_median'] / 1e3:6.2f} s  answered {row['completed_median']:8.0f}  "
            f"shed {row['shed_median']:8.0f}  server's memory {row['before_mb_median']:.0f} to "
            f"{row['peak_mb_median']:.0f} MB"
        )
    settings = {"capacity_rps": capacity_rps, "rate_rps": rate_rps, "seconds": options.seconds}
    write_results("overload", {**settings, "measured": measured})


def _capacity(folder: Path, images: Any) -> float:
    config = LoadConfig(duration_s=4.0)
    with TritonServer(folder / "models", models=["default"]) as server:
        return run_closed_loop(server.grpc_url, "default", images, concurrency=16, config=config).throughput_ips


def _overload(folder: Path, name: str, images: Any, rate_rps: float, seconds: float) -> dict[str, float]:
    # Four processes: each keeps at most 4,096 requests outstanding, and the queue is to show.
    config = LoadConfig(duration_s=seconds, warmup_s=0.0, num_processes=4)
    with TritonServer(folder / "models", models=[name]) as server:
        run_closed_loop(server.grpc_url, name, images, concurrency=4, config=LoadConfig(duration_s=1.0))
        with _Memory(server.pid) as memory:
            result = run_open_loop(server.grpc_url, name, images, rate_rps=rate_rps, config=config)
    return {
        "p50_ms": result.latency_ms.get("p50", 0.0),
        "p99_ms": result.latency_ms.get("p99", 0.0),
        "throughput_ips": result.throughput_ips,
        "completed": result.completed,
        "shed": result.shed,
        "shed_share": result.shed_share,
        "errors": result.num_errors + result.lost,
        "late_share": result.late_share or 0.0,
        "before_mb": memory.before_mb,
        "peak_mb": memory.peak_mb,
    }


class _Memory:
    """The resident memory of a process, watched ten times a second."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before_mb = self.peak_mb = self._read_mb()

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.peak_mb = max(self.peak_mb, self._read_mb())

    def _read_mb(self) -> float:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
