from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.builder.errors import DataError
from temper.builder.estimate import Estimate
from temper.builder.explain.dimension import Dimension, measure_dimensions
from temper.builder.explain.features import Features


def _measure(features: Features) -> dict[str, Dimension]:
    return measure_dimensions(features, progress=lambda done, total: None)


def _draw(count: int, spectrum: npt.NDArray[Any], seed: int) -> npt.NDArray[np.float32]:
    """Gaussian features whose covariance has these eigenvalues."""
    width = len(spectrum)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    rng = np.random.default_rng(seed + 1)
    return np.asarray(3 + rng.normal(size=(count, width)) * np.sqrt(spectrum) @ rotation, np.float32)


def _rank(spectrum: npt.NDArray[Any]) -> float:
    shares = spectrum / spectrum.sum()
    return math.exp(-float((shares * np.log(shares)).sum()))


@pytest.mark.parametrize(
    ("count", "width", "power", "limited"),
    [(400, 32, 0.0, False), (64, 32, 2.0, False), (32, 64, 2.0, False), (32, 64, 0.5, True), (100, 64, 0.5, True)],
)
def test_the_true_rank_is_in_the_interval_unless_too_few_images_are_said(
    make_features: Callable[..., Features], count: int, width: int, power: float, limited: bool
) -> None:
    spectrum = np.arange(1.0, width + 1) ** -power
    draws = [_measure(make_features({"block": _draw(count, spectrum, seed)}))["block"] for seed in range(60)]
    assert sum(one.rank_limited for one in draws) == (60 if limited else 0)
    if not limited:
        held = [one.effective_rank.low <= _rank(spectrum) <= one.effective_rank.high for one in draws]
        assert sum(held) >= 50
        middle = np.mean([one.effective_rank.value for one in draws])
        assert middle == pytest.approx(_rank(spectrum), rel=0.08)


def test_fewer_images_than_features_are_computed_alike(make_features: Callable[..., Features]) -> None:
    """Features that are zero change no eigenvalue, but which of the two matrices is used."""
    few = _draw(40, np.arange(1.0, 9.0), 0)
    padded = np.concatenate([few, np.zeros((40, 60), np.float32)], axis=1)
    found = _measure(make_features({"few": few, "padded": padded}))
    assert found["padded"].effective_rank == pytest.approx(found["few"].effective_rank, rel=1e-9)
    assert (found["few"].num_dead, found["padded"].num_dead) == (0, 60)


def test_more_than_a_chunk_of_images_is_all_read(make_features: Callable[..., Features]) -> None:
    features = np.zeros((1100, 3), np.float32)
    features[:, 0] = np.random.default_rng(0).normal(size=1100)
    features[1099, 1] = 1e-3
    found = _measure(make_features({"block": features}))["block"]
    assert found.num_dead == 1 and found.effective_rank.value == pytest.approx(1, abs=1e-3)


def test_a_dead_block_has_rank_0(make_features: Callable[..., Features]) -> None:
    found = _measure(make_features({"block": np.full((20, 4), 0.1, np.float32)}))["block"]
    assert found == Dimension(num_features=4, num_dead=4, effective_rank=Estimate(0, 0, 0), rank_limited=False)


def test_three_images_are_refused(make_features: Callable[..., Features]) -> None:
    with pytest.raises(DataError, match="effective rank: got 3 images, expected at least 4; take more images"):
        _measure(make_features({"block": np.zeros((3, 4), np.float32)}))
