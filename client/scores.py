"""What the measurements ask of an endpoint, and the checks on what goes in and what comes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt

from client.errors import ServerError

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
    """Return the scores when one can be judged by their argmax.

    Raises:
        ServerError: not one row per image, or a score is NaN (its argmax would count as a wrong answer).
        ValueError: a label is no class of this model.
    """
    if scores.ndim != 2 or len(scores) != len(labels):
        raise ServerError(f"answer: got scores of shape {list(scores.shape)}, expected [{len(labels)}, classes]")
    if np.isnan(scores).any():
        raise ServerError("answer: got NaN among the scores, expected numbers; check the engine of this model")
    if int(labels.max()) >= scores.shape[1]:
        raise ValueError(
            f"labels: got class {labels.max()}, expected 0 to {scores.shape[1] - 1}, the model's classes; "
            "use the labels that belong to it"
        )
    return scores
