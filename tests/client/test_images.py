"""Image files into arrays, and logits into named probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import ImageError
from client.images import load_image, softmax, top_k


def _gradient(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows % 256, columns % 256, 0 * rows], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("size", [(32, 32), (7, 100), (500, 40), (1, 1)])
def test_any_size_becomes_the_size_asked_for(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"image{suffix}"
    _gradient(*size).save(path)
    image = load_image(path, 32, 48)
    assert image.shape == (32, 48, 3) and image.dtype == np.uint8


def test_same_size_png_is_read_unchanged(tmp_path: Path) -> None:
    _gradient(32, 32).save(tmp_path / "image.png")
    np.testing.assert_array_equal(load_image(tmp_path / "image.png", 32, 32), np.asarray(_gradient(32, 32)))


def test_centre_is_cut_out_of_a_wide_image(tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (load_image(tmp_path / "wide.png", 32, 32) == 200).all()


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("L", 77, 77), ("RGBA", (77, 77, 77, 9), 77), ("P", 0, None), ("I;16", 77 << 8, 77)],
)
def test_other_modes_become_rgb(tmp_path: Path, mode: str, value: object, expected: int | None) -> None:
    Image.new(mode, (8, 8), value).save(tmp_path / "image.png")  # type: ignore[arg-type]  # any pixel value
    image = load_image(tmp_path / "image.png", 8, 8)
    assert image.shape == (8, 8, 3)
    assert expected is None or (image == expected).all()


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg", 16, 16)[0].max() < 64


def _truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def _damaged(path: Path) -> None:
    _gradient(64, 64).save(path)
    data = bytearray(path.read_bytes())
    data[60:90] = b"\0" * 30
    path.write_bytes(bytes(data))


BAD_FILES = [
    ("cut.png", _truncated, r"cut\.png: cannot be decoded \(.*truncated.*expected a whole PNG or JPEG"),
    ("cut.jpg", _truncated, r"cut\.jpg: cannot be decoded \(.*truncated.*expected a whole PNG or JPEG"),
    ("bad.png", _damaged, r"bad\.png: cannot be decoded"),
    ("text.png", lambda path: path.write_text("no image"), r"text\.png: not an image .*expected PNG or JPEG"),
    ("empty.png", lambda path: path.touch(), r"empty\.png: not an image .*expected PNG or JPEG"),
    ("folder.png", lambda path: path.mkdir(), r"folder\.png: is a folder"),
    ("none.png", lambda path: None, r"none\.png: no such file"),
    ("other.png", lambda path: _gradient(8, 8).save(path, format="BMP"), r"other\.png: not an image"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_bad_file_is_named(tmp_path: Path, name: str, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path / name)
    with pytest.raises(ImageError, match=message):
        load_image(tmp_path / name, 32, 32)


def test_softmax_does_not_overflow() -> None:
    probabilities = softmax(np.array([[1e4, 1e4, -1e4], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(probabilities, [[0.5, 0.5, 0.0], [1 / 3] * 3])


def test_top_k_is_best_first_and_named() -> None:
    first, second = top_k(np.array([[0.0, 3.0, 1.0], [9.0, 0.0, 0.0]]), ("cat", "dog"), k=2)
    assert [(p.label, p.index) for p in first] == [("dog", 1), ("2", 2)]
    assert first[0].probability == pytest.approx(np.exp(3) / (1 + np.exp(3) + np.exp(1)))
    assert [p.label for p in second] == ["cat", "dog"]
    assert len(top_k(np.zeros((1, 3)), k=9)[0]) == 3
