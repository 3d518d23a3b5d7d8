"""Many encoded images at once: `read_image`'s pixels, each an error of its own, and bounds on what is held."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from temper.imaging import batch
from temper.imaging.batch import Decoder
from temper.imaging.formats import served_pixels
from temper.imaging.preprocess import Preprocessing
from temper.imaging.read import read_image

SMALL = Preprocessing(height=32, width=32)


def encode(form: str, size: tuple[int, int] = (50, 44), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def claim(width: int, height: int) -> bytes:
    """A BMP of 54 bytes that says that it is so large."""
    file = bytearray(encode("BMP", (1, 1))[:54])
    file[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(file)


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan comes again and again."""
    file = encode("JPEG", progressive=True)
    last = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + last * scans + file[-2:]


def line(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_each_image_is_read_as_alone(num_threads: int) -> None:
    files = [encode("PNG"), b"", encode("JPEG"), b"some text", encode("WEBP", (7, 90)), encode("PNG")[:200]]
    decoder = Decoder(SMALL, num_threads)
    pixels, errors = decoder.decode(files)
    decoder.close()
    assert (pixels.shape, str(pixels.dtype)) == ((6, 32, 32, 3), "uint8")
    assert sorted(errors) == [1, 3, 5]
    for index in (0, 2, 4):
        np.testing.assert_array_equal(pixels[index], read_image(io.BytesIO(files[index]), SMALL))


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "image: is empty, expected PNG, JPEG, BMP, WebP, TIFF, PPM or GIF"),
    "text": (lambda: b"some text", "image: is text, expected PNG, "),
    "web page": (lambda: b"<!doctype html>", "image: is a web page, perhaps what a download got"),
    "cut off": (lambda: encode("JPEG")[:900], r"image: cannot be decoded \(.*\), expected a whole image file"),
    "bomb": (
        lambda: claim(60_000, 60_000),
        "image: is too large: 3,600,000,000 pixels, expected at most 33,554,432 pixels; ",
    ),
    "large": (lambda: claim(5800, 5800), "33,640,000 pixels, expected at most 33,554,432 pixels; scale it down"),
    "scans": (lambda: progressive(500_000), "image: is a JPEG of 500,0.. scans, expected at most "),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_said_in_a_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = BAD[name]
    if name == "scans":  # those of an image of 33 million pixels, for one that is written in no time
        monkeypatch.setattr(batch, "_MAX_SCANS", 5 * 50 * 44 / served_pixels(32, 32))
    _, errors = Decoder(SMALL).decode([make()])
    text = str(errors[0])
    assert "\n" not in text
    pytest.raises(ValueError, _raise, text).match(message)


def _raise(text: str) -> None:
    raise ValueError(text)


def test_usual_progressive_jpegs_are_read() -> None:
    assert not Decoder(SMALL).decode([encode("JPEG", progressive=True), progressive(40)])[1]


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
@pytest.mark.parametrize("antialias", [True, False])
def test_a_line_that_grows_when_it_is_resized_is_refused(size: tuple[int, int], antialias: bool) -> None:
    """Of a few hundred bytes Pillow would make gigabytes: one axis is resized before the other is made smaller."""
    how = Preprocessing(height=2048, width=2048, resize=(2048, 2048), antialias=antialias)
    wide = size[0] > 1
    _, errors = Decoder(how).decode([line(size)])
    if wide == antialias:  # the axis that becomes smaller goes first
        assert not errors
    else:
        assert str(errors[0]) == (
            f"image: is {size[0]} x {size[1]} pixels, too long and thin to be resized, expected a photo"
        )


def test_what_is_decoded_at_a_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve images of 44 % of the room each, in six threads: two at once, never more, and all are decoded."""
    held, most, lock, pair = 0, 0, threading.Lock(), threading.Barrier(2)
    image = Image.new("1", (1000, 1000))

    def read(file: Any, how: Preprocessing, *, limit: int, admit: Callable[[Image.Image], None]) -> Any:
        nonlocal held, most
        admit(image)
        with lock:
            held += 1
            most = max(most, held)
        pair.wait(60)  # two are there at once, however slow the machine is
        time.sleep(0.02)  # and a third, if one were let in
        with lock:
            held -= 1
        return 7

    monkeypatch.setattr(batch, "read_image", read)
    monkeypatch.setattr(batch, "served_pixels", lambda *_: 2_300_000)
    pixels, errors = Decoder(SMALL, 6).decode([b"file"] * 12)
    assert (pixels.min(), errors, most) == (7, {}, 2)


def test_one_that_takes_more_than_there_is_waits_until_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "served_pixels", lambda *_: 50 * 44)  # no room for what it is resized to
    assert Decoder(SMALL, 3).decode([encode("PNG")] * 6)[1] == {}
