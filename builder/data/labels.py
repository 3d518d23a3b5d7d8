"""The order of a network's classes, from a file of their names: `labels` in `[data]`."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.class_names import EXPECTED, as_class_names
from temper.builder.errors import DataError
from temper.builder.names import is_printable
from temper.imaging.errors import show
from temper.imaging.folder import name_few

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".txt", ".json")
_MAX_BYTES = 1 << 24


def read_class_names(path: Path) -> list[str]:
    """Reads the class names of a network, in the order of its outputs.

    Args:
        path: A .txt of one name a line; or a .json with a list, `{"0": name}`, `{name: 0}`, or an `id2label`.

    Raises:
        DataError: It cannot be read, is none of these, or has a name twice.
    """
    where = f"labels {show(path)}"
    text = _read(path, where)
    names = _from_json(text, where) if path.suffix.lower() == ".json" else text.splitlines()
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if len(names) < 2:
        raise DataError(f"{where}: holds {len(names)} names, {EXPECTED}")
    odd = next((number for number, name in enumerate(names) if not name or not is_printable(name)), None)
    if odd is not None:
        raise DataError(f"{where}: name {odd} is {show(names[odd])!r}, expected one line of printable text")
    if twice := _repeated(names):
        shown = name_few([f"{show(name)} ({_places(names, name)})" for name in twice])
        raise DataError(f"{where}: got the same name more than once: {shown}; make them differ")
    return names


def map_labels(
    where: str, own: Sequence[str], names: Sequence[str], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Turns labels in a source's own order into those in the order of a list.

    Args:
        where: What messages begin with.
        own: The source's names in its own order.
        names: Those of the list.
        labels: Of every image.

    Raises:
        DataError: A class that has images is not in the list.
    """
    if twice := _repeated(own):
        raise DataError(
            f"{where}: calls several of its classes {show(twice[0])}, which `labels` cannot tell apart"
        )
    places = {name: index for index, name in enumerate(names)}
    present = np.unique(labels)
    missing = [own[label] for label in present if own[label] not in places]
    if missing:
        shown = name_few([_with_close(name, names) for name in missing])
        raise DataError(
            f"{where}: got {len(missing):,} of {len(present):,} classes that `labels` does not list: {shown}; "
            "rename them, or mend the list"
        )
    table = np.array([places.get(name, -1) for name in own], dtype=np.int64)
    mapped: NDArray[np.int64] = table[labels]
    return mapped


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted(name for name, num in Counter(names).items() if num > 1)


def _with_close(name: str, names: Sequence[str]) -> str:
    lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), list(lower), 1)
    return f"{show(name)} ({show(lower[close[0]])}?)" if close else show(name)


def _places(names: Sequence[str], name: str) -> str:
    return " and ".join([str(index) for index, each in enumerate(names) if each == name][:3])


def _read(path: Path, where: str) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{where}: expected a file that ends in {' or '.join(SUFFIXES)}; {EXPECTED}")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DataError(f"{where}: {why}; {EXPECTED}") from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"{where}: longer than {_MAX_BYTES:,} bytes, {EXPECTED}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text (byte {error.start}), {EXPECTED}") from error


def _from_json(text: str, where: str) -> list[str]:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := _repeated([key for key, _ in found]):
            raise DataError(f"{where}: got {show(twice[0])} more than once, expected every class once")
        return dict(found)

    try:
        content = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({show(str(error))}), {EXPECTED}") from error
    if isinstance(content, dict):
        inner = [
            content[key] for key in ("id2label", "class_to_idx", "label2id") if isinstance(content.get(key), dict)
        ]
        content = inner[0] if inner else content
    try:
        return as_class_names(content)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
