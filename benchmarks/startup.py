"""Time of `temper --help` and of a run with nothing to do; peak memory of load tests and attacks of two sizes."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import CACHE, ROOT, interleave, random_images, resnet50_repository, write_results
from temper.client import Client
from temper.client.load import LoadConfig, run_closed_loop
from temper.client.robustness import attack
from temper.client.robustness.attacks.noise import NoiseConfig
from temper.serve.server import TritonServer

_MODEL = "resnet50_int8"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--short", type=float, default=5.0, help="length of the shorter run, in seconds")
    parser.add_argument("--long", type=float, default=60.0, help="length of the longer run, in seconds")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    options = parser.parse_args()
    _run()  # what there is to do
    startup = interleave(options.rounds, {"temper --help": _help, "temper run, nothing to do": _run})
    for name, figures in startup.items():
        print(f"{name}: {figures['s_median']:.3f} s")
    memory = {} if options.no_memory else _measure_memory(options)
    write_results("startup", {"startup": startup, "memory": memory})


def _measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    memory: dict[str, Any] = {}
    # In a process of its own: a peak is inherited from the parent, and building the models needs torch.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        repository = pool.apply(resnet50_repository)
    with TritonServer(repository, models=[_MODEL]) as server:
        for name, job in {"load": _load, "attack": _attack}.items():
            rows = {length: _peak_bytes(job, server.grpc_url, length) for length in (options.short, options.long)}
            growth = rows[options.long] - rows[options.short]
            memory[name] = {"peak_bytes": {str(key): value for key, value in rows.items()}, "growth_bytes": growth}
            peaks = ", ".join(f"{value / 1e6:.1f} MB after {key:.0f} s" for key, value in rows.items())
            print(f"{name}: peak of all its processes {peaks}")
    return memory


def _help() -> dict[str, float]:
    return _time("--help")


def _run() -> dict[str, float]:
    """Runs the demo; after the first time nothing is left to do."""
    folders = ("--repository", str(CACHE / "startup_repository"), "--runs", str(CACHE / "runs"))
    return _time("run", str(ROOT / "recipes" / "digits.toml"), *folders)


def _time(*arguments: str) -> dict[str, float]:
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("temper")), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return {"s": time.perf_counter() - start}


def _load(url: str, seconds: float) -> None:
    run_closed_loop(
        url, _MODEL, random_images(64), concurrency=16, config=LoadConfig(duration_s=seconds, warmup_s=1.0)
    )


def _attack(url: str, seconds: float) -> None:
    images = random_images(64)
    with Client(url) as client:
        labels = client.infer(_MODEL, images).argmax(axis=1)
    config = NoiseConfig(epsilon=1, max_queries=max(1, int(seconds * 80 / 64)), batch_size=16)
    CACHE.mkdir(parents=True, exist_ok=True)
    attack(url, _MODEL, images, labels, config)


def _peak_bytes(job: Any, url: str, seconds: float) -> int:
    """The largest resident set of a fresh process that does the job, its largest child's added."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_report_peak, args=(job, url, seconds, child))
    process.start()
    child.close()
    peak: int = parent.recv()
    process.join()
    return peak


def _report_peak(job: Any, url: str, seconds: float, answer: Any) -> None:
    job(url, seconds)
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    answer.send(sum(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024)


if __name__ == "__main__":
    main()
