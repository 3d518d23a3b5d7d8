"""A new version is made beside one that serves on the same cores, so it waits for that where both want one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BEFORE = "TEMPER_NICE"
"""The environment variable with the priority to go back to, of a process that was begun with the lowest one."""
LOWEST = 19
_LIMIT_S = 30.0


@contextmanager
def in_background(limit_s: float = _LIMIT_S) -> Iterator[None]:
    """Gives way to all other processes, with every thread that is begun meanwhile.

    Does nothing where the kernel would not undo it: that takes CAP_SYS_NICE, or a limit of nice (RLIMIT_NICE).

    Args:
        limit_s: For how long at most, in seconds: on a machine without a free moment a version shall load too.
    """
    before = int(os.environ.pop(BEFORE, os.getpriority(os.PRIO_PROCESS, 0)))
    if not can_undo(before):
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
    limit = threading.Timer(limit_s, _give_all, (before,))
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        limit.cancel()
        _give_all(before)


def lower() -> None:
    """Gives way to all other processes from now on: what is ended has nothing left to answer."""
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST)


def _give_all(priority: int) -> None:
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread.name), priority)
        except ProcessLookupError:
            continue  # it has ended


def can_undo(priority: int) -> bool:
    """Whether a priority can be given again after a lower one; a thread of its own tries it.

    Linux has a priority for each thread.
    """
    undone = False

    def attempt() -> None:
        nonlocal undone
        try:
            os.setpriority(os.PRIO_PROCESS, 0, min(priority + 1, LOWEST))
            os.setpriority(os.PRIO_PROCESS, 0, priority)
            undone = True
        except PermissionError:
            pass

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return undone
