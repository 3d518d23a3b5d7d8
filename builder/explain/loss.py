"""The loss that layers are blamed for: how far logits are from float32's.

The mean squared difference of the logits, both less their mean over the classes, over the variance of float32's: a
shift that all classes share changes no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from temper.builder.estimate import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUM_RESAMPLES = 1000


class LogitLoss:
    """The loss of logits against those of a float32 graph on the same images."""

    def __init__(self, expected: NDArray[np.float32]) -> None:
        """Takes float32's logits, [N, classes]."""
        self._expected = expected
        self._variance = float(_centred(expected).var()) or 1.0

    def __call__(self, logits: NDArray[np.float32], rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Returns the loss of every image, [n].

        Args:
            logits: [n, classes].
            rows: Which of the N images these are; all when not given.
        """
        expected = self._expected if rows is None else self._expected[rows]
        losses: NDArray[np.float64] = logit_errors(expected, logits) / self._variance
        return losses


def share_gone(left: NDArray[np.float64], before: NDArray[np.float64], seed: int) -> Estimate:
    """Returns the share of the loss of some images that is gone, with its 95 % interval from resampling them.

    Args:
        left: The losses that are left, [n].
        before: Those that there were, of the same images.
        seed: Decides the resamples.
    """
    if not before.sum() > 0:
        return Estimate(0.0, 0.0, 0.0)
    rng, shares = np.random.default_rng(seed), np.empty(_NUM_RESAMPLES)
    for number in range(_NUM_RESAMPLES):
        drawn = rng.integers(0, len(before), len(before))
        shares[number] = 1 - left[drawn].sum() / (before[drawn].sum() or np.inf)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Estimate(float(1 - left.sum() / before.sum()), float(low), float(high))


def logit_errors(expected: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the loss of every image, [n], but for the variance that it is divided by."""
    errors: NDArray[np.float64] = ((_centred(expected) - _centred(found)) ** 2).mean(1)
    return errors


def _centred(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    centred: NDArray[np.float64] = wide - wide.mean(1, keepdims=True)
    return centred
