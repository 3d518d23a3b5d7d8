"""A small network whose answers differ from image to image, and pictures that every mistake changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from temper.run.diagnose.network import Networks
from temper.run.diagnose.pipeline import Picture, Pipeline

if TYPE_CHECKING:
    from torch import nn

NUM_CLASSES, SIZE = 12, 32
RIGHT = Pipeline(height=SIZE, width=SIZE, resize=37)


def pictures(count: int, seed: int) -> list[Picture]:
    """Pictures of many shapes with details of every size; every third lies on its side in its file."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        pixels = np.zeros((96, 96, 3))
        for cells in (3, 12, 96):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += np.asarray(coarse.resize((96, 96), Image.Resampling.BICUBIC)) / 3
        image = Image.fromarray(pixels.astype(np.uint8))
        width, height = (int(side) for side in rng.integers(50, 96, 2))
        found.append(Picture(image.crop((0, 0, width, height)), 6 if index % 3 == 2 else 1))
    return found


def make_network(seed: int) -> nn.Module:
    """A ResNet-18 with random weights and real batch statistics."""
    import torch
    from torchvision.models import resnet18  # type: ignore[import-untyped]  # ships none

    from temper.run.diagnose.pipeline import fit, normalise

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = resnet18(num_classes=NUM_CLASSES).train()
        images = np.stack([fit(one, RIGHT) for one in pictures(32, seed=100)])
        values = torch.from_numpy(normalise(images, RIGHT))
        for _ in range(6):
            network(values)
        network.fc.weight.mul_(8)
    made: nn.Module = network.eval()
    return made


@pytest.fixture(scope="session")
def networks() -> Networks:
    """The network that should be served, and another one."""
    return Networks([make_network(0), make_network(1)])
