"""What runs in one load process: it sends serialised requests and counts the answers.

The parent talks to it over a pipe: a Job, then ("go", clock), then perhaps "stop"; it answers "ready", "trouble"
when the connection fails, and its Tally. When the pipe closes, the parent is gone and the process ends at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from temper.client import wire
from temper.client.load.tally import Recorder, Tally
from temper.client.model import ModelInfo

_TROUBLE_EVERY_S = 0.2
# A slot whose connection failed, or whose request was shed, waits before it tries again: a dead server would cost
# a core, and one that sheds load would spend its time on saying so.
_PAUSE_S = 0.05
_MAX_OUTSTANDING = 4096
_MAX_OUTSTANDING_BYTES = 256 << 20
# How long requests on the way may take to finish after "stop", and after their deadline.
_FINISH_S = 2.0
_LATE_S = 30.0
# Late requests sent in one go before the answers are looked at again.
_BURST = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process's share of a run; a concurrency of 0 means the open loop at `rate_rps`."""

    url: str
    info: ModelInfo
    requests: tuple[bytes, ...]
    batch_size: int
    concurrency: int
    rate_rps: float
    seed: tuple[int, int]
    warmup_s: float
    duration_s: float
    timeout_s: float


class _Control:
    """The worker's end of the pipe; its thread hears "stop" and the parent's death.

    After "stop" nothing more is sent; what is on the way has a moment to finish before it is cancelled, for a
    cancelled call can crash the server (`temper.client.calls`).
    """

    def __init__(self, connection: Connection) -> None:
        self.stopped = False
        self.over = threading.Event()
        self.cancel: Callable[[], object] = lambda: None
        self._connection = connection
        self._told = 0.0

    def wait_go(self) -> float:
        """Tell that all is ready and return the clock at which to begin."""
        self._connection.send("ready")
        message = self._connection.recv()
        threading.Thread(target=self._listen, daemon=True).start()
        return float(message[1])

    def trouble(self, error: Exception) -> bool:
        """Let the parent look after the server when the connection failed or the model is gone; tell if so."""
        if not (wire.is_connection_failure(error) or wire.is_missing(error)):
            return False
        now = time.monotonic()
        if now - self._told > _TROUBLE_EVERY_S:
            self._told = now
            self._connection.send("trouble")
        return True

    def _listen(self) -> None:
        try:
            while self._connection.recv() != "stop":
                pass
        except (EOFError, OSError):
            os._exit(1)
        self.stopped = True
        if not self.over.wait(_FINISH_S):
            self.cancel()
        try:
            self._connection.recv()
        except (EOFError, OSError):
            os._exit(1)


def main(descriptor: int) -> None:
    """Run the job that comes through the pipe `descriptor` and send its Tally back."""
    connection = Connection(descriptor)
    try:
        job: Job = connection.recv()
        control = _Control(connection)
        if job.concurrency == 1:
            tally = _run_one(job, control)
        else:
            # epoll rounds a wait up to a millisecond, which a schedule cannot bear; select does not.
            loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                tally = runner.run(_run_many(job, control))
        control.over.set()
        connection.send(tally)
    except (EOFError, BrokenPipeError):
        os._exit(1)
    except Exception:
        connection.send(traceback.format_exc())
    connection.close()
    os._exit(0)  # gRPC's threads have nothing left to say


def _recorder(job: Job, begin: float) -> Recorder:
    start = begin + job.warmup_s
    window = (start, start + job.duration_s)
    return Recorder(job.info, job.batch_size, window, open_loop=job.concurrency == 0, timeout_s=job.timeout_s)


def _run_one(job: Job, control: _Control) -> Tally:
    """Keep one request in flight, with the least machinery around it."""
    channel = wire.open_channel(job.url, retries=False)
    call = wire.raw_infer(channel)
    try:
        call(job.requests[0], timeout=_limit_s(job.timeout_s))  # connects
    except wire.RpcError:
        pass  # the run itself counts it
    gc.freeze()
    begin = control.wait_go()
    control.cancel = channel.close
    recorder = _recorder(job, begin)
    clock, limit_s, end = time.monotonic, _limit_s(job.timeout_s), begin + job.warmup_s + job.duration_s
    time.sleep(max(0.0, begin - clock()))
    for request in _cycle(job):
        begun = clock()
        if begun >= end or control.stopped:
            break
        try:
            answer = call(request, timeout=limit_s)
        except (wire.RpcError, ValueError) as error:  # ValueError: the channel was closed by "stop"
            if control.stopped:
                recorder.tally.lost += isinstance(error, wire.RpcError)
                break
            recorder.rpc_error(begun, clock(), error)
            if control.trouble(error) or wire.was_shed(error):
                time.sleep(_PAUSE_S)
        else:
            recorder.answer(begun, clock(), answer)
    recorder.flush()
    return recorder.tally


