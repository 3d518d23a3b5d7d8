"""Calls that are let finish: a deadline is the caller's own clock, and an answer that comes after it is dropped.

Tritons up to 25.01 at least can crash when a call is cancelled, or its deadline passes at the server, while it is
being answered (triton-inference-server/server, issues 7368, 7472 and 8034). So a caller who waits no longer leaves
its call to end by itself, and a client that is closed waits a while for those before it cancels them. A server
that hangs costs no more than `MAX_CALLS` requests: while so many are unanswered, further ones wait for their turn
within their own deadline, and are never sent when it passes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent import futures
from typing import Any, Protocol

from temper.client import wire
from temper.client.errors import ClientError, ServerUnavailable

# Unanswered at once: of a `Client` all calls, of an `AsyncClient` those that nobody waits for any more.
MAX_CALLS = 64
# How long closing waits for calls and streams on the way before it cancels them.
CLOSE_S = 5.0
# How long it then waits for their threads; only one that is held up in the caller's own iterator takes it.
_JOIN_S = 0.5


class Ending(Protocol):
    """A stream as `Calls` sees it."""

    def close(self) -> None:
        """Send no further request, and tell whoever reads it that the client was closed."""

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; tell whether it, and each thread of its own, has ended."""


class Calls:
    """The unary calls and streams of one `Client`; each unary call runs in a thread of a pool."""

    def __init__(self, url: str) -> None:
        """Open the channel; nothing is sent yet."""
        self._channel = wire.open_channel(url)
        self._methods: dict[str, Any] = {}
        self._url = url
        self._pool = futures.ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="client-call")
        self._unanswered: set[futures.Future[Any]] = set()
        self._streams: list[Ending] = []
        # gRPC's threads that read the events of streams: one at a time serves all that are open.
        self._events: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(self, method: str, request: Any, limit_s: float) -> futures.Future[Any]:
        """Send a request; `cancel` of what is returned takes it back only if it was not sent yet.

        Raises:
            ServerUnavailable: The client is closed.
        """
        with self._lock:
            self._check_open()
            if method not in self._methods:
                self._methods[method] = wire.method(self._channel, method)
            call = self._pool.submit(wire.attempt, self._methods[method], request, limit_s, self._url)
            self._unanswered.add(call)
        call.add_done_callback(self._unanswered.discard)
        return call

    def wait(self, call: futures.Future[Any], deadline: float, limit_s: float) -> Any:
        """Return a call's answer.

        Args:
            call: What `start` returned.
            deadline: When to give it up (`time.monotonic`).
            limit_s: The deadline to name.

        Raises:
            ClientError: What went wrong.
        """
        try:
            answer = call.result(max(0.0, deadline - time.monotonic()))
        except futures.TimeoutError:
            answer = wire.deadline_exceeded(self._url, limit_s)
        except futures.CancelledError:
            answer = closed(self._url)
        if isinstance(answer, ClientError):
            raise closed(self._url) if self._closed and answer.code == "CANCELLED" else answer
        return answer

    def call(self, method: str, request: Any, limit_s: float) -> Any:
        """Send a request and return its answer; see `wait`."""
        deadline = time.monotonic() + limit_s
        call = self.start(method, request, limit_s)
        try:
            return self.wait(call, deadline, limit_s)
        finally:
            call.cancel()

    def open_stream(self, requests: Iterator[bytes]) -> Any:
        """Open a gRPC stream, which ends when the requests do; `add` whoever reads it.

        Raises:
            ServerUnavailable: The client is closed.
        """
        with self._lock:
            self._check_open()
            return wire.open_stream(self._channel, requests, self._note_events)

    def add(self, stream: Ending) -> None:
        """Take care of a stream's end."""
        with self._lock:
            self._streams = [one for one in self._streams if not one.join(0.0)] + [stream]
            if self._closed:
                stream.close()

    def _check_open(self) -> None:
        if self._closed:
            raise closed(self._url)

    def _note_events(self) -> None:
        with self._lock:
            self._events = {one for one in self._events if one.is_alive()} | {threading.current_thread()}

    def close(self) -> None:
        """Let what is on the way finish, cancel what does not, and close the channel; no thread stays."""
        deadline = time.monotonic() + CLOSE_S
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        self._pool.shutdown(wait=False, cancel_futures=True)
        try:
            for stream in streams:
                stream.close()
            futures.wait(list(self._unanswered), CLOSE_S)
            for stream in streams:
                stream.join(max(0.0, deadline - time.monotonic()))
        finally:
            self._channel.close()
            self._pool.shutdown()
            for stream in streams:
                stream.join(_JOIN_S)
            for thread in self._events:
                thread.join(_JOIN_S)
            self._streams.clear()


