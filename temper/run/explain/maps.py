"""Where two variants look when they disagree: integrated gradients and Grad-CAM of each one's own answer.

Both follow the gradients of a variant's own graph in PyTorch (`client/robustness/surrogate.py`), Q/DQ included and
straight through the rounding. Sources: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML
2017, arXiv:1703.01365, in Captum's implementation; Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from temper.report import gallery, text
from temper.report.explained import Attribution, AttributionMaps

if TYPE_CHECKING:
    from temper.client.robustness.surrogate import Surrogate

Images = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]
Maps = npt.NDArray[np.float32]

MIN_SIDE = 4
"""Rows and columns that Grad-CAM's feature maps have at least. What the pool of a ResNet reads has one place for
an image of 32 x 32, and four for one of 64 x 64: a map of that tells nothing."""
_NUM_STEPS = 64
_MAX_ERROR = 0.05
"""Of the completeness; a larger one is said."""
_MAX_PIXELS = 4 * 224 * 224
"""Pixels of a batch that gradients are taken of: four images of 224 x 224 are about 1 GB in an int8 ResNet-50."""
_MAX_BASELINE = 512


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One network's maps of some images."""

    integrated_gradients: Maps
    """[n, H, W], in units of the logit: the sum over the channels; positive where the pixel speaks for it."""
    completeness_error: npt.NDArray[np.float64]
    """[n]: how far a map's sum is from what it has to be, the logit's change from the baseline to the image, as
    a share of the range of the image's logits."""
    grad_cam: Maps
    """[n, H, W], from 0: where the last feature maps speak for the class."""
    places: tuple[int, int]
    """Rows and columns of these feature maps."""


def pick_disagreements(first: Classes, second: Classes, labels: Classes, num_images: int) -> tuple[Classes, str]:
    """Picks images that two networks answer differently.

    Those that one of the two is right about come first, and of either kind every class in turn.

    Args:
        first: One network's answers to all test images.
        second: The other's.
        labels: What is right.
        num_images: How many at most.

    Returns:
        Positions among the test images, in the order that they were picked in; one sentence when there are none.
    """
    found = np.flatnonzero(first != second)
    if len(found) == 0:
        return found, f"no attributions: the two answer all {len(labels)} test images alike"
    neither = (first[found] != labels[found]) & (second[found] != labels[found])
    turns, seen = [], Counter[tuple[bool, int]]()
    for kind in zip(neither.tolist(), labels[found].tolist(), strict=True):
        turns.append(seen[kind])
        seen[kind] += 1
    return found[np.lexsort((found, np.array(turns), neither))][:num_images], ""


def mean_image(images: Images) -> Maps:
    """Averages images, evenly spread over all, into the baseline of `explain_answers`, float32 [H, W, 3]."""
    spread = np.linspace(0, len(images) - 1, min(len(images), _MAX_BASELINE)).astype(np.int64)
    total = np.zeros(images.shape[1:])
    for index in spread:
        total += images[index]
    return (total / len(spread)).astype(np.float32)


def explain_answers(
    path: Path,
    images: Images,
    classes: Classes,
    baseline: Maps,
    num_steps: int = _NUM_STEPS,
    after_image: Callable[[], None] = lambda: None,
) -> Explained:
    """Explains why a network gives each image its class.

    The baseline is what an image without content looks like, and a pixel that equals it counts for nothing. Black
    would be blind to dark pixels, to a stroke that is missing as much as to a shadow: so it is the mean image.

    Args:
        path: The variant's ONNX file.
        images: uint8 [n, H, W, 3].
        classes: What is explained of each, int64 [n].
        baseline: From `mean_image`, float32 [H, W, 3].
        num_steps: Points between baseline and image where gradients are taken.
        after_image: Called after each image.

    Raises:
        ClientError: The file is no such network, or has no feature maps of `MIN_SIDE` rows.
    """
    from temper.client.robustness.surrogate import Surrogate

    surrogate = Surrogate([path])
    gradients, errors = integrated_gradients(surrogate, images, classes, baseline, num_steps, after_image)
    grad_cams, places = grad_cam(surrogate, images, classes)
    return Explained(integrated_gradients=gradients, completeness_error=errors, grad_cam=grad_cams, places=places)


def integrated_gradients(
    surrogate: Surrogate,
    images: Images,
    classes: Classes,
    baseline: Maps,
    num_steps: int = _NUM_STEPS,
    after_image: Callable[[], None] = lambda: None,
) -> tuple[Maps, npt.NDArray[np.float64]]:
    """Returns the maps and completeness errors of `Explained`; one image at a time, so memory does not grow."""
    import torch
    from captum.attr import IntegratedGradients  # type: ignore[import-untyped]  # it ships no py.typed

    method = IntegratedGradients(surrogate.logits)
    start = torch.from_numpy(baseline[None]).to(surrogate.device)
    maps, errors = np.empty(images.shape[:3], np.float32), np.empty(len(images))
    for index, (image, target) in enumerate(zip(images, classes.tolist(), strict=True)):
        pixels = torch.from_numpy(np.array(image[None], np.float32)).to(surrogate.device)
        found, delta = method.attribute(
            pixels,
            start,
            target=target,
            n_steps=num_steps,
            internal_batch_size=_batch_size(images),
            return_convergence_delta=True,
        )
        with torch.no_grad():
            logits = surrogate.logits(pixels)
        maps[index] = found[0].sum(-1).cpu().numpy()
        errors[index] = abs(delta.item()) / (logits.max() - logits.min()).clamp_min(1e-12).item()
        after_image()
    return maps, errors


