"""The synchronous bidirectional stream: bounded, in order, with a deadline for every answer.

It is never cancelled: when its caller stops, the requests end, the answers on the way are dropped, and the
server's status ends its threads; `temper.client.calls` says why.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client import protocol, wire
from temper.client.calls import Calls, closed
from temper.client.errors import ClientError, ServerUnavailable
from temper.client.model import ModelInfo

_POLL_S = 0.05


class _Sender:
    """Turns the caller's batches into requests, in gRPC's thread, never more than the window ahead."""

    def __init__(
        self, info: ModelInfo, batches: Iterable[npt.NDArray[Any]], version: str, max_in_flight: int
    ) -> None:
        self.info = info
        self.version = version
        self.window = threading.Semaphore(max_in_flight)
        self.stopped = False
        self.exhausted = False
        self.error: Exception | None = None
        # (request id, number of images, last piece of its batch, when it was sent), oldest first.
        self.sent: deque[tuple[str, int, bool, float]] = deque()
        self.begun = threading.Event()
        self.thread: threading.Thread | None = None
        self._batches = batches

    def __iter__(self) -> Iterator[bytes]:
        self.thread = threading.current_thread()
        self.begun.set()
        try:
            yield from self._requests()
        except Exception as error:  # raised again in the caller's thread
            self.error = error
        self.exhausted = True

    def stop(self) -> None:
        """Send no further request."""
        self.stopped = True
        self.window.release()

    def _requests(self) -> Iterator[bytes]:
        number = 0
        for images in self._batches:
            protocol.check_images(self.info, images)
            for piece in protocol.split(self.info, len(images)):
                self.window.acquire()
                if self.stopped:
                    return
                request_id = str(number)
                number += 1
                data = protocol.encode(self.info, images[piece], version=self.version, request_id=request_id)
                last = piece.stop == len(images)
                self.sent.append((request_id, piece.stop - piece.start, last, time.monotonic()))
                yield data


class Stream:
    """One stream: gRPC's thread that sends, and one of ours that reads to the end whatever becomes of the caller.

    Args:
        calls: Of the client; they look after its end.
        info: The model.
        batches: Arrays [n, *image_shape].
        version: The version that is to answer; empty leaves it to the server.
        max_in_flight: Requests sent and not yet taken by the caller.
        url: host:port, to name.
    """

    def __init__(
        self,
        calls: Calls,
        info: ModelInfo,
        batches: Iterable[npt.NDArray[Any]],
        *,
        version: str,
        max_in_flight: int,
        url: str,
    ) -> None:
        """Open the stream; it sends as far as the window reaches."""
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight: got {max_in_flight}, expected at least 1")
        self._url = url
        self._closed = False
        self._sender = _Sender(info, batches, version, max_in_flight)
        self._read: queue.SimpleQueue[Any] = queue.SimpleQueue()
        call = calls.open_stream(iter(self._sender))
        # The call itself is held by this thread alone, so that it is gone with it.
        self._reader = threading.Thread(target=self._read_all, args=(call,), daemon=True, name="client-stream")
        self._reader.start()
        calls.add(self)

    def stop(self) -> None:
        """Send no further request; the stream ends with the answers to those that were sent."""
        self._sender.stop()

    def close(self) -> None:
        """Stop, and tell the caller that the client was closed."""
        self._closed = True
        self.stop()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; tell whether both of its threads have ended."""
        deadline = time.monotonic() + timeout_s
        self._reader.join(timeout_s)
        if self._reader.is_alive() or not self._sender.begun.wait(max(0.0, deadline - time.monotonic())):
            return False
        assert self._sender.thread is not None
        self._sender.thread.join(max(0.0, deadline - time.monotonic()))
        return not self._sender.thread.is_alive()

    def answers(self, timeout_s: float) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the logits of each batch in order; see `Client.stream`."""
        sender = self._sender
        early: dict[str, Any] = {}
        parts: list[npt.NDArray[np.float32]] = []
        try:
            while (answer := self._next_answer(early, timeout_s)) is not None:
                _, num_images, last, _ = sender.sent.popleft()
                sender.window.release()
                parts.append(protocol.decode(sender.info, answer, num_images))
                if last:
                    logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
                    yield protocol.check_finite(sender.info, logits)
                    parts = []
        finally:
            self.stop()

    def _next_answer(self, early: dict[str, Any], timeout_s: float) -> Any:
        """Return the oldest request's answer, None at the end; answers that overtook it wait in `early`."""
        sender = self._sender
        while True:
            if self._closed:
                raise closed(self._url)
            if sender.error is not None:
                raise sender.error
            if sender.sent and sender.sent[0][0] in early:
                return early.pop(sender.sent[0][0])
            if sender.exhausted and not sender.sent:
                return None
            try:
                response = self._read.get(timeout=_POLL_S)
            except queue.Empty:
                if sender.sent and time.monotonic() - sender.sent[0][3] > timeout_s:
                    raise wire.deadline_exceeded(self._url, timeout_s) from None
                continue
            if (
                self._closed
                or sender.error is not None
                or (response is None and sender.exhausted and not sender.sent)
            ):
                continue  # the batches ended, or failed, while we waited: the checks above say how
            answer = check_response(response, len(sender.sent), self._url)
            early[answer.id] = answer

    def _read_all(self, call: Iterable[Any]) -> None:
        for response in wire.read_stream(call, self._url):
            if not self._sender.stopped:
                self._read.put(response)
        # A server that is gone takes no further request, so the sender need not wait for room either.
        self.stop()


def check_response(response: Any, num_unanswered: int, url: str) -> Any:
    """Return the answer in a stream's response, which may be how the stream ended: None or an error."""
    if response is None:
        raise ServerUnavailable(f"{url} ended the stream with {num_unanswered} requests unanswered")
    if isinstance(response, ClientError):
        raise response
    if response.error_message:
        raise wire.stream_error(response.error_message, url)
    return response.infer_response