class AsyncCalls:
    """The unary calls and streams of one `AsyncClient`, each in a task that no caller's cancellation reaches."""

    def __init__(self, url: str) -> None:
        """Open the channel in the running loop; nothing is sent yet."""
        self._channel: Any = wire.open_aio_channel(url)
        self._methods: dict[str, Any] = {}
        self._url = url
        self._running: set[asyncio.Task[Any]] = set()
        self._left: set[asyncio.Task[Any]] = set()
        self._streams: set[Callable[[], None]] = set()
        self._closed = False

    async def start(self, method: str, request: Any, deadline: float, limit_s: float) -> asyncio.Task[Any]:
        """Send a request, as soon as fewer than `MAX_CALLS` are left alone; `wait` or `leave` what is returned.

        Raises:
            DeadlineExceeded: There was no such moment before the deadline (`time.monotonic`).
            ServerUnavailable: The client is closed.
        """
        while len(self._left) >= MAX_CALLS:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise wire.deadline_exceeded(self._url, limit_s)
            await asyncio.wait(self._left, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if self._closed:
            raise closed(self._url)
        if method not in self._methods:
            self._methods[method] = wire.method(self._channel, method)
        return self._run(wire.aattempt(self._methods[method], request, limit_s, self._url))

    def open_stream(
        self,
        requests: AsyncIterator[bytes],
        read: Callable[[Any], Coroutine[Any, Any, None]],
        close: Callable[[], None],
    ) -> None:
        """Open a gRPC stream and take care of its end.

        Args:
            requests: The stream is half-closed when they end.
            read: Reads the call to its end, in a task of its own.
            close: Makes the requests end, and tells the caller.

        Raises:
            ServerUnavailable: The client is closed.
        """
        if self._closed:
            raise closed(self._url)
        self._streams.add(close)
        reading = self._run(read(wire.open_stream(self._channel, requests)))
        reading.add_done_callback(lambda _: self._streams.discard(close))

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def wait(self, call: asyncio.Task[Any], deadline: float, limit_s: float) -> Any:
        """Return a call's answer; see `Calls.wait`."""
        if not call.done():
            await asyncio.wait({call}, timeout=max(0.0, deadline - time.monotonic()))
        if not call.done():
            raise wire.deadline_exceeded(self._url, limit_s)
        if call.cancelled():
            raise closed(self._url)
        answer = call.result()
        if isinstance(answer, ClientError):
            raise closed(self._url) if self._closed and answer.code == "CANCELLED" else answer
        return answer

    def leave(self, call: asyncio.Task[Any]) -> None:
        """Wait no longer for a call; it ends by itself."""
        if not call.done():
            self._left.add(call)
            call.add_done_callback(self._left.discard)

    async def call(self, method: str, request: Any, limit_s: float) -> Any:
        """Send a request and return its answer; see `wait`."""
        deadline = time.monotonic() + limit_s
        call = await self.start(method, request, deadline, limit_s)
        try:
            return await self.wait(call, deadline, limit_s)
        finally:
            self.leave(call)

    async def close(self) -> None:
        """Let what is on the way finish, cancel what does not, and close the channel; no task stays."""
        self._closed = True
        for end_stream in list(self._streams):
            end_stream()
        try:
            if self._running:
                await asyncio.wait(self._running, timeout=CLOSE_S)
        finally:
            await self._channel.close()
            # gRPC's own thread ends with the last reference; a traceback that the caller keeps must hold none.
            self._channel = None
            self._methods.clear()
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running, timeout=_JOIN_S)


def closed(url: str) -> ServerUnavailable:
    """Return the error of a call or stream that the client's `close` ended, or that came after it."""
    return ServerUnavailable(f"{url}: the client is closed; make another one to ask on")
