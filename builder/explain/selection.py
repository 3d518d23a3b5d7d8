"""Which of the last features matter: their importance, and what a head can do with the best few by each method.

No network is run: the features come as arrays, and every head is fitted anew. What the cut of the network itself
costs and buys, `compress/select.py` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from temper.builder.compress.head import fit_head
from temper.builder.compress.importance import IMPORTANCES, HeadData, Importance, measure_importance
from temper.builder.compress.methods import METHODS, Method
from temper.builder.compress.subsets import describe_limits, order_features, stability_of
from temper.builder.contract import TEST_LABELS_FILE
from temper.builder.estimate import Estimate
from temper.builder.explain.features import Features
from temper.builder.explain.images import TRAIN_LABELS_FILE
from temper.builder.explain.networks import TEST, TRAIN
from temper.builder.network.resnet import head_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

CORRECT_FILE = "correct.npz"

_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
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
    stability: Estimate | None
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
        seed: Decides what is drawn.
        progress: Called with (done, total).
    """
    width = train.num_features
    numbers = sorted({max(1, round(share * width)) for share in _SHARES})
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


def run_selection(
    network: nn.Module,
    features: Path,
    images: Path,
    folder: Path,
    progress: Callable[[int, int], None],
    *,
    seed: int,
) -> dict[str, Any]:
    """The stage: analyses the last features of a network as its engine gave them; see `analyse_features`.

    Args:
        network: Of which the head is read.
        features: The folder of `networks.run_network`.
        images: The folder of `images.write_images`.
        folder: Receives correct.npz: by method, where heads are right, bool [numbers of features, test images].
        progress: Called with (methods done, methods in all).
        seed: Decides what is drawn.

    Returns:
        num_train, importance (values by method), curves (method, num_features, stability), note.
    """
    train, test = (Features(features / name) for name in (TRAIN, TEST))
    last = list(test.blocks)[-1]
    data, limit = _read_head(head_of(network), train.block(last), np.load(images / TRAIN_LABELS_FILE))
    found = analyse_features(
        data, test.block(last), np.load(images / TEST_LABELS_FILE), seed=seed, progress=progress
    )
    np.savez(folder / CORRECT_FILE, **{curve.method: curve.correct for curve in found.curves})
    return {
        "num_train": len(data.labels),
        "importance": {method: values.tolist() for method, values in found.importance.items()},
        "curves": [
            {
                "method": curve.method,
                "num_features": list(curve.num_features),
                "stability": curve.stability,
            }
            for curve in found.curves
        ],
        "note": "; ".join(filter(None, (found.note, limit))),
    }


def _read_head(head: nn.Module, features: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[HeadData, str]:
    """Returns the head with what it reads, and what has to be said of it."""
    if isinstance(head, nn.Linear):
        weight, bias = (each.detach().numpy() for each in (head.weight, head.bias))
        return HeadData.from_arrays(features, labels, weight, bias), ""
    with torch.no_grad():
        taught = head(torch.tensor(features))
    fitted = (each.numpy() for each in fit_head(torch.tensor(features), torch.from_numpy(labels), taught))
    return (
        HeadData.from_arrays(features, labels, *fitted),
        "the head has two layers: a linear one that was taught its answers stands for it",
    )
