"""The embedded server where the paths, the temporary folder or the environment are not as one hopes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from temper.cli.main import cli
from temper.errors import ServerError
from temper.serve.server import TritonServer

pytestmark = pytest.mark.server

Mount = Callable[[Path, str], list[str]]

ROOT = Path(__file__).parents[3]
# What a shell, or a decoder that knows only ASCII, stumbles over; the last byte is no UTF-8.
ODD = os.fsdecode("my (v2) é 'q\" $HOME `id` ; & \n * ".encode() + b"\xe8")
ODD_ASCII = "tmp (1) 'q\" $HOME `id` ; & \n *"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    return path


def query(
    image: Path, repository: Path, *, before: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """`temper query` as a user starts it."""
    command = [sys.executable, "-m", "temper.cli.main", "query", str(image), "--model", "toy_fp32", "--repository"]
    return subprocess.run(
        [*before, *command, str(repository)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )


def test_odd_paths_are_served_behind_a_proxy(toy_repository: Path, image: Path, tmp_path: Path) -> None:
    repository, folder = tmp_path / ODD / "repository", tmp_path / ODD_ASCII
    shutil.copytree(toy_repository, repository)
    folder.mkdir()
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    done = query(image, repository, TMPDIR=str(folder), no_proxy="", no_grpc_proxy="", **nowhere)
    assert done.returncode == 0, done.stderr
    assert str(image) in done.stdout
    assert not list(folder.iterdir())


def test_failure_in_an_odd_repository_names_it(toy_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / ODD
    shutil.copytree(toy_repository, repository)
    (repository / "toy_fp32" / "1" / "SHA256SUMS").unlink()
    shutil.copytree(toy_repository / "toy_fp32", repository / "a b; touch x")
    with TritonServer(repository, strict=False, only_published=False) as server:
        assert f"{repository}/toy_fp32/1/SHA256SUMS" in server.failed["toy_fp32"]
        assert server.failed["a b; touch x"].startswith("its name may hold letters, digits and ")


def test_temporary_folder_beyond_ascii_is_refused_by_name(
    toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "modèles"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(ServerError, match="the temporary folder .*modèles' is not plain ASCII.*TMPDIR"):
        TritonServer(toy_repository).start()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("size=64m,noexec", "the temporary folder {} does not let programs run (noexec); point TMPDIR to another"),
        ("size=1m", "No space left on device; the temporary folder is {} ("),
        ("size=64m,ro", ""),  # Python itself takes another temporary folder
    ],
)
def test_temporary_folder_that_cannot_be_used_is_named(
    toy_repository: Path, image: Path, tmp_path: Path, mount: Mount, options: str, line: str
) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    done = query(image, toy_repository, before=mount(folder, options), TMPDIR=str(folder))
    if not line:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert line.format(folder) in last
    assert "TMPDIR" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:{grpc}", None),
        ("http://localhost:{grpc}", "expected host:port of the gRPC endpoint"),
        ("localhost", "expected host:port of the gRPC endpoint"),
        ("127.0.0.1:{http}", "gRPC port"),
    ],
)
def test_address_of_a_server(http_server: TritonServer, image: Path, address: str, message: str | None) -> None:
    url = address.format(grpc=http_server.grpc_port, http=http_server.http_port)
    result = CliRunner().invoke(cli, ["query", str(image), "--model", "toy_fp32", "--url", url])
    if message is None:
        assert result.exit_code == 0, result.output
    else:
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert message in line
