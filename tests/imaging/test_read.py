"""Image files into pixels: every format and mode, the same for builder and client, one line for the rest."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, Resize  # type: ignore[import-untyped]  # ships none

from temper import client
from temper.builder.data.config import DataConfig
from temper.builder.data.prepare import load_train, prepare_data
from temper.client.images import load_image
from temper.client.model import ModelInfo
from temper.imaging.errors import ImageError
from temper.imaging.preprocess import Preprocessing
from temper.imaging.read import read_image

# As `temper.imaging.read` has it; pytest's own filters come before those of a module.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

SIZE = (50, 44)
"""Width and height of the pictures, which is no model's size."""
SMALL = Preprocessing(height=32, width=32)
MODEL = ModelInfo(
    name="model",
    version="1",
    input_name="image",
    image_shape=(32, 32, 3),
    output_name="logits",
    num_classes=2,
    max_batch_size=8,
)
READ = (
    "from temper.imaging.preprocess import Preprocessing; from temper.imaging.read import read_image; "
    "how = Preprocessing(height=32, width=32)"
)


def picture(seed: int = 5, size: tuple[int, int] = SIZE) -> Image.Image:
    """A colourful picture that is smooth, as a photo is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _grey16() -> Image.Image:
    return Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)


def _animated(path: Path) -> None:
    picture(1).save(path, save_all=True, append_images=[picture(2), picture(3)], duration=100)


def _turned(way: int, path: Path) -> None:
    picture().save(path, exif=_exif(way))


IMAGES: dict[str, Callable[[Path], None]] = {
    "rgb.png": lambda path: picture().save(path),
    "UPPER.PNG": lambda path: picture().save(path),
    "grey.png": lambda path: picture().convert("L").save(path),
    "bits.png": lambda path: picture().convert("1").save(path),
    "grey16.png": lambda path: _grey16().save(path),
    "palette.png": lambda path: picture().quantize(16).save(path, transparency=3),
    "alphas.png": lambda path: picture().quantize(16).save(path, transparency=bytes(range(16))),
    "la.png": lambda path: picture().convert("LA").save(path),
    "rgba.png": lambda path: picture().convert("RGBA").save(path),
    "animated.png": _animated,
    "turned.png": lambda path: picture().save(path, exif=_exif(8)),
    "rgb.jpg": lambda path: picture().save(path),
    "progressive.jpeg": lambda path: picture().save(path, progressive=True),
    "cmyk.jpg": lambda path: picture().convert("CMYK").save(path),
    **{f"turned{way}.jpg": functools.partial(_turned, way) for way in range(1, 9)},
    "broken_exif.jpg": lambda path: picture().save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xffnot what it says"),
    "two_pictures.jpg": lambda path: picture().save(path, "MPO", save_all=True, append_images=[picture(2)]),
    "png_inside.jpg": lambda path: picture().save(path, "PNG"),
    "webp_inside.jpg": lambda path: picture().save(path, "WEBP"),
    "rgb.webp": lambda path: picture().save(path, lossless=True),
    "rgba.webp": lambda path: picture().convert("RGBA").save(path),
    "animated.webp": _animated,
    "rgb.bmp": lambda path: picture().save(path),
    "palette.bmp": lambda path: picture().quantize(16).save(path),
    "rgb.tif": lambda path: picture().save(path),
    "lzw.tiff": lambda path: picture().save(path, compression="tiff_lzw"),
    "grey16.tif": lambda path: _grey16().save(path),
    "cmyk.tif": lambda path: picture().convert("CMYK").save(path),
    "turned.tif": lambda path: picture().save(path, exif=_exif(6)),
    "pages.tif": lambda path: picture().save(path, save_all=True, append_images=[picture(2)]),
    "rgb.ppm": lambda path: picture().save(path),
    "grey.pgm": lambda path: picture().convert("L").save(path),
    "rgb.gif": lambda path: picture().quantize(64).save(path),
    "animated.gif": _animated,
}
"""What writes a file, by its name."""


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of every kind."""
    folder = tmp_path_factory.mktemp("image_files")
    for name, write in IMAGES.items():
        write(folder / name)
    return folder


