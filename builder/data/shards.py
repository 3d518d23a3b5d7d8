"""Images in tar shards, as WebDataset has them: files of one name are one sample, `0001.jpg` beside `0001.cls`.

Every shard is gone through once, for where its members begin; an image is read from there when it is wanted.
Source: WebDataset's convention, https://github.com/webdataset/webdataset (a sample's name ends at its first dot).
"""

from __future__ import annotations

import functools
import glob
import hashlib
import io
import itertools
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from temper.builder.class_names import to_number
from temper.builder.data.encoded import Found, arrange, state_of
from temper.builder.data.splits import Split, pick_split, role_of
from temper.builder.data.tables import LABEL_NAMES
from temper.builder.errors import DataError
from temper.imaging.content import name_content
from temper.imaging.errors import ImageError, show
from temper.imaging.folder import LeftOut, name_few
from temper.imaging.formats import SUFFIXES

if TYPE_CHECKING:
    from temper.builder.data.config import DataConfig

_LABEL_ENDINGS = ("cls", "label", "json")
_MAX_LABEL_BYTES = 1 << 20
_MAX_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_EXPECTED = "expected tar shards of images beside their labels, as 0001.jpg and 0001.cls"


@dataclass
class _Shard:
    """The samples of one shard: where their images are, and their labels."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Sample:
    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    """By their ending."""


class Members:
    """Images inside tar files, by where they begin."""

    def __init__(self, shards: Sequence[Path], of: Sequence[int], found: Sequence[_Shard]) -> None:
        """Takes the shards, the shard of every image, and what is in them."""
        self._shards = list(shards)
        self._of = np.array(of, dtype=np.int32)
        self._names = [name for shard in found for name in shard.names]
        self._offsets = np.array([offset for shard in found for offset in shard.offsets], dtype=np.int64)
        self._sizes = np.array([size for shard in found for size in shard.sizes], dtype=np.int64)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._names)

    def name(self, index: int) -> str:
        """Returns the shard's name and the member's."""
        return show(f"{self._shards[self._of[index]].name}/{self._names[index]}")

    def open(self, index: int, most: int) -> IO[bytes]:
        """Returns the bytes of an image.

        Raises:
            ImageError: It is longer than `most`, or the shard has become shorter.
        """
        size = int(self._sizes[index])
        if size > most:
            raise ImageError(self.name(index), f"is too large: {size:,} bytes, more than any image")
        try:
            with self._shards[self._of[index]].open("rb") as file:
                file.seek(int(self._offsets[index]))
                return io.BytesIO(file.read(size))
        except OSError as error:
            raise ImageError(self.name(index), f"cannot be read: {error.strerror}") from error


def open_shards(config: DataConfig) -> Found:
    """Goes through the shards of a WebDataset.

    Raises:
        DataError: There are none, one is no whole tar file, or a sample has no label.
    """
    path = Path(config.path or "")
    where = f"data {show(path)}"
    shards = find_shards(path)
    if not shards:
        raise DataError(f"{where}: no such shards, {_EXPECTED}")
    root = Path(*_common(shards))
    split, parts = _split(where, shards, root)
    used = [
        shard for shard, part in zip(shards, parts, strict=True) if split is None or part in split_names(split)
    ]
    found = [_index_shard(*_state(shard), config.image_column, config.label_column) for shard in used]
    of = [number for number, shard in enumerate(found) for _ in shard.names]
    items = Members(used, of, found)
    told = dict(zip(shards, parts, strict=True))
    labels: list[int | str] = [label for shard in found for label in shard.labels]
    numbers = [to_number(label) for label in labels]
    if None not in numbers:
        labels = [number for number in numbers if number is not None]
    left_out = [
        LeftOut(used[number] / name, why) for number, shard in enumerate(found) for name, why in shard.left_out
    ]
    return arrange(
        where, items, labels, [told[used[number]] for number in of], split=split, left_out=left_out, root=root
    )


def fingerprint_shards(config: DataConfig) -> str:
    """Returns a digest of names, sizes and times of change of the shards; none is read.

    Raises:
        DataError: There are none.
    """
    path = Path(config.path or "")
    shards = find_shards(path)
    if not shards:
        raise DataError(f"data {show(path)}: no such shards, {_EXPECTED}")
    root = Path(*_common(shards))
    return hashlib.sha256(b"".join(state_of(shard, root) for shard in shards)).hexdigest()


def find_shards(path: Path) -> list[Path]:
    """Returns the tar files of a folder and of the folders in it, or those of a pattern as `train-{000..099}.tar`.

    Raises:
        DataError: The pattern names a file that is not there, or too many.
    """
    if path.is_dir():
        found = [*path.glob("*.tar"), *path.glob("*/*.tar")]
        return sorted(each for each in found if not each.name.startswith(".") and each.is_file())
    if path.exists():
        return [path]
    shards: list[Path] = []
    for text in _expand(str(path)):
        matches = sorted(glob.glob(text)) if glob.has_magic(text) else [text]
        if not matches or not Path(matches[0]).exists():
            raise DataError(f"data {show(path)}: no such file: {show(text)}, {_EXPECTED}")
        shards += map(Path, matches)
    return list(dict.fromkeys(shards))


def split_names(split: Split) -> list[str]:
    """The names of the parts that are used."""
    return [name for name in (split.train, split.test) if name is not None]


def _expand(pattern: str) -> list[str]:
    """Writes braces out: {000..099} counts with the zeros, {a,b} chooses."""
    choices: list[Sequence[str] | range] = []
    widths: list[int] = []
    for index, text in enumerate(_BRACES.split(pattern)):  # every second one stood in braces
        span = _RANGE.fullmatch(text) if index % 2 else None
        choices.append(range(int(span[1]), int(span[2]) + 1) if span else text.split(",") if index % 2 else [text])
        widths.append(len(span[1]) if span else 0)
    if math.prod(map(len, choices)) > _MAX_SHARDS:
        raise DataError(f"data {show(pattern)}: names more than {_MAX_SHARDS:,} shards, expected fewer")
    return [
        "".join(str(part).zfill(width) for part, width in zip(parts, widths, strict=True))
        for parts in itertools.product(*choices)
    ]


def _common(shards: Sequence[Path]) -> tuple[str, ...]:
    """The parts of the folder that holds all of them."""
    parents = [shard.parent.parts for shard in shards]
    same = []
    for level in zip(*parents, strict=False):
        if len(set(level)) > 1:
            break
        same.append(level[0])
    return tuple(same)


def _split(where: str, shards: Sequence[Path], root: Path) -> tuple[Split | None, list[str]]:
    """Which shards train and which test, by a word in their names or in that of their folder."""
    parts = []
    for shard in shards:
        words = re.split(r"[^A-Za-z]+", str(shard.relative_to(root).with_suffix("")))
        roles = sorted({word.lower() for word in words if role_of(word)})
        if len(roles) > 1:
            raise DataError(
                f"{where}: {show(shard.name)} has the names of several splits, {name_few(roles)}; rename it"
            )
        parts.append(roles[0] if roles else "")
    if not any(parts):
        return None, parts
    if not all(parts):
        odd = name_few([show(shard.name) for shard, part in zip(shards, parts, strict=True) if not part])
        raise DataError(f"{where}: {odd}: named after no split as others are, expected train-*.tar, val-*.tar")
    return pick_split(where, dict.fromkeys(parts)), parts


def _state(shard: Path) -> tuple[Path, int, int]:
    try:
        status = shard.stat()
    except OSError as error:
        raise DataError(f"data {show(shard)}: cannot be read: {error.strerror}, {_EXPECTED}") from error
    return shard, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _index_shard(path: Path, size: int, changed: int, image: str | None, label: str | None) -> _Shard:
    """Goes through a shard once, as long as it does not change."""
    found = _Shard()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for sample in _samples(archive, found):
                read = functools.partial(_read_member, file)
                _add(path, sample, found, image, label, read)
    except (OSError, tarfile.TarError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            why = f"cannot be read: {error.strerror}"
        else:
            why = _what_is(path, error)
        raise DataError(f"data {show(path)}: {why}, {_EXPECTED}") from error
    return found


def _what_is(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        what = name_content(file.read(1024))
    if what in (None, "a tar archive"):
        return f"is no whole tar file ({show(str(error))})"
    packed = (
        "; unpack it, as what is packed cannot be read from the middle" if "file" in what or "zip" in what else ""
    )
    return f"is {what}{packed}"


def _samples(archive: tarfile.TarFile, found: _Shard) -> Iterator[_Sample]:
    """The members that follow one another and have one name up to its first dot."""
    sample = _Sample("")
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # it keeps them all otherwise
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if not member.isreg() or not stem or not ending or stem.startswith("__"):
            if not member.isdir():
                found.left_out.append((member.name, "part of no sample by its name"))
            continue
        key = f"{folder}/{stem}"
        if key != sample.key or ending.lower() in sample.members:
            if sample.members:
                yield sample
            sample = _Sample(key)
        sample.members[ending.lower()] = member
    if sample.members:
        yield sample


def _add(
    path: Path,
    sample: _Sample,
    found: _Shard,
    image: str | None,
    label: str | None,
    read: Callable[[tarfile.TarInfo], bytes],
) -> None:
    """Puts one sample into the shard's list."""
    where = f"data {show(path)}: sample {show(sample.key.strip('/'))}"
    endings = [each for each in sample.members if f".{each.rpartition('.')[2]}" in SUFFIXES]
    if image is not None:
        endings = [each for each in sample.members if each == image.lower()]
    if not endings:
        found.left_out += [(member.name, "a sample without an image") for member in sample.members.values()]
        return
    if len(endings) > 1:
        raise DataError(f"{where} has several images, {name_few(endings)}; set image_column to one of them")
    member = sample.members[endings[0]]
    if member.issparse():
        raise DataError(f"{where} is stored with its holes left out, as `tar --sparse` does; pack it without")
    text = _label_of(where, sample, label, read)
    found.names.append(member.name)
    found.offsets.append(member.offset_data)
    found.sizes.append(member.size)
    found.labels.append(text)


