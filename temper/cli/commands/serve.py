"""`temper serve`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from temper.errors import ServerError
from temper.serve.endpoint import start_again
from temper.serve.follow import Follower
from temper.serve.server import TritonServer
from temper.serve.verify import model_names
from temper.terminal import echo

_POLL_S = 0.2
_STABLE_S = 60.0
"""A server that dies sooner than this after it was started again will do so for ever."""


def serve_command(
    repository: Path,
    *,
    models: Sequence[str] | None,
    ports: tuple[int | None, int | None, int | None],
    log_file: Path | None,
) -> None:
    """Serves a repository until Ctrl-C; a model that does not load is named, and the others are served.

    A server that dies is started again, for what is served has to stay up, but not when it dies twice in a minute.
    A model that is promoted or rolled back meanwhile is switched without a lost request; one that is new is not
    served before the next start.

    Args:
        repository: The model repository.
        models: What to serve; None serves all.
        ports: For gRPC, HTTP and metrics; None takes a free one, but for HTTP, which is off then.
        log_file: The server's log; None keeps none of a server that ends as it should.

    Raises:
        ServerError: The server cannot be started, loads no model at all, or died just after it was started again.
    """
    server = TritonServer(
        repository,
        models=models,
        log_file=log_file,
        grpc_port=ports[0],
        http_port=ports[1],
        metrics_port=ports[2],
        strict=False,
        reloads=True,
    )
    follower = Follower(server, _say)
    echo(f"starting tritonserver on {repository}", err=True)
    with server:
        ready = _ready_models(server)
        echo(f"gRPC     {server.grpc_url}")
        if server.http_url:
            echo(f"HTTP     {server.http_url}")
        echo(f"metrics  {server.metrics_url}")
        echo(f"log      {server.log}")
        echo(f"models   {', '.join(ready)}")
        echo("Ctrl-C ends it", err=True)
        _keep_up(server, follower)


def _keep_up(server: TritonServer, follower: Follower) -> None:
    begun = -math.inf
    while True:
        while server.alive:
            follower.look()
            time.sleep(_POLL_S)
        up_s = time.monotonic() - begun
        if up_s < _STABLE_S:
            raise ServerError(f"{server.death()}, {up_s:.0f} s after it was started again")
        follower = Follower(server, _say)
        echo(start_again(server), err=True)
        if server.log_file is None:
            echo(f"log      {server.log}")
        _ready_models(server)
        begun = time.monotonic()


def _say(line: str) -> None:
    echo(line, err=True)


def _ready_models(server: TritonServer) -> list[str]:
    """The models that are served; names the others.

    Raises:
        ServerError: There is none.
    """
    for model, reason in server.failed.items():
        echo(f"not loaded: {model}: {' '.join(reason.split())[:400]}", err=True)
    wanted = model_names(server.repository) if server.models is None else server.models
    ready = sorted(model for model in wanted if model not in server.failed)
    if not ready:
        raise ServerError(f"no model of {server.repository} was loaded; see {server.keep_log()}")
    return ready
