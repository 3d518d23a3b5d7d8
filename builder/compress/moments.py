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


class Sums:
    """Sums of channels and of their products, over the images and positions of many batches."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self._total: Any = 0
        self._square: Any = 0
        self._num = 0

    def add(self, activations: torch.Tensor) -> None:
        """Takes a batch, [images, channels, height, width]."""
        columns = activations.detach().transpose(0, 1).flatten(1)
        self._total = self._total + columns.sum(1).double()
        self._square = self._square + (columns @ columns.T).double()
        self._num += columns.shape[1]

    def second_moment(self) -> torch.Tensor:
        """Returns the mean of the products, float64 [channels, channels], on the CPU."""
        return torch.as_tensor(self._square / self._num).cpu()

    def covariance(self) -> torch.Tensor:
        """Returns the same less the product of the means."""
        mean = torch.as_tensor(self._total / self._num).cpu()
        return self.second_moment() - torch.outer(mean, mean)


class _ConvSums:
    """The sums of one convolution."""

    def __init__(self) -> None:
        self.inputs, self.outputs, self.gradients = Sums(), Sums(), Sums()
        self.positions = (0, 0)

    def add(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """A forward hook."""
        self.inputs.add(inputs[0])
        self.outputs.add(output)
        self.positions = (output[0, 0].numel(), inputs[0][0, 0].numel())
        output.register_hook(self.gradients.add)  # type: ignore[no-untyped-call]  # torch has no types here

    def moments(self) -> Moments:
        """Returns the averages."""
        return Moments(
            outputs=self.outputs.covariance(),
            inputs=self.inputs.second_moment(),
            gradients=self.gradients.second_moment(),
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
        batches: Float32 [N, 3, H, W], normalised.
        progress: Called with (images done, images in all).
        seed: Decides the projections.
    """
    device = next(network.parameters()).device
    network.requires_grad_(False)
    sums = {name: _ConvSums() for name in names}
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
