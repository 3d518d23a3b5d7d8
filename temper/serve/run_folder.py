"""The folder of one run of the embedded tritonserver, in the temporary folder; nothing of it outlives the server.

It holds the backends, the server's log where no other was asked for, and a view of the model repository: links
with plain names. tritonserver runs inside it and is given relative paths only, because Triton puts the paths of
its backends and models unquoted into a shell. The server's shared memory is named after it.

Whoever holds the file `lock` locked is alive; the folder of a dead server is removed by the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from temper.backends.temper.artifact import CONFIG
from temper.errors import ServerError
from temper.serve._supervise import remove_traces
from temper.serve.temporary import explain
from temper.serve.verify import VerifyError, ensemble_members, model_names, read_config, staged_config

BACKENDS = "backends"
VIEW = "repository-view"
LOG = "tritonserver.log"
_PREFIX = "temper-triton-"
# What a shell leaves alone: Triton hands the name of a model to one, too.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def make_run_folder() -> tuple[Path, int]:
    """Makes a new folder, and removes those of servers that died with their supervisor.

    Returns:
        The folder, and the descriptor of its lock: while it is open, here or in a process that inherited it, the
        folder is in use.

    Raises:
        ServerError: The temporary folder cannot be used; the line names TMPDIR.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except OSError as error:
        raise ServerError(explain(error)) from error
    if not str(parent).isascii():
        raise ServerError(
            f"the temporary folder {str(parent)!r} is not plain ASCII, which Triton's Python needs; "
            "point TMPDIR to another folder"
        )
    _sweep(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ServerError(explain(error)) from error
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (folder / ".lock").rename(folder / "lock")  # so that nobody ever sees it unlocked
    return folder, descriptor


def lay_out_view(
    repository: Path,
    models: Iterable[str] | None,
    left_out: Container[str],
    view: Path,
    versions: Mapping[str, Sequence[int]],
) -> dict[str, str]:
    """Makes links to the models that are served: the named ones, with what ensembles are made of, or all.

    Those that are left out get no link. One of which versions are asked for is a folder with links to these.

    Returns:
        The models that cannot be served, with the reason.
    """
    view.mkdir()
    if models is None:
        models = model_names(repository)
    refused: dict[str, str] = {}
    todo = [model for model in models if model not in left_out]
    while todo:
        model = todo.pop()
        if not _PLAIN_NAME.fullmatch(model):
            refused[model] = "its name may hold letters, digits and . _ + - only; publish it under another name"
        elif not (view / model).exists() and (repository / model).is_dir():
            try:
                _lay_out_model(repository / model, view / model, versions.get(model, ()))
            except VerifyError as error:
                refused[model] = str(error)
                continue
            with contextlib.suppress(VerifyError, OSError):  # Triton says what is wrong with its config
                todo.extend(ensemble_members(read_config(view / model)))
    return refused


def _lay_out_model(model: Path, view: Path, versions: Sequence[int]) -> None:
    if not versions:
        view.symlink_to(model)
        return
    config = staged_config(model, versions)
    view.mkdir()
    (view / CONFIG).write_bytes(config)
    for version in versions:
        (view / str(version)).symlink_to(model / str(version))


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
                continue
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_traces(str(folder))
            finally:
                os.close(descriptor)
