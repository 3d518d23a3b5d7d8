"""Patches of photographs: what is split, what is left out, and the one line for what cannot be used."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from temper.builder.data import photos
from temper.builder.data.config import DataConfig
from temper.builder.data.photos import Patches, cut_photos, list_bands
from temper.builder.data.prepare import describe_data, fingerprint_data, prepare_data
from temper.builder.data.sources import open_source
from temper.builder.errors import DataError


@pytest.fixture(scope="module")
def cut() -> Patches:
    return cut_photos(None, 0)


def noise(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """Writes a picture of coarse noise, which is flat nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(cells).resize(size, Image.Resampling.BILINEAR).save(path, "PNG")
    return path


def covered(patches: Patches, label: int, split: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which pixels of a photograph are in a patch of a split."""
    width, height = patches.photographs[label].size
    seen = np.zeros((height, width), bool)
    for left, top, right, bottom in patches.boxes[split[patches.labels[split] == label]]:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        seen[top:bottom, left:right] = True
    return seen


def test_no_pixel_tests_that_trained(cut: Patches) -> None:
    assert len(cut.class_names) == 16
    for label, name in enumerate(cut.class_names):
        train, test = covered(cut, label, cut.train), covered(cut, label, cut.test)
        assert not (train & test).any(), name
        # And most of what may be used is.
        assert train.mean() > 0.3, name
        assert test.mean() > 0.15, name
        # The bands lie along the longer side, and between any two of a kind is one of the other.
        along = 1 if train.shape[1] >= train.shape[0] else 0
        gap = photos._GAP_SHARE * train.shape[along]
        columns = [np.flatnonzero(each.any(1 - along)) for each in (train, test)]
        nearest = np.abs(columns[0][:, None] - columns[1][None]).min()
        assert nearest > gap - 2, name


@pytest.mark.parametrize("length", [256, 257, 300, 451, 512, 1000, 1024])
def test_bands_are_alike_and_apart(length: int) -> None:
    bands = list_bands(length)
    assert len(bands) == 5
    assert (bands[0][0], bands[-1][1]) == (0, length)
    gaps = [after[0] - before[1] for before, after in zip(bands, bands[1:], strict=False)]
    assert min(gaps) >= 2
    assert max(gaps) == min(gaps)
    widths = [stop - start for start, stop in bands]
    assert max(widths) - min(widths) <= max(gaps)


def test_upright_photograph_has_its_bands_below_one_another(tmp_path: Path) -> None:
    noise(tmp_path / "tall.png", (300, 600))
    patches = cut_photos(tmp_path, 0)
    assert patches.class_names[16:] == ["tall.png"]
    train, test = covered(patches, 16, patches.train), covered(patches, 16, patches.test)
    assert not (train & test).any()
    assert not (train.any(1) & test.any(1)).any()
    sizes = patches.boxes[patches.labels == 16]
    assert ((sizes[:, 2] - sizes[:, 0]) > (sizes[:, 3] - sizes[:, 1])).all()


def test_patches_are_those_of_the_seed(cut: Patches, tmp_path: Path) -> None:
    assert np.array_equal(cut_photos(None, 0).boxes, cut.boxes)
    assert not np.array_equal(cut_photos(None, 1).boxes, cut.boxes)
    # Further photographs change nothing for the others.
    noise(tmp_path / "more.png", (400, 300))
    more = cut_photos(tmp_path, 0)
    assert np.array_equal(more.boxes[: len(cut.boxes)], cut.boxes)


def test_classes_are_balanced_and_patches_have_something_in_them(cut: Patches) -> None:
    assert not set(cut.train) & set(cut.test)
    assert np.bincount(cut.labels[cut.train]).tolist() == [180] * 16
    assert np.bincount(cut.labels[cut.test]).tolist() == [80] * 16
    for index in range(0, len(cut.labels), 7):
        patch = cut(index)
        assert patch.mode == "RGB"
        assert patch.width != patch.height
        assert np.asarray(patch.convert("L")).std() >= photos.MIN_CONTRAST
    sizes = {cut(index).size for index in cut.test}
    assert len(sizes) > 50


def test_photographs_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(DataConfig(source="photos", preset="torchvision", image_size=64))
    assert source.in_memory
    monkeypatch.setattr(Image, "open", None)
    assert source.read(5).shape == (64, 64, 3)
    assert isinstance(source.open_image, Patches)
    pixels = sum(image.width * image.height for image in source.open_image.photographs)
    assert pixels < 16 * 1024**2
    assert not any(isinstance(value, list) and len(value) > 16 for value in vars(source.open_image).values())


def test_prepare(tmp_path: Path) -> None:
    config = DataConfig(
        source="photos", preset="torchvision", image_size=(32, 48), resize=48, num_test=20, num_calibration=10
    )
    info = prepare_data(config, tmp_path)
    assert describe_data(info) == "2880 train, 20 test images"
    assert np.load(tmp_path / "test_images.npy").shape == (20, 32, 48, 3)
    names = (tmp_path / "labels.txt").read_text().split()
    assert names[:3] == ["astronaut", "brick", "camera"]
    assert fingerprint_data(config) is None


def test_what_cannot_be_cut_up_is_left_out_and_named(tmp_path: Path) -> None:
    noise(tmp_path / "in/a.png", (900, 600))
    Image.open(tmp_path / "in/a.png").resize((600, 400)).save(tmp_path / "in/b.jpg")
    noise(tmp_path / "in/small.png", (200, 200), 1)
    Image.new("RGB", (400, 300), "navy").save(tmp_path / "flat.png")
    (tmp_path / "scene.svg").write_text("<svg/>")
    source = open_source(DataConfig(source="photos", path=str(tmp_path), image_size=32))
    assert source.class_names[16:] == ["in/a.png"]
    left_out = source.info["left_out"]
    assert left_out["reasons"] == {
        "no image by its name": 1,
        "flat nearly everywhere": 1,
        "the same picture as another": 1,
        "smaller than 256 x 64 pixels": 1,
    }
    assert left_out["first"] == ["scene.svg", "flat.png", "in/b.jpg", "in/small.png"]


def fill(folder: Path, what: str) -> Path:
    folder.mkdir()
    if what == "broken":
        path = noise(folder / "a.png", (400, 300))
        path.write_bytes(path.read_bytes()[:9000])
    if what == "flat":
        Image.new("RGB", (400, 300), "navy").save(folder / "sky.png")
    if what == "many":
        for number in range(251):
            (folder / f"{number}.jpg").touch()
    if what == "missing":
        folder.rmdir()
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"data \S+/x: no such folder; expected a folder of photographs, each a class of its own"),
        ("empty", r"data \S+/x: got no photograph that can be cut up, expected at least one"),
        ("flat", r"data \S+/x: got no photograph .* \(sky.png is left out: flat nearly everywhere\)"),
        ("broken", r"data \S+/x/a.png: cannot be decoded .*; repair or remove it"),
        ("many", r"data \S+/x: got 251 images, expected at most 250 photographs, each a class of its own"),
    ],
)
def test_folder_that_is_refused(tmp_path: Path, what: str, message: str) -> None:
    config = DataConfig(source="photos", path=str(fill(tmp_path / "x", what)), image_size=32)
    with pytest.raises(DataError, match=message) as caught:
        open_source(config)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("module", "package"), [("skimage", "scikit-image"), ("sklearn", "scikit-learn")])
def test_missing_wheel_is_one_line(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    def find(name: str) -> Any:
        return None if name == module else importlib.util.find_spec(name)

    monkeypatch.setattr(photos, "find_spec", find)
    with pytest.raises(DataError, match=rf"{package} is not installed, .* pip install 'temper\[data\]'"):
        open_source(DataConfig(source="photos", image_size=32))


def test_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name: got 'coffee', expected nothing for source 'photos'"):
        DataConfig(source="photos", name="coffee")


def test_changed_folder_is_a_new_input(tmp_path: Path) -> None:
    config = DataConfig(source="photos", path=str(tmp_path), image_size=32)
    path = noise(tmp_path / "a.png", (300, 300))
    seen = {fingerprint_data(config)}
    os.utime(path, (1, 1))
    seen.add(fingerprint_data(config))
    noise(tmp_path / "b/c.png", (300, 300), 1)
    seen.add(fingerprint_data(config))
    assert len(seen) == 3
    (tmp_path / "notes.txt").touch()
    assert fingerprint_data(config) in seen


def installed_backgrounds() -> list[Path]:
    """The folders of pictures that Debian's packages have put on this machine."""
    roots = [Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers")]
    return [root for root in roots if root.is_dir() and any(photos._list(root).paths)]


@pytest.mark.skipif(not installed_backgrounds(), reason="no package of backgrounds is installed")
def test_debians_backgrounds_are_cut_up() -> None:
    for root in installed_backgrounds():
        patches = cut_photos(root, 0)
        assert len(patches.class_names) > 16
        assert not (covered(patches, 16, patches.train) & covered(patches, 16, patches.test)).any()


def test_page_has_the_numbers() -> None:
    text = re.sub(r"\s+", " ", (Path(__file__).parents[3] / "docs" / "photos.md").read_text())
    assert f"{photos.NUM_TRAIN} patches of each photograph train, {photos.NUM_TEST} test" in text
    assert f"less than {photos.MIN_CONTRAST:g} of 255" in text
