"""All that is done between an image file and the scores, as a value: right, or with a mistake in it.

The geometry is that of `[data]` (`imaging/fit.py`), and the two ways of sizing that only a mistake has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import ExifTags, Image

from temper.imaging.fit import fit_image, resized_size
from temper.imaging.formats import max_pixels
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD, CropMargin, Preprocessing, Triple
from temper.imaging.read import decode_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

Resize = int | tuple[int, int] | Literal["cover", "pad", "none"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]
Layout = Literal[
    "right",
    "hwc as chw",
    "chw as hwc",
    "hwc as chw, after mean and std",
    "chw as hwc, after mean and std",
    "height and width swapped",
]
Output = Literal["logits", "softmax", "softmax twice", "log-softmax", "sigmoid"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8 of 7 bits", "int8, saturating"]

IMAGENET: tuple[Triple, Triple] = (IMAGENET_MEAN, IMAGENET_STD)
_GREY = (0.299, 0.587, 0.114)
# What takes an upright image back to how its file holds it, by EXIF's orientation.
_AS_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """From an image to scores. The fields up to `std` are the contract; the rest is right as it is by default."""

    height: int
    """Of what the network takes, in pixels."""
    width: int
    """Of what the network takes, in pixels."""
    resize: Resize = "cover"
    """The shorter side; or exactly (height, width); or until height x width is covered, until it fits in (the rest
    is black), or not at all. The centre is cut out afterwards."""
    crop_margin: CropMargin = "round"
    """How half of an odd margin becomes whole."""
    interpolation: Interpolation = "bilinear"
    """The filter."""
    antialias: bool = True
    """Whether the filter grows when an image shrinks, as Pillow's do and OpenCV's do not."""
    upright: bool = True
    """Whether EXIF's orientation is applied."""
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    """The order of the channels; `grey` is three times the luminance."""
    scale: float = 1.0
    """What white is before mean and std."""
    mean: Triple = IMAGENET[0]
    """Taken from each channel, on that scale, in the order of `colour`."""
    std: Triple = IMAGENET[1]
    """What each channel is divided by, as `mean`."""
    times: int = 1
    """How often mean and std are applied."""
    layout: Layout = "right"
    """How the pixels' memory is read."""
    batch_norm: int = 0
    """0: batch normalisation by its stored statistics; else by those of batches of so many images."""
    network: int = 0
    """Which of the checkpoints."""
    precision: Precision = "fp32"
    """The arithmetic, as far as PyTorch can imitate it in float32."""
    output: Output = "logits"
    """What follows the network."""
    order: tuple[int, ...] | None = None
    """The output i is the network's `order[i]`; None is as they are."""

    @property
    def geometry(self) -> tuple[Any, ...]:
        """All that decides on `fit`."""
        sizes = (self.height, self.width, self.resize, self.crop_margin)
        return (*sizes, self.interpolation, self.antialias, self.upright)

    @property
    def pixels(self) -> tuple[Any, ...]:
        """All that decides on what the network is given."""
        return (*self.geometry, self.colour, self.scale, self.mean, self.std, self.times, self.layout)


class Picture:
    """A decoded image, upright, which remembers how its file holds it."""

    def __init__(self, image: Image.Image, orientation: int = 1) -> None:
        """Takes an upright RGB image, and EXIF's orientation of its file."""
        self.image = image
        self.orientation = orientation

    def oriented(self, upright: bool) -> Image.Image:
        """The image upright, or as its file holds it."""
        method = None if upright else _AS_STORED.get(self.orientation)
        return self.image if method is None else self.image.transpose(method)


FLAT = ((0, 0, 0), (255, 255, 255), (200, 120, 40), (30, 60, 90))
"""Colours of pictures that no way of sizing them changes."""
BLACK, WHITE = 0, 1


def flat_pictures(how: Pipeline) -> list[Picture]:
    """Pictures of one colour each, at the network's size."""
    return [Picture(Image.new("RGB", (how.width, how.height), colour)) for colour in FLAT]


def open_picture(path: Path, how: Pipeline) -> Picture:
    """Decodes an image file.

    Raises:
        ImageError: It cannot be.
    """
    image = decode_image(path, max_pixels(how.height, how.width))
    try:
        with Image.open(path) as file:
            orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, which says nothing of the pixels
        orientation = 1
    return Picture(image, orientation)


def fit(picture: Picture, how: Pipeline) -> NDArray[np.uint8]:
    """Returns the pixels of a picture at the network's size, uint8 [H, W, 3], RGB."""
    image = picture.oriented(how.upright)
    resize = how.resize
    if resize == "pad":
        factor = min(how.height / image.height, how.width / image.width)
        resize = max(1, round(factor * image.height)), max(1, round(factor * image.width))
    wanted = Preprocessing(
        height=how.height,
        width=how.width,
        resize=None if resize == "cover" else resize,
        crop_margin=how.crop_margin,
        interpolation="bilinear" if how.interpolation == "box" else how.interpolation,
        antialias=how.antialias,
    )
    if how.interpolation == "box":  # which [data] does not have
        image = image.resize(resized_size(image.size, wanted), Image.Resampling.BOX)
        wanted = replace(wanted, resize="none")
    return np.asarray(fit_image(image, wanted))


def normalise(images: NDArray[np.uint8], how: Pipeline) -> NDArray[np.float32]:
    """Returns what the network takes, float32 [N, 3, H, W], of fitted images, uint8 [N, H, W, 3]."""
    num, height, width, channels = images.shape
    if how.layout == "hwc as chw":
        images = images.reshape(num, channels, height, width).transpose(0, 2, 3, 1)
    elif how.layout == "chw as hwc":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(images.shape)
    elif how.layout == "height and width swapped":
        images = images.transpose(0, 2, 1, 3)
    values = _coloured(images, how.colour) * np.float32(how.scale / 255)
    for _ in range(how.times):
        values = (values - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    if how.layout == "hwc as chw, after mean and std":
        return np.ascontiguousarray(values).reshape(num, channels, height, width)
    if how.layout == "chw as hwc, after mean and std":
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2)).reshape(values.shape)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def _coloured(images: NDArray[np.uint8], colour: str) -> NDArray[np.float32]:
    if colour == "bgr":
        images = images[..., ::-1]
    values = images.astype(np.float32)
    if colour == "grey":
        values = np.repeat(np.round(values @ np.array(_GREY, np.float32))[..., None], 3, axis=-1)
    return values


def finish(logits: NDArray[np.float32], how: Pipeline) -> NDArray[np.float32]:
    """Returns the scores that a pipeline makes of its network's logits [N, classes]."""
    if how.order is not None:
        logits = logits[:, list(how.order)]
    if how.output in ("softmax", "softmax twice"):
        logits = softmax(logits)
    if how.output == "softmax twice":
        logits = softmax(logits)
    if how.output == "log-softmax":
        logits = np.log(np.maximum(softmax(logits), np.finfo(np.float32).tiny))
    if how.output == "sigmoid":
        logits = (1 / (1 + np.exp(-np.maximum(logits.astype(np.float64), -700)))).astype(np.float32)
    return logits


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the probabilities [N, classes]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
