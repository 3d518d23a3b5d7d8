"""A server that others run is told of a switch: real ones, with every kind of model control."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from temper.errors import ServerError
from temper.serve import reload
from temper.serve.follow import Follower
from temper.serve.reload import reload_model, served_version
from temper.serve.server import TritonServer

pytestmark = pytest.mark.server

Switch = Callable[[Path, int], None]
OPEN = ("--model-control-mode=explicit", "--load-model=toy")


def test_server_with_model_control_is_told_and_a_version_that_does_not_load_is_not_served(
    two_versions: Path, switch: Switch
) -> None:
    with TritonServer(two_versions, models=["toy"], extra_args=OPEN) as server:
        url = server.grpc_url
        for version in (2, 1):
            switch(two_versions, version)
            reload_model(url, "toy", version)
            assert served_version(url, "toy") == version
        (two_versions / "toy" / "2" / "model.onnx").write_bytes(b"other")
        switch(two_versions, 2)
        with pytest.raises(
            ServerError, match=rf"model toy: version 2 is not loaded by {url}: .*SHA-256 is "
        ) as error:
            reload_model(url, "toy", 2)
        assert "\n" not in str(error.value)
        assert served_version(url, "toy") == 1
        assert served_version(url, "cat") is None
        # As of a server that reads another repository.
        with pytest.raises(
            ServerError, match=r"toy: is served as version 1 by .* after 0 s, expected version 7; does"
        ):
            switch(two_versions, 1)
            reload_model(url, "toy", 7, timeout_s=0.1)


def test_server_that_loads_nothing_is_one_line(
    two_versions: Path, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_FOLLOWS_S", 0.5)
    with TritonServer(two_versions, models=["toy"]) as server:
        switch(two_versions, 2)
        match = (
            f"^model toy: is served as version 1 by {server.grpc_url} after 0 s, expected version 2: the server "
        )
        with pytest.raises(
            ServerError, match=f"{match}loads nothing .*; restart it, or start it with --model-con"
        ):
            reload_model(server.grpc_url, "toy", 2)


def test_temper_serve_is_waited_for(two_versions: Path, switch: Switch, until: Callable[..., None]) -> None:
    said: list[str] = []
    with TritonServer(two_versions, models=["toy"], reloads=True) as server, ThreadPoolExecutor(1) as owner:
        follower = Follower(server, said.append)
        switch(two_versions, 2)

        def followed() -> list[str]:
            follower.look()
            return said

        loaded = owner.submit(until, followed)
        reload_model(server.grpc_url, "toy", 2)
        assert served_version(server.grpc_url, "toy") == 2
        loaded.result()
    assert said == ["switched: toy is served as version 2"]


def test_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ServerError, match=r"127.0.0.1:9"):
        reload_model("127.0.0.1:9", "toy", 2)
