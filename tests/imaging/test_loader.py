"""What torchvision users expect: the pixels of its `default_loader`, or a difference that is meant."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from temper.imaging.errors import ImageError
from temper.imaging.read import decode_image

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")
LIMIT = 1 << 20


def picture() -> Image.Image:
    coarse = np.random.default_rng(5).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((50, 44), Image.Resampling.BICUBIC)


def deep(bits: int) -> npt.NDArray[Any]:
    """Grey of 16 bits, or so many of them."""
    return np.asarray(picture().convert("L")).astype(np.uint16) << (bits - 8)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def palette(**options: Any) -> Callable[[Path], None]:
    return lambda path: picture().quantize(16).save(path, **options)


def saved(mode: str, **options: Any) -> Callable[[Path], None]:
    return lambda path: picture().convert(mode).save(path, **options)


SAME: dict[str, Callable[[Path], None]] = {
    "rgb.png": saved("RGB"),
    "grey.png": saved("L"),
    "bits.png": saved("1"),
    "la.png": saved("LA"),
    "rgba.png": saved("RGBA"),
    "palette.png": palette(),
    "palette_one_clear.png": palette(transparency=3),
    "palette_alphas.png": palette(transparency=bytes(range(16))),
    "rgb.jpg": saved("RGB"),
    "grey.jpg": saved("L"),
    "cmyk.jpg": saved("CMYK"),
    "turned.jpg": saved("RGB", exif=exif(6)),
    "lossy.webp": saved("RGB"),
    "alpha.webp": saved("RGBA", lossless=True),
    "rgb.bmp": saved("RGB"),
    "bits.bmp": saved("1"),
    "palette.bmp": palette(),
    "rgb.tif": saved("RGB"),
    "lzw.tif": saved("RGB", compression="tiff_lzw"),
    "cmyk.tif": saved("CMYK"),
    "palette.tif": palette(),
    "jpeg.tif": saved("RGB", compression="jpeg"),
    "palette.gif": palette(),
    "rgb.ppm": saved("RGB"),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("opened", [False, True], ids=["path", "bytes"])
def test_pixels_are_those_of_the_default_loader(tmp_path: Path, name: str, opened: bool) -> None:
    from torchvision.datasets.folder import default_loader  # type: ignore[import-untyped]  # ships none

    path = tmp_path / name
    SAME[name](path)
    source = io.BytesIO(path.read_bytes()) if opened else path
    found = decode_image(source, LIMIT, upright=False, name=name)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(default_loader(path)))


def test_16_bits_are_scaled_where_the_default_loader_clips(tmp_path: Path) -> None:
    """What a user sees in a 16-bit image, not the white that clipping makes of most of it."""
    for name in ("grey16.png", "grey16.tif"):
        Image.fromarray(deep(16)).save(tmp_path / name)
        found = np.asarray(decode_image(tmp_path / name, LIMIT))
        np.testing.assert_array_equal(found, np.asarray(picture().convert("L").convert("RGB")))


def test_exif_rotation_is_applied_where_the_default_loader_leaves_it(tmp_path: Path) -> None:
    picture().save(tmp_path / "turned.png", exif=exif(6))
    found = decode_image(tmp_path / "turned.png", LIMIT)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(picture().transpose(Image.Transpose.ROTATE_270)))
    as_stored = decode_image(tmp_path / "turned.png", LIMIT, upright=False)
    np.testing.assert_array_equal(np.asarray(as_stored), np.asarray(picture()))


def test_opened_file_is_bounded_and_named() -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    whole = buffer.getvalue()
    for data, limit, message in (
        (whole, 2000, r"^x.tar/0.png: is too large: 50 x 44 = 2,200 pixels, expected at most 2,000 pixels"),
        (whole + bytes(9000), 1000, r"^x.tar/0.png: is too large: [\d,]+ bytes, more than any image"),
        (whole[:60], LIMIT, r"^x.tar/0.png: cannot be decoded"),
        (b"", LIMIT, "^x.tar/0.png: is empty, expected PNG, JPEG"),
        (b"PK\3\4", LIMIT, "^x.tar/0.png: is a zip archive, expected PNG"),
    ):
        with pytest.raises(ImageError, match=message):
            decode_image(io.BytesIO(data), limit, name="x.tar/0.png")
    seen: list[str] = []
    moved = io.BytesIO(whole)
    moved.seek(7)  # its position does not matter
    decode_image(moved, LIMIT, look=lambda image: seen.append(image.mode))
    assert seen == ["RGB"]
