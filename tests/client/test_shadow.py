"""Two endpoints on the same images: what counts as a disagreement, what is kept, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.errors import ClientError, InvalidRequest, ServerError
from temper.client.scores import Infer, Int64Array, UInt8Array
from temper.client.shadow import compare

# The first pixel of an image is its number, which an endpoint knows its answer by.
NUM = 60
IMAGES: UInt8Array = np.zeros((NUM, 2, 2, 3), np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(NUM)
LABELS = np.arange(NUM, dtype=np.int64) % 3


def read(start: int, end: int) -> tuple[UInt8Array, Int64Array]:
    return IMAGES[start:end], np.arange(start, end)


def endpoint(scores: npt.NDArray[Any]) -> Infer:
    async def infer(images: UInt8Array) -> npt.NDArray[Any]:
        answers: npt.NDArray[Any] = scores[images[:, 0, 0, 0]]
        return answers

    return infer


def logits(classes: npt.NDArray[np.int64], sure: float = 4.0) -> npt.NDArray[np.float32]:
    made = np.zeros((NUM, 3), np.float32)
    made[np.arange(NUM), classes] = sure
    return made


async def test_figures_are_those_of_the_answers() -> None:
    """The second is wrong on five that the first gets right, and right on one that it gets wrong."""
    first, second = LABELS.copy(), LABELS.copy()
    first[7] = (first[7] + 1) % 3
    second[10:15] = (second[10:15] + 1) % 3
    first[20], second[20] = (LABELS[20] + 1) % 3, (LABELS[20] + 2) % 3
    seen: list[tuple[int, int]] = []
    found = await compare(
        (endpoint(logits(first)), endpoint(logits(second))),
        read,
        NUM,
        labels=LABELS,
        batch_size=8,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found.disagreement["value"] == pytest.approx(7 / NUM)
    assert found.disagreement["low"] < 7 / NUM < found.disagreement["high"]
    assert found.accuracy is not None and found.difference is not None
    assert [share["value"] for share in found.accuracy] == pytest.approx([58 / NUM, 54 / NUM])
    assert (found.difference.num_only_first, found.difference.num_only_second) == (5, 1)
    assert found.difference.difference == pytest.approx(-4 / NUM)
    assert [one.index for one in found.kept] == [7, 10, 11, 12, 13, 14, 20]
    assert found.kept[0].classes == (first[7], LABELS[7])
    assert seen[-1] == (NUM, NUM) and len(seen) == 8


@pytest.mark.parametrize("concurrency", [1, 7])
async def test_most_different_are_kept_whatever_the_order(concurrency: int) -> None:
    """Image i is given class 1 with a logit of i by the second; the first says 0 of all, as surely."""
    second = np.zeros((NUM, 3), np.float32)
    second[:, 1] = np.arange(NUM) / 10
    found = await compare(
        (endpoint(logits(np.zeros(NUM, np.int64))), endpoint(second)),
        read,
        NUM,
        keep=4,
        batch_size=5,
        concurrency=concurrency,
    )
    assert [one.index for one in found.kept] == [59, 58, 57, 56]
    assert found.disagreement["value"] == pytest.approx(59 / NUM)  # the tie of image 0 is class 0
    assert found.accuracy is None and found.difference is None
    sure = np.exp(5.9) / (np.exp(5.9) + 2)
    assert found.kept[0].confidences[1] == pytest.approx(sure)
    assert found.kept[0].confidences[0] == pytest.approx(np.exp(4) / (np.exp(4) + 2))


async def test_probabilities_are_taken_as_such() -> None:
    shares = np.tile(np.array([[0.7, 0.2, 0.1]], np.float32), (NUM, 1))
    others = np.tile(np.array([[0.1, 0.6, 0.3]], np.float32), (NUM, 1))
    found = await compare((endpoint(shares), endpoint(others)), read, NUM, keep=1)
    assert found.kept[0].confidences == pytest.approx((0.7, 0.6))
    assert found.kept[0].difference == pytest.approx(0.6)


async def test_answers_without_scores_or_without_number() -> None:
    """A class alone has no confidence; NaN is a disagreement with what is a class, and wrong."""
    broken = logits(LABELS)
    broken[3] = np.nan
    classes = LABELS.astype(np.int32)
    found = await compare((endpoint(broken), endpoint(classes)), read, NUM, labels=LABELS)
    assert found.errors == ({"nonfinite_output": 1}, {})
    (kept,) = found.kept
    assert (kept.index, kept.classes, kept.confidences, kept.difference) == (3, (-1, 0), (None, None), 1.0)
    assert found.difference is not None and found.difference.num_only_second == 1


async def test_images_that_cannot_be_read_are_not_counted() -> None:
    def every_other(start: int, end: int) -> tuple[UInt8Array, Int64Array]:
        rows = np.arange(start, end)
        rows = rows[rows % 2 == 1]
        return IMAGES[rows], rows

    wrong = LABELS.copy()
    wrong[0] = wrong[1] = 2
    found = await compare((endpoint(logits(LABELS)), endpoint(logits(wrong))), every_other, NUM, labels=LABELS)
    assert found.disagreement["num_images"] == NUM // 2
    assert [one.index for one in found.kept] == [1]
    assert found.difference is not None and found.difference.num_only_first == 1


NOTHING = np.full((NUM, 3), np.nan, np.float32)


def no_images(start: int, end: int) -> tuple[UInt8Array, Int64Array]:
    return IMAGES[:0], np.empty(0, np.int64)


@pytest.mark.parametrize(
    ("second", "reads", "error", "message"),
    [
        pytest.param(
            np.zeros((NUM, 4), np.float32),
            read,
            InvalidRequest,
            "the first answers 3 classes, the second answers 4 classes, expected as many",
            id="other classes",
        ),
        pytest.param(
            NOTHING,
            read,
            ServerError,
            r"the second: not one answer to 60 images is a score \(60 nonfinite",
            id="NaN",
        ),
        pytest.param(logits(LABELS), no_images, ValueError, "not one of the images can be read", id="no images"),
    ],
)
async def test_what_cannot_be_compared_is_refused(
    second: npt.NDArray[Any],
    reads: Callable[[int, int], tuple[UInt8Array, Int64Array]],
    error: type[ClientError | ValueError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        await compare((endpoint(logits(LABELS)), endpoint(second)), reads, NUM)
