"""What passes through each convolution on real images, and how much the logits feel of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Activations that are kept for the gradients, in images of 112 x 112 pixels at once.
_BATCH = 64
_BATCH_SIDE = 112


@dataclass(frozen=True)
class Moments:
    """Averages over images and positions of one convolution; float64, on the CPU."""

    outputs: torch.Tensor
    """Covariance of the output channels, without the bias's share, [out, out]."""
    inputs: torch.Tensor
    """Second moment of the input channels, [in, in]."""
    gradients: torch.Tensor
    """Second moment of the gradient of a random projection of the logits, [out, out]."""
    output_positions: int
    """Height times width of the output."""
    input_positions: int
    """Height times width of the input."""


class _Sums:
    """The sums of one convolution over batches."""

    def __init__(self) -> None:
        self.outputs: Any = 0
        self.total: Any = 0
        self.inputs: Any = 0
        self.gradients: Any = 0
        self.num_outputs = 0
        self.num_inputs = 0
        self.positions = (0, 0)

    def add(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """A forward hook."""
        given, made = _columns(inputs[0]), _columns(output)
        self.inputs = self.inputs + (given @ given.T).double()
        self.outputs = self.outputs + (made @ made.T).double()
        self.total = self.total + made.sum(1).double()
        self.num_inputs += given.shape[1]
        self.num_outputs += made.shape[1]
        self.positions = (output[0, 0].numel(), inputs[0][0, 0].numel())
        output.register_hook(self._add_gradient)  # type: ignore[no-untyped-call]  # torch has no types here

    def _add_gradient(self, gradient: torch.Tensor) -> None:
        columns = _columns(gradient)
        self.gradients = self.gradients + (columns @ columns.T).double()

    def moments(self) -> Moments:
        """Returns the averages."""
        mean = self.total / self.num_outputs
        return Moments(
            outputs=(self.outputs / self.num_outputs - torch.outer(mean, mean)).cpu(),
            inputs=(self.inputs / self.num_inputs).cpu(),
            gradients=(self.gradients / self.num_outputs).cpu(),
            output_positions=self.positions[0],
            input_positions=self.positions[1],
        )


def measure_moments(
    network: nn.Module,
    names: Sequence[str],
    batches: Sequence[torch.Tensor],
    progress: Callable[[int, int], None],
    *,
    seed: int,
) -> dict[str, Moments]:
    """Runs images forwards and a random projection of the logits backwards.

    The gradients' second moment, averaged over projections, is the Gauss-Newton matrix of the squared change of
    the logits: unlike a loss's it does not vanish on images that the network is sure of.

    Args:
        network: In evaluation mode, on any device; its weights no longer ask for gradients afterwards.
        names: The convolutions.
        batches: Float32 [N, 3, S, S], normalised.
        progress: Called with (images done, images in all).
        seed: Decides the projections.
    """
    device = next(network.parameters()).device
    network.requires_grad_(False)
    sums = {name: _Sums() for name in names}
    hooks = [network.get_submodule(name).register_forward_hook(sums[name].add) for name in names]
    generator = torch.Generator().manual_seed(seed)
    total, done = sum(len(batch) for batch in batches), 0
    try:
        for batch in batches:
            at_once = max(1, min(len(batch), _BATCH * _BATCH_SIDE**2 // batch.shape[-1] ** 2))
            for images in torch.split(batch, at_once):
                progress(done, total)
                logits = network(images.to(device).requires_grad_())
                direction = torch.randn(logits.shape, generator=generator).to(device)
                (logits * direction).sum().backward()
                done += len(images)
    finally:
        for hook in hooks:
            hook.remove()
    progress(total, total)
    return {name: each.moments() for name, each in sums.items()}


def _columns(activations: torch.Tensor) -> torch.Tensor:
    """Returns [channels, images x positions] of [images, channels, height, width]."""
    return activations.detach().transpose(0, 1).flatten(1)
