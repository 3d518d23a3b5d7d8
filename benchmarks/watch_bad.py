"""A bad version under `temper promote --watch`: how long it is served, and how many requests it answers.

A ResNet-18 at 32x32 on CPU behind `temper serve`, asked without a version by Poisson arrivals from a process of
its own. Versions that answer a known share of the images otherwise are promoted against their verdict, in turns.
Client and server share the machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.asking import Asking
from benchmarks.common import write_results
from benchmarks.gate_served import plant
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.serve.promote import rollback
from temper.serve.watch import BEFORE_S, NUM_IMAGES, watch

_MODEL = "digits"
_SHARES = (0.0, 0.5, 0.3)
"""Of the images that a version answers otherwise; the first version is the one that is served."""


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second of others")
    parser.add_argument("--rehearsal", action="store_true", help="ask each first on a server of its own")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long is watched")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        images = _publish(repository)
        with _served(repository) as url:
            rows = [
                _round(repository, url, images, version, options)
                for _ in range(options.rounds)
                for version in range(2, len(_SHARES) + 1)
            ]
    found = {
        f"{share:g}": _summary([row for row in rows if row["share"] == share], options.rate, options.seconds)
        for share in _SHARES[1:]
    }
    for share, summary in found.items():
        print(share, summary)
    settings = {"rate_rps": options.rate, "watched_s": options.seconds, "rehearsal": options.rehearsal}
    write_results(
        "watch_rehearsal" if options.rehearsal else "watch_bad", {**settings, "by_share": found, "rounds": rows}
    )


def _publish(repository: Path) -> npt.NDArray[np.uint8]:
    """Publishes a version for each share, the first served; returns images to ask about."""
    from benchmarks.sample import make_sample

    sample = make_sample()
    work = repository.parent
    sample.export(work / "plain.onnx")
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    config = TritonConfig(name=_MODEL, image_size=32, num_classes=10, max_batch=8, backend=backend)
    for share in _SHARES:
        plant(work / "plain.onnx", work / "model.onnx", share, 0)
        publish(
            repository,
            config,
            engine_file=work / "model.onnx",
            labels=sample.class_names,
            card={"recipe": "benchmarks"},
        )
    return sample.images[:NUM_IMAGES]


@contextmanager
def _served(repository: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "temper.cli.main", "serve", "--repository", str(repository)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1]
        finally:
            process.terminate()


def _round(
    repository: Path, url: str, images: npt.NDArray[np.uint8], version: int, options: argparse.Namespace
) -> dict[str, Any]:
    asking = Asking(url, _MODEL, images, options.rate, seed=version)
    watched = watch(
        repository,
        _MODEL,
        version,
        url=url,
        images=images,
        seconds=options.seconds,
        real=True,
        rehearsal=options.rehearsal,
        override=True,
        reason="a benchmark",
    )
    time.sleep(1.0)
    asked = asking.end()
    row = {
        "share": _SHARES[version - 1],
        "switched": watched.switched is not None,
        "went_back": watched.back is not None,
        "back_s": watched.back_s,
        "by_bad_version": int(np.count_nonzero(asked.version == version)),
        "failed": asked.failed,
        "reason": watched.reason,
    }
    if watched.switched is not None and watched.back is None:
        rollback(repository, _MODEL, url=url)
    print(row, file=sys.stderr, flush=True)
    return row


def _summary(rows: list[dict[str, Any]], rate_rps: float, seconds: float) -> dict[str, Any]:
    """What the rounds say; the share is of the requests of the time before and that which was to be watched."""
    took = [row["back_s"] for row in rows if row["went_back"]]
    answered = statistics.median(row["by_bad_version"] for row in rows)
    return {
        "rounds": len(rows),
        "switched": sum(row["switched"] for row in rows),
        "went_back": len(took),
        "back_s_median": statistics.median(took) if took else None,
        "back_s_max": max(took, default=None),
        "by_bad_version_median": answered,
        "share_of_requests": answered / (rate_rps * (BEFORE_S + seconds)),
        "failed": sum(row["failed"] for row in rows),
    }


if __name__ == "__main__":
    main()
