"""An open loop that names no version and counts whatever answers; the load generator stays with one version.

Poisson arrivals from a process of its own; latency counts from the scheduled time.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client import Client, protocol, wire

_SHED = -2


@dataclass(frozen=True)
class Asked:
    """Every request of a run, in the order of their answers."""

    due: npt.NDArray[np.float64]
    """float64 [n], when each was due, on `time.monotonic`."""
    latency_s: npt.NDArray[np.float64]
    """float64 [n], from then to the answer, whatever it was."""
    version: npt.NDArray[np.int64]
    """int64 [n], the version that answered; -1 of a request that failed, -2 of one that was shed."""
    reasons: tuple[str, ...]
    """What was said of those that failed, the first few."""

    def between(self, begin: float, end: float) -> Asked:
        """Those that were due in a span of time."""
        inside = (self.due >= begin) & (self.due < end)
        return Asked(self.due[inside], self.latency_s[inside], self.version[inside], self.reasons)

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return int(np.count_nonzero(self.version == -1))

    @property
    def shed(self) -> int:
        """Requests that the server refused because of its load."""
        return int(np.count_nonzero(self.version == _SHED))

    def quantile_ms(self, share: float) -> float:
        """A quantile of the latency in milliseconds, failures included."""
        return float(np.quantile(self.latency_s, share) * 1e3) if len(self.due) else float("nan")


class Asking:
    """Asks while it is open; `end` gives what became of every request."""

    def __init__(
        self, url: str, model: str, images: npt.NDArray[np.uint8], rate_rps: float, seed: int = 0
    ) -> None:
        """Starts the process; it asks from the moment that this returns."""
        with Client(url) as client:
            info = client.model_info(model)
        requests = [protocol.encode(info, images[n : n + 1]) for n in range(len(images))]
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        arguments = (theirs, url, requests, rate_rps, seed)
        self._process = multiprocessing.get_context("spawn").Process(target=_main, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = ours
        self.begin = float(ours.recv())

    def end(self) -> Asked:
        """Stops asking, waits for the last answers and returns all."""
        self._pipe.send("stop")
        due, latency, version, reasons = self._pipe.recv()
        self._process.join()
        return Asked(np.array(due), np.array(latency), np.array(version, np.int64), tuple(reasons))


def _main(pipe: Connection, url: str, requests: list[bytes], rate_rps: float, seed: int) -> None:
    stopped = threading.Event()

    def listen() -> None:
        pipe.recv()
        stopped.set()

    threading.Thread(target=listen, daemon=True).start()
    pipe.send(asyncio.run(_ask(pipe.send, stopped.is_set, url, requests, rate_rps, seed)))


async def _ask(
    tell: Callable[[float], object],
    stopped: Callable[[], bool],
    url: str,
    requests: list[bytes],
    rate_rps: float,
    seed: int,
) -> Any:
    import grpc  # type: ignore[import-untyped]  # ships none

    due: list[float] = []
    latency: list[float] = []
    version: list[int] = []
    reasons: list[str] = []

    async def one(call: Any, request: bytes, at: float) -> None:
        answered = -1
        try:
            answered = int(wire.pb.ModelInferResponse.FromString(await call(request, timeout=60.0)).model_version)
        except (grpc.RpcError, ValueError) as error:
            if "Exceeds maximum queue size" in str(error):
                answered = _SHED
            elif len(reasons) < 5:
                reasons.append(str(error)[:500])
        due.append(at)
        latency.append(time.monotonic() - at)
        version.append(answered)

    rng = np.random.default_rng(seed)
    async with grpc.aio.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        await call(requests[0])
        tasks, number, at = set[asyncio.Task[None]](), 0, time.monotonic()
        tell(at)
        while not stopped():
            at += rng.exponential(1 / rate_rps)
            if (wait := at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(one(call, requests[number % len(requests)], at))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.gather(*tasks)
    return due, latency, version, reasons
