"""The embedded tritonserver: its start, its errors and its end. Every server here is a real one."""

from __future__ import annotations

import functools
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
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # ships none

from temper.errors import ServerError
from temper.serve.run_folder import make_run_folder
from temper.serve.server import TritonServer

pytestmark = pytest.mark.server

Until = Callable[[Callable[[], object]], None]


def _gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _stubs_of(server_pid: int) -> list[int]:
    lists = Path(f"/proc/{server_pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def _supervisor_of(server: TritonServer) -> int:
    return int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[1])


def _traces(folder: Path) -> list[Path]:
    """What is there of a server that runs or ran in a folder: the folder, its shared memory."""
    return [*folder.parent.glob(folder.name), *Path("/dev/shm").glob(f"{folder.name}-*")]


def test_server_ends_with_its_stubs_when_the_context_closes(
    toy_repository: Path, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    # A group that has ended by itself may be another's by now.
    monkeypatch.setattr("temper.serve.server.os.killpg", lambda *_: pytest.fail("killed a group"))
    with TritonServer(toy_repository) as server:
        pids = [server.pid, *_stubs_of(server.pid)]
        folder = server.log.parent
        assert server.alive
        # One region per instance.
        assert len(_traces(folder)) >= len(pids) > 2
    until(lambda: _gone(pids))
    assert not server.alive
    assert not _traces(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_server_ends_when_its_parent_dies(
    toy_repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    until: Until,
    number: signal.Signals | None,
) -> None:
    """None: the supervisor is killed as well, and the next start removes what is left."""
    script = textwrap.dedent(
        f"""
        import time
        from temper.serve.server import TritonServer
        with TritonServer({str(toy_repository)!r}) as server:
            print(server.pid, server.log.parent, flush=True)
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
    pid, _, name = parent.stdout.readline().partition(" ")
    pids, folder = [int(pid), *_stubs_of(int(pid))], Path(name.strip())
    if number is None:
        # Such a stub does not see that the server is gone, as some that are still loading do not.
        os.kill(pids[-1], signal.SIGSTOP)
        os.kill(parent.pid, signal.SIGSTOP)
        os.kill(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    parent.send_signal(number or signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until(lambda: _gone(pids))
    if number is None:
        assert folder.exists()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        _, lock = make_run_folder()
        os.close(lock)
        assert not _traces(folder)
    # The supervisor removes them after the last process of the server has gone.
    until(lambda: not _traces(folder))


def test_run_folder_of_a_living_server_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, lock = make_run_folder()
    second, other_lock = make_run_folder()
    assert first.is_dir()
    os.close(lock)
    third, third_lock = make_run_folder()
    assert sorted(tmp_path.iterdir()) == sorted([second, third])
    os.close(other_lock)
    os.close(third_lock)


def test_server_whose_stub_was_killed_is_ended_and_names_the_instance(toy_repository: Path, until: Until) -> None:
    with TritonServer(toy_repository) as server:
        stubs = _stubs_of(server.pid)
        pids, folder = [server.pid, *stubs], server.log.parent
        os.kill(stubs[0], signal.SIGKILL)
        until(server.death)
        found = re.fullmatch(
            r"tritonserver died with the process of model instance toy_fp32_0_[01], which was killed by SIGKILL; "
            r"its log is in (.*)",
            server.death() or "",
        )
        assert found, server.death()
        assert "TRITONBACKEND_ModelInstanceInitialize: toy_fp32" in Path(found[1]).read_text()
        Path(found[1]).unlink()
        until(lambda: _gone(pids))
        server.restart()
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert client.is_model_ready("toy_fp32")
        # The supervisor's own death takes the server with it, and what it leaves is removed.
        pids, folder = [server.pid, *_stubs_of(server.pid)], server.log.parent
        os.kill(_supervisor_of(server), signal.SIGKILL)
        until(server.death)
        death = server.death() or ""
        assert death.startswith("tritonserver ended with its supervisor, which was killed; its log is in ")
        Path(death.rpartition(" ")[2]).unlink()
    until(lambda: _gone(pids))
    assert not _traces(folder)


def test_death_is_known_although_the_supervisor_is_stopped(
    toy_repository: Path, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr("temper.serve.server._REPORT_S", 0.5)
    monkeypatch.setattr("temper.serve.server._STOP_S", 0.5)
    with TritonServer(toy_repository) as server:
        pids, folder = [server.pid, *_stubs_of(server.pid)], server.log.parent
        os.kill(_supervisor_of(server), signal.SIGSTOP)
        os.kill(pids[1], signal.SIGKILL)
        until(server.death)
        death = server.death() or ""
        assert death.startswith("tritonserver or a model instance died, and its supervisor does not say how; ")
        Path(death.rpartition(" ")[2]).unlink()
    until(lambda: _gone(pids))
    assert not _traces(folder)


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


@pytest.mark.parametrize(
    ("only_published", "reason"),
    [
        (True, "/config.pbtxt: got name 'broken' and versions [], expected 'broken' and one version"),
        (False, "/1/SHA256SUMS cannot be read"),
    ],
)
@pytest.mark.parametrize("reloads", [False, True], ids=["", "reloads"])
def test_server_serves_the_others_when_one_model_is_broken(
    toy_repository: Path, only_published: bool, reason: str, reloads: bool
) -> None:
    broken = toy_repository / "broken"
    (broken / "1").mkdir(parents=True)
    (broken / "config.pbtxt").write_text('name: "broken"\nbackend: "temper"\nmax_batch_size: 4\n')
    make = functools.partial(TritonServer, toy_repository, only_published=only_published, reloads=reloads)
    with make(strict=False) as server:
        # The user's path, not that of a link.
        assert f"{broken}{reason}" in server.failed["broken"]
        assert list(server.failed) == ["broken"]
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert client.is_model_ready("toy_fp32")
    with pytest.raises(ServerError, match=f"broken: .*{re.escape(reason)}"):
        make().start()


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
        config = toy_repository / "toy_fp32" / "config.pbtxt"
        published = config.read_text()
        config.write_text(published.replace('"temper"', '"python"'))
        with pytest.raises(
            ServerError, match="^model toy_fp32: .*got the backend 'python', which temper never pub"
        ):
            server.restart()
        assert not server.alive
        config.write_text(published)
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
    log.parent.mkdir()
    log.write_text("error: failed to load all models, a life ago\n")
    with pytest.raises(ServerError, match="died|ended") as failed:
        TritonServer(toy_repository, log_file=log, extra_args=["--no-such-option"]).start()
    assert "a life ago" not in str(failed.value)
    with (
        TritonServer(toy_repository, log_file=log) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        image = triton.InferInput("image", [1, 32, 32, 3], "UINT8")
        image.set_data_from_numpy(np.zeros((1, 32, 32, 3), np.uint8))
        assert client.infer("toy_fp32", [image]).as_numpy("logits").shape == (1, 10)
        assert not server._gave_up()
    assert "a life ago" in log.read_text()
    assert "OpenVINO" in log.read_text()


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
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert client.is_server_ready()
