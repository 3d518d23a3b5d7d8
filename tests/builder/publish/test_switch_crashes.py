"""Switching that is killed at any moment: one of the two is served, and the next switch goes on from there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WITH_HELPERS = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}

# Forks a switcher for every number of steps, each killed by SIGKILL just before its n-th one.
KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from publishing import CONFIG, publish_bytes, read_config
from temper.builder.publish.ensemble import publish_jpeg
from temper.builder.publish.switch import read_history, settle, switch
from temper.serve.verify import verify_repository
import google.protobuf.text_format, tritonclient.grpc  # or their files count as ours

def kill_before(limit):
    count = 0
    def step():
        nonlocal count
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, arguments):
        if event in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "fcntl.flock"}:
            step()
    fsync = os.fsync
    def stepping(descriptor):
        step()
        fsync(descriptor)
    os.fsync = stepping
    sys.addaudithook(hook)

def publish(folder, number):
    card = {"made of": number}
    publish_bytes(folder, f"engine {number}".encode(), in_ensemble=True, card=card)
    config = replace(CONFIG, in_ensemble=True)
    publish_jpeg(folder / "repository", config, labels=["cat", "dog"], card=card)

def served(repository):
    return {path.name: read_config(path).version_policy.specific.versions[0] for path in repository.iterdir()}

root, going_back = Path(sys.argv[1]), sys.argv[2] == "rolled back"
old, new = (2, 1) if going_back else (1, 2)
both = [dict.fromkeys(("m_int8", "m_int8_jpeg", "m_int8_jpeg_decode"), version) for version in (old, new)]
for limit in range(1, 500):
    folder = root / str(limit)
    repository = folder / "repository"
    folder.mkdir()
    for number in (1, 2):
        publish(folder, number)
    if going_back:
        switch(repository, "m_int8", 2, event="promoted")
    begun = len(read_history(repository, "m_int8"))
    pid = os.fork()
    if pid == 0:
        kill_before(limit)
        switch(repository, "m_int8", new, event=sys.argv[2])
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    left = served(repository)
    assert left["m_int8"] in (old, new), (limit, left)
    assert [one.reason for one in verify_repository(repository)] == [None] * 3, limit
    # Whoever reads the history finds in it what is served.
    events = read_history(repository, "m_int8")
    happened = [sys.argv[2]] if left["m_int8"] == new else []
    assert [one.event for one in events[begun:]] == happened, (limit, events)
    settle(repository)
    assert served(repository) == both[left["m_int8"] == new], limit
    assert read_history(repository, "m_int8") == events, limit
    switch(repository, "m_int8", new, event=sys.argv[2])
    switch(repository, "m_int8", old, event="promoted")
    assert served(repository) == both[0], limit
    assert [one.event for one in read_history(repository, "m_int8")][begun:] == [sys.argv[2], "promoted"], limit
    for model in ("m_int8_jpeg", "m_int8_jpeg_decode"):
        assert len(read_history(repository, model)) == begun + 2, limit
    work = folder / ".repository-work"
    assert [path.name for path in work.iterdir()] == ["lock"], (limit, list(work.iterdir()))
    print(limit, status, left)
    if status == 0:
        break
"""


@pytest.mark.parametrize("event", ["promoted", "rolled back"])
@pytest.mark.slow
def test_kill_at_any_moment_leaves_one_of_the_two_served(tmp_path: Path, event: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), event], env=WITH_HELPERS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = [line.split()[1] for line in done.stdout.splitlines()]
    assert statuses[-1] == "0", "the last one was not killed"
    assert set(statuses[:-1]) == {"9"}
    assert len(statuses) > 40, done.stdout
