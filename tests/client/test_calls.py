"""What becomes of calls and streams whose caller goes: at a real, slow tritonserver, and at one that is silent."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import re
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper import client
from temper.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelInfo,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from temper.client.load import LoadConfig, run_closed_loop, run_open_loop
from temper.client.streaming import check_response
from temper.client.wire import pb
from temper.serve.server import TritonServer

ShareServer = Callable[[pytest.FixtureRequest, TritonServer], AbstractContextManager[TritonServer]]

MODELS = Path(__file__).resolve().parents[2] / "benchmarks" / "models"
# The model fails on it.
FAIL = 255


@pytest.fixture(scope="module")
def slow(
    request: pytest.FixtureRequest, share_server: ShareServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server with a model that takes as many hundredths of a second as an image says."""
    log = tmp_path_factory.mktemp("slow") / "tritonserver.log"
    with share_server(
        request, TritonServer(MODELS, models=["slow"], log_file=log, only_published=False)
    ) as running:
        yield running


def images(*waits: int) -> npt.NDArray[np.uint8]:
    return np.array(waits, np.uint8)[:, None]


def seen(url: str) -> tuple[int, int]:
    """How many requests came to the model before this one, and how many of them were cancelled."""
    with Client(url) as one:
        counts = one.infer("slow", images(0))[0].astype(int)
    return int(counts[0]) - 1, int(counts[1])


def endless() -> Iterator[npt.NDArray[np.uint8]]:
    while True:
        yield images(1)


def broken() -> Iterator[npt.NDArray[np.uint8]]:
    yield images(1)
    raise OSError("the camera is gone")


def take(stream: Any) -> None:
    next(stream)
    next(stream)


def leave(stream: Any) -> None:
    take(stream)
    stream.close()


async def read(stream: Any) -> list[Any]:
    return [logits async for logits in stream]


async def atake(stream: Any) -> None:
    await anext(stream)
    await anext(stream)


async def aleave(stream: Any) -> None:
    await atake(stream)
    await stream.aclose()


async def cancel(work: Awaitable[Any]) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0.1)
    task.cancel()
    await task


Streams = dict[str, tuple[list[Any] | Callable[[], Iterator[Any]], float | None, type[BaseException] | None]]
STREAMS: Streams = {
    "finished": ([images(0), images(1, 2, 0, 0, 1, 0), images(0)], None, None),
    "failing": ([images(1), images(FAIL), images(1), images(1)], None, ServerError),
    "refused": ([images(1), np.zeros((2, 7))], None, InvalidRequest),
    "late": ([images(1), images(20), images(1)], 0.05, DeadlineExceeded),
    "broken": (broken, None, OSError),
}
Sync = tuple[Callable[[Client], object], type[BaseException] | None]
Async = tuple[Callable[[AsyncClient], Awaitable[object]], type[BaseException] | None]


def stream_of(one: Any, name: str) -> Any:
    batches, timeout_s, _ = STREAMS[name]
    return one.stream("slow", batches() if callable(batches) else batches, timeout_s=timeout_s)


def list_stream(name: str, one: Client) -> Any:
    return list(stream_of(one, name))


def read_stream(name: str, one: AsyncClient) -> Any:
    return read(stream_of(one, name))


