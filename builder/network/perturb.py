"""The images and losses of adversarial training: fast FGSM, PGD, TRADES and free, on the scale of the uint8 image.

A perturbation is made before the normalisation, on float32 pixels of 0 to 255, and stays within the L∞ ball and
that range. It is not rounded to integers: rounding moves a value by at most half a unit and has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

if TYPE_CHECKING:
    from torch import nn

    from temper.builder.network.adversarial import AdversarialConfig

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Takes uint8 or float32 pixels [N, S, S, 3] of 0 to 255; returns float32 logits [N, classes]."""
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# TRADES starts at a normal deviation of 0.001 on a scale of 0 to 1, as its gradient is zero at the image itself.
_TRADES_START = 0.001 * 255


def ascend(
    loss: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    start: torch.Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """Raises a loss by steps along the gradient's sign, within an L∞ ball (Madry et al., 2018).

    Args:
        loss: Of pixels [N, S, S, 3], summed or averaged over the images.
        images: The balls' centres, float32 [N, S, S, 3] of 0 to 255.
        start: Where to start, as a difference to the centres; it is brought into the ball.
        epsilon: The balls' radius, in units of 1/255.
        step_size: The length of a step, in units of 1/255.
        steps: How many.

    Returns:
        Pixels like the images, at most epsilon from them and within 0 to 255.
    """
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=255)
    pixels = torch.clamp(images + start, low, high)
    for _ in range(steps):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(pixels), pixels)
        pixels = torch.clamp(pixels.detach() + step_size * gradient.sign(), low, high)
    return pixels


def uniform_start(images: torch.Tensor, epsilon: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draws a start for `ascend`, uniform in the ball."""
    drawn = torch.rand(images.shape, generator=generator, device=images.device)
    return (2 * drawn - 1) * epsilon


class Adversary:
    """Perturbs batches against the network that is being trained, and gives the losses to train it with."""

    def __init__(self, config: AdversarialConfig, served: nn.Module, forward: Forward, loss: Loss) -> None:
        """Takes what all batches share.

        Args:
            config: The method and its budget.
            served: The network, behind its preprocessing.
            forward: Runs it, in the precision of the training.
            loss: Of the unperturbed images, the logits of perturbed or (`trades`) unperturbed ones, the labels.
        """
        self._config = config
        self._served = served
        self._forward = forward
        self._loss = loss
        self._delta: torch.Tensor | None = None
        methods = {"fast": self._pgd, "pgd": self._pgd, "trades": self._trades, "free": self._free}
        self._make = methods[config.method]

    def losses(self, images: torch.Tensor, labels: torch.Tensor, share: float) -> Iterator[torch.Tensor]:
        """Yields a loss for every step of training on a batch.

        The caller runs a loss's backward pass before it asks for the next one.

        Args:
            images: uint8 or float32 [N, S, S, 3] of 0 to 255, on the network's device.
            labels: int64 [N], or probabilities [N, classes].
            share: How much of the training is over, 0 to 1; epsilon may depend on it.
        """
        yield from self._make(images.float(), labels, self._config.epsilon_at(share))

    def _ascend(self, loss: Forward, images: torch.Tensor, start: torch.Tensor, epsilon: float) -> torch.Tensor:
        step_size, steps = epsilon * self._config.relative_step, self._config.num_steps
        return ascend(loss, images, start, epsilon=epsilon, step_size=step_size, steps=steps)

    def _pgd(self, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> Iterator[torch.Tensor]:
        """Trains on the perturbed images alone.

        As in the code of both papers batch normalisation is in training mode for the perturbing passes too, which
        so count in its running statistics.
        """

        def attacked(pixels: torch.Tensor) -> torch.Tensor:
            return cross_entropy(self._forward(pixels), labels)

        perturbed = self._ascend(attacked, images, uniform_start(images, epsilon), epsilon)
        yield self._loss(images, self._forward(perturbed), labels)

    def _trades(self, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> Iterator[torch.Tensor]:
        """Perturbs in evaluation mode, away from the answers to the images; trains in training mode on both."""
        with in_evaluation_mode(self._served):
            with torch.no_grad():
                answer = log_softmax(self._forward(images), 1)

            def attacked(pixels: torch.Tensor) -> torch.Tensor:
                return _divergence(self._forward(pixels), answer)

            perturbed = self._ascend(attacked, images, _TRADES_START * torch.randn_like(images), epsilon)
        logits = self._forward(images)
        # Before the next pass, as the loss may have read features off this one.
        loss = self._loss(images, logits, labels)
        yield loss + self._config.beta * _divergence(self._forward(perturbed), log_softmax(logits, 1))

    def _free(self, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> Iterator[torch.Tensor]:
        """Uses each backward pass twice, in training mode; the next batch starts from this one's perturbation.

        The paper divides the epochs by the replays; here an epoch sees every image as often as it is replayed.
        """
        if self._delta is None or len(self._delta) < len(images):
            self._delta = torch.zeros_like(images)
        for _ in range(self._config.replays):
            delta = self._delta[: len(images)].clamp(-epsilon, epsilon).requires_grad_()
            yield self._loss(images, self._forward((images + delta).clamp(0, 255)), labels)
            assert delta.grad is not None, "the caller ran the backward pass"
            step = epsilon * self._config.relative_step * delta.grad.sign()
            self._delta = (delta.detach() + step).clamp(-epsilon, epsilon)


def _divergence(logits: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """The Kullback-Leibler divergence of logits from log-probabilities, averaged over the images."""
    return kl_div(log_softmax(logits, 1), answer, reduction="batchmean", log_target=True)


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Sets every module to evaluation mode, and back to what each was in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
