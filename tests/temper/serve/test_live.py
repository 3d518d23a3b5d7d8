"""`temper promote --url` and `rollback --url` on a real server that somebody else runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from temper.builder.publish.versions import served_version
from temper.cli.main import cli
from temper.serve import reload
from temper.serve.server import TritonServer

pytestmark = pytest.mark.server

ANYWAY = ("--override", "--reason", "a test")


def run(command: str, repository: Path, url: str, *more: str) -> Result:
    return CliRunner().invoke(cli, [command, "toy", "--repository", str(repository), "--url", url, *more])


def reasons(repository: Path) -> list[tuple[int, str]]:
    options = ["history", "toy", "--repository", str(repository), "--json"]
    return [(one["after"], one["reason"]) for one in json.loads(CliRunner().invoke(cli, options).output)["events"]]


def test_server_is_switched_with_the_repository(two_versions: Path) -> None:
    control = ("--model-control-mode=explicit", "--load-model=toy")
    with TritonServer(two_versions, models=["toy"], extra_args=control) as server:
        for command, more, version in (("promote", ANYWAY, 2), ("rollback", (), 1)):
            result = run(command, two_versions, server.grpc_url, *more)
            assert (result.exit_code, result.output) == (
                0,
                f"toy: version {version} is served, version {3 - version} before\n",
            )
            assert reload.served_version(server.grpc_url, "toy") == served_version(two_versions / "toy") == version


def test_version_that_the_server_does_not_load_is_taken_back(
    two_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the server loads nothing that it is asked to."""
    monkeypatch.setattr(reload, "_FOLLOWS_S", 0.2)
    with TritonServer(two_versions, models=["toy"]) as server:
        result = run("promote", two_versions, server.grpc_url, *ANYWAY)
        assert result.exit_code == 1
        line = f"model toy: is served as version 1 by {server.grpc_url} after 0 s, expected version 2: the server"
        assert result.stderr.startswith(f"error: {line}")
        assert result.stderr.endswith("; version 1 of toy is served again\n")
        assert reload.served_version(server.grpc_url, "toy") == served_version(two_versions / "toy") == 1
    (promoted, why), (back, reason) = reasons(two_versions)
    assert (promoted, why, back) == (2, "a test", 1)
    assert reason.startswith(line)


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_nothing_is_switched_for_a_server_that_is_not_there(two_versions: Path, command: str) -> None:
    CliRunner().invoke(cli, ["promote", "toy", "--repository", str(two_versions), "--version", "2", *ANYWAY])
    CliRunner().invoke(cli, ["promote", "toy", "--repository", str(two_versions), "--version", "1", *ANYWAY])
    before = reasons(two_versions)
    result = run(command, two_versions, "127.0.0.1:9", *(ANYWAY if command == "promote" else ()))
    assert result.exit_code == 1
    assert "127.0.0.1:9" in result.stderr
    assert (reasons(two_versions), served_version(two_versions / "toy")) == (before, 1)
