"""What is served, said by others: the raw files by torchvision's own reading and transforms, and PyTorch.

What is served has a decoder, a resize and an arithmetic of its own. None of that is used here, so that a served
answer that is the same proves all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from temper.builder.contract import OWNER_LOGITS_FILE, TEST_IMAGES_FILE
from temper.builder.data.prepare import open_tests, spread
from temper.builder.network.stage import Progress, Setting, images_of, open_network
from temper.imaging.preprocess import Preprocessing, covering

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.builder.store.artifacts import Artifact

_BATCH = 16


def answer_files(
    setting: Setting, data: Artifact, weights: Artifact, num_images: int, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Writes the logits, float32 [N, classes], of test images that are spread over all of them.

    Args:
        setting: The recipe's.
        data: The images.
        weights: The network before any compression.
        num_images: N.
        folder: Receives owner_logits.npy.
        progress: Called with (images done, images in all).

    Returns:
        num_images; num_same_pixels: of how many every pixel is that of the builder's own test image;
        max_pixel_diff: the largest difference of one, 0 to 255.
    """
    how, answer = setting.data.preprocessing, _owner(setting, data, weights)
    tests = images_of(data, TEST_IMAGES_FILE)
    places = spread(len(tests), num_images)
    differences: list[float] = []
    logits: list[NDArray[np.float32]] = []
    batch: list[torch.Tensor] = []
    for position, image in enumerate(open_tests(setting.data, num_images)):
        pixels = transform(load(image, upright=how.upright), how)
        own = tests[places[position]].transpose(2, 0, 1)
        differences.append(float(np.abs(pixels.numpy() * 255 - own).max()))
        batch.append(pixels)
        if len(batch) == _BATCH or position + 1 == num_images:
            logits.append(answer(torch.stack(batch)))
            batch = []
        progress(position + 1, num_images)
    np.save(folder / OWNER_LOGITS_FILE, np.concatenate(logits))
    return {
        "num_images": num_images,
        "num_same_pixels": sum(difference < 1e-3 for difference in differences),
        "max_pixel_diff": max(differences),
    }


def _owner(setting: Setting, data: Artifact, weights: Artifact) -> Callable[[torch.Tensor], NDArray[np.float32]]:
    """The network, PyTorch's or the user's own ONNX file: float32 [N, 3, H, W] of 0 to 1 to logits."""
    if setting.model.graph is not None:
        from temper.builder.network.stage_import import open_original

        original = open_original(setting)
        return lambda pixels: original.logits((pixels * 255).round().byte().permute(0, 2, 3, 1).numpy())
    network = open_network(setting, data, weights)
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in setting.data.normalization)

    def answer(pixels: torch.Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = network((pixels - mean) / std).numpy()
        return logits

    return answer


def load(image: Image.Image | Path | IO[bytes], *, upright: bool) -> Image.Image:
    """Opens an image as torchvision's `default_loader` does; with `upright` as Hugging Face's `load_image`."""
    if isinstance(image, Image.Image):
        return image
    with Image.open(image) as opened:
        try:
            turned = ImageOps.exif_transpose(opened) if upright else opened
        except Exception:  # a damaged EXIF, which nothing else stops at
            turned = opened
        return turned.convert("RGB")


def transform(image: Image.Image, how: Preprocessing) -> torch.Tensor:
    """Returns an image as torchvision's own transforms make it: float32 [3, H, W], on a scale of 0 to 1."""
    from torchvision.transforms import v2  # type: ignore[import-untyped]  # ships none

    size: list[int] | None = None
    if how.resize is None:
        size = list(covering(image.size, how))[::-1]
    elif how.resize != "none":
        size = [how.resize] if isinstance(how.resize, int) else list(how.resize)
    mode = v2.InterpolationMode(how.interpolation)
    scaled = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    resize = [] if size is None else [v2.Resize(size, mode, antialias=how.antialias)]
    crop = [partial(_cut_odd, how=how), v2.CenterCrop((how.height, how.width))]
    # Without antialias a network was fed by PyTorch's tensors, as Pillow has no such filter.
    steps = [*resize, *crop, *scaled] if how.antialias else [*scaled, *resize, *crop]
    made: torch.Tensor = v2.Compose(steps)(image).as_subclass(torch.Tensor)
    return made


def _cut_odd(image: Any, how: Preprocessing) -> Any:
    """Cuts off the last row or column of an odd margin, which is then even: torchvision has no rounding down."""
    from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]  # ships none

    if how.crop_margin == "round":
        return image
    height, width = functional.get_size(image)
    odd = max(0, height - how.height) % 2, max(0, width - how.width) % 2
    return functional.crop(image, 0, 0, height - odd[0], width - odd[1])
