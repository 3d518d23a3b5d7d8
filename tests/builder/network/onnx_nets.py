"""Small classifiers, and their ONNX files as the real exporters write them."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

SIZE, CLASSES = 32, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


class Net(nn.Module):
    """One residual block between a convolution and a head, with whatever may stand before and after."""

    def __init__(
        self,
        *,
        nhwc: bool = False,
        takes_uint8: bool = False,
        head: Literal["flatten", "view", "conv"] = "flatten",
        end: nn.Module | None = None,
    ) -> None:
        """Makes the layers; batch normalisation gets statistics that are not the identity."""
        super().__init__()
        self.nhwc, self.takes_uint8, self.head, self.end = nhwc, takes_uint8, head, end
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.pool, self.dropout = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.4)
        self.last = nn.Conv2d(16, CLASSES, 1) if head == "conv" else nn.Linear(16, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]  # it tracks them
                nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]  # it tracks them

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """All but the end."""
        if self.takes_uint8:
            image = image.float() / 127.5 - 1
        if self.nhwc:
            image = image.permute(0, 3, 1, 2)
        image = self.stem(image)
        image = self.pool(torch.relu(image + self.block(image)))
        if self.head == "view":
            image = image.view(image.shape[0], -1)
        elif self.head == "flatten":
            image = torch.flatten(image, 1)
        logits: torch.Tensor = self.last(self.dropout(image))
        return logits

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The answer."""
        logits = self.logits(image)
        return logits if self.end is None else self.end(logits)

    def expected(self, images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The logits [N, classes] of uint8 images [N, S, S, 3], normalised unless it does so itself."""
        pixels = torch.from_numpy(images)
        if not self.takes_uint8:
            pixels = (pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        with torch.no_grad():
            logits = self.eval().float().logits(pixels if self.nhwc else pixels.permute(0, 3, 1, 2))
        found: np.ndarray[Any, np.dtype[np.float32]] = logits.flatten(1).numpy()
        return found


def make_net(kind: type[Net] = Net, **settings: Any) -> Net:
    """A network of a seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = kind(**settings)
    net.eval()
    return net


class Transformer(Net):
    """Timm's vision transformer of one block, with a class token and attention of two heads."""

    def __init__(self) -> None:
        """Makes the layers; timm's own weights are so small that every image has the same answer."""
        from timm.models.vision_transformer import VisionTransformer

        nn.Module.__init__(self)
        self.nhwc, self.takes_uint8, self.end = False, False, None
        self.vit = VisionTransformer(
            img_size=SIZE, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=CLASSES
        )
        for name, weight in self.named_parameters():
            if weight.ndim > 1 or name.endswith("bias"):
                nn.init.normal_(weight, 0, 0.3)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """All of it."""
        logits: torch.Tensor = self.vit(image)
        return logits


def export(
    net: Net,
    path: Path,
    *,
    batch: int = 1,
    is_free: bool = False,
    half: bool = False,
    dynamo: bool = False,
    **settings: Any,
) -> Path:
    """Writes a network as torch.onnx.export does."""
    shape = (batch, SIZE, SIZE, 3) if net.nhwc else (batch, 3, SIZE, SIZE)
    image = torch.zeros(shape, dtype=torch.uint8 if net.takes_uint8 else torch.float32)
    if half:
        net, image = net.half(), image.half()
    if dynamo:
        settings["dynamic_shapes"] = ({0: "batch"},) if is_free else None
    else:
        settings |= {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}} if is_free else None}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # what the exporters say of themselves
        torch.onnx.export(net, (image,), str(path), dynamo=dynamo, **settings)
    return path
