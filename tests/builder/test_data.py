"""Data: what is split how, and the one line for what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builder.data import DataConfig, fingerprint_data, load_train, prepare_data
from builder.errors import DataError
from builder.sources import fit_image, open_source


def fill_folder(root: Path, classes: dict[str, int], size: tuple[int, int] = (40, 36)) -> Path:
    """Writes images that are all different: their number is in their pixels."""
    number = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            number += 1
            Image.new("RGB", size, (number % 256, number // 256, 7)).save(root / name / f"{index}.png")
    return root


def colours(images: np.ndarray[Any, Any]) -> set[tuple[int, ...]]:
    return {tuple(image[0, 0]) for image in images}


def read(folder: Path, name: str) -> np.ndarray[Any, Any]:
    loaded: np.ndarray[Any, Any] = np.load(folder / name, mmap_mode="r")
    return loaded


def prepare(config: DataConfig, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return prepare_data(config, folder)


def test_digits_are_split_without_overlap(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    config = DataConfig(image_size=32)
    (tmp_path / "out").mkdir()
    info = prepare_data(config, tmp_path / "out", lambda done, total: calls.append((done, total)))
    assert info == {
        "source": "digits",
        "num_train": 1347,
        "num_test": 450,
        "num_calibration": 512,
        "num_classes": 10,
        "image_size": 32,
    }
    images, labels = read(tmp_path / "out", "test_images.npy"), read(tmp_path / "out", "test_labels.npy")
    assert (images.dtype, images.shape) == (np.uint8, (450, 32, 32, 3))
    assert (labels.dtype, labels.shape) == (np.int64, (450,))
    assert np.bincount(labels).min() >= 43
    assert (tmp_path / "out" / "labels.txt").read_text().split() == [str(digit) for digit in range(10)]
    assert calls[-1] == (962, 962)
    source = open_source(config)
    assert not set(source.train) & set(source.test)
    assert len(source.train) + len(source.test) == 1797
    test = {image.tobytes() for image in images}
    assert not test & {image.tobytes() for image in read(tmp_path / "out", "calibration_images.npy")}


def test_flat_folder_is_split_by_class(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "images", {"cat": 20, "dog": 8})
    config = DataConfig(source="folder", path=str(root), image_size=32)
    info = prepare(config, tmp_path / "out")
    assert (info["num_train"], info["num_test"], info["num_calibration"]) == (21, 7, 21)
    assert np.bincount(read(tmp_path / "out", "test_labels.npy")).tolist() == [5, 2]
    assert (tmp_path / "out" / "labels.txt").read_text() == "cat\ndog\n"
    test = colours(read(tmp_path / "out", "test_images.npy"))
    calibration = colours(read(tmp_path / "out", "calibration_images.npy"))
    assert len(test) == 7
    assert len(calibration) == 21
    assert not test & calibration


@pytest.mark.parametrize("name", ["val", "test"])
def test_folder_with_its_own_split_keeps_it(tmp_path: Path, name: str) -> None:
    fill_folder(tmp_path / "images" / "train", {"cat": 6, "dog": 6})
    fill_folder(tmp_path / "images" / name, {"cat": 3, "dog": 2}, size=(50, 50))
    config = DataConfig(source="folder", path=str(tmp_path / "images"), image_size=32, num_calibration=4)
    info = prepare(config, tmp_path / "out")
    assert (info["num_train"], info["num_test"], info["num_calibration"]) == (12, 5, 4)
    assert read(tmp_path / "out", "test_labels.npy").tolist() == [0, 0, 0, 1, 1]


def test_subset_is_drawn_by_the_seed(tmp_path: Path) -> None:
    labels = [
        read(tmp_path / str(index), "test_images.npy").tobytes()
        for index, seed in enumerate([1, 1, 2])
        if prepare(DataConfig(image_size=32, num_test=20, seed=seed), tmp_path / str(index))
    ]
    assert labels[0] == labels[1] != labels[2]
    assert read(tmp_path / "0", "test_images.npy").shape[0] == 20


def test_torchvision_by_name(tmp_path: Path) -> None:
    config = DataConfig(source="torchvision", name="FakeData", image_size=32, num_test=5, num_calibration=4)
    info = prepare(config, tmp_path / "out")
    assert (info["source"], info["num_classes"]) == ("FakeData", 10)
    assert read(tmp_path / "out", "test_images.npy").shape == (5, 32, 32, 3)


def test_train_images_are_augmented_and_labelled(tmp_path: Path) -> None:
    import torch

    root = fill_folder(tmp_path / "images", {"cat": 4, "dog": 4})
    train = load_train(DataConfig(source="folder", path=str(root), image_size=32))
    image, label = train[0]
    assert (image.dtype, tuple(image.shape), label) == (torch.uint8, (32, 32, 3), 0)
    digits = load_train(DataConfig(image_size=32))
    assert any(not torch.equal(digits[0][0], digits[0][0]) for _ in range(5))
    plain = load_train(DataConfig(image_size=32, augment="none"))
    assert torch.equal(plain[0][0], plain[0][0])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, r"Couldn't find any class folder in .*; expected a sub-folder of images per class"),
        ({"cat": 5}, r"got 1 classes \(cat\), expected at least two"),
        ({"cat": 5, "dog": 0}, r"Found no valid file for the classes dog"),
        ({"cat": 1, "dog": 1}, r"no image is left for the test split; add images or change test_fraction"),
    ],
    ids=["empty", "one class", "empty class", "too few"],
)
def test_folder_that_cannot_be_used_is_one_line(tmp_path: Path, classes: dict[str, int], message: str) -> None:
    (tmp_path / "images").mkdir()
    fill_folder(tmp_path / "images", classes)
    with pytest.raises(DataError, match=message) as caught:
        prepare(DataConfig(source="folder", path=str(tmp_path / "images"), image_size=32), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    config = DataConfig(source="folder", path=str(tmp_path / "none"), image_size=32)
    for use in (fingerprint_data, open_source):
        with pytest.raises(DataError, match=r"data .*none: no such folder; expected one with a sub-folder"):
            use(config)


def test_class_in_one_split_only_is_one_line(tmp_path: Path) -> None:
    fill_folder(tmp_path / "images" / "train", {"cat": 2, "dog": 2})
    fill_folder(tmp_path / "images" / "val", {"cat": 2, "emu": 2})
    config = DataConfig(source="folder", path=str(tmp_path / "images"), image_size=32)
    with pytest.raises(DataError, match=r"class 'dog' is in only one of train/ and val/"):
        open_source(config)


def test_truncated_image_names_its_file(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "images", {"cat": 4, "dog": 4})
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    config = DataConfig(source="folder", path=str(root), image_size=32)
    with pytest.raises(DataError, match=r"image .*\.png: cannot be decoded \(.*\); repair or remove it"):
        prepare(config, tmp_path / "out")


@pytest.mark.parametrize("name", ["NoSuchSet", "folder", "ImageFolder"])
def test_unknown_torchvision_name_is_one_line(tmp_path: Path, name: str) -> None:
    config = DataConfig(source="torchvision", name=name, path=str(tmp_path), image_size=32)
    with pytest.raises(DataError, match=name):
        open_source(config)


def test_changed_folder_is_a_new_input(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "images", {"cat": 2, "dog": 2})
    config = DataConfig(source="folder", path=str(root), image_size=32)
    before = fingerprint_data(config)
    assert before == fingerprint_data(config)
    Image.new("RGB", (40, 40)).save(root / "cat" / "new.png")
    assert fingerprint_data(config) != before
    assert fingerprint_data(DataConfig()) is None


@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 32), (10, 50), (33, 32)])
def test_fit_image_gives_the_size(width: int, height: int) -> None:
    image = fit_image(Image.new("L", (width, height), 90), 32)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert np.asarray(image).min() == np.asarray(image).max() == 90


def test_fit_image_is_what_the_client_sends(tmp_path: Path) -> None:
    from client.images import load_image

    rng = np.random.default_rng(0)
    path = tmp_path / "image.png"
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(fit_image(image, 32)), load_image(path, 32, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "folder"}, r"path: got nothing, expected the image folder of source 'folder'"),
        ({"source": "torchvision"}, r"name: got nothing, expected a class of torchvision.datasets"),
        ({"path": "x"}, r"path: got 'x', expected nothing for source 'digits'"),
        ({"image_size": 8}, r"image_size: got 8, expected 32 to 1024 pixels"),
        ({"num_calibration": 0}, r"num_calibration: got 0, expected at least 1"),
        ({"num_test": 0}, r"num_test: got 0, expected at least 1"),
        ({"test_fraction": 1.0}, r"test_fraction: got 1.0, expected more than 0 and less than 1"),
        ({"seed": -1}, r"seed: got -1, expected 0 or more"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)