def reference(path: Path, size: int) -> npt.NDArray[Any]:
    """What Pillow's own operations make of a file, step by step, with no limit and no care."""
    with Image.open(path) as image:
        image.load()
        upright = image if image.format == "TIFF" or "broken" in path.name else ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        upright.info.pop("transparency", None)
        return np.asarray(CenterCrop(size)(Resize(size)(upright.convert("RGB"))))


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_is_read_as_pillow_does(image_files: Path, name: str) -> None:
    np.testing.assert_array_equal(read_image(image_files / name, SMALL), reference(image_files / name, 32))


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "animated.png"])
def test_every_kind_shows_the_picture(image_files: Path, name: str) -> None:
    """Nothing is turned, inverted, clipped, or of another frame: the pixels are near those that were saved."""
    turned = {"turned.png": 8, "turned.tif": 6, **{f"turned{way}.jpg": way for way in range(1, 9)}}.get(name, 1)
    first = picture(1) if name.startswith("animated") else picture()
    exif = Image.Exif()
    exif[0x0112] = turned
    first.getexif()[0x0112] = turned
    wanted = np.asarray(ImageOps.fit(ImageOps.exif_transpose(first), (32, 32), Image.Resampling.BILINEAR), float)
    found = read_image(image_files / name, SMALL).astype(float)
    if "grey" in name or "la" in name or name == "bits.png":
        found, wanted = found.mean(-1), wanted @ [0.299, 0.587, 0.114]
    assert np.abs(found - wanted).mean() < (60 if name == "bits.png" else 25)


def test_builder_and_client_give_the_same_pixels(image_files: Path, tmp_path: Path) -> None:
    """What the data stage tests and calibrates with, and what training reads, is what a client sends."""
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for name in IMAGES:
            os.link(image_files / name, tmp_path / "images" / label / name)
    config = DataConfig(
        source="folder", path=str(tmp_path / "images"), image_size=32, augment="none", test_fraction=0.5
    )
    info = prepare_data(config, tmp_path)
    assert info["num_train"] + info["num_test"] == 2 * len(IMAGES)
    assert info["left_out"]["num"] == 0
    train = load_train(config)
    files = train.source.open_image.items.paths  # type: ignore[attr-defined]  # of a folder
    sent = {index: load_image(path, MODEL) for index, path in enumerate(files)}
    tested = np.load(tmp_path / "test_images.npy")
    for position, index in enumerate(train.source.test):
        np.testing.assert_array_equal(tested[position], sent[index], err_msg=str(files[index]))
    for position, index in enumerate(train.source.train):
        np.testing.assert_array_equal(train[position][0].numpy(), sent[index], err_msg=str(files[index]))
    calibrated = {image.tobytes() for image in np.load(tmp_path / "calibration_images.npy")}
    assert calibrated == {sent[index].tobytes() for index in train.source.train}


@pytest.mark.parametrize("size", [(32, 32), (7, 100), (500, 40), (1, 1), (1, 4000)])
def test_any_size_becomes_the_size_asked_for(tmp_path: Path, size: tuple[int, int]) -> None:
    picture(size=size).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png", Preprocessing(height=32, width=48)).shape == (32, 48, 3)


