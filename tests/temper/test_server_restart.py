"""An embedded server that starts again on the ports that it had."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from client import Client
from temper.errors import ServerError
from temper.server import TritonServer

pytestmark = pytest.mark.server


def test_restart_waits_for_a_port_that_is_taken_for_a_moment(
    toy_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a client that connects from it to itself while nobody listens there."""
    with TritonServer(toy_repository) as server:
        port = int(server.grpc_url.rpartition(":")[2])
        server.stop()
        taken = socket.create_server(("127.0.0.1", port))
        begin, failed = server.start, list[str]()

        def start() -> TritonServer:
            try:
                return begin()
            except ServerError as error:
                failed.append(str(error))
                taken.close()
                raise

        monkeypatch.setattr(server, "start", start)
        server.restart()
        assert len(failed) == 1 and "already in use" in failed[0]
        with Client(server.grpc_url) as client:
            assert client.server_live()
