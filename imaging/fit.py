"""Fitting a decoded image to a model: its geometry, with the arithmetic of the library that trained it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .formats import MAX_PIXELS
from .preprocess import INTERPOLATIONS, Preprocessing, covering

RESAMPLING = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
"""Pillow's filters, by our names."""
# OpenCV's and PyTorch's; the filter that grows with the image has -0.5.
_CUBIC = -0.75
# `_interpolate` has four arrays of floats at once, so one of its pixels is twelve of Pillow's.
_PER_FLOATS = 12


def fit_image(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Returns an RGB image of height x width: resized, then the centre cut out, black where it is too small.

    Source: torchvision's `Resize` and `CenterCrop`, whose pixels these are; transformers' `center_crop` where
    `crop_margin` is "floor".
    """
    width, height = resized_size(image.size, how)
    box = _centre(width, height, how)
    if width * height > MAX_PIXELS:  # of an image that is nearly a line: only what is cut out of it
        return _resize_part(image, (width, height), box, how)
    if (width, height) != image.size:
        image = _resize(image, (width, height), how)
    return image if box == (0, 0, width, height) else image.crop(box)


def work_pixels(size: tuple[int, int], how: Preprocessing) -> int:
    """Returns how many pixels `fit_image` keeps beside an image of a width and height, in Pillow's of 4 bytes.

    Of an image that is nearly a line it may be thousands of times as many as the image has: one axis is resized
    first.
    """
    width, height = resized_size(size, how)
    if (width, height) == size or width * height > MAX_PIXELS:
        return how.width * how.height
    if how.antialias:
        return width * max(height, size[1])
    return _PER_FLOATS * height * max(width, size[0])


def resized_size(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """Returns the width and height that an image of so many is resized to."""
    width, height = size
    if how.resize == "none":
        return size
    if isinstance(how.resize, tuple):
        return how.resize[::-1]
    if how.resize is None:
        return covering(size, how)
    if height <= width:
        return int(how.resize * width / height), how.resize
    return how.resize, int(how.resize * height / width)


def _centre(width: int, height: int, how: Preprocessing) -> tuple[int, int, int, int]:
    """Returns the box to cut out; where it is larger than the image it reaches beyond."""
    left, top = (
        -((wanted - side) // 2) if side < wanted else _margin(side - wanted, how)
        for side, wanted in ((width, how.width), (height, how.height))
    )
    return left, top, left + how.width, top + how.height


def _margin(spare: int, how: Preprocessing) -> int:
    return spare // 2 if how.crop_margin == "floor" else round(spare / 2)


def _resize(image: Image.Image, size: tuple[int, int], how: Preprocessing) -> Image.Image:
    if how.antialias:
        return image.resize(size, RESAMPLING[how.interpolation])
    pixels = np.asarray(image)
    for axis, side in ((0, size[1]), (1, size[0])):
        if how.interpolation == "nearest":
            pixels = _nearest(pixels, side, axis)
        else:
            pixels = _interpolate(pixels, side, axis, cubic=how.interpolation == "bicubic")
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _resize_part(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], how: Preprocessing
) -> Image.Image:
    """Resizes only what comes to lie in the box."""
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(box[2], size[0]), min(box[3], size[1])
    across, down = image.width / size[0], image.height / size[1]
    part = image.resize(
        (right - left, bottom - top),
        RESAMPLING[how.interpolation],
        box=(left * across, top * down, right * across, bottom * down),
    )
    return part.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))


def _nearest(pixels: npt.NDArray[Any], side: int, axis: int) -> npt.NDArray[Any]:
    """Resizes one axis by the pixel at the start of each step, where Pillow takes that at its middle.

    As PyTorch's `interpolate` has it, in its float32, and OpenCV's `INTER_NEAREST`.
    """
    length = pixels.shape[axis]
    place = np.arange(side, dtype=np.float32) * (np.float32(length) / np.float32(side))
    return pixels.take(place.astype(np.int64).clip(0, length - 1), axis)


def _interpolate(pixels: npt.NDArray[Any], side: int, axis: int, *, cubic: bool) -> npt.NDArray[np.float32]:
    """Resizes one axis by two or four neighbours, however much smaller it becomes.

    As PyTorch does with floating-point pixels (in uint8 it rounds otherwise), and OpenCV to within 1.
    """
    length = pixels.shape[axis]
    place = (np.arange(side) + 0.5) * (length / side) - 0.5
    if not cubic:
        place = place.clip(0, None)
    first = np.floor(place)
    rest = (place - first).astype(np.float32)
    reach = (-1, 0, 1, 2) if cubic else (0, 1)
    weigh = _cubic_weight if cubic else _linear_weight
    shape = [1] * pixels.ndim
    shape[axis] = side
    total = np.zeros(1, np.float32)
    for step in reach:
        at = (first + step).clip(0, length - 1).astype(np.int64)
        weight: npt.NDArray[np.float32] = weigh(np.abs(rest - step))
        total = total + pixels.take(at, axis).astype(np.float32) * weight.reshape(shape)
    return total


def _linear_weight(distance: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return 1 - distance


def _cubic_weight(distance: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Keys' cubic convolution."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
