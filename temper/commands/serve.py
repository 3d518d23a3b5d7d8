"""`temper serve`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click

from temper.errors import ServerError
from temper.server import TritonServer

_POLL_S = 0.2


def serve_command(
    repository: Path,
    *,
    models: Sequence[str] | None,
    ports: tuple[int | None, int | None, int | None],
    log_file: Path | None,
) -> None:
    """Serves a repository until Ctrl-C; a model that does not load is named, and the others are served.

    Args:
        repository: The model repository.
        models: What to serve; None serves all.
        ports: For gRPC, HTTP and metrics; None takes a free one.
        log_file: The server's log; None takes a new file.

    Raises:
        ServerError: The server cannot be started, loads no model at all, or ended by itself.
    """
    if repository.is_dir() and not any(repository.glob("*/config.pbtxt")):
        raise ServerError(f"{repository}: holds no model; build one with `temper build`")
    if log_file is None:
        descriptor, name = tempfile.mkstemp(prefix="tritonserver-", suffix=".log")
        os.close(descriptor)
        log_file = Path(name)
    server = TritonServer(
        repository,
        models=models,
        log_file=log_file,
        grpc_port=ports[0],
        http_port=ports[1],
        metrics_port=ports[2],
        strict=False,
    )
    click.echo(f"starting tritonserver on {repository}; its log: {log_file}", err=True)
    with server:
        ready = _ready_models(server)
        for model, reason in server.failed.items():
            click.echo(f"not loaded: {model}: {' '.join(reason.split())[:400]}", err=True)
        if not ready:
            raise ServerError(f"no model of {repository} was loaded; see {log_file}")
        click.echo(f"gRPC     {server.grpc_url}")
        click.echo(f"HTTP     {server.http_url}")
        click.echo(f"metrics  {server.metrics_url}")
        click.echo(f"log      {log_file}")
        click.echo(f"models   {', '.join(ready)}")
        click.echo("Ctrl-C ends it", err=True)
        while server.alive:
            time.sleep(_POLL_S)
    raise ServerError(f"tritonserver ended by itself; see {log_file}")


def _ready_models(server: TritonServer) -> list[str]:
    wanted = server.models
    if wanted is None:
        wanted = tuple(path.name for path in server.repository.iterdir() if (path / "config.pbtxt").is_file())
    return sorted(model for model in wanted if model not in server.failed)
