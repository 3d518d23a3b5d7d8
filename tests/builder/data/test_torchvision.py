"""torchvision's data sets, laid out as it downloads them: their splits, labels and names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from temper.builder.data.config import DataConfig
from temper.builder.data.sources import Source, open_source

SYNSETS = {"n02979186": "cassette player", "n01440764": "tench"}
PETS = ["Abyssinian_1", "Abyssinian_2", "great_pyrenees_7"]


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), (shade, 0, 0)).save(path, "PNG")


def fill_imagenette(root: Path) -> None:
    for split, number in (("train", 3), ("val", 2)):
        for label, synset in enumerate(sorted(SYNSETS)):
            for index in range(number):
                draw(root / "imagenette2" / split / synset / f"{index}.jpeg", 10 * label + index)


def fill_pets(root: Path) -> None:
    for index, name in enumerate(PETS):
        draw(root / "oxford-iiit-pet/images" / f"{name}.jpg", index)
    lines = [f"{name} {1 + name.startswith('great')} 1 1\n" for name in PETS]
    (root / "oxford-iiit-pet/annotations").mkdir()
    (root / "oxford-iiit-pet/annotations/trainval.txt").write_text("".join(lines))
    (root / "oxford-iiit-pet/annotations/test.txt").write_text("".join(lines[1:]))


def open_filled(root: Path, name: str, fill: Callable[[Path], None]) -> Source:
    fill(root)
    return open_source(DataConfig(source="torchvision", name=name, path=str(root), image_size=32))


def test_imagenette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classes are tuples of synonyms, and its labels are beside the paths: no image is decoded for them."""
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        source = open_filled(tmp_path, "Imagenette", fill_imagenette)
    assert source.class_names == ["tench", "cassette player"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert source.train.tolist() == [0, 1, 2, 3, 4, 5]
    assert source.test.tolist() == [6, 7, 8, 9]
    assert [source.read(index)[0, 0, 0] for index in (1, 4, 9)] == [1, 11, 11]


def test_oxford_pets_train_on_trainval(tmp_path: Path) -> None:
    source = open_filled(tmp_path, "OxfordIIITPet", fill_pets)
    assert source.class_names == ["Abyssinian", "Great Pyrenees"]
    assert source.labels.tolist() == [0, 0, 1, 0, 1]
    assert np.array_equal(source.test, [3, 4])
    assert source.read(4)[0, 0, 0] == 2
