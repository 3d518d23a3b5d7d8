"""A version is made in the background, and serves like any other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from temper.backends.temper import priority


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
    if not priority._can_undo(before):
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


def test_nothing_is_lowered_that_could_not_be_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before, lower = nice_of(0), os.setpriority

    def forbid(which: int, who: int, value: int) -> None:
        if value <= before:
            raise PermissionError("no")
        lower(which, who, value)

    monkeypatch.setattr(os, "setpriority", forbid)
    with priority.in_background():
        assert nice_of(0) == before
