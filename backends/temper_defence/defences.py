"""Defences on uint8 images: each makes of one image another of the same shape, before a model sees it.

None of them stops an attacker who knows of it: measure each with attacks on the defended endpoint.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8Array = npt.NDArray[np.uint8]
Draws = Sequence[float]
"""Three random numbers of 0 to 1, for a size and a place."""
Defence = Callable[[UInt8Array, Draws], UInt8Array]
"""Takes uint8 [H, W, 3] and the image's own draws, returns the same shape and type."""
NUM_DRAWS = 3


def jpeg(image: UInt8Array, draws: Draws, *, quality: int) -> UInt8Array:
    """Compress and read back, with colours at half the resolution, as cameras do.

    Source: Dziugaite, Ghahramani, Roy, "A study of the effect of JPG compression on adversarial images",
    arXiv:1608.00853.
    """
    del draws
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=quality)
    with Image.open(packed) as found:
        unpacked: UInt8Array = np.asarray(found)
    return unpacked


def bit_depth(image: UInt8Array, draws: Draws, *, bits: int) -> UInt8Array:
    """Round every value to the nearest of 2**bits levels from 0 to 255.

    Source: Xu, Evans, Qi, "Feature squeezing", NDSS 2018, arXiv:1704.01155.
    """
    del draws
    levels = 2**bits - 1
    level = np.rint(image.astype(np.float32) * (levels / 255))
    rounded: UInt8Array = np.rint(level * (255 / levels)).astype(np.uint8)
    return rounded


def random_resize(image: UInt8Array, draws: Draws, *, smallest: float) -> UInt8Array:
    """Make the image smaller, by a random share, and put it at a random place on black.

    Source: Xie et al., "Mitigating adversarial effects through randomization", ICLR 2018, arXiv:1711.01991. There
    the network takes a larger image; here its input has one size, so the image is made smaller.
    """
    height, width = image.shape[:2]
    share = smallest + (1 - smallest) * draws[0]
    size = [max(1, round(share * side)) for side in (height, width)]
    small = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    top, left = (
        int(draw * (side - one + 1)) for draw, side, one in zip(draws[1:], (height, width), size, strict=True)
    )
    placed = np.zeros_like(image)
    placed[top : top + size[0], left : left + size[1]] = small
    return placed


_ALL: dict[str, Callable[..., UInt8Array]] = {"jpeg": jpeg, "bit_depth": bit_depth, "random_resize": random_resize}


def read_defences(text: str) -> list[Defence]:
    """Return the defences that the parameter `defend` of config.pbtxt lists, as JSON.

    Raises:
        ValueError: it is no such list.
    """
    try:
        return [_bound(name, settings) for step in json.loads(text) for name, settings in step.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        known = ", ".join(_ALL)
        raise ValueError(f"defend: got {text[:80]!r}, expected a list of {known}; publish it again") from error


def _bound(name: str, settings: dict[str, Any]) -> Defence:
    function = _ALL[name]
    return lambda image, draws: function(image, draws, **settings)


def defend(images: UInt8Array, defences: Sequence[Defence], generator: np.random.Generator) -> UInt8Array:
    """Return uint8 [N, H, W, 3] behind all defences, in order; every image and defence has draws of its own."""
    behind = np.empty_like(images)
    for row, image in enumerate(images):
        for defence in defences:
            image = defence(image, generator.random(NUM_DRAWS).tolist())
        behind[row] = image
    return behind