SYNC: dict[str, Sync] = {
    "infer": (lambda c: c.infer("slow", images(*[0] * 50)), None),
    "infer failing": (lambda c: c.infer("slow", images(1, 1, 1, 1, FAIL)), ServerError),
    "infer late": (lambda c: c.infer("slow", images(100, 100, 0, 0, 0), timeout_s=0.05), DeadlineExceeded),
    "stream left": (lambda c: leave(c.stream("slow", endless())), None),
    "stream held": (lambda c: take(c.stream("slow", endless())), None),
    **{f"stream {name}": (functools.partial(list_stream, name), row[2]) for name, row in STREAMS.items()},
}
ASYNC: dict[str, Async] = {
    "infer": (lambda c: c.infer("slow", images(*[0] * 50)), None),
    "infer failing": (lambda c: c.infer("slow", images(1, 1, 1, 1, FAIL)), ServerError),
    "infer late": (lambda c: c.infer("slow", images(100, 100, 0, 0, 0), timeout_s=0.05), DeadlineExceeded),
    "infer cancelled": (lambda c: cancel(c.infer("slow", images(200))), asyncio.CancelledError),
    "stream left": (lambda c: aleave(c.stream("slow", endless())), None),
    "stream held": (lambda c: atake(c.stream("slow", endless())), None),
    "stream cancelled": (lambda c: cancel(read(c.stream("slow", [images(20)] * 3))), asyncio.CancelledError),
    **{f"stream {name}": (functools.partial(read_stream, name), row[2]) for name, row in STREAMS.items()},
}


def run(url: str, use: Callable[[Client], object], timeout_s: float = 30.0) -> BaseException | None:
    """Use a client until it is closed; return what was raised meanwhile."""
    with Client(url, timeout_s=timeout_s) as one:
        try:
            use(one)
        except Exception as error:
            return error
    return None


def arun(
    url: str, use: Callable[[AsyncClient], Awaitable[object]], timeout_s: float = 30.0
) -> BaseException | None:
    """As `run`, in an event loop of its own."""

    async def main() -> BaseException | None:
        async with AsyncClient(url, timeout_s=timeout_s) as one:
            try:
                await use(one)
            except (Exception, asyncio.CancelledError) as error:
                return error
        return None

    return asyncio.run(main())


def grpc_objects() -> dict[int, str]:
    """The call objects of gRPC that are alive, by identity."""
    words = ("Call", "Rendezvous", "RpcError", "RPCState")
    found = {}
    for one in gc.get_objects():
        kind = type(one)
        if str(kind.__module__).startswith("grpc") and kind.__name__.endswith(words):
            found[id(one)] = kind.__qualname__
    return found


