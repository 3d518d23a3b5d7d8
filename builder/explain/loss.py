"""The loss that layers are blamed for: how far logits are from float32's.

The mean squared difference of the logits, both less their mean over the classes, over the variance of float32's: a
shift that all classes share changes no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUM_RESAMPLES = 1000


class LogitLoss:
    """The loss of logits against those of a float32 graph on the same images."""

    def __init__(self, expected: NDArray[np.float32], seed: int) -> None:
        """Takes float32's logits.

        Args:
            expected: [N, classes].
            seed: Decides the resamples.
        """
        self._expected = _centred(expected)
        self._variance = float(self._expected.var()) or 1.0
        self._seed = seed

    def __call__(self, logits: NDArray[np.float32], rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Returns the loss of every image, [n].

        Args:
            logits: [n, classes].
            rows: Which of the N images these are; all when not given.
        """
        expected = self._expected if rows is None else self._expected[rows]
        losses: NDArray[np.float64] = ((expected - _centred(logits)) ** 2).mean(1) / self._variance
        return losses

    def share_gone(self, left: NDArray[np.float64], before: NDArray[np.float64]) -> tuple[float, float, float]:
        """Returns the share of the loss of some images that is gone, with its 95 % interval from resampling them.

        Args:
            left: The losses that are left, [n].
            before: Those that there were, of the same images.
        """
        if not before.sum() > 0:
            return 0.0, 0.0, 0.0
        drawn = np.random.default_rng(self._seed).integers(0, len(before), (_NUM_RESAMPLES, len(before)))
        sums = before[drawn].sum(1)
        low, high = np.quantile(1 - left[drawn].sum(1) / np.where(sums > 0, sums, np.inf), [0.025, 0.975])
        return float(1 - left.sum() / before.sum()), float(low), float(high)


def _centred(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    centred: NDArray[np.float64] = wide - wide.mean(1, keepdims=True)
    return centred
