"""Which features a head can do with: an order of them by each method, so that the best K are the first K.

`greedy` and `l1` look for features that stand for the others together, the rest ranks each feature on its own.
What the full head answers is the goal of both: a head on the first K that is fitted by least squares answers
nearly as it does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch

from temper.builder.compress.importance import HeadData, measure_importance
from temper.builder.compress.methods import Method
from temper.builder.estimate import Estimate

_RIDGE = 1e-4
_PENALTIES = 50
_SMALLEST_PENALTY = 1e-3
# Directions of the logits that the l1 path follows; the others have little of them.
_MAX_TARGETS = 64
RESAMPLES = 20
# With four ways to choose, 87 to 91 % of the intervals from 5 choices held the stability of 2,000; from 10 choices
# 92 to 93 %, from 20 choices 92 to 96 %.
SLOW_RESAMPLES = 10


def order_features(data: HeadData, method: Method, *, first: int | None = None, seed: int = 0) -> torch.Tensor:
    """Orders all features, those to keep first.

    - `greedy`: forward selection: the one after the other that the logits of the full head, fitted on those
      chosen, gain most from (orthogonal least squares of Chen, Billings, Luo, Int. J. Control 1989, for all
      classes at once as in Tropp, Gilbert, Strauss, "Algorithms for simultaneous sparse approximation", 2006).
    - `l1`: in the order in which they enter a group lasso on those logits as its penalty falls (Obozinski, Taskar,
      Jordan, "Joint covariate selection and joint subspace selection", 2010).
    - `shapley`, `permutation`, `taylor`, `activation`: by `importance.measure_importance`.
    - `random`: by chance.

    Args:
        data: The head and its images.
        method: See above.
        first: Only so many are looked for, as no more are needed; the rest follows in any order.
        seed: Decides what is drawn.

    Returns:
        Int64 [D], each feature once.
    """
    if method == "greedy":
        return _order_greedy(data, first or data.num_features)
    if method == "l1":
        return _order_l1(data)
    if method == "random":
        return torch.randperm(data.num_features, generator=torch.Generator().manual_seed(seed))
    return measure_importance(data, method, seed=seed).argsort(descending=True, stable=True)


def _centred(data: HeadData) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the features and the logits less their means, float64; what all classes share is no answer."""
    features, logits = data.features.double(), data.logits.double()
    logits = logits - logits.mean(1, keepdim=True)
    return features - features.mean(0), logits - logits.mean(0)


def _order_greedy(data: HeadData, first: int) -> torch.Tensor:
    """Forward selection by a Cholesky factorisation whose pivot is the feature with the largest gain."""
    features, logits = _centred(data)
    gram, product = features.T @ features, features.T @ logits
    num = data.num_features
    # A feature that hardly varies could otherwise explain a lot with an enormous weight.
    left = gram.diagonal() + _RIDGE * gram.diagonal().mean() + 1e-12
    variance, gains = left.clone(), product.square().sum(1)
    factors, explained = left.new_zeros(num, num), left.new_zeros(num, product.shape[1])
    open_, order = torch.ones(num, dtype=torch.bool), list[int]()
    for step in range(min(first, len(features) - 1)):  # with as many features as that nothing is left to explain
        chosen = int(torch.where(open_, gains / left, -1).argmax())
        done, root = factors[:step], left[chosen].sqrt()
        factor = (gram[chosen] - done[:, chosen] @ done) / root
        factor[chosen] = root  # with the ridge, which the Gram matrix is without
        # The logits' part that it adds. What is left of `product` would be product - factors.T @ explained; only
        # the squares of that are needed, and one row at a time.
        adds = (product[chosen] - done[:, chosen] @ explained[:step]) / root
        along = product @ adds - done.T @ (explained[:step] @ adds)
        gains = (gains - 2 * factor * along + factor.square() * adds.square().sum()).clamp(min=0)
        left = left - factor.square()
        factors[step], explained[step] = factor, adds
        open_[chosen] = False
        order.append(chosen)
    rest = open_.nonzero().flatten()
    return torch.cat([torch.tensor(order, dtype=torch.int64), rest[variance[rest].argsort(descending=True)]])


