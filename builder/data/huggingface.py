"""Hugging Face data sets that `save_to_disk` wrote: Arrow files with the images' own bytes, mapped into memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from temper.builder.data.encoded import Found, arrange, state_of
from temper.builder.data.splits import Split, pick_split, role_of
from temper.builder.data.tables import IMAGE_NAMES, LABEL_NAMES, import_extra, pick_column
from temper.builder.errors import DataError
from temper.imaging.errors import ImageError, show

if TYPE_CHECKING:
    from temper.builder.data.config import DataConfig

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_EXPECTED = "expected a folder that datasets' save_to_disk wrote"
_UNLABELLED = -1  # what a ClassLabel column holds where nobody labelled


class Rows:
    """The images of one data set or of several, one after another."""

    def __init__(self, parts: dict[str, Any], columns: dict[str, str]) -> None:
        """Takes the data sets, and the name of each one's column of images."""
        import datasets  # type: ignore[import-untyped]  # ships none

        plain = datasets.Image(decode=False)
        self._names = list(parts)
        self._parts = [
            part.select_columns([columns[name]]).cast_column(columns[name], plain) for name, part in parts.items()
        ]
        self._columns = [columns[name] for name in parts]
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        """Returns how many there are."""
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - (int(self._ends[part - 1]) if part else 0)

    def name(self, index: int) -> str:
        """Returns the split's name and the row's number."""
        part, row = self._place(index)
        return f"{show(self._names[part])}[{row}]".removeprefix(".")

    def open(self, index: int, most: int) -> Path | IO[bytes]:
        """Returns the bytes of an image, or the path that the data set holds in their place.

        Raises:
            ImageError: There is neither.
        """
        part, row = self._place(index)
        cell = self._parts[part][row][self._columns[part]] or {}
        data, path = cell.get("bytes"), cell.get("path")
        if data is not None and len(data) <= most:
            return io.BytesIO(data)
        if data is not None:
            raise ImageError(self.name(index), f"is too large: {len(data):,} bytes, more than any image")
        if path:
            return Path(path)
        raise ImageError(self.name(index), "has neither bytes nor a path", "an image")


def is_dataset(path: Path) -> bool:
    """Tells whether `save_to_disk` wrote a folder, by the files that it always writes."""
    return (path / _STATE).is_file() or (path / _SPLITS).is_file()


def open_dataset(config: DataConfig) -> Found:
    """Opens a data set on disk.

    Raises:
        DataError: `datasets` is not installed, or cannot open it; or its columns are not clear.
    """
    path = Path(config.path or "")
    where = f"data {show(path)}"
    parts, split = _parts(where, _load(where, path))
    columns = {
        name: _columns(f"{where} {show(name)}" if split else where, part, config) for name, part in parts.items()
    }
    items = Rows(parts, {name: image for name, (image, _) in columns.items()})
    labels: list[int | str] = []
    names: list[list[str] | None] = []
    for name, part in parts.items():
        told, own = _labels(f"{where}: column {show(columns[name][1])}", part, columns[name][1])
        labels += told
        names.append(own)
    if any(own != names[0] for own in names):
        raise DataError(f"{where}: its splits have other class names each, expected the same in all")
    told_parts = [name for name, part in parts.items() for _ in range(len(part))]
    return arrange(where, items, labels, told_parts, names=names[0], split=split)


def fingerprint_dataset(config: DataConfig) -> str:
    """Returns a digest of names, sizes and times of change of a data set's files; none is read.

    Raises:
        DataError: It is none.
    """
    path = Path(config.path or "")
    if not is_dataset(path):
        raise _no_dataset(f"data {show(path)}", path)
    # What `map` and `filter` leave beside them is no part of it.
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and not file.name.startswith(("cache-", "."))
    )
    return hashlib.sha256(b"".join(state_of(file, path) for file in files)).hexdigest()


def _load(where: str, path: Path) -> Any:
    if not is_dataset(path):
        raise _no_dataset(where, path)
    datasets = import_extra(where, "datasets", "datasets")
    try:
        return datasets.load_from_disk(str(path))
    # JSON, Arrow and datasets each have errors of their own for what is damaged.
    except Exception as error:
        reason = show((str(error).splitlines() or [type(error).__name__])[0])
        raise DataError(f"{where}: datasets cannot open it ({reason}), {_EXPECTED}") from error


def _no_dataset(where: str, path: Path) -> DataError:
    why = "is no data set on disk" if path.is_dir() else "no such folder"
    return DataError(f"{where}: {why}, {_EXPECTED}")


def _parts(where: str, found: Any) -> tuple[dict[str, Any], Split | None]:
    """The data sets that are used, by name, and which of them tests."""
    if not hasattr(found, "keys"):
        return {".": found}, None
    unlabelled = {name: "has no labels" for name, part in found.items() if role_of(name) == "test" and _bare(part)}
    if len(found) == 1:
        return {".": next(iter(found.values()))}, None
    split = pick_split(where, found, unlabelled)
    return {name: found[name] for name in (split.train, split.test) if name is not None}, split


def _bare(part: Any) -> bool:
    """Whether a test split has no labels, as of a competition: no such column, or -1 in all of it."""
    import datasets

    named = [name for name, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not named:
        return not any(name.lower().replace("_", "") in LABEL_NAMES for name in part.features)
    return len(part) > 0 and all(label == _UNLABELLED for label in part[named[0]][:])


def _columns(where: str, part: Any, config: DataConfig) -> tuple[str, str]:
    """The column of images and that of labels: by their kinds, else by their names."""
    import datasets

    images = [name for name, kind in part.features.items() if isinstance(kind, datasets.Image)]
    named = [name for name, kind in part.features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images:
        kinds = ", ".join(f"{show(name)} ({type(kind).__name__})" for name, kind in part.features.items())
        raise DataError(
            f"{where}: got no column of images among {kinds or 'none'}, expected a feature datasets.Image"
        )
    image = (
        images[0] if len(images) == 1 else pick_column(where, images, IMAGE_NAMES, config.image_column, "image")
    )
    others = [name for name in part.features if name not in images]
    if config.label_column is None and len(named) == 1:
        return image, named[0]
    return image, pick_column(where, named or others, LABEL_NAMES, config.label_column, "label")


def _labels(where: str, part: Any, column: str) -> tuple[Sequence[int | str], list[str] | None]:
    """The labels of a data set, and their names where it has them."""
    import datasets

    values = list(part[column][:])
    kind = part.features[column]
    names = list(kind.names) if isinstance(kind, datasets.ClassLabel) and kind.names else None
    odd = next((value for value in values if not isinstance(value, str | int)), None)
    if odd is not None or any(value is None for value in values):
        raise DataError(f"{where} holds {type(odd).__name__} values, expected one class an image")
    return [int(value) if not isinstance(value, str) else value for value in values], names
