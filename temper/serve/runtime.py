"""What the embedded tritonserver is made of: files of the nvidia-pytriton wheel, and the environment they need."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from temper.backends.temper import priority
from temper.backends.temper.verdict import TRUSTED
from temper.errors import ServerError

BACKENDS = (Path(__file__).parents[1] / "backends").resolve()  # Triton loads nothing through a link


def find_runtime() -> Path:
    """Returns the folder of the wheel's tritonserver.

    Raises:
        ServerError: It is not installed, or beside a numpy with which it answers nothing.
    """
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        raise ServerError(
            "no embedded tritonserver: the package nvidia-pytriton is missing; "
            "install temper[embedded], or name a running server with --url"
        )
    runtime = Path(found.submodule_search_locations[0]) / "tritonserver"
    import numpy as np

    if not np.__version__.startswith("1."):
        # With numpy 2 beside this stub every answer is a success with zero bytes, and nothing is logged.
        raise ServerError(
            f"numpy {np.__version__} beside the embedded tritonserver, expected 1.26; "
            "run `pip install numpy==1.26.4`, or name a running server with --url"
        )
    return runtime


def has_backend(name: str) -> bool:
    """Whether the embedded tritonserver has a backend, ours among them.

    Raises:
        ServerError: As from `find_runtime`.
    """
    return (BACKENDS / name).is_dir() or (find_runtime() / "backends" / name).is_dir()


def lay_out_backends(runtime: Path, folder: Path) -> None:
    """Makes the backend folder Triton wants, with the stub of this Python beside the python backend.

    Raises:
        ServerError: There is no stub for this Python, or programs may not run in the folder.
        OSError: The folder cannot be written.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = runtime / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in (runtime / "python_backend_stubs").iterdir()))
        raise ServerError(f"the embedded tritonserver has no stub for Python {version}; use one of {known}")
    # Copies: Triton refuses a backend library that a link takes out of its folder.
    python = shutil.copytree(runtime / "backends" / "python", folder / "python")
    shutil.copy(stub, python / stub.name)
    # Some installers drop the execute bit.
    (python / stub.name).chmod(0o755)
    if not os.access(python / stub.name, os.X_OK):
        raise ServerError(
            f"the temporary folder {folder.parent.parent} does not let programs run (noexec); "
            "point TMPDIR to another folder"
        )
    _begin_in_background(python / stub.name)
    for own in ("temper", "temper_mean", "temper_defence", "temper_decode"):
        shutil.copytree(BACKENDS / own, folder / own, ignore=shutil.ignore_patterns("__pycache__"))


def _begin_in_background(stub: Path) -> None:
    """Lets the plugin's processes begin with the priority in which they load (`priority.in_background`).

    Their first 0.3 s pass before the plugin's own code: Python, numpy and their libraries.
    """
    if not priority.can_undo(os.getpriority(os.PRIO_PROCESS, 0)):
        return
    real = stub.parent / "stub" / stub.name
    real.parent.mkdir()
    stub.rename(real)
    # Triton's last argument is the backend's folder.
    stub.write_text(
        f"""#!/bin/sh
case "$*" in
*"/temper") {priority.BEFORE}=$(nice) exec nice -n {priority.LOWEST} "${{0%/*}}/stub/{stub.name}" "$@" ;;
*) exec "${{0%/*}}/stub/{stub.name}" "$@" ;;
esac
"""
    )
    stub.chmod(0o755)


def environment(runtime: Path, *, staging: bool = False) -> dict[str, str]:
    """Returns the environment in which tritonserver and its stubs find their libraries and this Python.

    Args:
        runtime: The folder of the wheel's tritonserver.
        staging: Let the plugin load what has no verdict yet: the server is there to measure it.

    Raises:
        ServerError: libpython is missing.
    """
    libraries = [
        str(runtime.parents[1] / "nvidia_pytriton.libs"),
        *_find_libpython(),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    # Engines run in it, which no key's passphrase concerns.
    inherited = {name: value for name, value in os.environ.items() if name != "TEMPER_KEY_PASSPHRASE"}
    if trusted := inherited.get(TRUSTED):
        inherited[TRUSTED] = os.path.abspath(trusted)  # the server has a working folder of its own
    return {
        **inherited,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        # The stub ignores PYTHONPATH and takes its packages from the first python3 on PATH.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TEMPER_STAGING": "1" if staging else "",
    }


def _find_libpython() -> list[str]:
    """The folder to add for libpython, which the stub links to; none when the system's loader finds it."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folder = sysconfig.get_config_var("LIBDIR") or ""
    if Path(folder, name).is_file():
        return [folder]
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise ServerError(
            f"the embedded tritonserver needs {name}, which this machine lacks; "
            f"install it (Debian: apt-get install {name.split('.so')[0]}), or name a running server with --url"
        ) from error
    return []
