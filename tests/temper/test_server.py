"""The embedded tritonserver: its start, its errors and its end. Every server here is a real one."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from temper.errors import ServerError
from temper.server import TritonServer

pytestmark = pytest.mark.server

Until = Callable[[Callable[[], object]], None]


def _gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _stubs_of(server_pid: int) -> list[int]:
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    return [int(child) for child in children]


def test_server_listens_on_loopback_only(server: TritonServer) -> None:
    with socket.create_connection(("127.0.0.1", server.grpc_port)):
        pass
    ports = {server.grpc_port, server.http_port, server.metrics_port}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]
    ]
    listening = [row[1].split(":") for row in rows if row[3] == "0A"]
    ours = [address for address, port in listening if int(port, 16) in ports]
    assert len(ours) == 3
    # 127.0.0.1, plain or as an IPv4 address in IPv6 clothing.
    assert set(ours) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_server_ends_with_its_stubs_when_the_context_closes(toy_repository: Path, until: Until) -> None:
    with TritonServer(toy_repository) as server:
        pids = [server.pid, *_stubs_of(server.pid)]
        assert server.alive
        assert len(pids) > 1
    until(lambda: _gone(pids))
    assert not server.alive


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_server_ends_when_its_parent_dies(
    toy_repository: Path, tmp_path: Path, until: Until, number: signal.Signals
) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from temper.server import TritonServer
        with TritonServer({str(toy_repository)!r}) as server:
            print(server.pid, flush=True)
            # In steps: a signal that comes just before a sleep begins is seen only when it ends.
            while True:
                time.sleep(0.1)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    pids = [pid, *_stubs_of(pid)]
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    until(lambda: _gone(pids))
    # The supervisor removes the run folder after the last process of the server has gone.
    until(lambda: not list(tmp_path.glob("temper-triton-*")))


def test_server_refuses_a_port_in_use(toy_repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} is in use.*choose another"):
            TritonServer(toy_repository, grpc_port=port).start()


def test_server_refuses_a_missing_repository(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no such folder; publish a model first"):
        TritonServer(tmp_path / "nowhere").start()


def test_server_refuses_an_empty_repository(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="holds no model; publish one with `temper build`"):
        TritonServer(tmp_path).start()


def test_server_refuses_an_unknown_model(toy_repository: Path) -> None:
    with pytest.raises(ServerError, match=r"model 'toy_int4' is not in .* it holds: toy_fp32"):
        TritonServer(toy_repository, models=["toy_int4"]).start()


def test_server_serves_the_others_when_one_model_is_broken(toy_repository: Path) -> None:
    broken = toy_repository / "broken"
    (broken / "1").mkdir(parents=True)
    (broken / "config.pbtxt").write_text('name: "broken"\nbackend: "temper"\nmax_batch_size: 4\n')
    with TritonServer(toy_repository, strict=False) as server:
        assert "SHA256SUMS cannot be read" in server.failed["broken"]
        assert list(server.failed) == ["broken"]
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert client.is_model_ready("toy_fp32")
    with pytest.raises(ServerError, match="tritonserver could not load broken: .*SHA256SUMS cannot be read"):
        TritonServer(toy_repository).start()


@pytest.mark.parametrize("asked", [True, False], ids=["log asked for", "no log asked for"])
def test_server_that_died_says_how_and_starts_again_at_the_same_address(
    toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Until, asked: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    log = folder / "server.log" if asked else None
    server = TritonServer(toy_repository, log_file=log)
    assert server.death() is None
    with server:
        assert server.death() is None
        url = server.grpc_url
        os.kill(server.pid, signal.SIGSEGV)
        until(lambda: _gone([server.pid]))
        death = server.death()
        assert not server.alive
        found = re.fullmatch(r"tritonserver died by SIGSEGV; its backtrace is in (.*)", death or "")
        assert found, death
        assert "Signal (11) received" in Path(found[1]).read_text()
        if asked:
            assert found[1] == str(log)
        server.restart()
        assert server.alive
        assert server.death() is None
        with triton.InferenceServerClient(url) as client:
            assert client.is_model_ready("toy_fp32")
    assert server.death() is None
    # Only the log of the server that died is left behind.
    assert [str(path) for path in folder.iterdir()] == [found[1]]


def test_server_log_survives_where_it_was_asked_for(toy_repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    with (
        TritonServer(toy_repository, log_file=log) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        image = triton.InferInput("image", [1, 32, 32, 3], "UINT8")
        image.set_data_from_numpy(np.zeros((1, 32, 32, 3), np.uint8))
        assert client.infer("toy_fp32", [image]).as_numpy("logits").shape == (1, 10)
    assert "OpenVINO" in log.read_text()
