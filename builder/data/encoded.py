"""Images that lie encoded in a folder, in what a table names, in tar shards, or in a data set on disk.

Each source finds its images (`Found`); what is common to all of them is here. Nothing is decoded before it is
asked for, and no image is kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from temper.builder.data.splits import Split, draw_split
from temper.builder.errors import DataError
from temper.imaging.errors import ImageError, show
from temper.imaging.folder import LeftOut, describe_left_out, name_few

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from temper.builder.data.config import DataConfig

# What is decoded at most to name the broken images all at once; millions would take hours.
_MAX_CHECKED = 20_000
MAX_CLASSES = 100_000
"""Above it a number is no label but something else: a year, an identifier."""
DRAWN = "drawn from every class"


class Items(Protocol):
    """Encoded images by index."""

    def __len__(self) -> int:
        """Returns how many there are."""

    def name(self, index: int) -> str:
        """Returns what messages call one, printable."""

    def open(self, index: int, most: int) -> Path | IO[bytes]:
        """Returns where an image lies, or what holds its bytes, for `decode_image`.

        Args:
            index: Of the image.
            most: How many bytes it may have.

        Raises:
            ImageError: It cannot be read, or is longer.
        """


class Files:
    """Image files below a folder, or anywhere."""

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        """Takes the folder from which messages name them, and the files."""
        self.root = root
        self.paths = paths

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Returns the path from the root."""
        path = self.paths[index]
        return show(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def open(self, index: int, most: int) -> Path:
        """Returns the path; whoever opens it looks at its length."""
        return self.paths[index]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images of a source and its split, none of them decoded."""

    items: Items
    """All of them, those that are not used among them."""
    order: NDArray[np.int64]
    """Which of the items are used: those that train first, then those that test."""
    labels: NDArray[np.int64]
    """The label of each, in that order."""
    num_train: int | None
    """How many of them train; None where the test images are to be drawn."""
    class_names: list[str]
    """In order of the labels."""
    numbered: bool = False
    """Whether the labels are numbers and `class_names` only repeats them."""
    info: dict[str, Any] = field(default_factory=dict)
    """What is to be known of how they were found, as JSON."""
    left_out: list[LeftOut] = field(default_factory=list)
    """The files that are not used."""

    def split(self, config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the indices, into `order`, of the images that train and of those that test."""
        if self.num_train is None:
            return draw_split(self.labels, config.test_fraction, config.seed)
        return np.arange(self.num_train), np.arange(self.num_train, len(self.labels))


class EncodedImages:
    """Decodes the images of a source by index; the first that fails makes it look for all that do."""

    def __init__(
        self, where: str, items: Items, order: NDArray[np.int64], limit: int, *, upright: bool = True
    ) -> None:
        """Takes what messages begin with, the images, which of them, and the most pixels that one may have.

        Args:
            where: The source.
            items: All its images.
            order: Those that are used.
            limit: The most pixels that one may have.
            upright: Whether the EXIF rotation is applied.
        """
        self.where = where
        self.items = items
        self.order = order
        self.limit = limit
        self.upright = upright

    def __call__(self, index: int) -> Image.Image:
        """Returns an image in RGB at its own size.

        Raises:
            DataError: It cannot be decoded; the message names the others that cannot either.
        """
        try:
            return self._decode(int(self.order[index]))
        except ImageError as error:
            raise DataError(self._describe_broken(int(self.order[index]), error)) from error

    def open(self, index: int) -> Path | IO[bytes]:
        """Returns an image's file as it is.

        Raises:
            DataError: It cannot be read, or is longer than any image.
        """
        item = int(self.order[index])
        try:
            return self._open(item)
        except ImageError as error:
            raise DataError(f"{self.where}: {self.items.name(item)} {error.reason}") from error

    def _open(self, item: int) -> Path | IO[bytes]:
        from temper.imaging.formats import max_bytes

        return self.items.open(item, max_bytes(self.limit))

    def _decode(self, item: int) -> Image.Image:
        from temper.imaging.read import decode_image

        source = self._open(item)
        return decode_image(source, self.limit, upright=self.upright, name=self.items.name(item))

    def _describe_broken(self, first: int, first_error: ImageError) -> str:
        def reason(item: int) -> str | None:
            try:
                self._decode(item)
            except ImageError as error:
                return error.reason
            return None

        checked = [int(item) for item in self.order[:_MAX_CHECKED]]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reasons = dict(zip(checked, pool.map(reason, checked), strict=True))
        reasons.setdefault(first, first_error.reason)
        broken = [f"{self.items.name(item)} {why}" for item, why in reasons.items() if why is not None]
        looked = "images" if len(checked) == len(self.order) else "images looked at"
        return (
            f"{self.where}: {len(broken):,} of {len(checked):,} {looked} cannot be used: "
            f"{name_few(broken)}; repair or remove them"
        )


def arrange(
    where: str,
    items: Items,
    labels: Sequence[int | str],
    parts: Sequence[str] | None,
    *,
    names: Sequence[str] | None = None,
    split: Split | None = None,
    left_out: Sequence[LeftOut] = (),
    root: Path | None = None,
) -> Found:
    """Puts images with labels of any kind in order: labels become indices, the training images come first.

    Args:
        where: What messages begin with.
        items: The images.
        labels: The label of each: all numbers, which are indices, or all names, which are sorted as folders are.
        parts: The part of the source that each belongs to; None where there are none.
        names: The names of the classes where the labels are indices into them.
        split: Which parts train and test.
        left_out: What is not used.
        root: The folder that this is named from.

    Raises:
        DataError: A label is no index, or there are no images.
    """
    if split is None or parts is None:
        order, num_train = np.arange(len(items)), None
    else:
        told = np.array(parts, dtype=object)
        chosen = [np.flatnonzero(told == part) for part in (split.train, split.test) if part is not None]
        order = np.concatenate(chosen)
        num_train = len(chosen[0]) if split.test is not None else None
    used = [labels[int(item)] for item in order]
    if not used:
        raise DataError(f"{where}: holds no labelled images, expected some; look at what it is made of")
    indices, class_names, numbered = _index(where, used, names)
    info: dict[str, Any] = {"split": _describe_split(split)}
    if root is not None:
        info["left_out"] = describe_left_out(left_out, root)
    return Found(
        items=items,
        order=order,
        labels=indices,
        num_train=num_train,
        class_names=class_names,
        numbered=numbered,
        info=info,
        left_out=list(left_out),
    )


def _index(
    where: str, labels: Sequence[int | str], names: Sequence[str] | None
) -> tuple[NDArray[np.int64], list[str], bool]:
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        top = len(names) if names is not None else MAX_CLASSES
        wrong = [number for number in numbers if not 0 <= number < top]
        if wrong:
            what = f"0 to {top - 1} as there are {top:,} names" if names is not None else f"0 to {top - 1:,}"
            raise DataError(f"{where}: got the label {wrong[0]}, expected the index of a class, {what}")
        known = list(names) if names is not None else [str(number) for number in range(max(numbers) + 1)]
        return np.array(numbers, dtype=np.int64), known, names is None
    found = sorted({str(label) for label in labels})
    places = {name: index for index, name in enumerate(found)}
    return np.array([places[str(label)] for label in labels], dtype=np.int64), found, False


def _describe_split(split: Split | None) -> dict[str, Any]:
    if split is None:
        return {"train": ".", "test": DRAWN, "unused": {}}
    tests = split.test if split.test is not None else f"{DRAWN} of {split.train}"
    return {"train": split.train, "test": tests, "unused": split.unused}


def state_of(path: Path, root: Path) -> bytes:
    """Returns name, size and time of change of a file as one line."""
    try:
        status = path.stat()
        state = f"{status.st_size}\0{status.st_mtime_ns}"
    except OSError as error:
        state = str(error.errno)
    return os.fsencode(path.relative_to(root) if path.is_relative_to(root) else path) + f"\0{state}\n".encode()
