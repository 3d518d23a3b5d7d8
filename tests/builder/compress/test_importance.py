"""Which features count, against exact values, Captum's and brute force; and a head on some of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from temper.builder.compress.head import fit_head
from temper.builder.compress.importance import (
    IMPORTANCES,
    HeadData,
    Importance,
    measure_importance,
    permutation,
    shapley,
)
from temper.builder.compress.methods import METHODS, Method
from temper.builder.compress.subsets import (
    RESAMPLES,
    SLOW_RESAMPLES,
    describe_limits,
    measure_stability,
    order_features,
    stability_of,
)
from temper.builder.explain.selection import analyse_features

_WIDTH, _CLASSES = 7, 4


def _data(num: int = 60, *, width: int = _WIDTH, rank: int | None = None, seed: int = 0) -> HeadData:
    """A head of four classes that is mostly right, on features that have some in common; of a rank, when given."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(num, rank or width, generator=generator)
    features = (sources @ torch.randn(rank or width, width, generator=generator)).float()
    weight, bias = torch.randn(_CLASSES, width, generator=generator), torch.randn(_CLASSES, generator=generator)
    noisy = features @ weight.T + bias + torch.randn(num, _CLASSES, generator=generator)
    return HeadData(features, noisy.argmax(1), weight, bias)


def _minus_loss(data: HeadData, features: torch.Tensor) -> torch.Tensor:
    return -cross_entropy(features @ data.weight.T + data.bias, data.labels, reduction="none")


def _exact_shapley(data: HeadData) -> torch.Tensor:
    """By its definition, over all subsets."""
    mean = data.features.mean(0)
    worth = {}
    for size in range(_WIDTH + 1):
        for players in itertools.combinations(range(_WIDTH), size):
            present = torch.zeros(_WIDTH, dtype=torch.bool)
            present[list(players)] = True
            worth[players] = float(_minus_loss(data, torch.where(present, data.features, mean)).mean())
    values = torch.zeros(_WIDTH, dtype=torch.float64)
    for players, value in worth.items():
        for one in set(range(_WIDTH)) - set(players):
            share = 1 / (_WIDTH * math.comb(_WIDTH - 1, len(players)))
            values[one] += share * (worth[tuple(sorted((*players, one)))] - value)
    return values


def test_shapley_is_near_the_exact_values_as_captum_is() -> None:
    from captum.attr import ShapleyValueSampling  # type: ignore[import-untyped]  # ships none

    data = _data()
    exact, ours = _exact_shapley(data), shapley(data, permutations=64)
    torch.manual_seed(0)
    sampling = ShapleyValueSampling(lambda features: _minus_loss(data, features))
    mean = data.features.mean(0, keepdim=True)
    theirs = sampling.attribute(data.features, baselines=mean, n_samples=400, show_progress=False).mean(0)
    scale = float(exact.abs().max())
    assert torch.allclose(ours, exact, atol=0.03 * scale)
    assert torch.allclose(theirs.double(), exact, atol=0.1 * scale)
    # The two ends of the game do not depend on the orders that are sampled.
    assert float(shapley(data, permutations=2).sum()) == pytest.approx(float(exact.sum()), abs=1e-5)


def test_permutation_is_that_of_captum() -> None:
    from captum.attr import FeaturePermutation

    data = _data()
    shuffle = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(3))
    mixed = FeaturePermutation(
        lambda features: _minus_loss(data, features).mean(),
        perm_func=lambda features, mask: torch.where(mask, features[shuffle], features),
    )
    theirs = mixed.attribute(data.features)[0].double()
    assert torch.allclose(permutation(data, repeats=1, seed=3), theirs, atol=1e-5)


def test_taylor_is_the_gradient_times_the_activation() -> None:
    data = _data()
    features = data.features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-_minus_loss(data, features).sum(), features)
    expected = (gradient * data.features).square().mean(0).double()
    assert torch.allclose(measure_importance(data, "taylor"), expected, rtol=1e-4)


@pytest.mark.parametrize("method", IMPORTANCES)
def test_feature_that_never_moves_the_head_is_last(method: Importance) -> None:
    data = _data()
    data.features[:, 2] = 0
    values = measure_importance(data, method)
    assert float(values[2]) == pytest.approx(0, abs=1e-6) and int(values.abs().argmin()) == 2


def _explained(features: torch.Tensor, logits: torch.Tensor) -> float:
    """The share of the variance of logits that a regression on some features explains."""
    inputs, outputs = features - features.mean(0), logits - logits.mean(0)
    rest = outputs - inputs @ torch.linalg.lstsq(inputs, outputs).solution
    return 1 - float(rest.square().sum() / outputs.square().sum())


def test_greedy_takes_the_best_next_one_every_time() -> None:
    data = _data(400, width=10)
    order = order_features(data, "greedy").tolist()
    features, logits = data.features.double(), data.logits.double()
    logits -= logits.mean(1, keepdim=True)
    for step in range(9):
        gains = {
            one: _explained(features[:, [*order[:step], one]], logits)
            for one in range(10)
            if one not in order[:step]
        }
        assert gains[order[step]] > max(gains.values()) - 1e-3