def _left(calls: Container[Any], threads: Container[threading.Thread]) -> list[str]:
    """Names the call objects and threads beyond these."""
    found = [name for one, name in grpc_objects().items() if one not in calls]
    return found + [thread.name for thread in threading.enumerate() if thread not in threads]


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No call object and no thread is left by what a test does, without the help of a collection.

    Closing waits as long as a busy machine takes; a test of what is never answered sets its own limit.
    """
    monkeypatch.setattr(client.calls, "CLOSE_S", 600.0)
    monkeypatch.setattr(client.calls, "_JOIN_S", 600.0)
    gc.collect()
    gc.disable()
    try:
        calls, threads = grpc_objects(), set(threading.enumerate())
        yield
        ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("client-")]
        assert ours == []
        end = time.monotonic() + 60
        while left := _left(calls, threads):
            assert time.monotonic() < end, left
            time.sleep(0.05)  # gRPC wakes whoever closes before its own thread has quite ended
    finally:
        gc.enable()


@pytest.mark.server
@pytest.mark.parametrize(("use", "error"), SYNC.values(), ids=SYNC)
def test_closed_client_leaves_no_call_and_cancels_none(
    slow: TritonServer, nothing_left: None, use: Callable[[Client], object], error: type[BaseException] | None
) -> None:
    raised = run(slow.grpc_url, use)
    assert type(raised) is (error or type(None)), raised
    assert error is not DeadlineExceeded or "within 0.05 s; raise the timeout or lower the load" in str(raised)
    assert seen(slow.grpc_url)[1] == 0


@pytest.mark.server
@pytest.mark.parametrize(("use", "error"), ASYNC.values(), ids=ASYNC)
def test_closed_async_client_leaves_no_call_and_cancels_none(
    slow: TritonServer,
    nothing_left: None,
    use: Callable[[AsyncClient], Awaitable[object]],
    error: type[BaseException] | None,
) -> None:
    raised = arun(slow.grpc_url, use)
    assert type(raised) is (error or type(None)), raised
    assert error is not DeadlineExceeded or "within 0.05 s; raise the timeout or lower the load" in str(raised)
    assert seen(slow.grpc_url)[1] == 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Inside, no thread of a process runs; on a busy machine some do a while after the signal."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while any(" T " not in stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")):
            time.sleep(0.01)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.server
@pytest.mark.parametrize("twin", [False, True], ids=["sync", "async"])
def test_hung_server_gets_no_more_requests_than_the_limit(
    slow: TritonServer, monkeypatch: pytest.MonkeyPatch, twin: bool
) -> None:
    monkeypatch.setattr(client.calls, "MAX_CALLS", 3)
    before = seen(slow.grpc_url)[0]

    def use(one: Client) -> None:
        one.model_info("slow")
        with stopped(slow.pid):
            for _ in range(20):
                with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.05 s"):
                    one.infer("slow", images(0), timeout_s=0.05)
        assert one.infer("slow", images(0)).shape == (1, 2)

    async def ause(one: AsyncClient) -> None:
        await one.model_info("slow")
        with stopped(slow.pid):
            for _ in range(20):
                with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.05 s"):
                    await one.infer("slow", images(0), timeout_s=0.05)
        assert (await one.infer("slow", images(0))).shape == (1, 2)

    assert (arun(slow.grpc_url, ause) if twin else run(slow.grpc_url, use)) is None
    # Labels are asked for by `seen` and by the client, the three that were left are answered, and so is the last.
    after, cancelled = seen(slow.grpc_url)
    assert (after - before, cancelled) == (1 + 1 + 3 + 1 + 1, 0)


@pytest.mark.server
@pytest.mark.parametrize(
    ("mode", "timeout_s"),
    # The last is too short for any call: what is asked besides the requests has a deadline of its own.
    [
        ({"concurrency": 1}, 0.02),
        ({"concurrency": 3}, 0.02),
        ({"rate_rps": 40.0}, 0.02),
        ({"rate_rps": 40.0}, 1e-5),
    ],
    ids=str,
)
def test_load_lets_late_requests_finish(slow: TritonServer, mode: dict[str, Any], timeout_s: float) -> None:
    config = LoadConfig(warmup_s=0.0, duration_s=0.5, timeout_s=timeout_s, num_processes=1)
    if "concurrency" in mode:
        result = run_closed_loop(slow.grpc_url, "slow", images(10), config=config, **mode)
    else:
        result = run_open_loop(slow.grpc_url, "slow", images(10), config=config, **mode)
    assert result.errors["deadline"] > 0 and result.lost == 0
    assert seen(slow.grpc_url)[1] == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[request id: 3] Exceeds maximum queue size", Overloaded),
        ("Request timeout expired", Overloaded),
        ("this one fails", ServerError),
    ],
)
def test_stream_error_is_told_by_its_text(text: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^here: .*{re.escape(text)}"):
        check_response(pb.ModelStreamInferResponse(error_message=text), 1, "here")


@pytest.mark.parametrize("twin", [False, True], ids=["sync", "async"])
def test_close_ends_what_is_never_answered(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None, twin: bool
) -> None:
    monkeypatch.setattr(client.calls, "CLOSE_S", 0.2)
    monkeypatch.setattr(client.wire, "LET_FINISH_S", 3600.0)  # the call's own end is not what ends it
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        if twin:
            raised = arun(url, lambda one: one.model_info("slow"), timeout_s=0.1)
        else:
            raised = run(url, lambda one: one.model_info("slow"), timeout_s=0.1)
    assert isinstance(raised, DeadlineExceeded)


@pytest.mark.server
def test_close_ends_a_stream_whose_batches_hang(
    slow: TritonServer, monkeypatch: pytest.MonkeyPatch, until: Callable[[Callable[[], object]], None]
) -> None:
    monkeypatch.setattr(client.calls, "CLOSE_S", 0.2)
    hold = threading.Event()
    before, sender = set(threading.enumerate()), []

    def stuck() -> Iterator[Any]:
        sender.append(threading.current_thread())
        yield images(0)
        hold.wait()

    try:
        assert run(slow.grpc_url, lambda one: next(iter(one.stream("slow", stuck())))) is None
        # Only the thread that the caller's own iterator holds is left; on a busy machine the others take a moment.
        until(lambda: [thread for thread in threading.enumerate() if thread not in before] == sender)
    finally:
        hold.set()
    sender[0].join(60)
    assert not sender[0].is_alive()


@pytest.mark.server
def test_close_ends_an_async_stream_whose_batches_hang(
    slow: TritonServer, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    monkeypatch.setattr(client.calls, "CLOSE_S", 0.2)
    cut = []

    async def stuck() -> AsyncIterator[Any]:
        yield images(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cut.append(True)
            raise

    assert arun(slow.grpc_url, lambda one: anext(one.stream("slow", stuck()))) is None
    assert cut == [True]


SLOW = ModelInfo(
    name="slow",
    version="1",
    input_name="image",
    image_shape=(1,),
    output_name="counts",
    num_classes=2,
    max_batch_size=0,
    input_dtype="UINT8",
    output_dtype="FP32",
    output_shape=(2,),
)
CALLS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "versions": (lambda c: c.versions("slow"), lambda c: c.versions("slow")),
    "infer": (lambda c: c.infer("slow", np.zeros((1, 1), np.uint8)),) * 2,
    "stream": (lambda c: next(c.stream("slow", endless())), lambda c: anext(c.stream("slow", endless()))),
}


@pytest.fixture
def silent_url(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Connects, and says nothing; a client of it leaves nothing."""
    monkeypatch.setattr(client.calls, "CLOSE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


CLOSED = r"127\.0\.0\.1:\d+: the client is closed"


def test_call_that_begins_after_its_client_was_closed_says_so(
    silent_url: str, monkeypatch: pytest.MonkeyPatch, until: Callable[[Callable[[], object]], None]
) -> None:
    attempt, begin, told = client.wire.attempt, threading.Event(), list[str]()
    monkeypatch.setattr(client.wire, "attempt", lambda *given: begin.wait() and attempt(*given))
    one = Client(silent_url)
    close = one._calls._channel.close

    def close_first() -> None:
        close()
        begin.set()

    monkeypatch.setattr(one._calls._channel, "close", close_first)

    def ask() -> None:
        try:
            one.server_live(timeout_s=600.0)
        except ServerUnavailable as error:
            told.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: any(call.running() for call in one._calls._unanswered))
    one.close()
    asking.join()
    assert re.match(CLOSED, told[0])


