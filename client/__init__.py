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
    from temper.client.aio import AsyncClient as AsyncClient
    from temper.client.client import Client as Client
    from temper.client.errors import (
        ClientError as ClientError,
    )
    from temper.client.errors import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from temper.client.errors import (
        ImageError as ImageError,
    )
    from temper.client.errors import (
        InvalidRequest as InvalidRequest,
    )
    from temper.client.errors import (
        ModelNotFound as ModelNotFound,
    )
    from temper.client.errors import (
        NonFiniteOutput as NonFiniteOutput,
    )
    from temper.client.errors import (
        Overloaded as Overloaded,
    )
    from temper.client.errors import (
        ServerError as ServerError,
    )
    from temper.client.errors import (
        ServerUnavailable as ServerUnavailable,
    )
    from temper.client.errors import (
        ShortOutput as ShortOutput,
    )
    from temper.client.errors import (
        VersionChanged as VersionChanged,
    )
    from temper.client.model import ModelInfo as ModelInfo
    from temper.client.model import ServerStatistics as ServerStatistics

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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'temper.client' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
