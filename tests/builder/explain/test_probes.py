from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # ships none
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # ships none

from temper.builder.errors import DataError
from temper.builder.explain.features import Features
from temper.builder.explain.probes import PENALTIES, fit_probe, probe_blocks

Split = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    return (pixels[:600], labels[:600]), (pixels[600:1000], labels[600:1000])


def test_blocks_that_hold_more_are_read_better(
    make_features: Callable[..., Features], digits: tuple[Split, Split]
) -> None:
    blocks = {"dead": slice(0, 1), "some": slice(16, 24), "all": slice(0, 64)}
    train, test = (make_features({name: pixels[:, part] for name, part in blocks.items()}) for pixels, _ in digits)
    seen: list[tuple[int, int]] = []
    found = probe_blocks(
        train, digits[0][1], test, digits[1][1], progress=lambda done, total: seen.append((done, total))
    )
    accuracy = {name: float(probe.correct.mean()) for name, probe in found.items()}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert accuracy["dead"] < 0.2 < accuracy["some"] < 0.8 < 0.9 < accuracy["all"]
    assert all(probe.converged and probe.penalty in PENALTIES for probe in found.values())


def test_the_answers_are_those_of_the_exact_solution(digits: tuple[Split, Split]) -> None:
    (train, labels), (test, wanted) = digits
    probe = fit_probe(train, labels, test, wanted)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    scale = 1 / np.where(deviation > 0, deviation, np.inf)
    exact = LogisticRegression(C=1 / probe.penalty, max_iter=5000, tol=1e-8)
    exact.fit(((train - mean) * scale).astype(float), labels)
    agree = probe.correct == (exact.predict((test - mean) * scale) == wanted)
    assert agree.mean() > 0.98


def test_fewer_images_than_features_give_the_same_answers(digits: tuple[Split, Split]) -> None:
    """Features that are constant make the space larger, and nothing else."""
    (train, labels), (test, wanted) = digits
    once = fit_probe(train[:100], labels[:100], test, wanted)
    more = ((0, 0), (0, 200))
    padded = np.pad(train[:100], more, constant_values=0.1)
    # As another batch rounds it.
    rounded = np.pad(test, more, constant_values=np.nextafter(np.float32(0.1), np.float32(1)))
    wide = fit_probe(padded, labels[:100], rounded, wanted)
    assert once.penalty == wide.penalty
    assert (once.correct == wide.correct).mean() > 0.99
    assert once.correct.mean() > 0.6


@pytest.mark.parametrize("count", [2, 5, 19])
def test_few_images_and_missing_classes_are_trained_on(digits: tuple[Split, Split], count: int) -> None:
    (train, labels), (test, wanted) = digits
    probe = fit_probe(train[:count], labels[:count], test, wanted)
    known = np.isin(wanted, labels[:count])
    assert probe.correct[~known].sum() == 0
    assert probe.correct[known].mean() > 0.3


@pytest.mark.parametrize("count", [1, 5])
def test_one_class_is_refused(digits: tuple[Split, Split], count: int) -> None:
    same: Any = np.zeros(count, int)
    message = f"probe: got {count} training images of one class, expected at least two classes; take more images"
    with pytest.raises(DataError, match=message):
        fit_probe(digits[0][0][:count], same, *digits[1])
