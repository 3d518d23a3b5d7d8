"""A version is made in the background, and serves like any other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from temper.backends.temper import priority
from temper.serve._stubs import children, read_file
from temper.serve.server import TritonServer
from tests.conftest import Until


@pytest.fixture
def worker() -> Iterator[list[threading.Thread]]:
    """Threads that go on until the test ends."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join()


def nice_of(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def test_threads_give_way_until_it_ends(worker: list[threading.Thread]) -> None:
    before, ended = nice_of(0), threading.Event()
    if not priority.can_undo(before):
        pytest.skip("this user may not raise a priority again")
    try:
        with pytest.raises(ValueError, match="broken"), priority.in_background():
            worker.append(threading.Thread(target=ended.wait))
            worker[0].start()
            assert nice_of(0) == nice_of(worker[0].native_id or 0) == 19
            raise ValueError("broken")
        assert nice_of(0) == nice_of(worker[0].native_id or 0) == before
    finally:
        ended.set()


def test_it_goes_back_to_what_it_was_before_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    before = nice_of(0)
    if not priority.can_undo(before):
        pytest.skip("this user may not raise a priority again")
    monkeypatch.setenv(priority.BEFORE, str(before))
    try:
        priority.lower()
        with priority.in_background():
            assert nice_of(0) == 19 and priority.BEFORE not in os.environ
        assert nice_of(0) == before
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def test_it_gives_way_for_so_long_only(until: Until) -> None:
    before = nice_of(0)
    if not priority.can_undo(before):
        pytest.skip("this user may not raise a priority again")
    with priority.in_background(limit_s=0.01):
        until(lambda: nice_of(0) == before)


@pytest.mark.server
def test_a_plugin_serves_at_the_priority_of_its_server(server: TritonServer) -> None:
    stubs = [
        pid for pid in children(server.pid) if b"triton_python_backend_stub" in read_file(f"/proc/{pid}/cmdline")
    ]
    assert stubs
    threads = [int(thread.name) for pid in stubs for thread in Path(f"/proc/{pid}/task").iterdir()]
    assert {nice_of(thread) for thread in threads} == {nice_of(server.pid)}


def test_nothing_is_lowered_that_could_not_be_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before, lower = nice_of(0), os.setpriority

    def forbid(which: int, who: int, value: int) -> None:
        if value <= before:
            raise PermissionError("no")
        lower(which, who, value)

    monkeypatch.setattr(os, "setpriority", forbid)
    with priority.in_background():
        assert nice_of(0) == before