def _cut(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _damage(path: Path) -> None:
    picture().save(path)
    data = bytearray(path.read_bytes())
    data[60:90] = b"\0" * 30
    path.write_bytes(bytes(data))


def _float(path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(path)


def _deep_integers(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 1 << 20, np.int32)).save(path)


EXPECTED = "expected PNG, JPEG, BMP, WebP, TIFF, PPM or GIF"
BAD_FILES: list[tuple[str, Callable[[Path], object], str]] = [
    *((f"cut{suffix}", _cut, "cannot be decoded") for suffix in (".png", ".jpg", ".bmp", ".tif", ".ppm", ".webp")),
    ("cut.gif", _cut, "cannot be decoded"),
    ("damaged.png", _damage, "cannot be decoded"),
    ("float.tif", _float, r"cannot be decoded \(floating-point pixels, whose scale nobody knows\)"),
    ("deep.tif", _deep_integers, r"cannot be decoded \(grey pixels of more than 16 bits\)"),
    ("text.png", lambda path: path.write_text("no image"), f"is text, {EXPECTED}"),
    ("noise.png", lambda path: path.write_bytes(bytes(range(1, 99))), f"is no image that can be read, {EXPECTED}"),
    ("empty.png", lambda path: path.touch(), f"is empty, {EXPECTED}"),
    ("folder.png", lambda path: path.mkdir(), "is a folder, expected an image"),
    ("none.png", lambda path: None, "no such file, expected an image"),
    ("dangling.png", lambda path: path.symlink_to("nothing"), "is a link to nothing, expected an image"),
    ("circle.png", lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    ("pipe.png", os.mkfifo, "is no regular file, expected an image"),
    ("device.png", lambda path: path.symlink_to("/dev/zero"), "is no regular file, expected an image"),
    ("file.png/x.png", lambda path: path.parent.touch(), "cannot be read: Not a directory"),
    ("eps.png", lambda path: picture().save(path, "EPS"), f"is a PostScript document, {EXPECTED}"),
    ("tga.png", lambda path: picture().save(path, "TGA"), f"is no image that can be read, {EXPECTED}"),
    ("jp2.png", lambda path: picture().save(path, "JPEG2000"), f"is a JPEG 2000 image, {EXPECTED}"),
    (
        "lfs.png",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a Git LFS pointer",
    ),
    ("page.png", lambda path: path.write_text("<!DOCTYPE html><p>"), "is a web page"),
    ("drawing.png", lambda path: path.write_text("<svg/>"), f"is an SVG drawing, {EXPECTED}"),
    ("a\nb\x1b\udcff.png", lambda path: path.touch(), r"a\\nb\\x1b\\xff.png: is empty"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD_FILES, ids=[ascii(row[0]) for row in BAD_FILES])
@pytest.mark.filterwarnings("ignore:unclosed file")
def test_bad_file_is_one_line(tmp_path: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / name)
    reads: list[tuple[Callable[[Path], object], type[Exception]]] = [
        (lambda path: read_image(path, SMALL), ImageError),
        (lambda path: load_image(path, MODEL), client.ImageError),
    ]
    for read, error in reads:
        with pytest.raises(error, match=rf"^{tmp_path}/.*{message}") as caught:
            read(tmp_path / name)
        assert str(caught.value).isprintable()


def test_bytes_of_chance_never_end_otherwise_than_as_an_image_error(image_files: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in IMAGES:
        data = np.frombuffer((image_files / name).read_bytes(), np.uint8)
        for _ in range(20):
            changed = data.copy()
            changed[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            (tmp_path / "changed").write_bytes(changed.tobytes())
            try:
                assert read_image(tmp_path / "changed", SMALL).shape == (32, 32, 3)
            except ImageError as error:
                assert str(error).isprintable()


def test_no_other_program_is_looked_for(tmp_path: Path) -> None:
    """An EPS makes Pillow run Ghostscript, whatever it is called."""
    picture().save(tmp_path / "image.png", "EPS")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    program = f"import sys; {READ}; read_image(sys.argv[1], how)"
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "image.png"], env=environment, capture_output=True, text=True
    )
    assert "is a PostScript document" in done.stderr
    assert not (tmp_path / "started").exists()


def test_nothing_is_said_of_damaged_metadata(image_files: Path) -> None:
    program = f"import sys; {READ}; read_image(sys.argv[1], how)"
    for name in ("broken_exif.jpg", "alphas.png"):
        done = subprocess.run(
            [sys.executable, "-c", program, image_files / name], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
