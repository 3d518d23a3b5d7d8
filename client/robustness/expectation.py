"""Endpoints that draw at random: the mean of several answers, and how to notice one.

An attack on one answer of such an endpoint would follow and count luck. The expectation over its draws is what an
adaptive attacker works on: Athalye, Engstrom, Ilyas, Kwok, "Synthesizing robust adversarial examples", ICML 2018,
arXiv:1707.07397 (EOT).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.scores import Infer, Int64Array, UInt8Array, ask

# Share of the spread of the scores: other batches, or other threads, change them by less.
_TOLERANCE = 0.05

NUM_ASKED_TWICE = 8
"""Images that are enough for `draws_at_random`."""


def average(infer: Infer, times: int) -> Infer:
    """Return an endpoint that answers with the mean of so many answers' scores, or their most frequent class."""
    if times == 1:
        return infer

    async def ask_several(images: UInt8Array) -> npt.NDArray[Any]:
        answers = [await infer(images) for _ in range(times)]
        if any(answer.shape != answers[0].shape for answer in answers):
            return min(answers, key=len)  # too few rows, for the judge to see
        if answers[0].ndim == 1:
            return np.array([np.bincount(each).argmax() for each in np.stack(answers, axis=1)], dtype=np.int64)
        with np.errstate(invalid="ignore"):  # infinities of both signs: NaN, which the judge sees
            mean: npt.NDArray[Any] = np.mean(answers, axis=0, dtype=np.float32)
        return mean

    return ask_several


async def draws_at_random(infer: Infer, images: UInt8Array, labels: Int64Array) -> bool:
    """Ask twice; return whether the answers differ by more than arithmetic makes them.

    Args:
        infer: the endpoint.
        images: uint8 [n, H, W, 3].
        labels: int64 [n], their classes.

    Raises:
        ClientError: the server is gone.
    """
    first, second = [await ask(infer, images, labels) for _ in range(2)]
    judged = (first.kinds == "") & (second.kinds == "")
    if first.scores is None or second.scores is None:
        return not np.array_equal(first.classes[judged], second.classes[judged])
    one, two = first.scores[judged], second.scores[judged]
    return bool(one.size and (np.abs(one - two) > _TOLERANCE * np.ptp(one)).any())
