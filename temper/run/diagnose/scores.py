"""How much of a difference a cause explains, image by image, with its interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from temper.client.stats import Estimate, bootstrap_means, estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TINY = 1e-12
_MIN_PROBABILITY = 1e-9
_EPSILON, _MAX_HALF = 1e-7, 65504.0


def squares(served: NDArray[np.float32], made: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the sum of squared differences of each image, [N]."""
    sums: NDArray[np.float64] = ((served.astype(np.float64) - made) ** 2).sum(axis=1)
    return sums


def relative(sums: NDArray[np.float64], right: NDArray[np.float32]) -> float:
    """Returns the root mean square of differences over the spread of the right scores.

    Args:
        sums: Of each image, `squares`.
        right: The scores, [N, classes].
    """
    spread = float(right.astype(np.float64).std()) or 1.0
    return float(np.sqrt(sums.mean() / right.shape[1])) / spread


def explained(before: NDArray[np.float64], after: NDArray[np.float64]) -> Estimate:
    """Returns the share of the difference that a cause explains, with its interval over the images.

    Args:
        before: `squares` of the served scores and the right ones, [N].
        after: Of the served scores and those with the cause, on the same images.

    Returns:
        1 less the ratio of the two; below 0 for a cause that makes it worse.
    """
    value = 1 - float(after.sum() / max(float(before.sum()), _TINY))
    first, second = bootstrap_means(np.stack([before, after]))
    return estimate(value, 1 - second / np.maximum(first, _TINY))


def is_clearly_less(first: NDArray[np.float64], second: NDArray[np.float64], factor: float) -> bool:
    """Tells whether, with 95 % confidence, the first sum is less than a share of the second on the same images."""
    means = bootstrap_means(np.stack([first, second]))
    return bool(np.percentile(means[0] - factor * means[1], 97.5) < 0)


def related(first: NDArray[np.float32], second: NDArray[np.float32]) -> Estimate:
    """Returns the correlation of two differences of scores, [N, classes], with its interval over the images."""
    one, two = first.astype(np.float64), second.astype(np.float64)
    sums = np.stack([(one * two).sum(1), (one**2).sum(1), (two**2).sum(1)])
    cross, own, other = bootstrap_means(sums)
    value = sums[0].sum() / max(float(np.sqrt(sums[1].sum() * sums[2].sum())), _TINY)
    return estimate(float(value), cross / np.maximum(np.sqrt(own * other), _TINY))


def varying(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns what differs from image to image: scores less their mean over the images and over the classes."""
    values = scores.astype(np.float64)
    values = values - values.mean(axis=1, keepdims=True)
    left: NDArray[np.float64] = values - values.mean(axis=0)
    return left


def are_probabilities(scores: NDArray[np.float32]) -> bool:
    """Tells whether every row is of shares that sum to 1."""
    return bool(scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1).max() < 1e-2)


def as_logits(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns probabilities as logits whose mean is 0: softmax is undone but for a shift of each image."""
    values = np.log(np.maximum(scores.astype(np.float64), _MIN_PROBABILITY))
    made: NDArray[np.float32] = (values - values.mean(axis=1, keepdims=True)).astype(np.float32)
    return made


def writing_of(scores: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Returns what rounds scores as these are: to float16, to the decimals of a text file, or not at all."""
    if np.array_equal(scores, _as_half(scores)):
        return _as_half
    values = scores.astype(np.float64)
    exact = _EPSILON * np.maximum(1, np.abs(values))
    for decimals in range(1, 7):
        if (np.abs(values - values.round(decimals)) <= exact).all():
            return lambda made: made.round(decimals)
    return lambda made: made


def _as_half(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return scores.clip(-_MAX_HALF, _MAX_HALF).astype(np.float16).astype(np.float32)


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Returns the correlation of what is given about 0; 0 where one of them does not vary."""
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / norm if norm else 0.0


def match_columns(served: NDArray[np.float32], made: NDArray[np.float32]) -> list[int]:
    """Returns for each served output the network's that is nearest to it, each once, over all images."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # ships none

    one, two = served.astype(np.float64), made.astype(np.float64)
    costs = (one**2).sum(0)[:, None] - 2 * one.T @ two + (two**2).sum(0)[None]
    return [int(column) for column in linear_sum_assignment(costs)[1]]
