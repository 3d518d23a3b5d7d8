"""Run a command until it ends or standard input closes; then stop its process group and remove its folder.

Started by `temper.server` with isolated Python and no packages. Standard input is a pipe held by the parent: it
closes when the parent ends, whatever ended it, so no server is left behind. The first line on standard output is
the command's process id.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import threading

_GRACE_S = 15


def _stop(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def main() -> None:
    """Run the command line's second and further arguments; the first is the run folder, removed at the end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process = subprocess.Popen(
        sys.argv[2:], stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=_default_signals
    )
    os.write(1, f"{process.pid}\n".encode())
    ended, wake = os.pipe()
    threading.Thread(target=_close_at_end, args=(process, wake), daemon=True).start()
    # Readable means closed: the parent never writes, and the wait above closes its end when the command ends.
    select.select([0, ended], [], [])
    if process.poll() is None:
        _stop(process)
    process.wait()
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    # Triton's python stubs share our process group; none may outlive the server.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGKILL)


def _close_at_end(process: subprocess.Popen[bytes], wake: int) -> None:
    process.wait()
    os.close(wake)


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
