"""What steps on a PyTorch network measure: batch normalisation's statistics, the accuracy, what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from temper.builder.data.spread import spread
from temper.builder.errors import CompressError
from temper.builder.network.files import count_network
from temper.builder.network.served import Served, predict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from temper.builder.compress.step import StepContext

_BATCH = 64


def training_batches(context: StepContext, num_images: int) -> list[torch.Tensor]:
    """Draws training images, augmented as in training; the same ones for the same seed.

    Args:
        context: The step's data.
        num_images: At most as many; spread evenly over the training split, which may be sorted by class.

    Returns:
        Batches float32 [N, 3, H, W], normalised, on the CPU; each of two images or more, as one has no
        variance to normalise by.
    """
    mean = torch.tensor(context.mean).reshape(1, -1, 1, 1)
    std = torch.tensor(context.std).reshape(1, -1, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        images = [context.train[row][0] for row in spread(len(context.train), num_images).tolist()]
    return [
        (torch.stack(images[start : start + _BATCH]).float().permute(0, 3, 1, 2) / 255 - mean) / std
        for start in range(0, len(images), _BATCH)
        if len(images[start : start + _BATCH]) > 1
    ]


class ServedBatches:
    """Training images as they are served, without augmentation; read anew at every pass, so memory stays flat.

    A pass gives batches float32 [N, 3, H, W], normalised, on the CPU, each of two images or more.
    """

    labels: NDArray[np.int64]
    """Of every image, in the order of a pass."""

    def __init__(self, context: StepContext, num_images: int) -> None:
        """Picks the images.

        Args:
            context: The step's data.
            num_images: At most as many, spread evenly over the training split; two or more.

        Raises:
            CompressError: The training split has one image, or none.
        """
        if len(context.train) < 2:
            raise CompressError(
                f"training split: got {len(context.train)} images to measure on, expected at least 2, as one has "
                "no variance to normalise by; give it more images"
            )
        num_images = min(num_images, len(context.train))
        if num_images % _BATCH == 1:  # one image has no variance to normalise by
            num_images -= 1
        self._source = context.train.source
        self._rows = self._source.train[spread(len(context.train), num_images)]
        self._mean = torch.tensor(context.mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(context.std).reshape(1, -1, 1, 1)
        self.labels = self._source.labels[self._rows]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Reads one batch after the other."""
        for start in range(0, len(self._rows), _BATCH):
            images = np.stack([self._source.read(int(row)) for row in self._rows[start : start + _BATCH]])
            yield (torch.from_numpy(images).float().permute(0, 3, 1, 2) / 255 - self._mean) / self._std


def recalibrate(network: nn.Module, batches: Iterable[torch.Tensor], *, inside: str = "") -> None:
    """Replaces the running mean and variance of every batch normalisation by their averages over batches.

    Args:
        network: It stays on its device and comes back in evaluation mode.
        batches: Float32 [N, 3, H, W], normalised.
        inside: The part whose batch normalisation it is about; all of the network when not given.
    """
    device = next(network.parameters()).device
    part = network.get_submodule(inside)
    norms = [module for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    momentums = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        for batch in batches:
            network(batch.to(device))
    for norm, momentum in zip(norms, momentums, strict=True):
        norm.momentum = momentum
    network.eval()


def change_figures(network: nn.Module, changed: nn.Module, context: StepContext) -> dict[str, Any]:
    """Counts what a step on a network cost and bought.

    Args:
        network: Before the step.
        changed: After it.
        context: The step's data.

    Returns:
        flops_before, flops, num_parameters_before, num_parameters, accuracy_before, accuracy (on the held-out
        images), num_held_out.
    """
    before, after = (count_network(each, context.image_size) for each in (network, changed))
    return {
        "flops_before": before.flops,
        "flops": after.flops,
        "num_parameters_before": before.num_parameters,
        "num_parameters": after.num_parameters,
        "accuracy_before": held_out_accuracy(network, context),
        "accuracy": held_out_accuracy(changed, context),
        "num_held_out": len(context.held_out[1]),
    }


def held_out_accuracy(network: nn.Module, context: StepContext) -> float:
    """Returns the share of the held-out images that a network is right on; it stays on its device."""
    return float(np.mean(_predict(network, context).argmax(1) == context.held_out[1]))


def expected_accuracy(network: nn.Module, context: StepContext) -> float:
    """Returns the mean probability of the right label on the held-out images; the network stays on its device."""
    logits, labels = torch.from_numpy(_predict(network, context)), torch.from_numpy(context.held_out[1])
    return float(logits.double().softmax(1).gather(1, labels[:, None]).mean())


def _predict(network: nn.Module, context: StepContext) -> NDArray[np.float32]:
    served = Served(network, mean=context.mean, std=context.std).to(next(network.parameters()).device)
    return predict(served, context.held_out[0])
