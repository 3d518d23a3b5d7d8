"""A process of ours beside this one, with a pipe to it.

It is a plain `python -c` process rather than one of `multiprocessing`'s, which would import the caller's main
module again; in a session of its own, so that Ctrl-C reaches only the parent; what it prints is dropped; and its
code is such that it ends when the pipe to the parent closes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

_ROOT = str(Path(__file__).absolute().parents[2])


def start_child(module: str, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a process that calls the `main` of a module with the descriptor of its end of a pipe.

    Args:
        module: full name, as `temper.client.load.worker`.
        environment: variables on top of this process's own.

    Returns:
        The process and our end of the pipe.
    """
    code = f"import sys; sys.path.insert(0, {_ROOT!r}); from {module} import main; main(int(sys.argv[1]))"
    ours, theirs = Pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **environment},
        )
    finally:
        theirs.close()
    return process, ours
