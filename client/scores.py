"""What the measurements ask of an endpoint, and the checks on what goes in and what comes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt

from temper.client.errors import ServerError

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Infer = Callable[[UInt8Array], Awaitable[Float32Array]]
"""The seam to an endpoint: uint8 [N, H, W, 3] in, one row of scores [N, classes] per image out."""


def check_labels(images: UInt8Array, labels: npt.ArrayLike) -> Int64Array:
    """Return the labels as int64 [N].

    Raises:
        ValueError: images are not uint8 [N, H, W, 3] with N >= 1, or labels are not one integer >= 0 for each.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
        raise ValueError(f"images: got {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 3], N >= 1")
    found = np.asarray(labels)
    if found.shape != (len(images),) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"labels: got {found.dtype} {list(found.shape)}, expected one integer for each of {len(images)} images"
        )
    if found.min() < 0:
        raise ValueError(f"labels: got {found.min()}, expected class indices of at least 0")
    return found.astype(np.int64)


def check_scores(scores: Float32Array, labels: Int64Array) -> Float32Array:
    """Return the scores when they are one row for each image; `finite_rows` tells which rows can be judged.

    Raises:
        ServerError: not one row per image, or a row without a score.
        ValueError: a label is no class of this model.
    """
    if scores.ndim != 2 or len(scores) != len(labels) or scores.shape[1] == 0:
        raise ServerError(f"answer: got scores of shape {list(scores.shape)}, expected [{len(labels)}, classes]")
    if int(labels.max()) >= scores.shape[1]:
        raise ValueError(
            f"labels: got class {labels.max()}, expected 0 to {scores.shape[1] - 1}, the model's classes; "
            "use the labels that belong to it"
        )
    return scores


def finite_rows(scores: Float32Array) -> npt.NDArray[np.bool_]:
    """Return bool [N], True where every score of an image is a number, so that one may be judged by its argmax.

    A row with NaN or an infinity names no class: counted as right it would be robust against everything.
    """
    finite: npt.NDArray[np.bool_] = np.isfinite(scores).all(axis=1)
    return finite
