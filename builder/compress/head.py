"""A head for features that stay as they are: it learns the labels and what the full head answers."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, kl_div

_MAX_STEPS = 100
_RIDGE = 1e-3
_TEMPERATURE = 4.0
_DECAY = 1e-3


def fit_head(
    features: torch.Tensor,
    labels: torch.Tensor,
    taught: torch.Tensor,
    *,
    label_weight: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits a linear head by L-BFGS on the loss of distillation, from a ridge regression of the full head's logits.

    The loss is (1 - label_weight) T^2 KL(taught, ours), both softened by the temperature T = 4 (Hinton et al.,
    "Distilling the Knowledge in a Neural Network", 2015), plus label_weight times cross entropy, plus 0.0005 times
    the squared distance from the regression's weights, on features of unit variance.

    Args:
        features: [N, K], those that are kept.
        labels: Int64 [N].
        taught: The full head's logits, [N, classes].
        label_weight: Share of the loss that comes from the labels, 0 to 1.

    Returns:
        Weight [classes, K] and bias [classes], float32.
    """
    mean, scale = features.double().mean(0), features.double().std(0, correction=0).clamp(min=1e-6)
    inputs = ((features.double() - mean) / scale).float()
    start = ridge(inputs.double(), taught.double() - taught.double().mean(0)).float().contiguous()
    weight, bias = start.clone().requires_grad_(), taught.mean(0).clone().requires_grad_()
    soft = (taught / _TEMPERATURE).softmax(1)

    def loss() -> torch.Tensor:
        logits = inputs @ weight + bias
        learnt = kl_div((logits / _TEMPERATURE).log_softmax(1), soft, reduction="batchmean") * _TEMPERATURE**2
        away = _DECAY / 2 * (weight - start).square().sum()
        return (1 - label_weight) * learnt + label_weight * cross_entropy(logits, labels) + away

    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_STEPS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted, shift = weight.detach().double(), bias.detach().double()
    final = (fitted / scale[:, None]).T
    return final.float(), (shift - final @ mean).float()


def ridge(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the weights [K, outputs] of a linear regression without intercept, float64.

    Args:
        inputs: [N, K], centred.
        targets: [N, outputs], centred.
    """
    return ridge_from(inputs.T @ inputs, inputs.T @ targets)


def ridge_from(gram: torch.Tensor, product: torch.Tensor, share: float = _RIDGE) -> torch.Tensor:
    """Returns the same from the inputs' second moments [K, K] and those with the targets [K, outputs].

    `share` is the penalty, as a share of the inputs' mean square.
    """
    penalty = share * gram.diagonal().mean() + 1e-12
    weights: torch.Tensor = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), product)
    return weights
