"""The client of a Triton Inference Server: it knows the wire (the KServe v2 gRPC protocol) and nothing else.

In scope: inference, streaming, load tests, attacks and accuracy, all through the served endpoint. Not in scope:
building or publishing models; this package never imports `builder` or torch. Read `client.py` first; `wire.py` is
the only file that touches gRPC, `calls.py` lets calls finish, `protocol.py` turns arrays into messages and back.
Names are loaded when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.aio import AsyncClient as AsyncClient
    from client.client import Client as Client
    from client.errors import (
        ClientError as ClientError,
    )
    from client.errors import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from client.errors import (
        ImageError as ImageError,
    )
    from client.errors import (
        InvalidRequest as InvalidRequest,
    )
    from client.errors import (
        ModelNotFound as ModelNotFound,
    )
    from client.errors import (
        NonFiniteOutput as NonFiniteOutput,
    )
    from client.errors import (
        Overloaded as Overloaded,
    )
    from client.errors import (
        ServerError as ServerError,
    )
    from client.errors import (
        ServerUnavailable as ServerUnavailable,
    )
    from client.errors import (
        ShortOutput as ShortOutput,
    )
    from client.errors import (
        VersionChanged as VersionChanged,
    )
    from client.model import ModelInfo as ModelInfo
    from client.model import ServerStatistics as ServerStatistics

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
    "AsyncClient": "client.aio",
    "Client": "client.client",
    "ModelInfo": "client.model",
    "ServerStatistics": "client.model",
    **dict.fromkeys(_ERRORS, "client.errors"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'client' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
