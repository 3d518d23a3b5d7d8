"""What the measurements ask of an endpoint, and the checks on what goes in and what comes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from temper.client.errors import ClientError, InvalidRequest, NonFiniteOutput, ServerError, ShortOutput
from temper.client.stats import BoolArray

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Infer = Callable[[UInt8Array], Awaitable[npt.NDArray[Any]]]
"""The seam to an endpoint: uint8 [N, H, W, 3] in, one row of scores per image out, float32 [N, classes]; of an
endpoint that answers the class alone, int64 [N]."""

# Of what FP16 leaves of a sum of 1.
_SUM_SLACK = 1e-2
# Errors that may be the fault of what was sent, and not the end of the server.
_OF_THE_REQUEST = (ServerError, ShortOutput, InvalidRequest)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What an endpoint answered to n images, ready to be judged one by one."""

    classes: Int64Array
    """int64 [n], the class answered; -1 where the answer is none"""
    scores: Float32Array | None
    """float32 [n, classes], NaN in the whole row where the answer is none; None of an endpoint without scores"""
    kinds: npt.NDArray[np.str_]
    """[n], why an answer is none, by the `kind` of the error; "" where it is one"""
    shared: BoolArray | None = None
    """bool [n], true for an image that a reference misjudges as well; None without a reference"""

    def __getitem__(self, rows: Any) -> Self:
        """Return some of them, by anything that selects rows."""
        scores, shared = (None if each is None else each[rows] for each in (self.scores, self.shared))
        return type(self)(classes=self.classes[rows], scores=scores, kinds=self.kinds[rows], shared=shared)

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Answers:
        """Return the answers of one endpoint to several requests, at least one, as one."""
        scores = [part.scores for part in parts if part.scores is not None]
        shared = [part.shared for part in parts if part.shared is not None]
        return cls(
            classes=np.concatenate([part.classes for part in parts]),
            scores=np.concatenate(scores) if scores else None,
            kinds=np.concatenate([part.kinds for part in parts]),
            shared=np.concatenate(shared) if shared else None,
        )


async def ask(infer: Infer, images: UInt8Array, labels: Int64Array) -> Answers:
    """Ask for some images, and tell an answer that is none from a server that is gone.

    A request that fails, or whose answer is not one row for each image, is made again image by image. What fails
    once more counts as that image's own answer, provided that the server still answers another image: a black one.

    Args:
        infer: the endpoint.
        images: uint8 [n, H, W, 3].
        labels: int64 [n], their classes.

    Raises:
        ClientError: the server is gone, or fails whatever it is asked.
        ValueError: a label is no class of this model.
    """
    found = await _try(infer, images, labels)
    if isinstance(found, Answers):
        return found
    rows = [await _try(infer, images[row : row + 1], labels[row : row + 1]) for row in range(len(images))]
    answered = [row for row in rows if isinstance(row, Answers)]
    if len(answered) == len(rows):
        return Answers.join(answered)
    control = await _try(infer, np.zeros_like(images[:1]), np.zeros(1, dtype=np.int64))
    if isinstance(control, ClientError):
        raise found
    return Answers.join([_broken(row, control) if isinstance(row, ClientError) else row for row in rows])


async def _try(infer: Infer, images: UInt8Array, labels: Int64Array) -> Answers | ClientError:
    try:
        return _read(await infer(images), labels)
    except _OF_THE_REQUEST as error:
        return error


def _read(answer: npt.NDArray[Any], labels: Int64Array) -> Answers:
    if answer.dtype.kind in "iu":
        if answer.shape != labels.shape:
            raise ShortOutput(f"answer: got classes of shape {list(answer.shape)}, expected [{len(labels)}]")
        return Answers(classes=answer.astype(np.int64), scores=None, kinds=np.full(len(answer), "", dtype="U32"))
    scores: Float32Array = check_scores(answer, labels)
    classes, kinds = scores.argmax(axis=1), np.full(len(scores), "", dtype="U32")
    if (broken := ~finite_rows(scores)).any():
        scores = np.where(broken[:, None], np.float32(np.nan), scores)
        classes[broken], kinds[broken] = -1, NonFiniteOutput.kind
    return Answers(classes=classes, scores=scores, kinds=kinds)


def _broken(error: ClientError, like: Answers) -> Answers:
    scores = None if like.scores is None else np.full_like(like.scores, np.nan)
    return Answers(classes=np.full(1, -1), scores=scores, kinds=np.full(1, error.kind, dtype="U32"))


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
        ShortOutput: not one row per image, or a row without a score.
        ValueError: a label is no class of this model.
    """
    if scores.ndim != 2 or len(scores) != len(labels) or scores.shape[1] == 0:
        raise ShortOutput(f"answer: got scores of shape {list(scores.shape)}, expected [{len(labels)}, classes]")
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


def top_probability(scores: Float32Array) -> Float32Array:
    """Return float32 [N], the probability of the class that each row of scores [N, classes] answers.

    Rows that are probabilities already are taken as they are, others as logits; NaN where a score is none.
    """
    top = scores.max(axis=1)
    is_probability = (scores >= 0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1) < _SUM_SLACK)
    with np.errstate(invalid="ignore"):
        softmax = 1 / np.exp(scores - top[:, None], dtype=np.float64).sum(axis=1)
    return np.where(is_probability, top, softmax).astype(np.float32)
