"""The client of a Triton Inference Server: it knows the wire (the KServe v2 gRPC protocol) and nothing else.

In scope: inference, streaming, load tests, attacks and accuracy, all through the served endpoint. Not in scope:
building or publishing models; this package never imports `builder`, and torch only to follow the gradients of a
surrogate. Read `client.py` first; `wire.py` is the only file that touches gRPC, `calls.py` lets calls finish,
`protocol.py` turns arrays into messages and back. Names are loaded when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temper.lazy import lazy

if TYPE_CHECKING:
    from temper.client.aio import AsyncClient as AsyncClient
    from temper.client.client import Client as Client
    from temper.client.errors import (
        ClientError as ClientError,
        DeadlineExceeded as DeadlineExceeded,
        ImageError as ImageError,
        InvalidRequest as InvalidRequest,
        ModelNotFound as ModelNotFound,
        NonFiniteOutput as NonFiniteOutput,
        Overloaded as Overloaded,
        ServerError as ServerError,
        ServerUnavailable as ServerUnavailable,
        ShortOutput as ShortOutput,
        VersionChanged as VersionChanged,
    )
    from temper.client.model import ModelInfo as ModelInfo, ServerStatistics as ServerStatistics

_ERRORS = (
    "ClientError",
    "DeadlineExceeded",
    "ImageError",
    "InvalidRequest",
    "ModelNotFound",
    "NonFiniteOutput",
    "Overloaded",
    "ServerError",
    "ServerUnavailable",
    "ShortOutput",
    "VersionChanged",
)
_HOMES = {
    "AsyncClient": "temper.client.aio",
    "Client": "temper.client.client",
    "ModelInfo": "temper.client.model",
    "ServerStatistics": "temper.client.model",
    **dict.fromkeys(_ERRORS, "temper.client.errors"),
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
