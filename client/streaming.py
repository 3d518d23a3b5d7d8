"""The synchronous bidirectional stream: bounded, in order, with a deadline for every answer."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from client import protocol, wire
from client.errors import ClientError, DeadlineExceeded, ServerError, ServerUnavailable
from client.model import ModelInfo

_POLL_S = 0.05


class _Sender:
    """Turns the caller's batches into requests, in gRPC's thread, never more than the window ahead."""

    def __init__(
        self, info: ModelInfo, batches: Iterable[npt.NDArray[Any]], version: str, max_in_flight: int
    ) -> None:
        self.info = info
        self.version = version
        self.window = threading.Semaphore(max_in_flight)
        self.stopped = threading.Event()
        self.exhausted = False
        self.error: Exception | None = None
        # (request id, number of images, last piece of its batch, when it was sent), oldest first.
        self.sent: deque[tuple[str, int, bool, float]] = deque()
        self._batches = batches

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._requests()
        except Exception as error:  # raised again in the caller's thread
            self.error = error
        self.exhausted = True

    def _requests(self) -> Iterator[bytes]:
        number = 0
        for images in self._batches:
            protocol.check_images(self.info, images)
            for piece in protocol.split(self.info, len(images)):
                while not self.window.acquire(timeout=_POLL_S):
                    if self.stopped.is_set():
                        return
                if self.stopped.is_set():
                    return
                request_id = str(number)
                number += 1
                data = protocol.encode(self.info, images[piece], version=self.version, request_id=request_id)
                last = piece.stop == len(images)
                self.sent.append((request_id, piece.stop - piece.start, last, time.monotonic()))
                yield data


def stream_batches(
    channel: Any,
    info: ModelInfo,
    batches: Iterable[npt.NDArray[Any]],
    *,
    version: str,
    timeout_s: float,
    max_in_flight: int,
    url: str,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the logits of each batch in order; see `Client.stream`."""
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight: got {max_in_flight}, expected at least 1")
    sender = _Sender(info, batches, version, max_in_flight)
    call = wire.open_stream(channel, iter(sender), None)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(call, answers, timeout_s, url), daemon=True).start()
    early: dict[str, Any] = {}
    parts: list[npt.NDArray[np.float32]] = []
    try:
        while (answer := _next_answer(sender, answers, early, timeout_s, url)) is not None:
            _, num_images, last, _ = sender.sent.popleft()
            sender.window.release()
            parts.append(protocol.decode(info, answer, num_images))
            if last:
                yield protocol.check_finite(info, parts[0] if len(parts) == 1 else np.concatenate(parts))
                parts = []
    finally:
        sender.stopped.set()
        call.cancel()


def _read(call: Any, answers: queue.SimpleQueue[Any], timeout_s: float, url: str) -> None:
    try:
        for response in wire.iterate_stream(call, timeout_s, url):
            answers.put(response)
        answers.put(None)
    except ClientError as error:
        answers.put(error)


def _next_answer(
    sender: _Sender, answers: queue.SimpleQueue[Any], early: dict[str, Any], timeout_s: float, url: str
) -> Any:
    """Return the oldest request's answer, None at the end; answers that overtook it wait in `early`."""
    while True:
        if sender.error is not None:
            raise sender.error
        if sender.sent and sender.sent[0][0] in early:
            return early.pop(sender.sent[0][0])
        if sender.exhausted and not sender.sent:
            return None
        try:
            response = answers.get(timeout=_POLL_S)
        except queue.Empty:
            if sender.sent and time.monotonic() - sender.sent[0][3] > timeout_s:
                raise DeadlineExceeded(f"{url}: no answer on the stream within {timeout_s:g} s") from None
            continue
        if sender.error is not None or (response is None and sender.exhausted and not sender.sent):
            continue  # the batches ended, or failed, while we waited: the checks above say how
        answer = _check(response, sender, url)
        early[answer.id] = answer


def _check(response: Any, sender: _Sender, url: str) -> Any:
    if response is None:
        raise ServerUnavailable(f"{url} ended the stream with {len(sender.sent)} requests unanswered")
    if isinstance(response, ClientError):
        raise response
    if response.error_message:
        raise ServerError(f"{url}: {response.error_message}")
    return response.infer_response