@pytest.mark.parametrize("method", ["greedy", "l1"])
def test_subset_stands_for_features_that_repeat_it(method: Method) -> None:
    # 40 features with 6 sources: any six that are independent say all that there is to say.
    data = _data(300, width=40, rank=6)
    kept = order_features(data, method)[:8]
    assert _explained(data.features[:, kept].double(), data.logits.double()) > 0.999


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("num", "constant"), [(50, False), (8, False), (1, False), (2, True), (50, True)])
def test_order_has_every_feature_once(method: Method, num: int, constant: bool) -> None:
    data = _data(num, width=20)
    if constant:
        data.features[:] = 1.0
    order = order_features(data, method, seed=1)
    assert sorted(order.tolist()) == list(range(20))
    assert torch.equal(order, order_features(data, method, seed=1))


_SAME = [[0, 1, 2]] * 5


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (_SAME, (1.0, 1.0, 1.0)),
        ([[0, 1], [2, 3]], (-1.0, -1.0, -1.0)),
        # Theorem 4 by hand: shares 1, 1/2, 1/2, 0; variances 0, 1/2, 1/2, 0; their mean 1/4, chance 1/4.
        ([[0, 1], [0, 2]], (0.0, 0.0, 0.0)),
        ([[0, 1, 2, 3]] * 3, None),
        ([[]] * 3, None),
    ],
    ids=["same", "opposite", "chance", "all", "none"],
)
def test_stability_of_known_choices(choices: list[list[int]], expected: tuple[float, ...] | None) -> None:
    found = measure_stability([torch.tensor(choice, dtype=torch.int64) for choice in choices], 4)
    actual = None if found is None else (found.value, found.low, found.high)
    assert actual == (None if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize("resamples", [RESAMPLES, SLOW_RESAMPLES])
def test_interval_of_stability_covers_the_value_of_many_choices(resamples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    liked = torch.linspace(-1, 1, 30)

    def choose(num: int) -> list[torch.Tensor]:
        noise = 2 * torch.randn(num, 30, generator=generator)
        return list((liked + noise).topk(10).indices)

    truth = measure_stability(choose(4000), 30)
    assert truth is not None
    found = [measure_stability(choose(resamples), 30) for _ in range(400)]
    covered = np.mean([one is not None and one.low <= truth.value <= one.high for one in found])
    assert 0.92 < covered < 0.98


def test_stability_tells_a_clear_choice_from_an_open_one() -> None:
    data = _data(200, width=12)
    data.features[:, :3] *= 20
    clear, open_ = (stability_of(data, "activation", number) for number in (3, 7))
    assert clear is not None and clear.value == 1.0
    assert open_ is not None and open_.value < 1.0
    assert stability_of(data, "random", 3) is None


def test_head_on_all_features_answers_as_the_full_one() -> None:
    data = _data(300, width=12)
    weight, bias = fit_head(data.features, data.labels, data.logits, label_weight=0)
    answers = (data.features @ weight.T + bias).argmax(1)
    assert float((answers == data.logits.argmax(1)).float().mean()) > 0.99


def test_head_on_some_features_is_better_fitted_than_cut() -> None:
    data, test = _data(400, width=40, rank=8), _data(400, width=40, rank=8)
    kept = order_features(data, "greedy")[:8]
    weight, bias = fit_head(data.features[:, kept], data.labels, data.logits)

    def right(weight: torch.Tensor, bias: torch.Tensor) -> float:
        return float(((test.features[:, kept] @ weight.T + bias).argmax(1) == test.labels).float().mean())

    full = float((test.logits.argmax(1) == test.labels).float().mean())
    assert right(weight, bias) > full - 0.02
    assert right(data.weight[:, kept], data.bias) < full - 0.1


def test_analysis_has_a_curve_per_method() -> None:
    data, test = _data(200, width=32, rank=10), _data(200, width=32, rank=10)
    methods: tuple[Method, ...] = ("random", "activation", "greedy")
    found = analyse_features(data, test.features.numpy(), test.labels.numpy(), methods=methods)
    assert found.note == "" and list(found.importance) == ["activation"]
    assert [curve.method for curve in found.curves] == list(methods)
    for curve in found.curves:
        assert curve.num_features == (1, 2, 4, 8, 16, 32)
        assert curve.correct.shape == (6, 200) and curve.correct.dtype == np.bool_
        assert np.array_equal(curve.correct[-1], found.curves[0].correct[-1])  # all features: one head
        assert curve.correct[-1].mean() > curve.correct[0].mean() + 0.1
        assert (curve.stability is None) == (curve.method == "random")
    greedy, chance = (found.curves[place].correct.mean(1)[:4].mean() for place in (2, 0))
    assert greedy > chance


@pytest.mark.parametrize(
    ("num", "message"), [(33, ""), (32, "32 images for 32 features tell no more than 31 of them apart: ")]
)
def test_fewer_images_than_features_are_said(num: int, message: str) -> None:
    data = _data(num, width=32)
    found = analyse_features(data, data.features.numpy(), data.labels.numpy(), methods=["greedy"])
    assert found.note == describe_limits(num, 32)
    assert found.note.startswith(message) and (found.note == "") == (message == "")


@pytest.mark.parametrize(
    "shapes", [((5, 3), (4,), (2, 3), (2,)), ((5, 3), (5,), (2, 4), (2,)), ((0, 3), (0,), (2, 3), (2,))]
)
def test_arrays_that_do_not_fit_are_refused(shapes: Any) -> None:
    features, labels, weight, bias = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=r"features: got \[\d, 3\] with labels .* expected \[N, D\]"):
        HeadData.from_arrays(features, labels.astype(np.int64), weight, bias)
