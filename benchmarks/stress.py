"""How often tritonserver dies under clients that stop waiting: deaths in ten minutes of mixed use on busy cores.

Two processes keep the cores busy, two others drive the client: unary calls, streams, deadlines that pass, streams
that are left half-way, streams that fail, tasks that are cancelled, clients that are closed with calls on the way.
A dead server is started again and the run goes on. `--client PATH` drives the client of another checkout, as it
was before a change; each client's figures stand beside the others' in the results file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_ROOT = Path(__file__).resolve().parent.parent
_MODEL = "slow"
_FAIL = 255
_THREADS = 3
_TASKS = 4
_USES_PER_CLIENT = 20
# A hang of the client is not a death of the server; it is counted when a driver does not end.
_PATIENCE_S = 120.0


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--client", type=Path, default=_ROOT, help="checkout whose client is driven")
    parser.add_argument("--without", nargs="*", default=[], choices=[*_USES, *_ASYNC_USES], metavar="KIND")
    parser.add_argument("--drive", nargs=2, metavar=("URL", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        sys.path.insert(0, str(options.client))
        print(json.dumps(_drive(options.drive[0], int(options.drive[1]), options.minutes * 60, options.without)))
        return
    from benchmarks.common import measured_before, write_results

    row = _measure(options.client.resolve(), options.minutes * 60, options.without)
    name = _commit(options.client) + (f", without {', '.join(options.without)}" if options.without else "")
    rows = measured_before("stress") | {name: row}
    write_results("stress", {"measured": rows})
    for client, one in rows.items():
        print(
            f"client {client:10} {one['minutes']:5.1f} min  {one['deaths']:3} deaths, "
            f"{one['deaths_per_10_min']:.1f} in 10 min  {sum(one['uses'].values())} uses  "
            f"{one['hung_drivers']} hung drivers"
        )


def _measure(client: Path, seconds: float, without: list[str]) -> dict[str, Any]:
    """Run one client's share and return its row."""
    from temper.serve.server import TritonServer

    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    deaths: list[str] = []
    begun, load = time.monotonic(), os.getloadavg()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            TritonServer(
                _repository(Path(folder)), log_file=Path(folder) / "tritonserver.log", only_published=False
            ) as server,
        ):
            drivers = [_start(client, server.grpc_url, seed, seconds, without) for seed in range(2)]
            while any(one.poll() is None for one in drivers):
                if (death := server.death()) is not None:
                    deaths.append(death.partition(";")[0])
                    print(f"{time.monotonic() - begun:6.1f} s: {death}", file=sys.stderr, flush=True)
                    server.restart()
                if time.monotonic() - begun > seconds + _PATIENCE_S:
                    break
                time.sleep(0.05)
            hung = [one for one in drivers if one.poll() is None]
            for one in hung:
                one.kill()
            told = [json.loads(out) for one in drivers if (out := one.communicate()[0])]
    finally:
        for idle in busy:
            idle.kill()
            idle.wait()
    minutes = seconds / 60
    return {
        "minutes": round(minutes, 2),
        "deaths": len(deaths),
        "deaths_per_10_min": round(len(deaths) * 10 / minutes, 2),
        "kinds_of_death": dict(Counter(deaths)),
        "uses": dict(sum((Counter(one["uses"]) for one in told), Counter())),
        "errors": dict(sum((Counter(one["errors"]) for one in told), Counter())),
        "hung_drivers": len(hung),
        "load_average": [round(load[0], 2), round(os.getloadavg()[0], 2)],
    }


def _repository(folder: Path) -> Path:
    """The slow model in two instances, so that requests overtake each other."""
    shutil.copytree(_ROOT / "benchmarks" / "models" / _MODEL, folder / "models" / _MODEL)
    config = folder / "models" / _MODEL / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))
    return folder / "models"


