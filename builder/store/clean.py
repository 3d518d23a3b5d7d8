"""Which stages' results lie in a store, when each was used last, and their removal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from temper.builder.errors import StoreError
from temper.builder.store.artifacts import INFO_FILE, PARTIAL_SUFFIX, lock_path
from temper.builder.store.files import describe_os_error, locked


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One stage's folder."""

    path: Path
    """The folder."""
    size_bytes: int
    """Of all files in it."""
    used: float
    """When a run made or reused it last, in seconds since 1970."""
    finished: bool
    """False for what an interrupted run left; the same run would go on from it."""


def find_kept(store: Path) -> list[Kept]:
    """Lists the stages in a store's folder, by name."""
    return [kept for path in sorted(store.iterdir()) if (kept := _look(path)) is not None]


def _look(path: Path) -> Kept | None:
    """Describes a stage's folder; None where there is none."""
    record, finished = path / INFO_FILE, not path.name.endswith(PARTIAL_SUFFIX)
    if path.is_symlink() or not path.is_dir() or (finished and not record.is_file()):
        return None
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    used = record.stat().st_mtime if finished else max((one.st_mtime for one in files), default=0.0)
    return Kept(path=path, size_bytes=sum(one.st_size for one in files), used=used, finished=finished)


def pick_unused(kept: Sequence[Kept], *, older_s: float, to_bytes: int | None = None) -> list[Kept]:
    """Picks what may go, the longest unused first.

    Args:
        kept: The stages.
        older_s: Those that were not used for so many seconds go.
        to_bytes: And, the longest unused first, as many more as it takes for the rest to be no larger.
    """
    now, left = time.time(), sum(one.size_bytes for one in kept)
    picked = []
    for one in sorted(kept, key=lambda one: one.used):
        if now - one.used > older_s or (to_bytes is not None and left > to_bytes):
            picked.append(one)
            left -= one.size_bytes
    return picked


def remove(one: Kept) -> bool:
    """Removes a stage's folder; waits while a run makes it, and leaves it if it was used meanwhile.

    Its lock's file stays: whoever waits for that lock must not share a stage with who makes a new one.

    Returns:
        Whether it is gone.

    Raises:
        StoreError: It cannot be removed.
    """
    try:
        with locked(lock_path(one.path)):
            now = _look(one.path)
            if now is not None and now.used > one.used:
                return False
            if now is not None:
                shutil.rmtree(one.path)
            return True
    except OSError as error:
        raise StoreError(f"stage {one.path}: cannot be removed: {describe_os_error(error)}") from error
