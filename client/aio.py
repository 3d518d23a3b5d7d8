"""The asyncio twin of `client.client`; what the two share is in `protocol.py` and `wire.py`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from client import protocol, wire
from client.client import MAX_IN_FLIGHT
from client.errors import ClientError, DeadlineExceeded, ModelNotFound, ServerError, ServerUnavailable
from client.model import ModelInfo, ServerStatistics

Batches = Iterable[npt.NDArray[Any]] | AsyncIterable[npt.NDArray[Any]]


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited; use it with `async with` inside one event loop.

    Args:
        url: host:port of the gRPC endpoint.
        timeout_s: Deadline of every call that is given none of its own, in seconds.

    Raises:
        InvalidRequest: `url` is not host:port.
    """

    def __init__(self, url: str = "localhost:8001", *, timeout_s: float = 30.0) -> None:
        """Keep the address; the channel is opened by `async with`, inside the running loop."""
        self.url = wire.check_url(url)
        self.timeout_s = timeout_s
        self._opened: Any = None
        self._infos: dict[tuple[str, str], ModelInfo] = {}

    def __repr__(self) -> str:
        """Name the address and the deadline."""
        return f"AsyncClient({self.url!r}, timeout_s={self.timeout_s:g})"

    async def __aenter__(self) -> AsyncClient:
        """Open the channel in the running loop."""
        self._opened = wire.open_aio_channel(self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls on the way are cancelled."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Tell whether the server answers and its models are ready; False when nothing answers."""
        try:
            return bool((await self._call("ServerReady", wire.pb.ServerReadyRequest(), timeout_s)).ready)
        except (ServerUnavailable, DeadlineExceeded):
            return False

    async def model_info(self, model: str, version: str = "") -> ModelInfo:
        """Learn a model's names, shapes, types and labels; see `Client.model_info`."""
        key = (model, version)
        if key not in self._infos:
            self._infos[key] = await self._learn(model, version)
        return self._infos[key]

    async def infer(
        self, model: str, images: npt.NDArray[Any], *, version: str = "", timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Classify images [N, *image_shape] into float32 [N, classes]; see `Client.infer`."""
        info = await self.model_info(model, version)
        protocol.check_images(info, images)
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        infer = wire.raw_infer(self._channel)
        window = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def send(piece: slice) -> npt.NDArray[np.float32]:
            async with window:
                request = protocol.encode(info, images[piece], version=version)
                left_s = max(0.0, deadline - time.monotonic())
                answer = await wire.acall_unary(infer, request, left_s, self.url, limit_s)
            return protocol.decode(info, answer, piece.stop - piece.start)

        tasks = [asyncio.ensure_future(send(piece)) for piece in protocol.split(info, len(images))]
        try:
            return protocol.check_finite(info, np.concatenate(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:
                task.cancel()

    async def stream(
        self,
        model: str,
        batches: Batches,
        *,
        version: str = "",
        timeout_s: float | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> AsyncIterator[npt.NDArray[np.float32]]:
        """Classify batches, of an iterable or an async one, over one gRPC stream; see `Client.stream`."""
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight: got {max_in_flight}, expected at least 1")
        info = await self.model_info(model, version)
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        state = _StreamState(info, version, max_in_flight)
        call = wire.open_stream(self._channel, state.requests(batches), None)
        answers = wire.aiterate_stream(call, limit_s, self.url)
        parts: list[npt.NDArray[np.float32]] = []
        try:
            while (answer := await state.next_answer(answers, limit_s, self.url)) is not None:
                _, num_images, last, _ = state.sent.popleft()
                state.window.release()
                parts.append(protocol.decode(info, answer, num_images))
                if last:
                    yield protocol.check_finite(info, parts[0] if len(parts) == 1 else np.concatenate(parts))
                    parts = []
        finally:
            call.cancel()
            await state.close()

    async def statistics(self, model: str, version: str = "") -> ServerStatistics:
        """Read Triton's own counters of a model; see `Client.statistics`."""
        request = wire.pb.ModelStatisticsRequest(name=model, version=version)
        return protocol.statistics(await self._call("ModelStatistics", request))

    @property
    def _channel(self) -> Any:
        if self._opened is None:
            raise RuntimeError("AsyncClient is not open: use it as `async with AsyncClient(url) as client:`")
        return self._opened

    async def _learn(self, model: str, version: str) -> ModelInfo:
        pb = wire.pb
        try:
            metadata = await self._call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version))
            config = await self._call("ModelConfig", pb.ModelConfigRequest(name=model, version=version))
        except ModelNotFound as error:
            raise await self._explain(model, version, error) from error
        info = protocol.model_info(model, version, metadata, config.config)
        request = protocol.label_request(info, version)
        if request is None:
            return info
        answer = await wire.acall_unary(wire.raw_infer(self._channel), request, self.timeout_s, self.url)
        return protocol.with_labels(info, answer)

    async def _explain(self, model: str, version: str, error: ModelNotFound) -> ModelNotFound:
        try:
            index = await self._call("RepositoryIndex", wire.pb.RepositoryIndexRequest())
        except ClientError:
            return error  # a server may forbid the index; its own words are all there is
        return ModelNotFound(protocol.explain_missing(model, version, index, self.url), code=error.code)

    async def _call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        return await wire.acall_unary(wire.unary(self._channel, method), request, limit_s, self.url)


