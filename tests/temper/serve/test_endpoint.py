"""What becomes of a command whose embedded server dies: a real one, killed while it answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from temper.cli.main import cli
from temper.client.images import top_k
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = [pytest.mark.server, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
Doom = Callable[..., None]
DEATH = r"tritonserver died by {}; its backtrace is in (\S+)"


def run(command: str, repository: Path, *args: object) -> Result:
    options = ["--repository", str(repository), "--model", "toy_fp32"]
    return CliRunner().invoke(cli, [command, *options, *map(str, args)])


def log_of(line: str, how: str, then: str) -> str:
    """What the log holds that a line about a death names."""
    found = re.fullmatch(DEATH.format(how) + re.escape(then), line)
    assert found, line
    return Path(found[1]).read_text()


def server_of(pid: int) -> int:
    """The tritonserver among a process's descendants."""
    if Path(f"/proc/{pid}/comm").read_text() == "tritonserver\n":
        return pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return max((server_of(int(child)) for child in children), default=0)


def test_load_is_measured_again_after_a_death(toy_repository: Path, doom: Doom) -> None:
    doom(signal.SIGSEGV)
    settings = ("--duration", 4, "--warmup", 0, "--concurrency", 2)
    result = run("load", toy_repository, *settings, "--json")
    assert result.exit_code == 0, result.output
    closed, opened = json.loads(result.stdout)
    assert closed["interrupted"] is opened["interrupted"] is None
    assert closed["errors"] == opened["errors"] == {}
    assert closed["duration_s"] == 4 and closed["completed"] > 0
    (line,) = [line for line in result.stderr.splitlines() if "died" in line]
    log = log_of(line, "SIGSEGV", "; started again, measuring closed loop, 2 in flight again")
    assert "Signal (11) received" in log


def test_load_is_measured_again_after_the_death_of_a_stub(toy_repository: Path, doom: Doom) -> None:
    doom(signal.SIGKILL, stub=True)
    result = run("load", toy_repository, "--duration", 4, "--warmup", 0, "--concurrency", 2, "--json")
    assert result.exit_code == 0, result.output
    for row in json.loads(result.stdout):
        assert (row["interrupted"], row["errors"]) == (None, {})
    (line,) = [line for line in result.stderr.splitlines() if "died" in line]
    assert line.endswith("; started again, measuring closed loop, 2 in flight again")


def test_load_ends_with_the_second_death(toy_repository: Path, doom: Doom) -> None:
    doom(signal.SIGSEGV, signal.SIGSEGV, share=0.002)
    result = run("load", toy_repository, "--duration", 600, "--warmup", 0, "--concurrency", "2,3")
    assert result.exit_code == 1
    head, row, *_ = result.stdout.splitlines()
    assert row.startswith("closed, 2 in flight")
    again, last = [line for line in result.stderr.splitlines() if "died by" in line]
    assert again.endswith("; started again, measuring closed loop, 2 in flight again")
    found = re.fullmatch(rf"error: {DEATH.format('SIGSEGV')}: the server at \S+ died .* s into the run: .*", last)
    assert found and "Signal (11) received" in Path(found[1]).read_text()


def test_query_prints_what_was_answered_before_a_death(
    toy_repository: Path,
    sample: Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    for index, pixels in enumerate(sample.images[:400]):
        Image.fromarray(pixels).save(tmp_path / f"{index:03}.png")
    start, print_labels, servers = TritonServer.start, top_k, list[TritonServer]()

    def start_known(server: TritonServer) -> TritonServer:
        servers.append(start(server))
        return server

    def kill_and_print(*args: object) -> object:
        if servers:
            pid = servers.pop().pid
            os.kill(pid, signal.SIGKILL)
            until(lambda: not Path(f"/proc/{pid}").exists())
        return print_labels(*args)  # type: ignore[arg-type]  # what it was called with

    monkeypatch.setattr(TritonServer, "start", start_known)
    monkeypatch.setattr("temper.cli.commands.query.top_k", kill_and_print)
    result = run("query", toy_repository, "--json", *sorted(tmp_path.glob("*.png")))
    assert result.exit_code == 1, result.output
    answered = [Path(one["image"]).name for one in json.loads(result.stdout)]
    assert 8 <= len(answered) < 400 and answered == [f"{index:03}.png" for index in range(len(answered))]
    assert re.fullmatch(rf"error: {DEATH.format('SIGKILL')}: .*", result.stderr.splitlines()[-1])


@pytest.mark.parametrize("stub", [False, True], ids=["server", "stub"])
def test_attack_goes_on_from_its_checkpoint(
    toy_repository: Path, sample: Sample, tmp_path: Path, doom: Doom, stub: bool
) -> None:
    np.save(tmp_path / "x.npy", sample.images[:100])
    np.save(tmp_path / "y.npy", sample.labels[:100])
    files = ("--images", tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--save", tmp_path / "found")
    doom(signal.SIGKILL, stage="square", share=0.3, stub=stub)
    result = run(
        "attack", toy_repository, *files, "--epsilon", 48, "--max-queries", 60, "--batch-size", 8, "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["accuracy"]["num_images"] == 100 and report["clean_accuracy"]["value"] > 0.8
    (line,) = [line for line in result.stderr.splitlines() if "died" in line]
    assert line.endswith("; started again, measuring square L\N{INFINITY} 48/255 on toy_fp32 again")
    # Less than all of it was asked of the second server.
    assert report["num_queries"] > report["queries_per_s"] * report["duration_s"]


def test_serve_starts_a_server_again_but_not_twice_in_a_minute(toy_repository: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "temper.cli.main", "serve", "--repository", toy_repository],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None and process.stderr is not None
    with process:
        lines, logs = [], []
        for number in (signal.SIGSEGV, signal.SIGKILL):
            # Each life has a log of its own.
            logs.append(next(line for line in process.stdout if line.startswith("log ")))
            os.kill(server_of(process.pid), number)
            lines.append(next(line.strip() for line in process.stderr if "died" in line))
    assert process.returncode == 1
    assert logs[0] != logs[1]
    assert "Signal (11) received" in log_of(lines[0], "SIGSEGV", "; started again")
    assert re.fullmatch(rf"error: {DEATH.format('SIGKILL')}, \d+ s after it was started again", lines[1])
