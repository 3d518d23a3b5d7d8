"""Data: what is split how, and the one line for what cannot be used."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from temper.builder.data.config import DataConfig
from temper.builder.data.prepare import file_of, load_train, prepare_data
from temper.builder.data.sources import open_source
from temper.builder.errors import DataError


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


@pytest.mark.slow
def test_full_disk_is_one_line(tmp_path: Path, mount: Callable[[Path, str], list[str]]) -> None:
    program = """
        import sys
        from pathlib import Path
        from temper.builder.data.prepare import DataConfig, prepare_data
        from temper.builder.errors import DataError

        try:
            prepare_data(DataConfig(image_size=64), Path(sys.argv[1]))
        except DataError as error:
            print(error)
    """
    command = [*mount(tmp_path, "size=1m"), sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/test_images.npy: cannot be written: No space left on device\n"


@pytest.mark.slow
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


def test_subset_is_drawn_by_the_seed(tmp_path: Path) -> None:
    labels = [
        read(tmp_path / str(index), "test_images.npy").tobytes()
        for index, seed in enumerate([1, 1, 2])
        if prepare(DataConfig(image_size=32, num_test=20, seed=seed), tmp_path / str(index))
    ]
    assert labels[0] == labels[1] != labels[2]
    assert read(tmp_path / "0", "test_images.npy").shape[0] == 20


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["NoSuchSet", "folder", "ImageFolder"])
def test_unknown_torchvision_name_is_one_line(tmp_path: Path, name: str) -> None:
    config = DataConfig(source="torchvision", name=name, path=str(tmp_path), image_size=32)
    with pytest.raises(DataError, match=name):
        open_source(config)


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


def test_file_of_a_test_image_is_as_it_lies_and_else_a_png(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    image.save(path := tmp_path / "image.jpg")
    lies = path.read_bytes()
    assert file_of(path) == file_of(io.BytesIO(lies)) == lies
    made = Image.open(io.BytesIO(file_of(image)))
    assert made.format == "PNG" and np.array_equal(np.asarray(made), np.asarray(image))
