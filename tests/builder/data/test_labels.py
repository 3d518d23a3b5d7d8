"""The order of the classes from a list: how it is written, and that a mismatch with the data is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from temper.builder.data.config import DataConfig
from temper.builder.data.labels import map_labels, read_class_names
from temper.builder.data.prepare import describe_data, prepare_data
from temper.builder.data.sources import open_source
from temper.builder.errors import DataError

NAMES = ["dog", "cat", "größe 1"]

WRITTEN = {
    "text": ("names.txt", "dog\ncat\ngröße 1\n"),
    "text of Windows": ("NAMES.TXT", "\ufeffdog\r\ncat\r\ngröße 1\r\n\r\n"),
    "list": ("names.json", json.dumps(NAMES)),
    "by index": ("names.json", json.dumps({"2": "größe 1", "0": "dog", "1": "cat"})),
    "config.json": ("config.json", json.dumps({"model_type": "resnet", "id2label": dict(enumerate(NAMES))})),
    "by name": ("names.json", json.dumps({"cat": 1, "größe 1": 2, "dog": 0})),
    "class_to_idx": ("names.json", json.dumps({"class_to_idx": {"cat": 1, "größe 1": 2, "dog": 0}})),
    "ImageNet's": ("names.json", json.dumps({str(i): [name, f"a {name}"] for i, name in enumerate(NAMES)})),
}


@pytest.mark.parametrize(("name", "text"), WRITTEN.values(), ids=WRITTEN.keys())
def test_list_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_class_names(tmp_path / name) == NAMES


def test_numbers_as_names_are_names(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"10": 1, "7": 0}')
    assert read_class_names(tmp_path / "x.json") == ["7", "10"]


def test_classes_of_one_name_are_not_told_apart() -> None:
    """Torchvision's ImageNet has two cranes."""
    with pytest.raises(DataError, match="^data x: calls several of its classes crane, which `labels` cannot tell"):
        map_labels("data x", ["crane", "dog", "crane"], ["dog", "crane"], np.array([0, 1, 2]))


BAD = {
    "other file": ("x.csv", b"a\nb\n", r"expected a file that ends in .txt or .json; expected the class names in"),
    "one name": ("x.txt", b"a\n", "holds 1 names, expected the class names in the order of the network's outputs"),
    "empty": ("x.txt", b"", "holds 0 names"),
    "a gap": ("x.txt", b"a\n\nb\n", "name 1 is '', expected one line of printable text"),
    "an escape": ("x.txt", b"a\nb\x1b[2J\n", r"name 1 is .*x1b\[2J', expected one line of printable"),
    "twice": (
        "x.txt",
        b"a\nb\na\nb\n",
        r"got the same name more than once: a \(0 and 2\), b \(1 and 3\); make them",
    ),
    "a key twice": ("x.json", b'{"a": 0, "a": 1}', "got a more than once, expected every class once"),
    "latin-1": ("x.txt", b"gr\xf6\xdfe\nb", r"is not UTF-8 text \(byte 2\)"),
    "no JSON": ("x.json", b"[", "is no JSON"),
    "deep": ("x.json", b"[" * 100_000, "is no JSON"),
    "other JSON": ("x.json", b'{"a": "b"}', "is other JSON, expected the class names"),
    "numbers": ("x.json", b"[1, 2]", "is other JSON"),
    "a gap in the indices": (
        "x.json",
        b'{"0": "a", "2": "b"}',
        "got 2 classes, expected the indices 0 to 1, each once",
    ),
    "an index twice": ("x.json", b'{"a": 1, "b": 1}', "got 2 classes, expected the indices 0 to 1, each once"),
    "missing": ("none.txt", None, "none.txt: no such file; expected the class names"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD.keys())
def test_bad_list_is_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^labels {tmp_path}/.*{message}") as caught:
        read_class_names(tmp_path / name)
    assert str(caught.value).isprintable()


def folder(root: Path, *classes: str) -> DataConfig:
    for name in classes:
        (root / "images" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (40, 36), (len(name), index, 7)).save(root / "images" / name / f"{index}.png")
    labels = str(root / "names.json")
    return DataConfig(source="folder", path=str(root / "images"), labels=labels, image_size=32, test_fraction=0.5)


def test_list_decides_the_order_and_may_be_longer(tmp_path: Path) -> None:
    config = folder(tmp_path, "cat", "dog")
    (tmp_path / "names.json").write_text(json.dumps([*NAMES, "elk"]))
    (tmp_path / "out").mkdir()
    info = prepare_data(config, tmp_path / "out")
    assert np.load(tmp_path / "out/test_labels.npy").tolist() == [1, 0]  # cat is second in the list
    assert (tmp_path / "out/labels.txt").read_text().splitlines() == [*NAMES, "elk"]
    assert info["num_classes"] == 4
    assert describe_data(info) == "2 train, 2 test images; no images of 2 of the 4 classes"


def test_classes_that_the_list_lacks_are_named_with_what_is_like_them(tmp_path: Path) -> None:
    config = folder(tmp_path, "Cat", "dogs", "wombat")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    message = r"images: got 3 of 3 classes that `labels` does not list: Cat \(cat\?\), dogs \(dog\?\), wombat"
    with pytest.raises(DataError, match=message):
        open_source(config)


def test_list_of_generated_data(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([str(digit) for digit in range(9, -1, -1)]))
    config = DataConfig(image_size=32, labels=str(tmp_path / "x.json"))
    plain = open_source(DataConfig(image_size=32))
    assert open_source(config).labels.tolist() == (9 - plain.labels).tolist()


def test_numbers_beyond_the_list_are_refused(tmp_path: Path) -> None:
    rows = "\n".join(f"{index}.png,{index}" for index in range(5))
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}\n")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    config = DataConfig(source="table", path=str(tmp_path / "list.csv"), labels=str(tmp_path / "names.txt"))
    with pytest.raises(DataError, match=r"got the label 4, expected 0 to 2, as .*names.txt has 3 names"):
        open_source(config)
