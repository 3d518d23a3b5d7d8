"""One rule for names and class names, wherever they come from and go to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from temper.builder.data.config import DataConfig
from temper.builder.data.prepare import prepare_data
from temper.builder.errors import DataError
from temper.builder.names import is_printable, read_labels, render_labels

# Numbers, spaces, colons, commas, hashes, quotes, accents, scripts whose letters are joined, an emoji of several.
GOOD = [
    "10",
    "9",
    "a b: c",
    "d,e #f",
    "g;\"h' \u00e9",
    "n\u00b01 [x]",
    "\u0645\u06cc\u200c\u062e",
    "\u00a0x",
    "\U0001f469\u200d\U0001f52c",
]
BAD = [
    "\x1b[31m",
    "a\0b",
    "a\nb",
    "a\rb",
    "a\x0bb",
    "a\x85b",
    "a\x9b",
    "a\u2028b",
    "a\u2029b",
    "a\u202eb",
    "a\ufeffb",
    "\udcff",
]


@pytest.mark.parametrize(("name", "expected"), [(n, True) for n in GOOD] + [(n, False) for n in BAD], ids=ascii)
def test_is_printable(name: str, expected: bool) -> None:
    assert is_printable(name) is expected


def test_labels_keep_order_and_spelling(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(render_labels([*GOOD, "a\u2028b"]))
    assert read_labels(path) == [*GOOD, "a\u2028b"]


def _draw(root: Path, names: list[str]) -> DataConfig:
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(np.full((32, 32, 3), 40 * index, np.uint8)).save(root / name / f"{index}.png")
    return DataConfig(source="folder", path=str(root), image_size=32)


def test_classes_are_folders_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare_data(_draw(tmp_path / "images", GOOD), tmp_path / "out")
    assert read_labels(tmp_path / "out" / "labels.txt") == sorted(GOOD)


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\u2028b"], ids=ascii)
def test_class_that_does_not_print_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataError, match="got the class .*, expected one line of printable text; rename it"
    ) as caught:
        prepare_data(_draw(tmp_path / "images", ["b", name]), tmp_path)
    assert is_printable(str(caught.value))
