"""Which image files are opened, and how large they may be."""

from __future__ import annotations

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
}
"""Pillow's name of every format, and how its files end.

The ending decides whether a file of a folder is taken for an image; what it is, its content decides. No other
format is tried: an EPS that is called .png must not start Ghostscript.
"""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
EXPECTED = "PNG, JPEG, BMP, WebP, TIFF, PPM or GIF"

MAX_PIXELS = 1 << 26
"""67.1 million: a photo of a 64-megapixel camera. Decoding takes 4 to 12 bytes of memory a pixel (most in a
progressive JPEG of four channels), so 0.8 GB at most."""
# Four times the height and width of a model above 2048x2048; below it the constant decides.
_PIXELS_PER_OUTPUT = 16
# Its decoder holds an image five times over: 20 bytes a pixel.
_SHARES = {"WEBP": 2}
# Uncompressed RGBA of 16 bits a channel; no image that may be decoded is longer on disk.
_MAX_BYTES_PER_PIXEL = 8


def max_pixels(height: int, width: int) -> int:
    """Returns how many pixels an image may have for a model that takes height x width; see `share_of`."""
    return max(MAX_PIXELS, _PIXELS_PER_OUTPUT * height * width)


def served_pixels(height: int, width: int) -> int:
    """Returns how many pixels a server decodes at once, in one image or in several: half of `max_pixels`."""
    return max_pixels(height, width) // 2


def share_of(limit: int, form: str | None) -> int:
    """Returns how many of so many pixels an image of one format may have: a WebP half of them."""
    return limit // _SHARES.get(form or "", 1)


def max_bytes(pixels: int) -> int:
    """Returns how long a file may be that holds an image of at most so many pixels."""
    return _MAX_BYTES_PER_PIXEL * pixels
