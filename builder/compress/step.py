"""What every compression step of a PyTorch network is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.data.sources import TrainImages
    from temper.builder.network.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """The data and the surroundings of one step."""

    train: TrainImages
    """The training split, augmented, without the images held out."""
    held_out: tuple[NDArray[np.uint8], NDArray[np.int64]]
    """Training images set aside to score candidates with, uint8 [N, S, S, 3], and labels; never test images."""
    teacher: nn.Module
    """The network before any compression: float32 [N, 3, S, S], normalised, to logits."""
    folder: Path
    """The step's work folder; what a killed step left in it is still there."""
    progress: Callable[[int, int], None]
    """Called with (done, total)."""
    image_size: int
    """S, in pixels."""
    mean: tuple[float, float, float]
    """Mean per channel, RGB, on a scale of 0 to 1."""
    std: tuple[float, float, float]
    """Standard deviation per channel, RGB, on a scale of 0 to 1."""
    num_classes: int
    """Length of the output."""
    train_config: TrainConfig
    """How the uncompressed network was finetuned: what a step trains with, unless it says otherwise."""
    seed: int
    """Decides whatever a step draws."""
