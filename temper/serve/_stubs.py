"""The processes of the model instances of a tritonserver. Part of the supervisor: only the standard library."""

from __future__ import annotations

import glob
import time
from typing import Any

# While models load, Triton itself notices most stubs that die and says why; of the others it waits for ever.
_LOADING_GRACE_S = 10.0
_SERVING_GRACE_S = 0.2
_STUB = b"triton_python_backend_stub"


class Stubs:
    """The children of tritonserver: one process per model instance.

    Triton reaps a stub only when it unloads the model itself: one that stays a zombie died by itself. Its instance
    then answers every request with an error while the server calls itself ready.
    """

    def __init__(self, server: int) -> None:
        """Watch the children of a process."""
        self._grace_s = _LOADING_GRACE_S
        self._server = server
        self.names: dict[int, str] = {}
        """The instance of every stub that was seen, by process id."""
        self._dead_since: dict[int, float] = {}

    def loading(self) -> None:
        """Say that a model is loaded or unloaded: a stub may end and wait to be reaped."""
        self._grace_s = _LOADING_GRACE_S

    def serving(self) -> None:
        """Say that all models are loaded: whatever ends from now on died."""
        self._grace_s = _SERVING_GRACE_S

    def look(self) -> dict[str, Any] | None:
        """Return the instance and the status of a stub that has been dead for the time of grace."""
        dead: dict[int, float] = {}
        for pid in children(self._server):
            fields = read_stat(pid)
            if fields and fields[0] == "Z":
                dead[pid] = self._dead_since.get(pid, time.monotonic())
                if time.monotonic() - dead[pid] >= self._grace_s:
                    return {"status": _exit_status(int(fields[49])), "instance": self.names.get(pid, "")}
            elif pid not in self.names:
                words = read_file(f"/proc/{pid}/cmdline").split(b"\0")
                if words[0].endswith(_STUB) and len(words) > 8:
                    self.names[pid] = words[8].decode(errors="replace")
        self._dead_since = dead
        return None


def has_dead_stub(server: int) -> bool:
    """Whether one of the stubs of a tritonserver has died; what is asked of its instance fails."""
    return any(read_stat(pid)[:1] == ["Z"] for pid in children(server))


def _exit_status(status: int) -> int:
    return -(status & 0x7F) if status & 0x7F else status >> 8


def children(pid: int) -> list[int]:
    children = b" ".join(read_file(path) for path in glob.glob(f"/proc/{pid}/task/*/children"))
    return [int(child) for child in children.split()]


def read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third, the state, on; none when the process is gone."""
    return read_file(f"/proc/{pid}/stat").decode(errors="replace").rpartition(")")[2].split()


def read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