class _StreamState:
    """The requests of one stream that are on the way, and the answers that overtook an older one."""

    def __init__(self, info: ModelInfo, version: str, max_in_flight: int) -> None:
        self.info = info
        self.version = version
        self.window = asyncio.Semaphore(max_in_flight)
        self.sent: deque[tuple[str, int, bool, float]] = deque()
        self.error: Exception | None = None
        self._early: dict[str, Any] = {}
        self._reading: asyncio.Task[Any] | None = None
        self._exhausted = asyncio.Event()

    async def requests(self, batches: Batches) -> AsyncIterator[bytes]:
        """Yield the serialised requests; an error of the caller's iterator is kept for the caller."""
        try:
            number = 0
            async for images in _aiter(batches):
                protocol.check_images(self.info, images)
                for piece in protocol.split(self.info, len(images)):
                    await self.window.acquire()
                    name, num_images = str(number), piece.stop - piece.start
                    number += 1
                    data = protocol.encode(self.info, images[piece], version=self.version, request_id=name)
                    self.sent.append((name, num_images, piece.stop == len(images), time.monotonic()))
                    yield data
        except Exception as error:  # raised again by next_answer
            self.error = error
        finally:
            self._exhausted.set()

    async def next_answer(self, answers: AsyncIterator[Any], timeout_s: float, url: str) -> Any:
        """Return the oldest request's answer, None at the end."""
        while True:
            if self.error is not None:
                raise self.error
            if self.sent and self.sent[0][0] in self._early:
                return self._early.pop(self.sent[0][0])
            if self._exhausted.is_set() and not self.sent:
                return None
            item = await self._read(answers, timeout_s, url)
            if item is not None:
                if item.error_message:
                    raise ServerError(f"{url}: {item.error_message}")
                self._early[item.infer_response.id] = item.infer_response

    async def _read(self, answers: AsyncIterator[Any], timeout_s: float, url: str) -> Any:
        """Return the next message, or None after a moment without one."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(anext(answers))
        done, _ = await asyncio.wait({self._reading}, timeout=min(0.05, timeout_s))
        if not done:
            if self.sent and time.monotonic() - self.sent[0][3] > timeout_s:
                raise DeadlineExceeded(f"{url}: no answer on the stream within {timeout_s:g} s")
            return None
        reading, self._reading = self._reading, None
        try:
            return reading.result()
        except StopAsyncIteration:
            if self.error is not None or (self._exhausted.is_set() and not self.sent):
                return None
            raise ServerUnavailable(f"{url} ended the stream with {len(self.sent)} requests unanswered") from None

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})


async def _aiter(batches: Batches) -> AsyncIterator[npt.NDArray[Any]]:
    if isinstance(batches, AsyncIterable):
        async for images in batches:
            yield images
    else:
        for images in batches:
            yield images