async def _run_many(job: Job, control: _Control) -> Tally:
    """Run the closed loop's slots, or the open loop's schedule, in one event loop."""
    async with wire.open_aio_channel(job.url, retries=False) as channel:
        call = wire.raw_infer(channel)
        try:
            await call(job.requests[0], timeout=_limit_s(job.timeout_s))  # connects
        except wire.RpcError:
            pass  # the run itself counts it
        gc.freeze()
        begin = control.wait_go()
        recorder = _recorder(job, begin)
        await asyncio.sleep(max(0.0, begin - time.monotonic()))
        if job.concurrency:
            run = asyncio.gather(*(_slot(job, control, recorder, call, first) for first in range(job.concurrency)))
            task: asyncio.Future[Any] = run
        else:
            task = asyncio.ensure_future(_schedule(job, control, recorder, call, begin))
        loop = asyncio.get_running_loop()
        control.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            pass  # by "stop": what was measured is kept
        control.over.set()  # before the channel is closed: a late `cancel` would find no loop
        recorder.flush()
        return recorder.tally


async def _slot(job: Job, control: _Control, recorder: Recorder, call: Any, first: int) -> None:
    """Keep one of the closed loop's requests in flight until the window ends."""
    clock, limit_s = time.monotonic, _limit_s(job.timeout_s)
    end = recorder.end
    for request in _cycle(job, first):
        begun = clock()
        if begun >= end or control.stopped:
            return
        try:
            answer = await call(request, timeout=limit_s)
        except asyncio.CancelledError:
            recorder.tally.lost += 1
            raise
        except wire.RpcError as error:
            recorder.rpc_error(begun, clock(), error)
            if control.trouble(error) or wire.was_shed(error):
                await asyncio.sleep(_PAUSE_S)
        else:
            recorder.answer(begun, clock(), answer)


async def _schedule(job: Job, control: _Control, recorder: Recorder, call: Any, begin: float) -> None:
    """Send Poisson arrivals at their times, however slow the answers are, and wait for the last of them."""
    largest = max(map(len, job.requests))
    slots = asyncio.Semaphore(max(64, min(_MAX_OUTSTANDING, _MAX_OUTSTANDING_BYTES // largest)))
    running: set[asyncio.Task[None]] = set()
    clock, burst = time.monotonic, 0
    requests = _cycle(job)

    def finished(task: asyncio.Task[None]) -> None:
        slots.release()
        running.discard(task)

    try:
        for scheduled in arrivals(job.rate_rps, begin, recorder.end, job.seed):
            wait_s = scheduled - clock()
            if wait_s > 0:
                burst = 0
                await asyncio.sleep(wait_s)
            elif (burst := burst + 1) % _BURST == 0:
                await asyncio.sleep(0)
            await slots.acquire()
            if control.stopped:
                break
            task = asyncio.ensure_future(_send(job, control, recorder, call, next(requests), scheduled))
            running.add(task)
            task.add_done_callback(finished)
        while running:
            await asyncio.wait(running)
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


async def _send(
    job: Job, control: _Control, recorder: Recorder, call: Any, request: bytes, scheduled: float
) -> None:
    now = time.monotonic()
    recorder.sent(scheduled, now)
    left_s = scheduled + job.timeout_s - now
    if left_s <= 0:
        recorder.fail(scheduled, now, "deadline")
        return
    try:
        answer = await call(request, timeout=_limit_s(left_s))
    except asyncio.CancelledError:
        recorder.tally.lost += 1
        raise
    except wire.RpcError as error:
        recorder.rpc_error(scheduled, time.monotonic(), error)
        control.trouble(error)
    else:
        recorder.answer(scheduled, time.monotonic(), answer)


def _limit_s(timeout_s: float) -> float:
    """The deadline that a request carries: the run's own clock tells which answer is late, and lets it come."""
    return timeout_s + _LATE_S


def arrivals(rate_rps: float, begin: float, end: float, seed: tuple[int, int]) -> Iterator[float]:
    """Yield the times of a Poisson process between `begin` and `end`; the same for the same seed."""
    random = np.random.default_rng(seed)
    when = begin
    while True:
        for gap in random.exponential(1 / rate_rps, 1024).tolist():
            when += gap
            if when >= end:
                return
            yield when


def _cycle(job: Job, first: int = 0) -> Iterator[bytes]:
    """Yield the pool's requests for ever, each slot and process from another one on."""
    number = first + 31 * job.seed[1]
    while True:
        yield job.requests[number % len(job.requests)]
        number += 1
