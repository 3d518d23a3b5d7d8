"""Run tritonserver until it ends, one of its stubs dies or standard input closes; then leave nothing of it behind.

Started by `server.py` with isolated Python and no packages: what it imports needs the standard library only.
Standard input is a pipe held by the parent: its first line is the order, in JSON (`command`, `secrets`, `folder`,
`environment`, `log`); a later one says whether the server is `loading` or `serving`. The pipe closes when the
parent ends, whatever ended it, so no server is left behind. Standard output is JSON, too: the first line is `pid`,
the server's, and `hidden`, whether its secrets are in no command line; a second one comes only when it ended by
itself: `status` (negative: the signal's number), of the stub of `instance` where that one died, and `log`, which
is moved out of the run folder that is removed.

Nothing of this is done after a SIGKILL, which Ray, for one, gives to what its workers leave behind. So a second
process, which does nothing else, waits for the supervisor's end and then kills what is left of the server.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from typing import Any

from temper.serve._launch import SIGNALS, CannotHideError, launch
from temper.serve._stubs import Stubs, read_file, read_stat

_GRACE_S = 15
_POLL_S = 0.2


def main() -> None:
    """Carry out the order on standard input."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    order: dict[str, Any] = json.loads(_read_line() or "{}")
    if not order:
        return
    guard, to_guard = _start_guard()
    process, hidden = _launch(order["command"], order["secrets"], order["environment"], order["folder"])
    os.write(to_guard, f"{process.pid}\n".encode())
    _write(json.dumps({"pid": process.pid, "hidden": hidden}))
    report = _watch(process)
    if report is not None:
        _write(json.dumps({**report, "log": keep_log(order["log"], order["folder"])}))
        process.kill()
    elif process.poll() is None:
        _stop(process)
    process.wait()
    # Triton's python stubs share its process group; none may outlive the server.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    os.kill(guard, signal.SIGKILL)
    remove_traces(order["folder"])


def _start_guard() -> tuple[int, int]:
    """Fork a process that kills a process group when this one is gone; no kill of this one's own group reaches it.

    The kernel ends tritonserver together with its supervisor, but not the stubs: most see that the server is gone,
    but some of those that are still loading wait for ever.

    Returns:
        Its process id, and where the number of the group goes, as a line.
    """
    told, to_guard = os.pipe()
    guard = os.fork()
    if guard:
        os.close(told)
        return guard, to_guard
    os.setsid()
    # What the supervisor has open would hide from others that it is gone: its pipes, the lock of the run folder.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor != told:
            with contextlib.suppress(OSError):  # the list's own is closed by now
                os.close(descriptor)
    content = b""
    while read := os.read(told, 64):
        content += read
    if content:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(content), signal.SIGKILL)
    os._exit(0)


def _launch(
    command: list[str], secrets: list[str], environment: dict[str, str], folder: str
) -> tuple[subprocess.Popen[bytes], bool]:
    """Start the server, with its secrets in the command line where they cannot be hidden; say whether they are."""
    try:
        return launch(command, secrets, environment, folder), True
    except CannotHideError:
        return launch([*command, *secrets], [], environment, folder), False


def keep_log(log: str, folder: str) -> str:
    """Move the log of a server that died out of the folder that is removed; return where it is."""
    if os.path.dirname(log) != folder or not os.path.exists(log):
        return log
    descriptor, kept = tempfile.mkstemp(prefix="tritonserver-", suffix=".log", dir=os.path.dirname(folder))
    os.close(descriptor)
    os.replace(log, kept)
    return kept


def remove_traces(folder: str) -> None:
    """Remove a run folder, the shared memory that is named after it, and what Triton forgets in /tmp."""
    for region in glob.glob(f"/dev/shm/{glob.escape(os.path.basename(folder))}-*"):
        with contextlib.suppress(OSError):
            os.unlink(region)
    shutil.rmtree(folder, ignore_errors=True)
    _remove_environments()


def _watch(process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """Wait for the end; return what ended by itself, None when the parent closed the pipe."""
    ended, wake = os.pipe()
    threading.Thread(target=_close_at_end, args=(process, wake), daemon=True).start()
    stubs = Stubs(process.pid)
    while True:
        readable, _, _ = select.select([0, ended], [], [], _POLL_S)
        if ended in readable:
            return {"status": process.wait()}
        if readable:
            line = _read_line()
            if not line:
                return None
            if line == b"loading\n":
                stubs.loading()
            else:
                stubs.serving()
        dead = stubs.look()
        # A server that is ending leaves its stubs behind for a moment.
        if dead is not None and process.poll() is None:
            return dead


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _close_at_end(process: subprocess.Popen[bytes], wake: int) -> None:
    process.wait()
    os.close(wake)


def _read_line() -> bytes:
    """Read byte by byte: what a buffer swallowed would hide that the pipe is readable."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # the parent is gone
        os.write(1, f"{line}\n".encode())


def _remove_environments() -> None:
    """Remove the empty folders that a Triton which was killed left behind: each of its Python backends makes one.

    Their names do not tell whose they are, so what is younger than a living server of this user stays.
    """
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    starts = [time.time()]
    for entry in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if os.stat(entry).st_uid == os.getuid() and read_file(f"{entry}/comm") == b"tritonserver\n":
                ticks = int(read_stat(int(os.path.basename(entry)))[19])
                starts.append(boot + ticks / os.sysconf("SC_CLK_TCK") - 2)
    for folder in glob.glob("/tmp/python_env_*"):  # the path is fixed in Triton, whatever TMPDIR says
        with contextlib.suppress(OSError):
            about = os.lstat(folder)
            if about.st_uid == os.getuid() and about.st_ctime < min(starts):
                os.rmdir(folder)


if __name__ == "__main__":
    main()