def _start(client: Path, url: str, seed: int, seconds: float, without: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", __file__, "--client", str(client), "--minutes", str(seconds / 60)]
    command += ["--drive", url, str(seed), "--without", *without]
    # An older client's tasks complain of a dead server at length.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return done.stdout.strip()


# What follows runs in a driver, and uses nothing but what every client had.


def _drive(url: str, seed: int, seconds: float, without: list[str]) -> dict[str, Any]:
    """Use clients until the time is over; count uses and errors by kind."""
    uses: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    end = time.monotonic() + seconds
    tally = _Tally(uses, errors, end, without)
    threads = [
        threading.Thread(target=_use_sync, args=(url, random.Random(10 * seed + number), tally), daemon=True)
        for number in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    asyncio.run(_use_async(url, random.Random(10 * seed + 9), tally))
    for thread in threads:
        thread.join()
    return {"uses": dict(uses), "errors": dict(errors)}


class _Tally:
    """What was used and what was raised, of one driver."""

    def __init__(self, uses: Counter[str], errors: Counter[str], end: float, without: list[str]) -> None:
        self.uses, self.errors, self.end = uses, errors, end
        self.without = frozenset(without)

    def over(self) -> bool:
        return time.monotonic() >= self.end

    def choose(self, names: Any, draw: random.Random) -> str:
        name = str(draw.choice([one for one in names if one not in self.without]))
        self.uses[name] += 1
        return name


def _use_sync(url: str, draw: random.Random, tally: _Tally) -> None:
    from temper.client import Client

    while not tally.over():
        try:
            with Client(url, timeout_s=10) as client:
                for _ in range(_USES_PER_CLIENT):
                    _USES[tally.choose(_USES, draw)](client, draw)
        except Exception as error:
            tally.errors[type(error).__name__] += 1
            time.sleep(0.01)


async def _use_async(url: str, draw: random.Random, tally: _Tally) -> None:
    from temper.client import AsyncClient

    async def one(client: AsyncClient) -> None:
        for _ in range(_USES_PER_CLIENT):
            try:
                await _ASYNC_USES[tally.choose(_ASYNC_USES, draw)](client, draw)
            except (Exception, asyncio.CancelledError) as error:
                tally.errors[type(error).__name__] += 1
                await asyncio.sleep(0.01)

    while not tally.over():
        async with AsyncClient(url, timeout_s=10) as client:
            await asyncio.gather(*(one(client) for _ in range(_TASKS)))


def _images(draw: random.Random, most: int = 3) -> npt.NDArray[np.uint8]:
    """A batch of up to 6 (more than the model takes at once) that waits up to `most` hundredths each."""
    return np.array([[draw.randrange(most + 1)] for _ in range(draw.choice([1, 1, 2, 6]))], np.uint8)


def _batches(draw: random.Random, count: int = 6) -> list[npt.NDArray[np.uint8]]:
    return [_images(draw) for _ in range(count)]


def _failing(draw: random.Random) -> list[npt.NDArray[np.uint8]]:
    return [*_batches(draw, 2), np.array([[_FAIL]], np.uint8), *_batches(draw, 3)]


def _endless(draw: random.Random) -> Iterator[npt.NDArray[np.uint8]]:
    while True:
        yield _images(draw)


def _leave(stream: Any, draw: random.Random) -> None:
    for _ in range(draw.randrange(4)):
        next(stream)
    stream.close()


async def _read(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def _aleave(stream: Any, draw: random.Random) -> None:
    for _ in range(draw.randrange(4)):
        await anext(stream)
    await stream.aclose()


async def _cancel(work: Awaitable[Any], draw: random.Random) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(draw.uniform(0, 0.05))
    task.cancel()
    await task


def _short(draw: random.Random) -> float:
    return draw.uniform(0.001, 0.04)


_USES: dict[str, Callable[[Any, random.Random], object]] = {
    "infer": lambda c, r: c.infer(_MODEL, _images(r)),
    "infer late": lambda c, r: c.infer(_MODEL, _images(r, 5), timeout_s=_short(r)),
    "stream": lambda c, r: list(c.stream(_MODEL, _batches(r))),
    "stream left": lambda c, r: _leave(c.stream(_MODEL, _endless(r)), r),
    "stream late": lambda c, r: list(c.stream(_MODEL, _batches(r), timeout_s=_short(r))),
    "stream failing": lambda c, r: list(c.stream(_MODEL, _failing(r))),
}
_ASYNC_USES: dict[str, Callable[[Any, random.Random], Awaitable[object]]] = {
    "infer": lambda c, r: c.infer(_MODEL, _images(r)),
    "infer late": lambda c, r: c.infer(_MODEL, _images(r, 5), timeout_s=_short(r)),
    "infer cancelled": lambda c, r: _cancel(c.infer(_MODEL, _images(r, 5)), r),
    "stream": lambda c, r: _read(c.stream(_MODEL, _batches(r))),
    "stream left": lambda c, r: _aleave(c.stream(_MODEL, _endless(r)), r),
    "stream late": lambda c, r: _read(c.stream(_MODEL, _batches(r), timeout_s=_short(r))),
    "stream cancelled": lambda c, r: _cancel(_read(c.stream(_MODEL, _batches(r))), r),
    "stream failing": lambda c, r: _read(c.stream(_MODEL, _failing(r))),
}


if __name__ == "__main__":
    main()
