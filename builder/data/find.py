"""The images on disk that a recipe names, whatever they lie in; and what a path most likely is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from temper.builder.data.encoded import Found
from temper.builder.data.folder import find_folder, fingerprint_folder, open_folder
from temper.builder.data.huggingface import fingerprint_dataset, is_dataset, open_dataset
from temper.builder.data.labels import read_class_names
from temper.builder.data.photos import fingerprint_photos
from temper.builder.data.shards import find_shards, fingerprint_shards, open_shards
from temper.builder.data.tables import SUFFIXES, find_tables, fingerprint_table, open_table
from temper.builder.errors import DataError

if TYPE_CHECKING:
    from temper.builder.data.config import DataConfig

Kind = Literal["folder", "table", "webdataset", "huggingface"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_FINDERS = {
    "folder": lambda config: find_folder(Path(config.path or "")),
    "table": open_table,
    "webdataset": open_shards,
    "huggingface": open_dataset,
}
_FINGERPRINTS: dict[str, Callable[[DataConfig], str | None]] = {
    "folder": lambda config: fingerprint_folder(Path(config.path or "")),
    "table": fingerprint_table,
    "webdataset": fingerprint_shards,
    "huggingface": fingerprint_dataset,
    "photos": lambda config: fingerprint_photos(Path(config.path)) if config.path else None,
}


def find_images(config: DataConfig) -> Found:
    """Finds the images of a source that lies on disk and decodes none.

    Raises:
        DataError: They cannot be listed, or their layout is not clear.
    """
    return _FINDERS[config.source](config)


def fingerprint_images(config: DataConfig) -> str | None:
    """Returns a digest of what a source on disk holds, without reading its images, and of the list of its labels.

    None for a source whose content its name decides.

    Raises:
        DataError: It is missing.
    """
    content = _FINGERPRINTS[config.source](config) if config.source in _FINGERPRINTS else None
    if config.labels is None:
        return content
    names = read_class_names(Path(config.labels))
    return hashlib.sha256(repr([content, names]).encode()).hexdigest()


def guess_kind(path: Path) -> Kind:
    """Returns which source a path is by what lies there; a folder of images where nothing else is seen."""
    if not path.is_dir():
        if path.suffix.lower() in SUFFIXES:
            return "table"
        return "webdataset" if path.suffix.lower() == ".tar" or "{" in path.name or "*" in path.name else "folder"
    if is_dataset(path):
        return "huggingface"
    if not (tables := find_tables(path)) and not find_shards(path):
        return "folder"
    try:
        open_folder(path)
    except DataError:
        return "table" if tables else "webdataset"
    return "folder"
