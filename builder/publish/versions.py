"""A model's folder in the repository: its versions, the one that is served, and the lock of whoever changes it.

A version is served because the model's config.pbtxt is a copy of the version's own: one rename does it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from temper.builder.contract import CONFIG_FILE, DIGESTS_FILE, LABELS_FILE
from temper.builder.errors import PublishError
from temper.builder.store.files import fsync_path, locked, replace_file, sha256_file

_WORK_PREFIX = "publish-"
_WORK = re.compile(_WORK_PREFIX + "[a-z0-9_]{8}")  # as mkdtemp fills it up
_LOCK = "lock"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_SERVED = re.compile(rb"specific\s*\{\s*versions:\s*(\d{1,18})\s*\}")


@contextmanager
def work_folder(repository: Path) -> Iterator[Path]:
    """A new folder beside the repository, for the one who holds its lock."""
    root = _make_work_root(repository)
    with locked(root / _LOCK):
        _remove_leftovers(root)
        work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=root))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def work_root(repository: Path) -> Path:
    """Returns the folder beside a repository where entries are put together, on the same file system."""
    return repository.with_name(f".{repository.name}-work")


def _make_work_root(repository: Path) -> Path:
    if repository.stat().st_dev != repository.parent.stat().st_dev:
        raise PublishError(
            f"repository {repository}: is the root of its file system, so nothing beside it can be renamed "
            "into it; use a folder inside it"
        )
    folder = work_root(repository)
    for path in (folder, folder / _LOCK):
        # What it leads to is somebody else's.
        if path.is_symlink():
            raise PublishError(f"{path}: is a link, expected a place of the publisher's own; remove it")
    folder.mkdir(exist_ok=True)
    return folder


def _remove_leftovers(root: Path) -> None:
    """Removes what killed publishers left, and nothing else; the lock is ours, so nobody is using it."""
    for path in root.iterdir():
        if _WORK.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def versions_in(model: Path) -> list[int]:
    """Returns the versions in a model's folder, ascending; none where there is no such folder."""
    if not model.is_dir():
        return []
    return sorted(int(path.name) for path in model.iterdir() if _VERSION.fullmatch(path.name))


def newest_in(model: Path) -> int:
    """Returns the newest version in a model's folder; 0 when there is none."""
    return max(versions_in(model), default=0)


def named_version(model: Path) -> int | None:
    """Returns the version that config.pbtxt names, the one that a running server may have open; None for none."""
    try:
        found = _SERVED.search((model / CONFIG_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return int(found[1]) if found else None


def served_version(model: Path) -> int | None:
    """Returns the version that is served; None when config.pbtxt names none that is there."""
    version = named_version(model)
    return version if version in versions_in(model) else None


def can_be_served(model: Path, version: int) -> bool:
    """Whether a version is there with what takes the place of the model's own files, as it was published."""
    folder = model / str(version)
    digests = read_digests(folder / DIGESTS_FILE)
    files = [folder / name for name in (CONFIG_FILE, LABELS_FILE)]
    return all(file.is_file() and sha256_file(file) == digests.get(file.name) for file in files)


def read_digests(path: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file that SHA256SUMS names; none when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def serve_version(model: Path, version: int, work: Path) -> None:
    """Makes config.pbtxt and labels.txt the version's own; config.pbtxt, which decides, in one step and first."""
    for name in (CONFIG_FILE, LABELS_FILE):
        content = (model / str(version) / name).read_bytes()
        if not same_content(model / name, content):
            replace_file(model / name, content, work=work)


def same_content(path: Path, content: bytes) -> bool:
    """Whether a file is there and holds exactly this."""
    return path.is_file() and path.read_bytes() == content


def remove_versions(
    model: Path, keep: int, spared: Collection[int | None], work: Path
) -> tuple[list[int], list[str]]:
    """Removes all but the newest versions; those that are spared, and what is not ours, stay.

    A version leaves the repository in one rename; what a kill leaves of it is in the work folder.

    Returns:
        The versions that are gone, and a line for each that could not be removed, which does no harm.
    """
    gone, stuck = [], []
    for version in versions_in(model)[:-keep]:
        folder = model / str(version)
        if version not in spared and (folder / DIGESTS_FILE).is_file() and not folder.is_symlink():
            try:
                os.rename(folder, work / f"old-{model.name}-{version}")
                fsync_path(model)
            except OSError as error:
                stuck.append(f"the old version {version} cannot be removed ({error.strerror})")
            else:
                gone.append(version)
    return gone, stuck


def read_config(path: Path) -> Any | None:
    """Reads a config.pbtxt into `inference.ModelConfig`; None when there is none, or it is none."""
    from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
    from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships none

    try:
        return text_format.Parse(path.read_text(), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError):
        return None