@pytest.mark.parametrize("use", [row[0] for row in CALLS.values()], ids=CALLS)
def test_call_on_a_closed_client_says_so(
    silent_url: str, until: Callable[[Callable[[], object]], None], use: Callable[[Any], Any]
) -> None:
    one, told = Client(silent_url, timeout_s=600.0), []
    one._infos["slow", ""] = SLOW

    def ask() -> None:
        try:
            use(one)
        except ServerUnavailable as error:
            told.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: one._calls._unanswered or one._calls._streams)
    one.close()  # under the call
    asking.join(60)
    ask()
    assert len(told) == 2 and all(re.match(CLOSED, line) for line in told)


@pytest.mark.parametrize("use", [row[1] for row in CALLS.values()], ids=CALLS)
def test_call_on_a_closed_async_client_says_so(silent_url: str, use: Callable[[Any], Any]) -> None:
    told = []

    async def ask(one: AsyncClient) -> None:
        try:
            await use(one)
        except ServerUnavailable as error:
            told.append(str(error))

    async def main() -> None:
        async with AsyncClient(silent_url, timeout_s=600.0) as one:
            one._infos["slow", ""] = SLOW
            asking = asyncio.ensure_future(ask(one))
            while not one._calls._running:
                await asyncio.sleep(0)
            await one.close()  # under the call
            await asyncio.wait_for(asking, 60)
            await ask(one)

    asyncio.run(main())
    assert len(told) == 2 and all(re.match(CLOSED, line) for line in told)