def grad_cam(
    surrogate: Surrogate, images: Images, classes: Classes, min_side: int = MIN_SIDE
) -> tuple[Maps, tuple[int, int]]:
    """Returns Grad-CAM's maps, and rows and columns of what they were enlarged from, bilinearly."""
    import torch

    maps, places, batch = np.empty(images.shape[:3], np.float32), (0, 0), _batch_size(images)
    for first in range(0, len(images), batch):
        part = slice(first, first + batch)
        pixels = torch.from_numpy(np.array(images[part], np.float32)).to(surrogate.device)
        features, logits = surrogate.feature_maps(pixels, min_side)
        targets = torch.from_numpy(np.array(classes[part], np.int64)).to(surrogate.device)
        (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features)
        weights = gradient.mean((2, 3), keepdim=True)
        coarse = (weights * features.detach()).sum(1, keepdim=True).relu()
        fine = torch.nn.functional.interpolate(coarse, images.shape[1:3], mode="bilinear")
        maps[part], places = fine[:, 0].cpu().numpy(), (features.shape[2], features.shape[3])
    return maps, places


def write_attributions(
    folder: Path,
    images: Images,
    labels: Classes,
    class_names: Sequence[str],
    networks: Sequence[tuple[str, Path, Classes]],
    *,
    num_images: int,
    progress: Callable[[int, int], None],
    num_steps: int = _NUM_STEPS,
) -> tuple[tuple[Attribution, ...], tuple[str, ...]]:
    """Explains the answers of two networks to images that they disagree about, in PNG files.

    Args:
        folder: Where the files go; made when missing.
        images: All test images, uint8 [N, H, W, 3]; they may be mapped from a file.
        labels: Theirs, int64 [N].
        class_names: Of all classes.
        networks: Of each of the two its variant's name, its ONNX file and its answers to all test images.
        num_images: How many at most.
        progress: Called with (images done, images in all), of both networks together.
        num_steps: Of integrated gradients.

    Returns:
        One entry for each image, and what has to be known of them, in sentences.

    Raises:
        ClientError: A file cannot be used.
        OSError: A picture cannot be written.
    """
    (first, _, one), (second, _, other) = networks
    picked, note = pick_disagreements(one, other, labels, num_images)
    if len(picked) == 0:
        return (), ((f"{first} and {second}: {note}",) if note else ())
    chosen, baseline, done = images[picked], mean_image(images), iter(range(1, 2 * len(picked) + 1))

    def step() -> None:
        progress(next(done), 2 * len(picked))

    explained = [
        explain_answers(path, chosen, answers[picked], baseline, num_steps, step) for _, path, answers in networks
    ]
    folder.mkdir(parents=True, exist_ok=True)

    def write(index: int, kind: str, pixels: Images) -> str:
        return gallery.write_enlarged(pixels, folder / f"attribution-{index:05d}-{kind}.png")

    entries = []
    for place, index in enumerate(picked.tolist()):
        maps = tuple(
            AttributionMaps(
                network=name,
                answer=class_names[answers[index]],
                integrated_gradients=write(
                    index, f"{name}-gradients", gallery.signed_heat(found.integrated_gradients[place])
                ),
                grad_cam=write(index, f"{name}-grad-cam", gallery.heat_over(chosen[place], found.grad_cam[place])),
                completeness_error=float(found.completeness_error[place]),
            )
            for (name, _, answers), found in zip(networks, explained, strict=True)
        )
        image = write(index, "image", chosen[place])
        entries.append(Attribution(index=index, label=class_names[labels[index]], image=image, maps=maps))
    return tuple(entries), tuple(_notes([name for name, _, _ in networks], explained))


def _notes(names: Sequence[str], explained: Sequence[Explained]) -> Iterator[str]:
    for name, found in zip(names, explained, strict=True):
        (rows, columns), error = found.places, found.completeness_error.max()
        yield f"{name}: Grad-CAM tells {rows}x{columns} places of an image apart, and is enlarged from them"
        if error > _MAX_ERROR:
            yield (
                f"{name}: the sum of the integrated gradients is off by up to {text.percent(error)} of the range "
                "of the logits: rounding moves them, and has no gradient, and steps that are too few miss bends"
            )


def _batch_size(images: Images) -> int:
    return max(1, _MAX_PIXELS // (images.shape[1] * images.shape[2]))