def _order_l1(data: HeadData) -> torch.Tensor:
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]  # ships none
    from sklearn.linear_model import lasso_path  # type: ignore[import-untyped]

    features, logits = _centred(data)
    scale = features.std(0, correction=0).clamp(min=1e-12)
    num = len(features)
    # The path stays the same under rotations, of the classes and of the images: fewer of both.
    _, values, right = torch.linalg.svd(logits, full_matrices=False)
    kept = (values >= 1e-6 * values[0]).nonzero().flatten()[:_MAX_TARGETS]
    targets = logits @ right[kept].T
    if num > data.num_features + targets.shape[1]:
        both = torch.linalg.qr(torch.cat([features / scale, targets], 1), mode="r")[1]
    else:
        both = torch.cat([features / scale, targets], 1)
    inputs, outputs = both[:, : data.num_features], both[:, data.num_features :]
    largest = float((inputs.T @ outputs).norm(dim=1).max()) / len(inputs) + 1e-12
    arrays = (np.asfortranarray(both.numpy()) for both in (inputs, outputs))
    with warnings.catch_warnings():
        # When a feature enters is known long before the weights of a small penalty are.
        warnings.simplefilter("ignore", ConvergenceWarning)
        penalties = largest * np.geomspace(1, _SMALLEST_PENALTY, _PENALTIES)
        _, weights, _ = lasso_path(*arrays, alphas=penalties, tol=1e-3, max_iter=200)
    sizes = torch.from_numpy(np.linalg.norm(weights, axis=0))  # [D, penalties]
    entered = torch.where(sizes.any(1), (sizes > 0).double().argmax(1), sizes.shape[1])
    # Together at one penalty: those first that have the larger weight there; without any, those that vary most.
    at_entry = sizes.gather(1, entered.clamp(max=sizes.shape[1] - 1)[:, None])[:, 0]
    second = torch.where(entered < sizes.shape[1], at_entry, scale / scale.max())
    by_second = second.argsort(descending=True, stable=True)
    return by_second[entered[by_second].argsort(stable=True)]


def measure_stability(choices: Sequence[torch.Tensor], num_features: int) -> Estimate | None:
    """Measures what several choices have in common, corrected for chance.

    Source: Nogueira, Sechidis, Brown, "On the Stability of Feature Selection Algorithms", JMLR 18, 2018: its
    theorem 4, and the interval of section 5, but by Student's t, as the variance is that of a few choices: by the
    normal distribution 88 % of the intervals of 10 choices hold the truth.

    Args:
        choices: The chosen features of each resample, two or more.
        num_features: How many there are to choose from.

    Returns:
        1 for the same features every time, about 0 for choices by chance. None where every choice took all
        features or none, which leaves nothing to compare.
    """
    from scipy.stats import t  # type: ignore[import-untyped]  # ships none

    num = len(choices)
    chosen = torch.zeros(num, num_features, dtype=torch.float64)
    for row, choice in zip(chosen, choices, strict=True):
        row[choice] = 1
    share, sizes = chosen.mean(0), chosen.mean(1)
    mean = float(sizes.mean())
    chance = mean * (1 - mean)
    if chance == 0:
        return None
    value = 1 - float((num / (num - 1) * share * (1 - share)).mean()) / chance
    each = ((chosen * share).mean(1) - sizes * mean + value / 2 * (2 * sizes * mean - sizes - mean + 1)) / chance
    half = float(t.ppf(0.975, num - 1)) * math.sqrt(4 / num**2 * float((each - each.mean()).square().sum()))
    return Estimate(value, max(value - half, -1.0), min(value + half, 1.0))


def stability_of(data: HeadData, method: Method, num_kept: int, *, seed: int = 0) -> Estimate | None:
    """Measures how much a method's first `num_kept` features depend on the images: see `measure_stability`.

    The images are resampled (bootstrap) 20 times, for the slow methods 10 times.

    Args:
        data: The head and its images.
        method: How they are chosen.
        num_kept: How many are.
        seed: Decides the resamples.

    Returns:
        None for `random`, which chooses by nothing, and where all are kept.
    """
    if method == "random":
        return None
    resamples = RESAMPLES if method in ("greedy", "taylor", "activation") else SLOW_RESAMPLES
    seeds = range(seed, seed + resamples)
    orders = (order_features(data.resampled(each), method, first=num_kept, seed=each) for each in seeds)
    choices = [order[:num_kept] for order in orders]
    return measure_stability(choices, data.num_features)


def describe_limits(num_images: int, num_features: int) -> str:
    """Says what is not valid as there are fewer images than features; nothing where there are enough."""
    if num_images > num_features:
        return ""
    told = num_images - 1
    return (
        f"{num_images:,} images for {num_features:,} features tell no more than {told:,} of them apart: an order "
        "is valid up to there, and a head on more fits its images whatever their labels; accuracy on other images "
        "is valid"
    )
