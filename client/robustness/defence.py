"""A defence before the attacker's own network: what backends/temper_defence does to images, with gradients.

What an operation does is done exactly, and its gradient is that of something smooth like it, BPDA: of rounding
the identity, of JPEG one whose coefficients are rounded smoothly. Random draws are averaged over, EOT. Sources:
Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018, arXiv:1802.00420,
sections 4.1 and 4.2; Reich et al., "Differentiable JPEG: the devil is in the details", WACV 2024,
arXiv:2309.06978, as kornia has it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from temper.client.errors import ClientError
from temper.client.robustness.base import RANDOM
from temper.client.scores import Float32Array

NUM_DRAWS = 3


class Defence:
    """Several operations, in order."""

    def __init__(self, text: str) -> None:
        """Read them.

        Args:
            text: JSON, as config.pbtxt's parameter `defend`; empty for none.

        Raises:
            ClientError: one of them is not known here.
        """
        steps = [item for step in json.loads(text or "[]") for item in step.items()]
        if unknown := [name for name, _ in steps if name not in _ALL]:
            raise ClientError(f"defence {unknown[0]}: not known here, expected some of {', '.join(_ALL)}")
        self._steps = [partial(_ALL[name], **settings) for name, settings in steps]
        self.num_draws = NUM_DRAWS * len(steps) if any(name in RANDOM for name, _ in steps) else 0
        """Random numbers that an image needs; 0 where nothing is random."""

    def __call__(self, pixels: Tensor, draws: Float32Array | None = None) -> Tensor:
        """Return the images behind all operations, [n, H, W, 3] in units of uint8.

        Args:
            pixels: the same, which need not be whole: they are rounded as the harness does before it sends them.
            draws: [n, num_draws], 0 to 1; without them nothing random is done.
        """
        if self._steps:
            pixels = _pass_through(pixels, pixels.detach().round().clamp(0, 255))
        for number, step in enumerate(self._steps):
            pixels = step(pixels, None if draws is None else draws[:, NUM_DRAWS * number :])
        return pixels


def _pass_through(pixels: Tensor, changed: Tensor) -> Tensor:
    """Return what `changed` holds, with the gradient of `pixels`."""
    return pixels + (changed - pixels).detach()


def _jpeg(pixels: Tensor, draws: Float32Array | None, *, quality: int) -> Tensor:
    del draws
    behind = []
    for image in pixels.detach().round().to(torch.uint8).cpu().numpy():
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, "JPEG", quality=quality)
        with Image.open(packed) as found:
            behind.append(np.array(found))
    exact = torch.from_numpy(np.stack(behind)).to(pixels)
    return _pass_through(_smooth_jpeg(pixels, quality), exact) if pixels.requires_grad else exact


def _smooth_jpeg(pixels: Tensor, quality: int) -> Tensor:
    try:
        from kornia.enhance import jpeg_codec_differentiable
    except ImportError as error:
        raise ClientError(
            f"following gradients through JPEG needs kornia ({error}); install it with: pip install "
            "'temper[transfer]'"
        ) from error
    behind: Tensor = jpeg_codec_differentiable(
        pixels.permute(0, 3, 1, 2) / 255, torch.full((len(pixels),), float(quality)).to(pixels)
    )
    return 255 * behind.permute(0, 2, 3, 1)


def _bit_depth(pixels: Tensor, draws: Float32Array | None, *, bits: int) -> Tensor:
    del draws
    levels = 2**bits - 1
    return _pass_through(pixels, ((pixels.detach() * (levels / 255)).round() * (255 / levels)).round())


def _random_resize(pixels: Tensor, draws: Float32Array | None, *, smallest: float) -> Tensor:
    if draws is None:
        return pixels
    height, width = pixels.shape[1:3]
    behind = []
    for image, draw in zip(pixels, draws.astype(np.float64), strict=True):
        share = smallest + (1 - smallest) * draw[0]
        size = [max(1, round(share * side)) for side in (height, width)]
        top, left = (
            int(at * (side - one + 1)) for at, side, one in zip(draw[1:3], (height, width), size, strict=True)
        )
        small = functional.interpolate(image.permute(2, 0, 1)[None], size=size, mode="bilinear", antialias=True)
        around = (left, width - size[1] - left, top, height - size[0] - top)
        behind.append(functional.pad(small[0], around).permute(1, 2, 0))
    placed = torch.stack(behind)
    return _pass_through(placed, placed.detach().round())


_ALL: dict[str, Callable[..., Tensor]] = {"jpeg": _jpeg, "bit_depth": _bit_depth, "random_resize": _random_resize}
