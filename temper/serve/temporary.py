"""What to say when the temporary folder is at fault: Python's own errors do not name it."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_trouble(error: BaseException) -> bool:
    """Whether no file can be written: the disk is full or read-only, or there is no temporary folder."""
    if isinstance(error, shutil.Error):  # what went wrong with each file of a copy, as text
        return any(f"[Errno {number}]" in str(error) for number in _NO_ROOM)
    return isinstance(error, OSError) and (error.errno in _NO_ROOM or _no_folder(error))


def explain(error: OSError) -> str:
    """One line that names the temporary folder and TMPDIR."""
    if _no_folder(error):
        return f"{error.strerror}; make room in one of them, or point TMPDIR to another folder"
    where, reason = error.filename, error.strerror
    if isinstance(error, shutil.Error):
        _, where, text = error.args[0][-1]
        reason = re.sub(r"\[Errno \d+\] ([^:]*).*", r"\1", text, flags=re.DOTALL)
    folder = tempfile.gettempdir()
    return (
        f"{f'{where}: ' if where else ''}{reason}; the temporary folder is {folder} "
        f"({shutil.disk_usage(folder).free >> 20} MiB free): make room, or point TMPDIR to another folder"
    )


def _no_folder(error: OSError) -> bool:
    return error.errno == errno.ENOENT and "usable temporary directory" in str(error.strerror)
