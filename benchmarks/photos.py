"""Photo patches and networks that tell them apart: crops of the photographs in wheels, nothing trained.

A network has random convolutions, the batch statistics of such crops, and a head fitted in closed form.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import nn
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor  # type: ignore[import-untyped]

from temper.builder.data.photos import cut_photos
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_TURNED = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}
_RIDGE = 10.0
# Of what a residual block adds: random ones at full strength magnify every rounding, which trained ones do not.
_RESIDUAL = 0.3


@cache
def photographs() -> dict[str, Image.Image]:
    """The photographs of the installed wheels, each a class, by name."""
    found = cut_photos(None, seed=0)
    return dict(zip(found.class_names, found.photographs, strict=True))


def crops(num_each: int, seed: int) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Crops of 90 to 240 pixels a side, so many of each photograph, and which it is."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for label, photo in enumerate(photographs().values()):
        for _ in range(num_each):
            width, height = (int(min(rng.integers(90, 240), side)) for side in photo.size)
            left, top = (
                int(rng.integers(0, side - part + 1))
                for side, part in zip(photo.size, (width, height), strict=True)
            )
            images.append(photo.crop((left, top, left + width, top + height)))
            labels.append(label)
    return images, np.array(labels)


def write_crops(folder: Path, num_each: int, seed: int, *, turned: bool = False) -> list[Path]:
    """Writes crops as PNG files, one folder a photograph; with EXIF every third lies on its side or head."""
    images, labels = crops(num_each, seed)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / list(photographs())[label]
        place.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if turned and index % 3 == 0:
            orientation = 6 if index % 2 else 3
            exif[ExifTags.Base.Orientation] = orientation
            image = image.transpose(_TURNED[orientation])
        image.save(place / f"{index:04d}.png", exif=exif)
    return sorted(folder.rglob("*.png"), key=lambda path: (str(path.parent), path.name))


def transform(
    resize: Any, size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Any:
    """Torchvision's own, from an image to a tensor."""
    return Compose([Resize(resize), CenterCrop(size), ToTensor(), Normalize(mean, std)])


def cover(image: Image.Image, size: int) -> Image.Image:
    """An image as Temper's own client fits it."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def make_network(arch: str, size: int, seed: int, num_each: int = 16) -> nn.Module:
    """Returns one of torchvision's ResNets for normalised float32 [N, 3, S, S], in evaluation mode.

    Args:
        arch: As torchvision names it.
        size: S, in pixels.
        seed: Decides the convolutions.
        num_each: Crops of each photograph that the statistics and the head are of.
    """
    from torchvision.models import get_model  # type: ignore[import-untyped]  # ships none
    from torchvision.models.resnet import BasicBlock, Bottleneck  # type: ignore[import-untyped]

    images, labels = crops(num_each, seed=1000 + seed)
    prepare = transform(size, size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network: Any = get_model(arch, weights=None, num_classes=len(photographs()))
        order = torch.randperm(len(images))
        batch = torch.stack([prepare(images[index]) for index in order])
        targets = torch.from_numpy(labels)[order]
        for block in network.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
                nn.init.constant_(last.weight, _RESIDUAL)
        network.train()
        for _ in range(2):
            for start in range(0, len(batch), 16):
                network(batch[start : start + 16])
        network.eval()
        head, network.fc = network.fc, nn.Identity()
        features = torch.cat([network(batch[start : start + 16]) for start in range(0, len(batch), 16)])
        network.fc = head
        mean = features.mean(0)
        centred = features - mean
        wanted = nn.functional.one_hot(targets, len(photographs())).float() * 8 - 8 / len(photographs())
        spread = centred.T @ centred
        ridge = _RIDGE * spread.diagonal().mean() * torch.eye(len(spread))
        head.weight.copy_(torch.linalg.solve(spread + ridge, centred.T @ wanted).T)
        head.bias.copy_(-head.weight @ mean)
    made: nn.Module = network.eval()
    return made
