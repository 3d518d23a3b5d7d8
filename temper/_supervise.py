"""Run a command until it ends or standard input closes; then stop its process group and remove its folder.

Started by `temper.server` with isolated Python and no packages. Standard input is a pipe held by the parent: its
first line is the order, in JSON, with `command`, `folder` (the run folder) and `log` (the file of the command's
output). The pipe closes when the parent ends, whatever ended it, so no server is left behind. The first line on
standard output is the command's process id; a second one, in JSON, comes only when the command ended by itself:
its `status` (negative: the signal's number) and `log`, which is moved out of the run folder that is removed.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

_GRACE_S = 15


def main() -> None:
    """Carry out the order on standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    order: dict[str, Any] = json.loads(_read_line())
    process = subprocess.Popen(
        order["command"], stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=_default_signals
    )
    _write(str(process.pid))
    ended, wake = os.pipe()
    threading.Thread(target=_close_at_end, args=(process, wake), daemon=True).start()
    # Readable means closed: the parent writes no more, and the wait above closes its end when the command ends.
    closed, _, _ = select.select([0, ended], [], [])
    if 0 not in closed:
        _write(json.dumps({"status": process.wait(), "log": _keep_log(order["log"], order["folder"])}))
    elif process.poll() is None:
        _stop(process)
    process.wait()
    shutil.rmtree(order["folder"], ignore_errors=True)
    # Triton's python stubs share our process group; none may outlive the server.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGKILL)


def _read_line() -> bytes:
    """Read byte by byte: what a buffer swallowed would hide that the pipe is readable."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit("no order came")
        line += byte
    return line


def _write(line: str) -> None:
    try:
        os.write(1, f"{line}\n".encode())
    except OSError:
        pass  # the parent is gone


def _close_at_end(process: subprocess.Popen[bytes], wake: int) -> None:
    process.wait()
    os.close(wake)


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _keep_log(log: str, folder: str) -> str:
    if os.path.dirname(log) != folder:
        return log
    descriptor, kept = tempfile.mkstemp(prefix="tritonserver-", suffix=".log", dir=os.path.dirname(folder))
    os.close(descriptor)
    os.replace(log, kept)
    return kept


if __name__ == "__main__":
    main()
