"""The watch over the servers that tests share, in a run of pytest of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

TESTS = """
import os
import signal

import pytest

from temper.client.client import Client

SEEN = []


@pytest.fixture(scope="module")
def client(server):
    with Client(server.grpc_url) as opened:
        yield opened


@pytest.fixture
def broken(server, until):
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.alive)
    raise RuntimeError("no server")


def test_first(client):
    assert client.server_ready()


def test_deadly(server, until):
    SEEN.append(server.grpc_url)
    os.kill(server.pid, signal.SIGSEGV)
    until(lambda: not server.alive)


def test_next(client, server):
    assert server.grpc_url == SEEN[0]
    assert client.model_info("toy_fp32").num_classes == 10


def test_deadly_fixture(client, broken):
    pass


def test_without_a_server():
    pass


def test_last(client):
    assert client.server_ready()
"""


@pytest.mark.server
@pytest.mark.slow
def test_death_of_a_shared_server_fails_one_test_by_name_and_the_next_has_a_new_one(tmp_path: Path) -> None:
    shutil.copy(HERE / "conftest.py", tmp_path)
    (tmp_path / "test_inner.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--basetemp", tmp_path / "inner"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
    )
    summary = done.stdout.partition("short test summary info")[2].splitlines()
    ends = [line.split(" - ")[0] for line in summary if "::" in line]
    assert sorted(ends) == sorted(
        [
            "PASSED test_inner.py::test_first",
            "FAILED test_inner.py::test_deadly",
            "PASSED test_inner.py::test_next",
            "ERROR test_inner.py::test_deadly_fixture",
            "ERROR test_inner.py::test_deadly_fixture",
            "PASSED test_inner.py::test_without_a_server",
            "PASSED test_inner.py::test_last",
        ]
    ), done.stdout
    death = r"the shared server died during this test: tritonserver died by {}; its backtrace is in (\S+)"
    found = re.search(death.format("SIGSEGV"), done.stdout)
    assert found, done.stdout
    assert "Signal (11) received" in Path(found[1]).read_text()
    assert re.search(death.format("SIGKILL"), done.stdout), done.stdout
