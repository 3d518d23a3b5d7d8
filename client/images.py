"""Image files into the uint8 arrays a model takes, and logits into named probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from client.errors import ImageError

FORMATS = ("PNG", "JPEG")


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


def load_image(path: Path | str, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode a PNG or JPEG of any size: RGB, upright, scaled until it covers height x width, cut in the centre.

    For a square this is the usual "resize the shorter side, centre crop". Grey, palette and 16-bit images become
    8-bit RGB, transparency is dropped, and a JPEG's EXIF rotation is applied.

    Args:
        path: The file.
        height: Height of the result in pixels.
        width: Width of the result in pixels.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ImageError: The file is missing, truncated, or no PNG or JPEG.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            rgb = ImageOps.fit(_to_rgb(ImageOps.exif_transpose(image)), (width, height), Image.Resampling.BILINEAR)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file, expected a PNG or JPEG image") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path}: is a folder, expected a PNG or JPEG image") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image this can read, expected PNG or JPEG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises any of these for damaged data; its text says which.
        raise ImageError(f"{path}: cannot be decoded ({error}), expected a whole PNG or JPEG file") from error
    return np.asarray(rgb, dtype=np.uint8)


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's convert would clip rather than scale
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
