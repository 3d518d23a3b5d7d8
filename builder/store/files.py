"""Durable writes: what a crash or a full disk must not leave half done."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    """Flushes one file's content, or one folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flushes every file and folder below `folder`, and `folder` itself."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_path(Path(parent, name))
        fsync_path(Path(parent))


def replace_file(path: Path, content: bytes, *, work: Path) -> None:
    """Replaces `path` in one step: a reader sees the old content or the new one, never a part.

    Args:
        path: The file to write.
        content: Its new content.
        work: A folder on the same file system, where the new file is written first.
    """
    temporary = work / f"{path.name}.{os.getpid()}.new"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an exclusive lock on `path` (made when missing); waits while another process holds it.

    The kernel drops the lock when its holder dies, so a kill leaves nothing to clean. A link is not followed.

    Args:
        path: The file.
        waiting: Called once, when there is somebody to wait for.
    """
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666), "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def describe_os_error(error: OSError) -> str:
    """Says in a few words why the system refused, and what can be done about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; free some and run it again"
    if error.errno == errno.EFBIG:
        return "the file is larger than this process may write (see `ulimit -f`)"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission to write there; choose another folder or change its owner"
    return error.strerror or str(error)
