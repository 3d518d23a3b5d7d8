"""The calls that the embedded server's owner makes: is it there, and what became of its models?"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

# For the server's owner only.
_RESTRICTED = "shared-memory,trace,logging"
# With model control: a load with a config or files of one's own runs code. The index is among these calls, too.
_CONTROL = "model-repository"
_NAME = "temper-key"
# Only a server that hangs takes as long: a call that expires can crash a Triton of this age.
_TIMEOUT_S = 60.0
_LOAD_TIMEOUT_S = 1800.0
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

    def arguments(self, *, http: bool, control: bool) -> list[str]:
        """The options for tritonserver; secret, as the key is in them.

        Args:
            http: It listens on HTTP as well.
            control: Models may be loaded while it runs.
        """
        calls = f"{_CONTROL},{_RESTRICTED}" if control else _RESTRICTED
        rule = f"{calls}:{_NAME}={self._value}"
        return [f"--grpc-restricted-protocol={rule}", *([f"--http-restricted-api={rule}"] if http else [])]


class Control:
    """A small client of the server's health, its index and its model control."""

    def __init__(self, service: Any, headers: Mapping[str, str]) -> None:
        """Wrap the generated stub; the headers hold the key."""
        self._service = service
        self._metadata = tuple(headers.items())

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

    def load(self, model: str, timeout_s: float = _LOAD_TIMEOUT_S) -> str | None:
        """Load a model as its config.pbtxt says now; what was loaded of it answers until that is ready.

        Returns:
            Why it was not loaded, and what was there is served on; None when it was.
        """
        import grpc  # type: ignore[import-untyped]  # no stubs
        from tritonclient.grpc import service_pb2

        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        try:
            self._service.RepositoryModelLoad(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return str(error.details())
        return None

    def _ask(self, method: Any, request: Any) -> Any:
        import grpc

        try:
            return method(request, timeout=_TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return None
            raise


@contextlib.contextmanager
def open_control(url: str, headers: Mapping[str, str]) -> Iterator[Control]:
    """Opens a channel to host:port, which no proxy of the environment's comes between.

    Args:
        url: host:port of the gRPC endpoint.
        headers: What restricted calls carry.
    """
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    options = [
        # Before the server listens every attempt fails; gRPC's own wait between attempts starts at a second.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 100),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.insecure_channel(url, options=options) as channel:
        yield Control(service_pb2_grpc.GRPCInferenceServiceStub(channel), headers)
