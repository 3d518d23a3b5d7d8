"""The asyncio twin of `temper.client.streaming`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client import protocol, wire
from temper.client.calls import AsyncCalls, closed
from temper.client.model import ModelInfo
from temper.client.streaming import check_response

Batches = Iterable[npt.NDArray[Any]] | AsyncIterable[npt.NDArray[Any]]
_POLL_S = 0.05


class Stream:
    """One stream: gRPC's task that sends, and one of ours that reads to the end whatever becomes of the caller.

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
        calls: AsyncCalls,
        info: ModelInfo,
        batches: Batches,
        *,
        version: str,
        max_in_flight: int,
        url: str,
    ) -> None:
        """Open the stream; it sends as far as the window reaches."""
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight: got {max_in_flight}, expected at least 1")
        self._info, self._version, self._url = info, version, url
        self._window = asyncio.Semaphore(max_in_flight)
        self._stopped = False
        self._closed = False
        self._exhausted = False
        self._error: Exception | None = None
        # (request id, number of images, last piece of its batch, when it was sent), oldest first.
        self._sent: deque[tuple[str, int, bool, float]] = deque()
        self._read: deque[Any] = deque()
        self._early: dict[str, Any] = {}
        self._news = asyncio.Event()
        calls.open_stream(self._requests(batches), self._read_all, self.close)

    def stop(self) -> None:
        """Send no further request; the stream ends with the answers to those that were sent."""
        self._stopped = True
        self._window.release()

    def close(self) -> None:
        """Stop, and tell the caller that the client was closed."""
        self._closed = True
        self.stop()
        self._news.set()

    async def next_batch(self, timeout_s: float) -> npt.NDArray[np.float32] | None:
        """Return the next batch's logits, None at the end."""
        parts: list[npt.NDArray[np.float32]] = []
        while (answer := await self._next_answer(timeout_s)) is not None:
            _, num_images, last, _ = self._sent.popleft()
            self._window.release()
            parts.append(protocol.decode(self._info, answer, num_images))
            if last:
                logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
                return protocol.check_finite(self._info, logits)
        return None

    async def _requests(self, batches: Batches) -> AsyncIterator[bytes]:
        """Yield the serialised requests; an error of the caller's iterator is kept for the caller."""
        number = 0
        try:
            async for images in _aiter(batches):
                protocol.check_images(self._info, images)
                for piece in protocol.split(self._info, len(images)):
                    await self._window.acquire()
                    if self._stopped:
                        return
                    name, num_images = str(number), piece.stop - piece.start
                    number += 1
                    data = protocol.encode(self._info, images[piece], version=self._version, request_id=name)
                    self._sent.append((name, num_images, piece.stop == len(images), time.monotonic()))
                    yield data
        except Exception as error:  # raised again by _next_answer
            self._error = error
        finally:
            self._exhausted = True
            self._news.set()

    async def _next_answer(self, timeout_s: float) -> Any:
        """Return the oldest request's answer, None at the end."""
        while True:
            if self._closed:
                raise closed(self._url)
            if self._error is not None:
                raise self._error
            if self._sent and self._sent[0][0] in self._early:
                return self._early.pop(self._sent[0][0])
            if self._exhausted and not self._sent:
                return None
            if not self._read:
                await self._wait_for_news(timeout_s)
                continue
            answer = check_response(self._read.popleft(), len(self._sent), self._url)
            self._early[answer.id] = answer

    async def _wait_for_news(self, timeout_s: float) -> None:
        """Wait a moment for a response, or for the end of the batches."""
        self._news.clear()
        try:
            async with asyncio.timeout(min(_POLL_S, timeout_s)):
                await self._news.wait()
        except TimeoutError:
            if self._sent and time.monotonic() - self._sent[0][3] > timeout_s:
                raise wire.deadline_exceeded(self._url, timeout_s) from None

    async def _read_all(self, call: AsyncIterable[Any]) -> None:
        async for response in wire.aread_stream(call, self._url):
            if not self._stopped:
                self._read.append(response)
                self._news.set()
        # A server that is gone takes no further request, so the sender need not wait for room either.
        self.stop()


async def _aiter(batches: Batches) -> AsyncIterator[npt.NDArray[Any]]:
    if isinstance(batches, AsyncIterable):
        async for images in batches:
            yield images
    else:
        for images in batches:
            yield images
