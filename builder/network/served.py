"""The network as it is served: behind its preprocessing, from uint8 images to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from temper.builder.contract import NUM_CHANNELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 32


class Served(nn.Module):
    """A model behind its preprocessing: uint8 [N, H, W, 3] on a scale of 0 to 255, to logits [N, classes]."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wraps a model; the two share their parameters.

        Args:
            model: Takes float32 [N, 3, H, W], normalised.
            mean: Mean per channel, RGB, on a scale of 0 to 1.
            std: Standard deviation per channel, RGB, on a scale of 0 to 1.
        """
        super().__init__()
        self.model = model
        shape = (1, NUM_CHANNELS, 1, 1)
        self.register_buffer("scale", (1.0 / (255.0 * torch.tensor(std))).reshape(shape))
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).reshape(shape))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the logits of uint8 images [N, H, W, 3]."""
        # Cast first: TensorRT takes a UINT8 input into a cast only.
        pixels = image.to(self.scale.dtype).permute(0, 3, 1, 2)
        logits: torch.Tensor = self.model(pixels * self.scale + self.shift)
        return logits if logits.dtype == torch.float32 else logits.float()


def predict(served: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the logits [N, classes] of uint8 images [N, S, S, 3] with PyTorch, in evaluation mode."""
    served.eval()
    device = next(served.parameters()).device
    parts: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            # A copy: the images may be mapped from a file, read-only.
            batch = torch.from_numpy(np.array(images[start : start + _BATCH]))
            parts.append(served(batch.to(device)).float().cpu().numpy())
    return np.concatenate(parts)
