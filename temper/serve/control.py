"""The calls that the embedded server's owner makes: is it there, and what became of its models?"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

# Nobody changes the models of an embedded server (`--model-control-mode=none`); these may not be called either.
_RESTRICTED = "shared-memory,trace,logging"
_NAME = "temper-key"
# Only a server that hangs takes as long: a call that expires can crash a Triton of this age.
_TIMEOUT_S = 60.0
# States of a model, with their reasons.
_READY, _UNLOADED = ("READY", ""), ("UNAVAILABLE", "unloaded")


class Key:
    """What the restricted calls ask for: random, of one start.

    It is known to this process and the server only, where the kernel lets it be hidden (`temper.serve._launch`).
    """

    def __init__(self) -> None:
        """Draw a new one."""
        self._value = secrets.token_hex(32)

    @property
    def grpc_headers(self) -> dict[str, str]:
        """The metadata of a restricted gRPC call."""
        return {f"triton-grpc-protocol-{_NAME}": self._value}

    def arguments(self, *, http: bool) -> list[str]:
        """The options for tritonserver; secret, as the key is in them."""
        rule = f"{_RESTRICTED}:{_NAME}={self._value}"
        return [f"--grpc-restricted-protocol={rule}", *([f"--http-restricted-api={rule}"] if http else [])]


class Control:
    """A small client of the server's health and index."""

    def __init__(self, service: Any) -> None:
        """Wrap the generated stub."""
        self._service = service

    def live(self) -> bool:
        """Whether it answers."""
        from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]  # no stubs

        answer = self._ask(self._service.ServerLive, service_pb2.ServerLiveRequest())
        return answer is not None and bool(answer.live)

    def index(self) -> dict[str, tuple[str, str]] | None:
        """State and reason of every model; None from a server that does not answer.

        Of a model with several versions those of the first that is not ready, but for those that were unloaded.
        """
        from tritonclient.grpc import service_pb2

        answer = self._ask(self._service.RepositoryIndex, service_pb2.RepositoryIndexRequest())
        if answer is None:
            return None
        index: dict[str, tuple[str, str]] = {}
        for row in answer.models:
            if index.get(row.name, _UNLOADED) in (_UNLOADED, _READY):
                index[row.name] = (row.state, row.reason)
        return index

    def _ask(self, method: Any, request: Any) -> Any:
        import grpc  # type: ignore[import-untyped]  # no stubs

        try:
            return method(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return None
            raise


@contextlib.contextmanager
def open_control(url: str) -> Iterator[Control]:
    """Opens a channel to host:port, which no proxy of the environment's comes between."""
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    options = [
        # Before the server listens every attempt fails; gRPC's own wait between attempts starts at a second.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 100),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.insecure_channel(url, options=options) as channel:
        yield Control(service_pb2_grpc.GRPCInferenceServiceStub(channel))
