"""The synchronous client of one Triton server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client import protocol, wire
from temper.client.calls import Calls
from temper.client.errors import (
    ClientError,
    DeadlineExceeded,
    ModelNotFound,
    ServerError,
    ServerUnavailable,
    VersionChanged,
)
from temper.client.model import ModelInfo, ServerStatistics
from temper.client.streaming import Stream

# Pieces of one call that are on the way at once: enough to keep two instances of a model fed.
MAX_IN_FLIGHT = 8


class Client:
    """A connection to the gRPC endpoint of a Triton server; use it as a context manager.

    Safe to use from several threads. The first call connects, so making one never fails on a server that is away.
    Calls after `close`, and those that it cuts, raise ServerUnavailable.
    A deadline is kept by waiting no longer: the call itself is let finish and its answer dropped (see `calls.py`).

    Args:
        url: host:port of the gRPC endpoint.
        timeout_s: Deadline of every call that is given none of its own, in seconds.

    Raises:
        InvalidRequest: `url` is not host:port.
    """

    def __init__(self, url: str = "localhost:8001", *, timeout_s: float = 30.0) -> None:
        """Open the channel; nothing is sent yet."""
        self.url = url
        self.timeout_s = timeout_s
        self._calls = Calls(url)
        self._infos: dict[tuple[str, str], ModelInfo] = {}

    def __repr__(self) -> str:
        """Name the address and the deadline."""
        return f"Client({self.url!r}, timeout_s={self.timeout_s:g})"

    def __enter__(self) -> Client:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; what is on the way has a few seconds to finish before it is cancelled."""
        self._calls.close()

    def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Tell whether the server answers and its models are ready; False when nothing answers."""
        try:
            return bool(self._call("ServerReady", wire.pb.ServerReadyRequest(), timeout_s).ready)
        except (ServerUnavailable, DeadlineExceeded):
            return False

    def server_live(self, *, timeout_s: float | None = None) -> bool:
        """Tell whether the server says it lives.

        Raises:
            ServerUnavailable: Nothing answers.
            DeadlineExceeded: The answer did not come in time.
        """
        return bool(self._call("ServerLive", wire.pb.ServerLiveRequest(), timeout_s).live)

    def model_info(self, model: str, version: str = "") -> ModelInfo:
        """Learn a model's names, shapes, types and labels from the server; kept until another version answers.

        Labels take one inference on a zero image, through Triton's classification extension.

        Raises:
            ModelNotFound: The server has no such model or version, or it is not ready.
            InvalidRequest: The model has more than one input, or tensors without a numeric type.
            ServerUnavailable: Nothing answers.
        """
        key = (model, version)
        info = self._infos.get(key)
        if info is None:
            info = self._infos[key] = self._learn(model, version)
        return info

    def versions(self, model: str) -> tuple[str, ...]:
        """Return the versions of a model that are served, oldest first; none when it is not served at all.

        Raises:
            ServerUnavailable: Nothing answers.
        """
        try:
            answer = self._call("ModelMetadata", wire.pb.ModelMetadataRequest(name=model))
        except ModelNotFound:
            return ()
        return protocol.served_versions(answer)

    def infer(
        self, model: str, images: npt.NDArray[Any], *, version: str = "", timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Classify images, in as many requests as the model's max_batch_size asks for, several on the way at once.

        One version answers all of them: when another is promoted meanwhile, the model is learned and asked again.

        Args:
            model: Model name.
            images: [N, *image_shape] of the model's input type; uint8 [N, H, W, 3] for a Temper model.
            version: Model version; empty leaves it to the server.
            timeout_s: Deadline of the whole call in seconds; None takes the client's.

        Returns:
            float32 [N, classes], in the order of the images.

        Raises:
            InvalidRequest: Shape or type do not fit; nothing was sent then.
            ShortOutput: The server answered with fewer bytes than the shape it declared.
            NonFiniteOutput: The server answered NaN or an infinity.
            DeadlineExceeded: Not all answers came in time.
            ServerUnavailable: Nothing answers, or the connection broke.
            ModelNotFound: There is no such model or version, or no more.
            VersionChanged: Another version answered than the one asked for, or another one each time.
        """
        return self._infer_checked(protocol.check_images, model, images, version, timeout_s)

    def infer_encoded(
        self, model: str, files: Sequence[bytes], *, version: str = "", timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Classify image files as they are, which the server decodes as `load_image` would; else as `infer`.

        Args:
            model: Model name, of one that takes files, as a Temper model's twin `<model>_jpeg`.
            files: The bytes of each: PNG, JPEG, BMP, WebP, TIFF, PPM or GIF.
            version: Model version; empty leaves it to the server.
            timeout_s: Deadline of the whole call in seconds; None takes the client's.

        Returns:
            float32 [N, classes], in the order of the files.

        Raises:
            InvalidRequest: The model takes no files, or one of them is no image, which the server says.
            ClientError: As `infer`.
        """
        return self._infer_checked(protocol.check_encoded, model, files, version, timeout_s)

    def _infer_checked(
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
            info = self.model_info(model, version)
            check(info, images)
            try:
                return self._infer(info, images, version, deadline, limit_s)
            except ModelNotFound as error:
                raise self._explain(model, version, error) from error
            except ClientError as error:
                again = number < protocol.MAX_CALLS and protocol.tells_of_change(error, version)
                if not again or self._changed(info, version) is None:
                    raise
        raise AssertionError("the last call returns or raises")

    def _infer(
        self, info: ModelInfo, images: protocol.Payload, version: str, deadline: float, limit_s: float
    ) -> npt.NDArray[np.float32]:
        """Make the requests of one call, all of which one version must answer."""
        logits: npt.NDArray[np.float32] | None = None
        sent: deque[tuple[slice, Any]] = deque()
        pieces = protocol.split(info, len(images))
        try:
            while True:
                while len(sent) < MAX_IN_FLIGHT and (piece := next(pieces, None)) is not None:
                    request = protocol.encode(info, images[piece], version=version)
                    sent.append((piece, self._calls.start("ModelInfer", request, limit_s)))
                if not sent:
                    assert logits is not None
                    return protocol.check_finite(info, logits)
                piece, call = sent[0]
                answer = self._calls.wait(call, deadline, limit_s)
                sent.popleft()
                part = protocol.decode(info, answer, piece.stop - piece.start)
                if logits is None:
                    logits = np.empty((len(images), *part.shape[1:]), np.float32)
                logits[piece] = part
        finally:
            for _, call in sent:
                call.cancel()  # only what was not sent yet

    def stream(
        self,
        model: str,
        batches: Iterable[npt.NDArray[Any]],
        *,
        version: str = "",
        timeout_s: float | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Classify batches over one bidirectional gRPC stream, read only as fast as answers are taken.

        Args:
            model: Model name.
            batches: Arrays [n, *image_shape]; read in another thread. Larger ones than max_batch_size are split.
            version: Model version; empty leaves it to the server.
            timeout_s: How long any one answer may take, in seconds; None takes the client's timeout.
            max_in_flight: Requests sent and not yet taken by the caller.

        Yields:
            float32 [n, classes] for each batch, in order.

        Raises:
            ClientError: As `infer`; the first error ends the stream, and so does a promotion (VersionChanged).
                What `batches` raises is raised here.
        """
        info = self.model_info(model, version)
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        stream = Stream(self._calls, info, batches, version=version, max_in_flight=max_in_flight, url=self.url)
        try:
            yield from stream.answers(limit_s)
        except (VersionChanged, ServerError) as error:
            found = self._changed(info, version)
            if found is None:
                raise
            raise protocol.version_changed(info, found) from error

    def statistics(self, model: str, version: str = "") -> ServerStatistics:
        """Read Triton's own counters of a model; the difference of two tells what happened in between.

        Raises:
            ModelNotFound: The server has no such model.
            ServerUnavailable: Nothing answers.
        """
        request = wire.pb.ModelStatisticsRequest(name=model, version=version)
        return protocol.statistics(self._call("ModelStatistics", request))

    def _learn(self, model: str, version: str) -> ModelInfo:
        """Learn one version; another one, if that is replaced meanwhile and none was asked for."""
        for number in range(1, protocol.MAX_CALLS + 1):
            learned = version
            try:
                request = wire.pb.ModelMetadataRequest(name=model, version=version)
                metadata = self._call("ModelMetadata", request)
                learned = version or protocol.newest_version(metadata)
                return self._learn_version(model, learned, metadata)
            except ModelNotFound as error:
                again = number < protocol.MAX_CALLS and learned and not version
                if not again or self.versions(model) in ((), protocol.served_versions(metadata)):
                    raise self._explain(model, version, error) from error
        raise AssertionError("the last call returns or raises")

    def _learn_version(self, model: str, version: str, metadata: Any) -> ModelInfo:
        """Ask all else of that one version, so that it fits together while another is promoted."""
        try:
            answer = self._call("ModelConfig", wire.pb.ModelConfigRequest(name=model, version=version))
        except ServerError as error:
            if not protocol.lacks(error):
                raise
            return protocol.model_info(model, version, metadata, protocol.assumed_config(metadata))
        info = protocol.model_info(model, version, metadata, answer.config)
        request = protocol.label_request(info, version)
        if request is None:
            return info
        return protocol.with_labels(info, self._calls.call("ModelInfer", request, self.timeout_s))

    def _changed(self, info: ModelInfo, version: str) -> ModelInfo | None:
        """Learn a model again; return it if it is another one than `info` says."""
        self._infos.pop((info.name, version), None)
        try:
            found = self.model_info(info.name, version)
        except ClientError:
            return None  # the error that made us ask says more
        return found if found != info else None

    def _explain(self, model: str, version: str, error: ModelNotFound) -> ModelNotFound:
        if version and (others := self.versions(model)):
            return protocol.missing_version(model, version, others, self.url)
        try:
            index = self._call("RepositoryIndex", wire.pb.RepositoryIndexRequest())
        except ClientError:
            return error  # a server may forbid the index; its own words are all there is
        return protocol.explain_missing(model, index, self.url, error.code)

    def _call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        return self._calls.call(method, request, limit_s)
