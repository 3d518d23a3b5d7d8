"""What can go wrong with images on disk.

ImagingError
├── ImageError    a file is no image that can be used
└── FolderError   a folder cannot be listed

`builder` and `client` turn them into errors of their own.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def show(path: Path | str) -> str:
    """Returns a path as one printable line; what is not UTF-8 or not printable becomes an escape."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    odd = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control characters, marks of direction, separators of lines
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in odd else char for char in text
    )


class ImagingError(Exception):
    """Base of every error that this package raises on purpose; its text is one line for the user."""


class ImageError(ImagingError):
    """A file is no image that can be used.

    Attributes:
        path: The file.
        reason: Why, to follow the file's name.
    """

    def __init__(self, path: Path | str, reason: str, expected: str = "") -> None:
        """Takes the file, the reason and what was expected."""
        super().__init__(f"{show(path)}: {reason}" + (f", expected {expected}" if expected else ""))
        self.path = path
        self.reason = reason


class FolderError(ImagingError):
    """A folder is missing, or cannot be read."""

    def __init__(self, path: Path | str, reason: str) -> None:
        """Takes the folder and the reason."""
        super().__init__(f"{show(path)}: {reason}")
        self.reason = reason
