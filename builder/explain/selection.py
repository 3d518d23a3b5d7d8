"""Which of the last features matter: their importance, and what a head can do with the best few by each method.

No network is run: the features come as arrays, and every head is fitted anew. What the cut of the network itself
costs and buys, `compress/select.py` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from temper.builder.compress.head import fit_head
from temper.builder.compress.importance import IMPORTANCES, HeadData, Importance, measure_importance
from temper.builder.compress.methods import METHODS, Method
from temper.builder.compress.subsets import (
    Stability,
    describe_limits,
    order_features,
    stability_of,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_STABLE_SHARE = 1 / 4


@dataclass(frozen=True)
class Curve:
    """What heads on the first few features are right on, for one method."""

    method: Method
    """How the features were chosen."""
    num_features: tuple[int, ...]
    """How many, the fewest first; the last is all of them."""
    correct: NDArray[np.bool_]
    """Per number of features and test image, [len(num_features), M]."""
    stability: Stability | None
    """Of the choice of a quarter of the features; None for `random`."""


@dataclass(frozen=True)
class FeatureAnalysis:
    """What is known of the features that the head reads."""

    importance: dict[Importance, NDArray[np.float64]]
    """By method, [D]."""
    curves: tuple[Curve, ...]
    """By method."""
    note: str
    """What is not valid, and why; empty where there are enough images."""


def analyse_features(
    train: HeadData,
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    *,
    methods: Sequence[Method] = METHODS,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureAnalysis:
    """Measures the importance of every feature, and the accuracy of heads that read the best few.

    Features are chosen and heads fitted on training images alone. A head learns the full one's answers and the
    labels (`compress/head.py`), the one on all features as well.

    Args:
        train: The head, and training images as they are served; see `HeadData.from_arrays`.
        test_features: [M, D].
        test_labels: [M].
        methods: How features are chosen.
        shares: Shares of the features to keep, more than 0 to 1; at least one feature is kept, and the curve ends
            with all.
        seed: Decides what is drawn.
        progress: Called with (done, total).
    """
    width = train.num_features
    numbers = sorted({max(1, round(share * width)) for share in shares} | {width})
    features, labels = torch.from_numpy(test_features), torch.from_numpy(test_labels)

    def right(kept: torch.Tensor) -> torch.Tensor:
        weight, bias = fit_head(train.features[:, kept], train.labels, train.logits)
        return (features[:, kept] @ weight.T + bias).argmax(1) == labels

    everything = right(torch.arange(width))
    importance, curves = {}, []
    for number, method in enumerate(methods):
        progress(number, len(methods))
        if method in IMPORTANCES:
            importance[method] = values = measure_importance(train, method, seed=seed)
            order = values.argsort(descending=True, stable=True)
        else:
            order = order_features(train, method, seed=seed)
        correct = [right(order[:count]) if count < width else everything for count in numbers]
        stability = stability_of(train, method, max(1, round(_STABLE_SHARE * width)), seed=seed)
        curves.append(Curve(method, tuple(numbers), torch.stack(correct).numpy(), stability))
    progress(len(methods), len(methods))
    arrays = {method: values.numpy() for method, values in importance.items()}
    return FeatureAnalysis(arrays, tuple(curves), describe_limits(len(train.labels), width))
