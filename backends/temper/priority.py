"""A new version is made beside one that serves on the same cores, so it waits for that where both want one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOWEST = 19


@contextmanager
def in_background() -> Iterator[None]:
    """Gives way to all other processes, with every thread that is begun meanwhile.

    Does nothing where the kernel would not undo it: that takes CAP_SYS_NICE, or a limit of nice (RLIMIT_NICE).
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if not _can_undo(before):
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    try:
        yield
    finally:
        for thread in Path("/proc/self/task").iterdir():
            try:
                os.setpriority(os.PRIO_PROCESS, int(thread.name), before)
            except ProcessLookupError:
                continue  # it has ended


def _can_undo(priority: int) -> bool:
    """Tries it on a thread of its own; Linux has a priority for each."""
    undone = False

    def attempt() -> None:
        nonlocal undone
        try:
            os.setpriority(os.PRIO_PROCESS, 0, min(priority + 1, _LOWEST))
            os.setpriority(os.PRIO_PROCESS, 0, priority)
            undone = True
        except PermissionError:
            pass

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return undone
