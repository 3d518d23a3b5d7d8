"""What a linear classifier reads from each block: multinomial logistic regression on its pooled features.

Source: G. Alain, Y. Bengio, "Understanding intermediate layers using linear classifier probes", ICLR 2017 workshop
(arXiv:1610.01644).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.builder.errors import DataError
from temper.builder.explain.features import Features, FloatArray

Labels = npt.NDArray[np.integer[Any]]

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
"""Candidates for the L2 penalty: half of it, times the squared weights, is added to the summed cross entropy."""

_HELD_OUT = 10
_MAX_STEPS = 200
# Of the mean loss's gradient: tighter ones changed no figure by more than chance.
_TOLERANCE = 1e-3
# Of float32, and as much again.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Probe:
    """A classifier of one block's features."""

    correct: npt.NDArray[np.bool_]
    """[test images]: where it is right."""
    penalty: float
    """The L2 penalty that was chosen."""
    converged: bool
    """False when the steps ran out before the gradient was small."""


def probe_blocks(
    train: Features,
    train_labels: Labels,
    test: Features,
    test_labels: Labels,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None],
) -> dict[str, Probe]:
    """Trains and tests a probe on every block.

    Fewer training images than features are no obstacle, as the penalty decides among the many solutions; the
    accuracy is that of a probe of so many images, and grows with them.

    Args:
        train: On training images, of the same network as `test`.
        train_labels: [training images].
        test: On test images.
        test_labels: [test images].
        seed: Of the images that the penalty is chosen on.
        progress: Called with (done, total) blocks.

    Raises:
        DataError: The training images have fewer than two classes.
    """
    found = {}
    for done, name in enumerate(train.blocks):
        found[name] = fit_probe(train.block(name), train_labels, test.block(name), test_labels, seed=seed)
        progress(done + 1, len(train.blocks))
    return found


def fit_probe(
    train: FloatArray, train_labels: Labels, test: FloatArray, test_labels: Labels, *, seed: int = 0
) -> Probe:
    """Trains on all training images, features standardised as these have them.

    The penalty is the one under which a tenth of them is the likeliest to a probe of the others. A class without a
    training image is never answered.

    Args:
        train: [n, features].
        train_labels: [n].
        test: [m, features].
        test_labels: [m].
        seed: Of the choice of the tenth.

    Raises:
        DataError: The training images have fewer than two classes.
    """
    if len(np.unique(train_labels)) < 2:
        raise DataError(
            f"probe: got {len(train)} training images of one class, expected at least two classes; take more "
            "images, num_train of [explain]"
        )
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    # What is constant, or differs by rounding alone, becomes 0.
    scale = 1 / np.where(deviation > _ROUNDING * np.abs(mean), deviation, np.inf)
    train, test = (((images - mean) * scale).astype(np.float32) for images in (train, test))
    if len(train) < train.shape[1]:
        # The weights lie in the span of the training images, and the penalty does not feel a rotation.
        span = np.linalg.qr(train.T)[0]
        train, test = train @ span, test @ span
    order = np.random.default_rng(seed).permutation(len(train))
    held, others = np.split(order, [max(len(train) // _HELD_OUT, 1)])
    penalty = PENALTIES[0]
    if len(np.unique(train_labels[others])) > 1:
        scores = [
            _log_likelihood(_fit(train[others], train_labels[others], one), train[held], train_labels[held])
            for one in PENALTIES
        ]
        penalty = PENALTIES[int(np.argmax(scores))]
    model = _fit(train, train_labels, penalty)
    return Probe(
        correct=model.predict(test) == test_labels,
        penalty=penalty,
        converged=int(model.n_iter_.max()) < _MAX_STEPS,
    )


def _fit(train: FloatArray, labels: Labels, penalty: float) -> Any:
    """Returns scikit-learn's LogisticRegression."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # ships none

    model = LogisticRegression(C=1 / penalty, max_iter=_MAX_STEPS, tol=_TOLERANCE)
    with warnings.catch_warnings():
        # Of steps that ran out, which is told, and of classes with few images each.
        warnings.simplefilter("ignore", UserWarning)
        return model.fit(train, labels)


def _log_likelihood(model: Any, images: FloatArray, labels: Labels) -> float:
    """Returns that of the images whose class the model knows, summed."""
    known = np.isin(labels, model.classes_)
    if not known.any():
        return 0.0
    columns = np.searchsorted(model.classes_, labels[known])
    shares = model.predict_proba(images[known])[np.arange(len(columns)), columns]
    # A share may be too small for its type.
    return float(np.log(np.maximum(shares, np.finfo(np.float32).tiny)).sum())
