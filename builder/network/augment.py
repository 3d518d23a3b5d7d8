"""Augmentation that training adds to that of the data: RandAugment for each image, mixup for each batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2  # type: ignore[import-untyped]  # ships none

if TYPE_CHECKING:
    from temper.builder.data.sources import TrainImages


class RandAugmented(Dataset[tuple[torch.Tensor, int]]):
    """Training images after two random operations each (Cubuk et al., 2020), drawn with torch's random state."""

    def __init__(self, train: TrainImages, magnitude: int) -> None:
        """Wraps the training split.

        Args:
            train: Gives uint8 [S, S, 3] and a label.
            magnitude: The operations' strength, 0 to 30.
        """
        self._train = train
        self._augment = v2.RandAugment(num_ops=2, magnitude=magnitude)

    def __len__(self) -> int:
        """Returns the number of training images."""
        return len(self._train)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        """Returns one image, uint8 [S, S, 3], and its label."""
        pixels, label = self._train[position]
        augmented: torch.Tensor = self._augment(pixels.permute(2, 0, 1))
        return augmented.permute(1, 2, 0).contiguous(), label


def mix(
    images: torch.Tensor, labels: torch.Tensor, *, alpha: float, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blends every image with its neighbour in the batch, and their labels likewise (mixup, Zhang et al., 2018).

    Args:
        images: uint8 [N, S, S, 3].
        labels: int64 [N].
        alpha: The share of each comes from Beta(alpha, alpha), one draw for the batch.
        num_classes: Length of a label's probabilities.

    Returns:
        float32 [N, S, S, 3] of 0 to 255, and probabilities [N, classes].
    """
    pixels, targets = v2.MixUp(alpha=alpha, num_classes=num_classes)(images.float(), labels)
    return pixels, targets
