from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch_cka import CKA  # type: ignore[import-untyped]  # ships none

from temper.builder.errors import DataError
from temper.builder.explain.cka import Cka, batches, compare
from temper.builder.explain.features import Features

Arrays = dict[str, npt.NDArray[np.float32]]


def _arrays(count: int, widths: dict[str, int], seed: int) -> Arrays:
    """Features of one world, seen by the network `seed`."""
    world = np.random.default_rng(0).normal(size=(count, 8))
    rng = np.random.default_rng(seed)

    def see(width: int) -> npt.NDArray[np.float32]:
        seen = world @ rng.normal(size=(8, width)) + rng.normal(size=(count, width))
        return np.asarray(np.maximum(seen, 0), np.float32)

    return {name: see(width) for name, width in widths.items()}


def _compare(first: Features, second: Features, **more: Any) -> Cka:
    return compare(first, second, progress=lambda done, total: None, **more)


class _Network(nn.Module):
    """Gives what was written as the outputs of its blocks."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        self.arrays = [torch.from_numpy(array).double() for array in arrays.values()]
        self.layers = nn.ModuleList(nn.Identity() for _ in arrays)

    def forward(self, rows: torch.Tensor) -> None:
        for layer, array in zip(self.layers, self.arrays, strict=True):
            layer(array[rows])


@pytest.fixture
def double() -> Iterator[None]:
    """The reference computes in torch's default type, and its own rounding is not meant here."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _torch_cka(one: Arrays, two: Arrays, parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    names = [[f"layers.{number}" for number in range(len(arrays))] for arrays in (one, two)]
    reference = CKA(_Network(one), _Network(two), "one", "two", *names)
    images = torch.utils.data.TensorDataset(torch.arange(sum(map(len, parts))))
    loader = torch.utils.data.DataLoader(images, batch_sampler=[rows.tolist() for rows in parts])
    reference.compare(loader, loader)
    return np.asarray(reference.export()["CKA"])


def _hsic(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> float:
    """Song et al., equation 5, as it is printed."""
    k, ell = (array.astype(np.float64) @ array.astype(np.float64).T for array in (one, two))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(ell, 0)
    n = len(k)
    ends = k.sum() * ell.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ ell).sum()
    return float((np.trace(k @ ell) + ends) / (n * (n - 3)))


def _formula(one: Arrays, two: Arrays, parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    def mean(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
        return float(np.mean([_hsic(x[rows], y[rows]) for rows in parts]))

    return np.array([[mean(x, y) / np.sqrt(mean(x, x) * mean(y, y)) for y in two.values()] for x in one.values()])


@pytest.mark.parametrize("reference", [_torch_cka, _formula])
@pytest.mark.parametrize(("count", "batch_size"), [(96, 32), (100, 32), (40, 256), (33, 8), (4, 8)])
def test_values_are_the_reference_implementation_s(
    make_features: Callable[..., Features], double: None, reference: Any, count: int, batch_size: int
) -> None:
    one = _arrays(count, {"stem": 16, "layer1.0": 40, "layer1.1": 200}, seed=1)
    two = _arrays(count, {"stem": 16, "layer1.0": 24}, seed=2)
    found = _compare(make_features(one), make_features(two), batch_size=batch_size)
    assert (found.rows, found.columns, found.num_images) == (tuple(one), tuple(two), count)
    parts = batches(count, batch_size)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert found.values == pytest.approx(reference(one, two, parts), abs=1e-5)
    assert (found.low <= found.values).all() and (found.values <= found.high).all()


def test_a_large_mean_costs_no_digits(make_features: Callable[..., Features]) -> None:
    one, two = (_arrays(64, {"stem": 8}, seed) for seed in (1, 2))
    moved = {"stem": np.round(one["stem"] * 64) / 64 + 4096}
    same = {"stem": moved["stem"] - 4096}
    found = [_compare(make_features(each), make_features(two)).values for each in (moved, same)]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


@pytest.mark.parametrize("count", [4, 33, 600])
def test_a_network_is_exactly_itself(make_features: Callable[..., Features], count: int) -> None:
    arrays = _arrays(count, {"stem": 16, "layer1.0": 65}, seed=1)
    features = make_features(arrays)
    for other in (features, make_features(arrays)):
        found = _compare(features, other)
        for ends in (found.values, found.low, found.high):
            assert ends.diagonal().tolist() == [1.0, 1.0]
    whole = _compare(features, features)
    assert np.array_equal(whole.values, whole.values.T)


def test_scale_rotation_and_shift_change_nothing(make_features: Callable[..., Features]) -> None:
    arrays = _arrays(64, {"stem": 16}, seed=1)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))[0]
    turned = {"stem": (3 * arrays["stem"] @ rotation + 1).astype(np.float32)}
    found = _compare(make_features(arrays), make_features(turned)).at(0, 0)
    assert found is not None and found == pytest.approx((1, 1, 1), abs=1e-6)


def test_a_constant_block_has_no_value(make_features: Callable[..., Features]) -> None:
    arrays = _arrays(64, {"stem": 16, "layer1.0": 8}, seed=1)
    arrays["layer1.0"][:] = 0.1
    found = _compare(make_features(arrays), make_features(arrays), batch_size=32)
    assert [[found.at(row, column) is None for column in (0, 1)] for row in (0, 1)] == [
        [False, True],
        [True, True],
    ]


@pytest.mark.parametrize("count", [64, 200])
def test_the_interval_holds_the_true_value(make_features: Callable[..., Features], count: int) -> None:
    """Of linear networks on Gaussian images the true value is known; 80 draws, in batches of 64."""
    maps = np.random.default_rng(5).normal(size=(2, 12, 24)) / np.arange(1, 13)[:, None]
    maps[1] += maps[0]
    true = np.sum((maps[0].T @ maps[1]) ** 2) / np.prod([np.linalg.norm(one.T @ one) for one in maps])
    held = []
    for seed in range(80):
        images = np.random.default_rng(seed).normal(size=(count, 12))
        first, second = (make_features({"block": (images @ one).astype(np.float32)}) for one in maps)
        found = _compare(first, second, batch_size=64).at(0, 0)
        assert found is not None
        held.append(found.low <= true <= found.high)
    assert 0.88 <= np.mean(held) <= 0.995


def test_memory_does_not_grow_with_the_images(make_features: Callable[..., Features]) -> None:
    peaks = []
    for count in (64, 1600):
        features = make_features({"block": np.random.default_rng(0).normal(size=(count, 512)).astype(np.float32)})
        tracemalloc.start()
        _compare(features, features, batch_size=64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Nothing but the order of the images, of which each has 2048 bytes of features.
    assert (peaks[1] - peaks[0]) / (1600 - 64) < 64


@pytest.mark.parametrize(
    ("counts", "batch_size", "error", "message"),
    [
        ((3, 3), 256, DataError, "CKA: got 3 images, expected at least 4; take more images"),
        ((8, 9), 256, ValueError, "got 8 and 9 images, expected the same images of both"),
        ((8, 8), 7, ValueError, "batch_size: got 7, expected at least 8"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    make_features: Callable[..., Features],
    counts: tuple[int, int],
    batch_size: int,
    error: type[Exception],
    message: str,
) -> None:
    first, second = (make_features(_arrays(count, {"stem": 4}, seed=1)) for count in counts)
    with pytest.raises(error, match=message):
        _compare(first, second, batch_size=batch_size)
