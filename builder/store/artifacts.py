"""Stages and their results: a stage that has run with the same config and inputs is not run again.

A result is a folder `<stage>-<digest>` with an `artifact.json`. It appears in one rename, when it is complete;
until then its files are in `<stage>-<digest>.partial`, which survives an interruption so that the stage can go on
from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.builder.errors import StoreError
from temper.builder.store.code import code_digest, library_versions
from temper.builder.store.files import describe_os_error, fsync_path, fsync_tree, locked

INFO_FILE = "artifact.json"
"""The record of a finished stage; its time is that of the last use."""
PARTIAL_SUFFIX = ".partial"
# Raise it when the record or the key changes its form.
_FORMAT = 2

Make = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Artifact:
    """The finished result of one stage."""

    path: Path
    """The folder with the stage's files."""
    digest: str
    """SHA-256 of the stage's name, config, inputs, code and libraries: the key, not the content."""
    info: dict[str, Any]
    """The stage's figures, as JSON."""
    reused: bool
    """True when nothing ran: the folder was already there."""


class Store:
    """A folder of stage results, keyed by what made them.

    Safe for several processes at once: a second one that wants the same stage waits for the first, then reuses.
    """

    def __init__(self, root: Path) -> None:
        """Opens the store; `root` is made when the first stage runs."""
        self.root = root

    def __repr__(self) -> str:
        """Shows the folder."""
        return f"Store({str(self.root)!r})"

    def run(
        self,
        stage: str,
        config: object,
        inputs: Sequence[Artifact],
        make: Make,
        *,
        code: Sequence[str],
        libraries: Sequence[str] = (),
    ) -> Artifact:
        """Returns the stage's result, made by `make` unless it is already there.

        Args:
            stage: The stage's name, part of the folder's name.
            config: A dataclass, mapping or None; everything besides the inputs that decides the result.
            inputs: The artifacts that the stage reads.
            make: Fills the work folder it is given and returns the stage's figures, as JSON. The work folder may
                hold the files of an interrupted run with the same key.
            code: The modules whose source, with what they import (`code.code_digest`), decides the result.
            libraries: The packages, as pip names them, whose versions do.

        Raises:
            StoreError: A file cannot be written or read, for example because the disk is full.
        """
        digest = stage_digest(stage, config, inputs, code=code, libraries=libraries)
        folder = self.root / f"{stage}-{digest[:12]}"
        work = folder.with_name(folder.name + PARTIAL_SUFFIX)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(lock_path(folder)):
                found = _read(folder, digest)
                if found is not None:
                    with contextlib.suppress(OSError):  # somebody else's store may be read all the same
                        os.utime(folder / INFO_FILE)
                    return found
                work.mkdir(exist_ok=True)
                info = dict(make(work))
                return _commit(folder, work, digest, info, stage)
        except OSError as error:
            where = error.filename or work
            raise StoreError(f"stage {stage}: {where}: {describe_os_error(error)}") from error


def lock_path(folder: Path) -> Path:
    """Returns the file whose lock a run holds while it makes or reads a stage's folder, finished or partial."""
    return folder.with_name(f".{folder.name.removesuffix(PARTIAL_SUFFIX)}.lock")


def stage_digest(
    stage: str,
    config: object,
    inputs: Sequence[Artifact],
    *,
    code: Sequence[str],
    libraries: Sequence[str] = (),
) -> str:
    """Returns a stage's key: 64 hexadecimal digits over all that decides its result; see `Store.run`."""
    key = {
        "format": _FORMAT,
        "stage": stage,
        "config": config,
        "inputs": [artifact.digest for artifact in inputs],
        "code": code_digest(*sorted(code)),
        "libraries": library_versions(libraries),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=_as_json).encode()).hexdigest()


def _as_json(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a stage's config holds {type(value).__name__}, which has no JSON form")


def _read(folder: Path, digest: str) -> Artifact | None:
    """Returns the finished artifact, or None when it is missing or its files are not those that were written."""
    try:
        record = json.loads((folder / INFO_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("info"), dict):
        return None
    if record.get("digest") != digest or record.get("files") != _sizes(folder):
        return None
    return Artifact(path=folder, digest=digest, info=record["info"], reused=True)


def _commit(folder: Path, work: Path, digest: str, info: dict[str, Any], stage: str) -> Artifact:
    record = {"stage": stage, "digest": digest, "info": info, "files": _sizes(work)}
    text = json.dumps(record, indent=1, default=_as_json)
    (work / INFO_FILE).write_text(text)
    fsync_tree(work)
    if folder.exists():  # broken: _read refused it
        shutil.rmtree(folder)
    os.rename(work, folder)
    fsync_path(folder.parent)
    # Read back, so that the first run and a reused one give the same types (lists, not tuples).
    return Artifact(path=folder, digest=digest, info=json.loads(text)["info"], reused=False)


def _sizes(folder: Path) -> dict[str, int]:
    """Returns the size in bytes of every file below `folder`, but for the record itself."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / INFO_FILE)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}