def _label_of(where: str, sample: _Sample, given: str | None, read: Callable[[tarfile.TarInfo], bytes]) -> str:
    """The label that stands beside an image, as text: in .cls or .label, or under a usual key of .json."""
    endings = [each for each in _LABEL_ENDINGS if each in sample.members]
    if given is not None and given.lower() in sample.members:
        endings = [given.lower()]
    elif given is not None:
        endings = [each for each in endings if each == "json"]
    if not endings:
        there = name_few([show(each) for each in sample.members])
        wanted = given or ", ".join(_LABEL_ENDINGS)
        raise DataError(
            f"{where} has no label: got the members {there}, expected {show(wanted)}; set label_column"
        )
    member = sample.members[endings[0]]
    if member.size > _MAX_LABEL_BYTES:
        raise DataError(f"{where}: .{endings[0]} is {member.size:,} bytes long, expected the name of a class")
    try:
        text = read(member).decode("utf-8-sig").strip()
        return text if endings[0] != "json" else _label_in(where, json.loads(text), given)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: .{endings[0]} is no text that can be read ({show(str(error))})") from error


def _label_in(where: str, content: object, given: str | None) -> str:
    if isinstance(content, str | int) and given in (None, "json"):
        return str(content)
    keys = content if isinstance(content, dict) else {}
    found = [key for key in keys if (key == given if given not in (None, "json") else key.lower() in LABEL_NAMES)]
    if len(found) != 1:
        what = f"several labels, {name_few([show(key) for key in found])}" if found else "no label"
        names = name_few([show(key) for key in keys]) or "none"
        raise DataError(f"{where}: .json has {what} among the keys {names}; set label_column to one of them")
    value = keys[found[0]]
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: .json has a {type(value).__name__} under {show(found[0])}, expected one class")
    number = to_number(value)
    return str(value if number is None else number)


def _read_member(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    """Reads a member where the archive is being gone through."""
    here = file.tell()
    try:
        file.seek(member.offset_data)
        return file.read(member.size)
    finally:
        file.seek(here)
