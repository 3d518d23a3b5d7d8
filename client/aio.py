"""The asyncio twin of `temper.client.client`; what the two share is in `protocol.py` and `wire.py`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client import protocol, wire
from temper.client.aio_streaming import Batches, Stream
from temper.client.calls import AsyncCalls, closed
from temper.client.client import MAX_IN_FLIGHT
from temper.client.errors import (
    ClientError,
    DeadlineExceeded,
    ModelNotFound,
    ServerError,
    ServerUnavailable,
    VersionChanged,
)
from temper.client.model import ModelInfo, ServerStatistics


class AsyncClient:
    """`Client` for asyncio: the same calls, awaited; use it with `async with` inside one event loop.

    A task that is cancelled waits no longer for its call; the call itself is let finish, like one that is late.

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
        self._opened: AsyncCalls | None = None
        self._closed = False
        self._infos: dict[tuple[str, str], ModelInfo] = {}

    def __repr__(self) -> str:
        """Name the address and the deadline."""
        return f"AsyncClient({self.url!r}, timeout_s={self.timeout_s:g})"

    async def __aenter__(self) -> AsyncClient:
        """Open the channel in the running loop."""
        self._opened = AsyncCalls(self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; what is on the way has a few seconds to finish before it is cancelled."""
        if self._opened is not None:
            opened, self._opened, self._closed = self._opened, None, True
            await opened.close()

    async def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Tell whether the server answers and its models are ready; False when nothing answers."""
        try:
            return bool((await self._call("ServerReady", wire.pb.ServerReadyRequest(), timeout_s)).ready)
        except (ServerUnavailable, DeadlineExceeded):
            return False

    async def model_info(self, model: str, version: str = "") -> ModelInfo:
        """Learn a model's names, shapes, types and labels; see `Client.model_info`."""
        key = (model, version)
        info = self._infos.get(key)
        if info is None:
            info = self._infos[key] = await self._learn(model, version)
        return info

    async def versions(self, model: str) -> tuple[str, ...]:
        """Return the versions of a model that are served, oldest first; none when it is not served at all.

        Raises:
            ServerUnavailable: Nothing answers.
        """
        try:
            answer = await self._call("ModelMetadata", wire.pb.ModelMetadataRequest(name=model))
        except ModelNotFound:
            return ()
        return protocol.served_versions(answer)

    async def infer(
        self, model: str, images: npt.NDArray[Any], *, version: str = "", timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Classify images [N, *image_shape] into float32 [N, classes]; see `Client.infer`."""
        return await self._infer_checked(protocol.check_images, model, images, version, timeout_s)

    async def infer_encoded(
        self, model: str, files: Sequence[bytes], *, version: str = "", timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Classify image files as they are into float32 [N, classes]; see `Client.infer_encoded`."""
        return await self._infer_checked(protocol.check_encoded, model, files, version, timeout_s)

    async def _infer_checked(
        self,
        check: Callable[[ModelInfo, Any], None],
        model: str,
        images: protocol.Payload,
        version: str,
        timeout_s: float | None,
    ) -> npt.NDArray[np.float32]:
        """Make a call, and make it again when the model became another one meanwhile."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        for number in range(1, protocol.MAX_CALLS + 1):
            info = await self.model_info(model, version)
            check(info, images)
            try:
                return await self._infer(info, images, version, deadline, limit_s)
            except ModelNotFound as error:
                raise await self._explain(model, version, error) from error
            except ClientError as error:
                again = number < protocol.MAX_CALLS and protocol.tells_of_change(error, version)
                if not again or await self._changed(info, version) is None:
                    raise
        raise AssertionError("the last call returns or raises")

    async def _infer(
        self, info: ModelInfo, images: protocol.Payload, version: str, deadline: float, limit_s: float
    ) -> npt.NDArray[np.float32]:
        """Make the requests of one call, all of which one version must answer."""
        calls = self._calls
        logits: list[npt.NDArray[np.float32]] = []
        sent: deque[tuple[slice, asyncio.Task[Any]]] = deque()
        pieces = protocol.split(info, len(images))
        try:
            while True:
                while len(sent) < MAX_IN_FLIGHT and (piece := next(pieces, None)) is not None:
                    request = protocol.encode(info, images[piece], version=version)
                    sent.append((piece, await calls.start("ModelInfer", request, deadline, limit_s)))
                if not sent:
                    return protocol.check_finite(info, logits[0] if len(logits) == 1 else np.concatenate(logits))
                piece, call = sent[0]
                answer = await calls.wait(call, deadline, limit_s)
                sent.popleft()
                logits.append(protocol.decode(info, answer, piece.stop - piece.start))
        finally:
            for _, call in sent:
                calls.leave(call)

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
        info = await self.model_info(model, version)
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        stream = Stream(self._calls, info, batches, version=version, max_in_flight=max_in_flight, url=self.url)
        try:
            while (logits := await stream.next_batch(limit_s)) is not None:
                yield logits
        except (VersionChanged, ServerError) as error:
            found = await self._changed(info, version)
            if found is None:
                raise
            raise protocol.version_changed(info, found) from error
        finally:
            stream.stop()

    async def statistics(self, model: str, version: str = "") -> ServerStatistics:
        """Read Triton's own counters of a model; see `Client.statistics`."""
        request = wire.pb.ModelStatisticsRequest(name=model, version=version)
        return protocol.statistics(await self._call("ModelStatistics", request))

    @property
    def _calls(self) -> AsyncCalls:
        if self._opened is None:
            if self._closed:
                raise closed(self.url)
            raise RuntimeError("AsyncClient is not open: use it as `async with AsyncClient(url) as client:`")
        return self._opened

    async def _learn(self, model: str, version: str) -> ModelInfo:
        """Learn one version; another one, if that is replaced meanwhile and none was asked for."""
        for number in range(1, protocol.MAX_CALLS + 1):
            learned = version
            try:
                request = wire.pb.ModelMetadataRequest(name=model, version=version)
                metadata = await self._call("ModelMetadata", request)
                learned = version or protocol.newest_version(metadata)
                return await self._learn_version(model, learned, metadata)
            except ModelNotFound as error:
                again = number < protocol.MAX_CALLS and learned and not version
                if not again or await self.versions(model) in ((), protocol.served_versions(metadata)):
                    raise await self._explain(model, version, error) from error
        raise AssertionError("the last call returns or raises")

    async def _learn_version(self, model: str, version: str, metadata: Any) -> ModelInfo:
        """Ask all else of that one version, so that it fits together while another is promoted."""
        try:
            answer = await self._call("ModelConfig", wire.pb.ModelConfigRequest(name=model, version=version))
        except ServerError as error:
            if not protocol.lacks(error):
                raise
            return protocol.model_info(model, version, metadata, protocol.assumed_config(metadata))
        info = protocol.model_info(model, version, metadata, answer.config)
        request = protocol.label_request(info, version)
        if request is None:
            return info
        return protocol.with_labels(info, await self._calls.call("ModelInfer", request, self.timeout_s))

    async def _changed(self, info: ModelInfo, version: str) -> ModelInfo | None:
        """Learn a model again; return it if it is another one than `info` says."""
        self._infos.pop((info.name, version), None)
        try:
            found = await self.model_info(info.name, version)
        except ClientError:
            return None  # the error that made us ask says more
        return found if found != info else None

    async def _explain(self, model: str, version: str, error: ModelNotFound) -> ModelNotFound:
        if version and (others := await self.versions(model)):
            return protocol.missing_version(model, version, others, self.url)
        try:
            index = await self._call("RepositoryIndex", wire.pb.RepositoryIndexRequest())
        except ClientError:
            return error  # a server may forbid the index; its own words are all there is
        return protocol.explain_missing(model, index, self.url, error.code)

    async def _call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        return await self._calls.call(method, request, limit_s)
