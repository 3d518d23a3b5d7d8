"""Pictures: an attack's image, before and after, and the difference, amplified; maps of where a network looks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
_ENLARGED = 160
_SHOWN = 256
"""Sides of a picture inside a page, at most: of hundreds a page is still opened."""
_HEAT = 0.75
"""Share of the colour in the hottest place; the image is the rest."""


def amplified_difference(original: Images, adversarial: Images) -> Images:
    """The signed difference on grey, scaled so that its largest change fills the range.

    Args:
        original: uint8 [H, W, 3].
        adversarial: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3]; 128 where nothing changed.
    """
    difference = adversarial.astype(np.int16) - original.astype(np.int16)
    largest = max(int(np.abs(difference).max()), 1)
    return (128 + difference * (127 / largest)).round().astype(np.uint8)


def heat_over(image: Images, heat: Map) -> Images:
    """The image in grey, and over it from red to yellow what is hot.

    Args:
        image: uint8 [H, W, 3].
        heat: [H, W], from 0; its largest value is yellow.

    Returns:
        uint8 [H, W, 3].
    """
    share = (heat / (heat.max() or 1.0))[..., None]
    colour = np.concatenate([np.ones_like(share), share, np.zeros_like(share)], -1) * 255
    grey = image.mean(-1, keepdims=True)
    mixed: Images = (grey + _HEAT * share * (colour - grey)).round().astype(np.uint8)
    return mixed


def signed_heat(values: Map) -> Images:
    """Positive values in red, negative in blue, zero in white; the largest hundredth has the full colour.

    Args:
        values: [H, W].

    Returns:
        uint8 [H, W, 3].
    """
    size = np.abs(values)
    share = (size / (np.percentile(size, 99) or size.max() or 1.0)).clip(0, 1)
    pale, full = 255 * (1 - share), np.full_like(share, 255)
    red, blue = np.where(values < 0, pale, full), np.where(values > 0, pale, full)
    colours: Images = np.stack([red, pale, blue], -1).round().astype(np.uint8)
    return colours


def write_enlarged(pixels: Images, path: Path) -> str:
    """Writes a PNG file, small pictures enlarged by whole factors; returns its name."""
    from PIL import Image

    factor = -(-_ENLARGED // min(pixels.shape[:2]))
    Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1)).save(path)
    return path.name


def shrunk_png(path: Path) -> bytes:
    """A PNG file as it is, or of a large one a smaller picture, as PNG too."""
    from PIL import Image

    with Image.open(path) as image:
        if max(image.size) <= _SHOWN:
            return path.read_bytes()
        image.thumbnail((_SHOWN, _SHOWN))
        made = io.BytesIO()
        image.save(made, "PNG")
    return made.getvalue()


def write_gallery(entries: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Writes three PNG files per adversarial image.

    Args:
        entries: Each with `original` and `adversarial` (uint8 [H, W, 3]); whatever else it holds is kept.
        folder: Where the files go; made when missing.

    Returns:
        The entries with the names of the files, inside `folder`, in place of the arrays, and a `difference`.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, entry in enumerate(entries):
        original, adversarial = entry["original"], entry["adversarial"]
        difference = amplified_difference(original, adversarial)
        files = {}
        for kind, pixels in (("original", original), ("adversarial", adversarial), ("difference", difference)):
            name = f"{number:02d}-{kind}.png"
            Image.fromarray(pixels).save(folder / name)
            files[kind] = name
        written.append({**entry, **files})
    return written
