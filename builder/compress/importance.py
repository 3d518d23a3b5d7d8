"""How much every feature that the head reads counts for its answers, by four methods.

The features are the last ones, pooled, as `fc` reads them: no network is run here. As the head is linear, what
other networks need passes for has a closed form, and taking one feature away changes the logits by one column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch.nn.functional import cross_entropy

from temper.builder.data.spread import spread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Importance = Literal["activation", "taylor", "permutation", "shapley"]
IMPORTANCES: tuple[Importance, ...] = get_args(Importance)
# Logits that are worked out at once, for several features: they fit into a core's cache.
_MAX_LOGITS = 1 << 19
# Images times features times classes that `permutation` and `shapley` look at: with 2048 features and 1000 classes
# 512 images, which take a core half a minute.
_MAX_WORK = 1 << 30


@dataclass(frozen=True)
class HeadData:
    """A linear head and what it reads."""

    features: torch.Tensor
    """Float32 [N, D]."""
    labels: torch.Tensor
    """Int64 [N]."""
    weight: torch.Tensor
    """Float32 [classes, D]."""
    bias: torch.Tensor
    """Float32 [classes]."""

    @staticmethod
    def from_arrays(
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> HeadData:
        """Takes arrays of the same shapes.

        Raises:
            ValueError: The shapes do not fit together, or there is no image.
        """
        (num, width), classes = features.shape, len(bias)
        if num < 1 or labels.shape != (num,) or weight.shape != (classes, width):
            raise ValueError(
                f"features: got {list(features.shape)} with labels {list(labels.shape)}, weight "
                f"{list(weight.shape)} and bias {list(bias.shape)}, expected [N, D], [N], [classes, D], [classes]"
            )
        return HeadData(*(torch.tensor(array) for array in (features, labels, weight, bias)))

    @property
    def logits(self) -> torch.Tensor:
        """What the head answers, [N, classes]."""
        return self.features @ self.weight.T + self.bias

    @property
    def num_features(self) -> int:
        """D."""
        return self.features.shape[1]

    def spread(self, num: int) -> HeadData:
        """Returns at most as many images, spread evenly."""
        rows = torch.from_numpy(spread(len(self.labels), num))
        return HeadData(self.features[rows], self.labels[rows], self.weight, self.bias)

    def resampled(self, seed: int) -> HeadData:
        """Returns as many images, drawn with replacement."""
        num = len(self.labels)
        drawn = torch.randint(num, (num,), generator=torch.Generator().manual_seed(seed))
        return HeadData(self.features[drawn], self.labels[drawn], self.weight, self.bias)


def measure_importance(data: HeadData, method: Importance, *, seed: int = 0) -> torch.Tensor:
    """Measures every feature by one method.

    - `activation`: its mean absolute value.
    - `taylor`: the mean over the images of (activation x gradient of the loss)^2: the square of what the loss
      would change by without it, to first order (Molchanov et al., "Importance Estimation for Neural Network
      Pruning", CVPR 2019; here for the activation).
    - `permutation`: what the loss grows by when its values are shuffled among the images, the mean of three times
      (Breiman, "Random Forests", 2001).
    - `shapley`: its Shapley value in the game whose value is minus the loss, where a feature that does not play
      has its mean (Castro, Gomez, Tejada, "Polynomial calculation of the Shapley value based on sampling", 2009).

    The loss is cross entropy, in nats.

    Args:
        data: The head and its images; the last two methods look at fewer of them when there are many classes.
        method: See above.
        seed: Decides what is shuffled and sampled.

    Returns:
        Float64 [D]; the larger, the more it counts. It may be below 0 for the last two.
    """
    few = data.spread(max(1, _MAX_WORK // data.weight.numel()))
    measures: dict[Importance, Callable[[], torch.Tensor]] = {
        "activation": lambda: data.features.abs().double().mean(0),
        "taylor": lambda: _taylor(data),
        "permutation": lambda: permutation(few, seed=seed),
        "shapley": lambda: shapley(few, seed=seed),
    }
    return measures[method]()


def _taylor(data: HeadData) -> torch.Tensor:
    wrong = data.logits.softmax(1)
    wrong[torch.arange(len(wrong)), data.labels] -= 1
    return (data.features * (wrong @ data.weight)).double().square().mean(0)


def permutation(data: HeadData, *, repeats: int = 3, seed: int = 0) -> torch.Tensor:
    """Returns what the loss grows by when one feature's values are shuffled among the images, float64 [D].

    Args:
        data: The head and its images.
        repeats: Shuffles, each of all features alike; the mean is returned.
        seed: Decides them.
    """
    generator = torch.Generator().manual_seed(seed)
    logits, loss = data.logits, float(cross_entropy(data.logits, data.labels))
    grown = torch.zeros(data.num_features, dtype=torch.float64)
    for _ in range(repeats):
        shuffled = data.features[torch.randperm(len(data.labels), generator=generator)]
        change = shuffled - data.features
        for columns in _blocks(data):
            # [N, columns, classes]: what the logits become when one of the columns is shuffled.
            changed = logits[:, None] + change[:, columns, None] * data.weight.T[None, columns]
            losses = changed.logsumexp(2) - changed[torch.arange(len(logits)), :, data.labels]
            grown[columns] += losses.double().mean(0) - loss
    return grown / repeats


def _blocks(data: HeadData) -> Iterator[slice]:
    size = max(1, _MAX_LOGITS // data.logits.numel())
    for start in range(0, data.num_features, size):
        yield slice(start, start + size)


def shapley(data: HeadData, *, permutations: int = 8, seed: int = 0) -> torch.Tensor:
    """Samples the Shapley values of the features, float64 [D]; they add up to the loss of none less that of all.

    Every image has its own order in which the features come in, as the mean over the images is what is asked for;
    every second order is the one before backwards (Mitchell et al., "Sampling Permutations for Shapley Value
    Estimation", JMLR 23, 2022).

    Args:
        data: The head and its images.
        permutations: Orders per image, an even number.
        seed: Decides them.
    """
    generator = torch.Generator().manual_seed(seed)
    num, width = data.features.shape
    mean, columns = data.features.mean(0), data.weight.T.contiguous()
    away, rows = data.features - mean, torch.arange(num)
    values = torch.zeros(width, dtype=torch.float64)
    nothing = (data.weight @ mean + data.bias).expand(num, -1)
    for _ in range(permutations // 2):
        order = torch.rand(num, width, generator=generator).argsort(1)
        for direction in (order, order.flip(1)):
            logits = nothing.clone()
            before = cross_entropy(logits, data.labels, reduction="none")
            for feature in direction.T:
                logits.addcmul_(away[rows, feature, None], columns[feature])
                after = cross_entropy(logits, data.labels, reduction="none")
                values.index_add_(0, feature, (before - after).double())
                before = after
    return values / (num * 2 * (permutations // 2))
