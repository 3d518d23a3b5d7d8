"""The gRPC edge: the only file that imports grpc and Triton's generated messages, both untyped.

Everything above it sees typed functions, bytes, protobuf messages as `Any`, and errors of `errors.py`. The raw
service is used instead of `tritonclient.grpc.InferenceServerClient`, which copies every tensor twice and hides the
bytes; messages may be as large as protobuf allows, both ways.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import grpc.aio  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]  # tritonclient ships no types

from temper.client.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerError,
    ServerUnavailable,
)

pb: Any = service_pb2

_SERVICE = "inference.GRPCInferenceService"
_IDEMPOTENT = ("ServerLive", "ServerReady", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
_RETRY = {
    "methodConfig": [
        {
            # Inference is not in this list: an answer that was lost is reported, not silently asked for again.
            "name": [{"service": _SERVICE, "method": method} for method in (*_IDEMPOTENT, "RepositoryIndex")],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.use_local_subchannel_pool", 1),
    # A server that comes back is found again in a second rather than in up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Loopback and in-cluster addresses never go through a proxy that the environment names for the web.
    ("grpc.enable_http_proxy", 0),
]
_WITH_RETRIES: list[tuple[str, str | int]] = [("grpc.service_config", json.dumps(_RETRY))]
# Not even the silent second try of a request that never left: a load test counts it, and the filter costs time.
_NO_RETRIES: list[tuple[str, str | int]] = [("grpc.enable_retries", 0)]
# A call whose caller waits no longer may still be answered: a deadline that passes at the server can crash it.
LET_FINISH_S = 60.0
# Triton's words (core: scheduler_utils.cc) when a model's queue policy sheds a request.
_SHED = ("exceeds maximum queue size", "request timeout expired")
# What gRPC says when it never reached the server, so that the request cannot have been lost on the way.
_NEVER_SENT = ("failed to connect", "connection refused", "name resolution", "dns")

RpcError: type[Exception] = grpc.RpcError


def check_url(url: str) -> str:
    """Return the address if it looks like host:port.

    Raises:
        InvalidRequest: It has a scheme, or no port.
    """
    host, _, port = url.rpartition(":")
    if "//" in url or not host or not port.isdecimal():
        raise InvalidRequest(
            f'server address: got "{url}", expected host:port of the gRPC endpoint, as localhost:8001'
        )
    return url


def open_channel(url: str, *, retries: bool = True) -> Any:
    """Return a channel to host:port; the connection is made by the first call.

    Args:
        url: host:port.
        retries: Whether calls that only read metadata are tried again when the server is unavailable.
    """
    options = _OPTIONS + (_WITH_RETRIES if retries else _NO_RETRIES)
    return grpc.insecure_channel(check_url(url), options=options)


def open_aio_channel(url: str, *, retries: bool = True) -> Any:
    """Return an asyncio channel to host:port, as `open_channel`; call it inside the event loop."""
    options = _OPTIONS + (_WITH_RETRIES if retries else _NO_RETRIES)
    return grpc.aio.insecure_channel(check_url(url), options=options)


def unary(channel: Any, method: str) -> Any:
    """Return a callable for a method that takes a message and returns one, for either kind of channel."""
    response = getattr(pb, f"{method}Response")
    return channel.unary_unary(
        f"/{_SERVICE}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )


def raw_infer(channel: Any) -> Any:
    """Return ModelInfer over bytes: the caller serialises once and parses when it wants to."""
    return channel.unary_unary(f"/{_SERVICE}/ModelInfer", request_serializer=None, response_deserializer=None)


def method(channel: Any, name: str) -> Any:
    """Return a unary method of a channel of either kind; ModelInfer takes and returns bytes."""
    return raw_infer(channel) if name == "ModelInfer" else unary(channel, name)


def open_stream(
    channel: Any, requests: Iterable[bytes] | AsyncIterable[bytes], on_end: Callable[[], None] | None = None
) -> Any:
    """Start ModelStreamInfer with serialised requests; returns the call, an iterator of stream responses.

    It carries no deadline, and does not ask for a status in place of an error's text (`triton_grpc_error`): Triton
    24.10 then handles the first error as a cancellation, and died of the answers that were still to come.

    Args:
        channel: Of either kind.
        requests: The stream is half-closed when they end.
        on_end: Called when the stream has ended, by the thread of a synchronous channel that reads its events.
    """
    start = channel.stream_stream(
        f"/{_SERVICE}/ModelStreamInfer",
        request_serializer=None,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    call = start(requests)
    if on_end is not None:
        call.add_callback(on_end)
    return call


def attempt(call: Callable[..., Any], request: Any, limit_s: float, url: str) -> Any:
    """Call, and return the answer or the error: what gRPC raises holds the call, and goes no further.

    Args:
        call: A method of a synchronous channel.
        request: What it takes.
        limit_s: How long the caller waits; the call itself is given much longer.
        url: host:port, to name.
    """
    try:
        return call(request, timeout=limit_s + LET_FINISH_S)
    except grpc.RpcError as error:
        return translate(error, url, limit_s)
    except ValueError as error:  # it began after the channel was closed
        return ServerUnavailable(f"{url}: {error}", code="CANCELLED")


async def aattempt(call: Callable[..., Any], request: Any, limit_s: float, url: str) -> Any:
    """Call a method of an asyncio channel; see `attempt`."""
    try:
        return await call(request, timeout=limit_s + LET_FINISH_S)
    except grpc.RpcError as error:
        return translate(error, url, limit_s)


def read_stream(call: Iterable[Any], url: str) -> Iterator[Any]:
    """Yield the responses of a stream, then None at its end or the error that ended it; see `attempt`."""
    end: Any = None
    try:
        yield from call
    except grpc.RpcError as error:
        end = translate(error, url, 0.0)
    yield end


async def aread_stream(call: AsyncIterable[Any], url: str) -> AsyncIterator[Any]:
    """Yield the responses of an asyncio stream and how it ended; see `read_stream`."""
    end: Any = None
    try:
        async for response in call:
            yield response
    except grpc.RpcError as error:
        end = translate(error, url, 0.0)
    yield end


def parse_response(data: bytes) -> Any:
    """Parse a ModelInferResponse.

    Raises:
        ServerError: The bytes are none.
    """
    try:
        return pb.ModelInferResponse.FromString(data)
    except DecodeError as error:
        raise ServerError(f"the answer of {len(data)} bytes is no ModelInferResponse; is this Triton?") from error


def status_name(error: BaseException) -> str:
    """Return the status of a gRPC error by name, such as "UNAVAILABLE"."""
    code = getattr(error, "code", None)
    return str(code().name) if callable(code) and code() is not None else "UNKNOWN"


def was_lost(error: BaseException) -> bool:
    """Tell whether the connection broke under a request that may have been sent: its answer is lost."""
    text = details(error).lower()
    broke = ("socket closed", "reset by peer", "broken pipe", "goaway", "recvmsg", "endpoint closing", "transport")
    return (
        status_name(error) == "UNAVAILABLE"
        and any(word in text for word in broke)
        and not any(word in text for word in _NEVER_SENT)
    )


def is_connection_failure(error: BaseException) -> bool:
    """Tell whether the channel, not the server's answer, made this UNAVAILABLE (a full queue is the server's)."""
    text = details(error).lower()
    return status_name(error) == "UNAVAILABLE" and (
        was_lost(error) or any(word in text for word in _NEVER_SENT) or not text
    )


def was_shed(error: BaseException) -> bool:
    """Tell whether the server shed the request: its queue was full, or the request waited too long in it."""
    return status_name(error) == "UNAVAILABLE" and _tells_of_shedding(details(error))


def is_missing(error: BaseException) -> bool:
    """Tell whether the server has no such model or version, or does not serve it now."""
    return isinstance(translate(error, "", 0.0), ModelNotFound)


def translate(error: BaseException, url: str, timeout_s: float) -> ClientError:
    """Turn a gRPC error into one of ours, with the line a user can act on.

    A stream's error is its call: its traceback, which keeps it alive, is cut.
    """
    error.__traceback__ = None
    name, text = status_name(error), " ".join(details(error).split()) or "no details"
    if was_shed(error):
        return _overloaded(url, text)
    if is_connection_failure(error):
        lost = was_lost(error)
        what = "the connection broke before the answer came" if lost else "no server answers there"
        return ServerUnavailable(
            f"{url}: {what} ({text}); check that tritonserver runs and the gRPC port", code=name
        )
    if name == "DEADLINE_EXCEEDED":
        return deadline_exceeded(url, timeout_s)
    if name == "NOT_FOUND" or "unknown model" in text.lower():
        return ModelNotFound(f"{url}: {text}", code=name)
    if name == "UNAVAILABLE":
        not_ready = "not ready" in text or "no available versions" in text
        return (ModelNotFound if not_ready else ServerUnavailable)(f"{url}: {text}", code=name)
    if name == "INVALID_ARGUMENT":
        return InvalidRequest(f"{url} refused the request: {text}", code=name)
    return ServerError(f"{url} answered {name}: {text}", code=name)


def stream_error(text: str, url: str) -> ClientError:
    """Return the error that a stream's message reports by its text alone."""
    return _overloaded(url, text) if _tells_of_shedding(text) else ServerError(f"{url}: {text}")


def deadline_exceeded(url: str, timeout_s: float) -> DeadlineExceeded:
    """Return the error of an answer that did not come in time."""
    return DeadlineExceeded(
        f"{url}: no answer within {timeout_s:g} s; raise the timeout or lower the load", code="DEADLINE_EXCEEDED"
    )


def _tells_of_shedding(text: str) -> bool:
    return any(word in text.lower() for word in _SHED)


def _overloaded(url: str, text: str) -> Overloaded:
    return Overloaded(
        f"{url}: the server sheds load: {text}; send less at once, or raise the bounds of the model's queue",
        code="UNAVAILABLE",
    )


def details(error: BaseException) -> str:
    """Return what a gRPC error says, which may be nothing."""
    found = getattr(error, "details", None)
    return str(found() or "") if callable(found) else str(error)
