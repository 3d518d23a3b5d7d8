"""Image files into the uint8 arrays a model takes, and logits into named probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from temper.client.errors import ImageError, InvalidRequest
from temper.client.model import ModelInfo
from temper.imaging import errors as imaging_errors
from temper.imaging.fit import fit_image
from temper.imaging.preprocess import Preprocessing
from temper.imaging.read import read_image

JPEG_SUFFIX = "_jpeg"
"""What the name of a model's twin that takes image files ends in."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class the model considers.

    Attributes:
        label: Class name; the index as text where the model has no names.
        index: Class index.
        probability: Softmax probability, 0 to 1.
    """

    label: str
    index: int
    probability: float


def preprocessing_of(info: ModelInfo) -> Preprocessing:
    """Return how an image is made into a model's input: as the server says, else by covering its size.

    Raises:
        InvalidRequest: The model takes something else than UINT8 [height, width, 3], or another size than it says.
    """
    shape = info.image_shape
    if info.takes_encoded:
        raise InvalidRequest(
            f"model {info.name}: takes image files as they are, expected one that takes pixels, UINT8 [height, "
            f"width, 3]{_the_other(info.name)}"
        )
    if info.input_dtype != "UINT8" or len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise InvalidRequest(
            f"model {info.name}: takes {info.input_dtype} {list(shape)}, expected UINT8 [height, width, 3] images"
        )
    height, width, _ = shape
    how = info.preprocessing or Preprocessing(height=height, width=width)
    if (how.height, how.width) != (height, width):
        raise InvalidRequest(
            f"model {info.name}: takes {height} x {width} pixels, but its config.pbtxt says that images are made "
            f"{how.height} x {how.width}; publish it again"
        )
    return how


def _the_other(name: str) -> str:
    return f"; ask {name.removesuffix(JPEG_SUFFIX)}" if name.endswith(JPEG_SUFFIX) else ""


def load_image(path: Path | str, info: ModelInfo) -> npt.NDArray[np.uint8]:
    """Decode an image file and make it what a model takes, as its training did.

    Exactly what the builder does with the images that it trains and tests with: the two share `imaging`, and the
    server says how its model wants them.

    Args:
        path: A PNG, JPEG, BMP, WebP, TIFF, PPM or GIF file; of several frames or pages the first counts.
        info: The model.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: The file is missing, no such image, damaged, or larger than `formats.max_pixels`.
        InvalidRequest: As `preprocessing_of`.
    """
    return take_image(Path(path), preprocessing_of(info))


def take_image(source: Image.Image | Path | IO[bytes], how: Preprocessing) -> npt.NDArray[np.uint8]:
    """Make what a model takes of an image that is open already, or of a file.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: As `load_image`.
    """
    if isinstance(source, Image.Image):
        return np.asarray(fit_image(source, how))
    try:
        return read_image(source, how)
    except imaging_errors.ImageError as error:
        raise ImageError(str(error)) from error


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the probabilities over the last axis, without overflow."""
    shifted = np.asarray(logits, np.float64)
    exponentials = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def top_k(logits: npt.NDArray[Any], labels: tuple[str, ...] = (), k: int = 5) -> list[list[Prediction]]:
    """Name the k most probable classes of each image, best first.

    Args:
        logits: [N, classes].
        labels: Class names by index; indices stand in for missing ones.
        k: How many; all classes when there are fewer.
    """
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :k]
    return [
        [
            Prediction(
                label=labels[index] if index < len(labels) else str(index),
                index=index,
                probability=float(row[index]),
            )
            for index in map(int, best)
        ]
        for row, best in zip(probabilities, order, strict=True)
    ]
