"""How large an image may be, and what memory that takes."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from temper.imaging.errors import ImageError
from temper.imaging.formats import MAX_PIXELS, max_bytes, max_pixels
from temper.imaging.preprocess import Preprocessing
from temper.imaging.read import read_image

# What is measured beside the pixels: the file, libraries' tables, the allocator's slack.
SLACK_BYTES = 24 << 20


def write_png(path: Path, width: int, height: int, *, channels: int = 1, chunks: bytes = b"") -> None:
    """Writes a black PNG; of one that is too large to be read only the first row.

    Args:
        path: The file.
        width: In pixels.
        height: In pixels.
        channels: 1 is grey, 2 grey with alpha, 3 RGB, 4 RGBA.
        chunks: Put before the pixels.
    """
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    num_rows = height if width * height <= MAX_PIXELS else 1
    data = zlib.compress(bytes(num_rows * (1 + width * channels)) if num_rows > 1 else b"", 1)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_tiff(path: Path, tile: int) -> None:
    """Writes a grey TIFF of 16 x 16 pixels in one tile of its own size."""
    data = zlib.compress(bytes(256))
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    start = 8 + len(data)
    tags += [(324, 8), (325, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, start) + data + struct.pack("<H", len(tags)) + directory + bytes(4)
    )


def write_gif(path: Path, width: int, height: int) -> None:
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + bytes([2, 2, 0x44, 1, 0, 0x3B])
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame)


def write_webp(path: Path, width: int, height: int) -> None:
    """Writes a small lossless WebP and another size into its header."""
    Image.new("RGB", (8, 8)).save(path, lossless=True)
    data = bytearray(path.read_bytes())
    (bits,) = struct.unpack_from("<I", data, 21)
    struct.pack_into("<I", data, 21, bits >> 28 << 28 | (height - 1) << 14 | (width - 1))
    path.write_bytes(data)


def read_elsewhere(*paths: Path) -> list[tuple[int, str]]:
    """Reads files in another process: by how many bytes each raised its peak memory, and its error."""
    program = """
import json, resource, sys
from temper.imaging.errors import ImageError
from temper.imaging.preprocess import Preprocessing
from temper.imaging.read import read_image

how = Preprocessing(height=32, width=32)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
warm, *paths = sys.argv[1:]
read_image(warm, how)
for path in paths:
    before, error = peak(), ""
    try:
        read_image(path, how)
    except ImageError as raised:
        error = str(raised)
    print(json.dumps([peak() - before, error]))
"""
    warm = paths[0].with_name("warm.webp")  # the last format that is loaded
    Image.new("RGB", (8, 8)).save(warm)
    done = subprocess.run(
        [sys.executable, "-c", program, warm, *paths], capture_output=True, text=True, check=True
    )
    assert not done.stderr, "no warning beside the error"
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_limit_is_a_64_megapixel_photo_or_four_times_a_large_model() -> None:
    assert max_pixels(32, 32) == max_pixels(224, 224) == max_pixels(2048, 2048) == MAX_PIXELS == 67_108_864
    assert max_pixels(4096, 4096) == 16 * 4096**2


def test_50_megapixel_photo_is_read(tmp_path: Path) -> None:
    Image.new("L", (8192, 6144), 77).save(tmp_path / "photo.jpg")
    assert (read_image(tmp_path / "photo.jpg", Preprocessing(height=32, width=32)) == 77).all()


def test_bombs_are_refused_without_memory(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(1 << 26))
    write: dict[str, tuple[Callable[[Path], object], str]] = {
        # Pillow itself lets the next three pass, the first without a warning; the one after them it refuses.
        "grey.png": (lambda path: write_png(path, 8193, 8192), "8193 x 8192 = 67,117,056 pixels"),
        "rgba.png": (lambda path: write_png(path, 13300, 13300, channels=4), "13300 x 13300 = 176,890,000 pixels"),
        "thin.png": (lambda path: write_png(path, 170_000_000, 1), "170000000 x 1 = 170,000,000 pixels"),
        "huge.png": (lambda path: write_png(path, 20000, 10000), "200,000,000 pixels"),
        "grey.gif": (lambda path: write_gif(path, 10000, 10000), "10000 x 10000 = 100,000,000 pixels"),
        "grey.tif": (lambda path: write_tiff(path, 16384), "tiles of 268,435,456 pixels"),
        "rgb.webp": (lambda path: write_webp(path, 8192, 4112), "8192 x 4112 = 33,685,504 pixels"),
        "text.png": (lambda path: write_png(path, 8, 8, chunks=chunk(b"zTXt", b"a\0\0" + packed)), "too large"),
        "profile.png": (lambda path: write_png(path, 8, 8, chunks=chunk(b"iCCP", b"a\0\0" + packed)), "too large"),
    }
    for name, (make, _) in write.items():
        make(tmp_path / name)
    found = read_elsewhere(*(tmp_path / name for name in write))
    for (name, (_, message)), (growth_bytes, error) in zip(write.items(), found, strict=True):
        assert error.startswith(f"{tmp_path / name}: ") and message in error
        if "pixels" in message:
            limit = MAX_PIXELS // 2 if name.endswith("webp") else MAX_PIXELS
            assert error.endswith(f"{message}, expected at most {limit:,} pixels; scale it down first")
        assert growth_bytes < SLACK_BYTES, name


def test_file_that_is_longer_than_any_image_is_not_read(tmp_path: Path) -> None:
    write_png(tmp_path / "long.png", 8, 8)
    with (tmp_path / "long.png").open("r+b") as file:
        file.truncate(max_bytes(MAX_PIXELS) + 1)  # sparse
    with pytest.raises(ImageError, match="is too large: 536,870,913 bytes, more than any image"):
        read_image(tmp_path / "long.png", Preprocessing(height=32, width=32))


SIDE = 2048
KINDS: list[tuple[str, Callable[[Path], object], int]] = [
    ("rgba.png", lambda path: write_png(path, SIDE, SIDE, channels=4), 8),
    ("grey16.png", lambda path: Image.new("I;16", (SIDE, SIDE)).save(path), 9),
    (
        "progressive.jpg",
        lambda path: Image.new("CMYK", (SIDE, SIDE)).save(path, progressive=True, subsampling=0),
        12,
    ),
    ("rgba.webp", lambda path: Image.new("RGBA", (SIDE, SIDE), (1, 2, 3, 4)).save(path, lossless=True), 20),
]


@pytest.mark.parametrize(("name", "make", "bytes_per_pixel"), KINDS, ids=[row[0] for row in KINDS])
def test_memory_is_in_proportion_to_the_pixels(
    tmp_path: Path, name: str, make: Callable[[Path], object], bytes_per_pixel: int
) -> None:
    """So the limit bounds it: 0.8 GB at 12 bytes a pixel, and a WebP may have half the pixels."""
    make(tmp_path / name)
    ((growth_bytes, error),) = read_elsewhere(tmp_path / name)
    assert not error
    assert growth_bytes < bytes_per_pixel * SIDE**2 + SLACK_BYTES
