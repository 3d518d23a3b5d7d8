"""Processor time of the client, of tritonserver and of its Python stubs, read from /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path


class CpuMeter:
    """Counts from `start` to `stop`.

    Args:
        server_pid: tritonserver's process; its children are the stubs. Children of this process are the client's.
    """

    def __init__(self, server_pid: int) -> None:
        """Read nothing yet."""
        self._server_pid = server_pid
        self._begin = 0.0
        self._before: dict[int, float] = {}

    def start(self) -> None:
        """Begin the count."""
        self._before, self._begin = read_processes(), time.monotonic()

    def stop(self) -> dict[str, float]:
        """Processor seconds per second, that is cores in use, of client, tritonserver and stubs."""
        after, parents = read_processes(), read_parents()
        seconds = max(time.monotonic() - self._begin, 1e-9)
        cores = {"client": 0.0, "tritonserver": 0.0, "stubs": 0.0}
        for pid, used in after.items():
            who = self._who(pid, parents)
            if who is not None:
                cores[who] += used - self._before.get(pid, 0.0)
        return {who: round(used / seconds, 2) for who, used in cores.items()}

    def _who(self, pid: int, parents: dict[int, int]) -> str | None:
        if pid == self._server_pid:
            return "tritonserver"
        own = os.getpid()
        while pid not in (0, 1):
            if pid == self._server_pid:
                return "stubs"
            if pid == own:
                return "client"
            pid = parents.get(pid, 0)
        return None


def read_processes() -> dict[int, float]:
    """Processor seconds that each process has used so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    return {pid: (int(fields[11]) + int(fields[12])) / ticks for pid, fields in _stats()}


def read_parents() -> dict[int, int]:
    """Each process's parent."""
    return {pid: int(fields[1]) for pid, fields in _stats()}


def private_bytes(pid: int) -> int:
    """A process's resident memory but for shared memory and mapped files; 0 when it has ended."""
    try:
        size, resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[:3])
    except OSError:
        return 0
    del size
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _stats() -> list[tuple[int, list[str]]]:
    """Each process, and the fields of its /proc/<pid>/stat from the state on (proc(5))."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue  # it has just ended
            found.append((int(folder.name), text.rpartition(")")[2].split()))
    return found
