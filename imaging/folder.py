"""What lies in a folder of images: the images, and what is left out and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import FolderError, show
from .formats import SUFFIXES

NUM_NAMED = 10
"""How many files a message names; the rest is counted."""

RUBBISH = "left by a system or hidden"
"""Why a file is left out that nobody misses."""
_NO_IMAGE = "no image by its name"
_NO_FILE = "no regular file"
_LOOP = "leads back to a folder above it"
# What macOS, Windows, Synology and file systems leave behind, in lower case; names with a dot in front are hidden.
_RUBBISH_NAMES = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "icon\r",
}


@dataclass(frozen=True)
class LeftOut:
    """One file or folder that was not used."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """What was found; both sorted by folder, then by name."""

    paths: list[Path]
    """The images, or the folders."""
    left_out: list[LeftOut]


def list_images(folder: Path) -> Listing:
    """Finds the images in a folder and in the folders below it, links followed.

    An image is a file that ends in one of `SUFFIXES`, whatever it holds; a link to nothing among them.

    Raises:
        FolderError: A folder cannot be read.
    """
    images: list[Path] = []
    left_out: list[LeftOut] = []
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while pending:
        place, above = pending.pop()
        entries, identity = _read(place)
        for entry in entries:
            path = place / entry.name
            if _is_rubbish(entry.name):
                left_out.append(LeftOut(path, RUBBISH))
            elif _is_folder(entry):
                if _identity(path) in above | {identity}:
                    left_out.append(LeftOut(path, _LOOP))
                else:
                    pending.append((path, above | {identity}))
            elif path.suffix.lower() not in SUFFIXES:
                left_out.append(LeftOut(path, _NO_IMAGE))
            elif entry.is_symlink() and not path.exists() or entry.is_file():
                images.append(path)
            else:
                left_out.append(LeftOut(path, _NO_FILE))
    return Listing(sorted(images, key=_by_folder), sorted(left_out, key=lambda one: _by_folder(one.path)))


def list_folders(folder: Path) -> Listing:
    """Finds the folders in a folder, such as one per class; its files are left out.

    Raises:
        FolderError: The folder cannot be read.
    """
    folders: list[Path] = []
    left_out: list[LeftOut] = []
    for entry in _read(folder)[0]:
        path = folder / entry.name
        if _is_rubbish(entry.name):
            left_out.append(LeftOut(path, RUBBISH))
        elif _is_folder(entry):
            folders.append(path)
        else:
            is_image = path.suffix.lower() in SUFFIXES
            left_out.append(LeftOut(path, "an image in no class folder" if is_image else _NO_IMAGE))
    return Listing(folders, left_out)


def name_few(names: Sequence[str], num: int | None = None) -> str:
    """Returns the first `NUM_NAMED` of some names and how many more there are, as one phrase.

    Args:
        names: All, or the first of them.
        num: How many there are in all, where `names` are the first.
    """
    more = (len(names) if num is None else num) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def describe_left_out(left_out: Sequence[LeftOut], root: Path) -> dict[str, Any]:
    """Returns what was left out of `root` as JSON: the number by reason, and the first names."""
    reasons = dict.fromkeys(one.reason for one in left_out)
    return {
        "num": len(left_out),
        "reasons": {reason: sum(one.reason == reason for one in left_out) for reason in reasons},
        "first": [_below(one.path, root) for one in left_out[:NUM_NAMED]],
    }


def say_left_out(described: Mapping[str, Any] | None) -> str:
    """Returns what `describe_left_out` gave as one phrase; empty when nothing was left out."""
    if not described or not described["num"]:
        return ""
    num = described["num"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in described["reasons"].items())
    return f"{num:,} left out ({reasons}): {name_few(described['first'], num)}"


def _below(path: Path, root: Path) -> str:
    return show(path.relative_to(root) if path.is_relative_to(root) else path)


def _by_folder(path: Path) -> tuple[str, str]:
    return str(path.parent), path.name


def _read(folder: Path) -> tuple[Iterable[os.DirEntry[str]], tuple[int, int]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name), _identity(folder)
    except FileNotFoundError as error:
        raise FolderError(folder, "no such folder") from error
    except NotADirectoryError as error:
        raise FolderError(folder, "is no folder") from error
    except OSError as error:
        raise FolderError(folder, f"cannot be read: {error.strerror}") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_rubbish(name: str) -> bool:
    return name.startswith(".") or name.lower() in _RUBBISH_NAMES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False
