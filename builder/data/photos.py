"""Patches of photographs: which photograph is this a patch of? A data set of real pixels that needs no download.

The photographs are those in the wheels of scikit-image and scikit-learn, and those in a folder, if one is given.
Each is a class. Its longer side is cut into five bands with gaps between them; patches of the first, third and
fifth train, patches of the second and fourth test. So no pixel of a test patch was ever in a training patch, but
what is learned is these photographs alone: nothing follows from it for others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from temper.builder.data.encoded import state_of
from temper.builder.errors import DataError
from temper.imaging.errors import FolderError, ImageError, show
from temper.imaging.folder import LeftOut, Listing, list_images
from temper.imaging.formats import MAX_PIXELS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Boxes = NDArray[np.int64]  # [N, 4]: left, top, right, bottom

NUM_TRAIN = 180
"""Training patches of each photograph."""
NUM_TEST = 80
"""Test patches of each photograph."""
NUM_BANDS = 5
MIN_CONTRAST = 4.0
"""The least standard deviation of a patch's grey values, 0 to 255: a patch of the sky alone may be of any."""

# Of those in the wheels the ones that a camera made, large enough, and textured nearly everywhere.
_WHEELS = {
    ("skimage", "scikit-image", "data"): (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    ("sklearn", "scikit-learn", "datasets/images"): ("china.jpg", "flower.jpg"),
}
# Larger ones are made so small before they are cut up, or a patch would be a smooth part of one thing, and the
# photographs of a large folder would not fit into memory.
_MAX_SIDE = 1024
_MIN_SIDES = (256, 64)  # longer, shorter
_GAP_SHARE = 1 / 50
# A patch's side along the bands, as a share of the largest that fits; its other side is 4/3 of it.
_SMALLEST = 0.75
_ASPECT = 4 / 3
_MAX_DRAWS = 50
_MAX_FOUND = 250  # 3 MB of memory each
_SAME = 2.0  # of 255: the mean difference of two thumbnails of one picture in two sizes is below 1
_THUMBNAIL = 16


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The photographs and where their patches are; a patch is cut out when it is asked for."""

    class_names: list[str]
    """One per photograph."""
    photographs: list[Image.Image]
    """In RGB, one per class."""
    boxes: Boxes
    """Where every patch is in its photograph."""
    labels: NDArray[np.int64]
    """The photograph of every patch."""
    train: NDArray[np.int64]
    """Indices of the patches that train."""
    test: NDArray[np.int64]
    """Indices of the patches that test."""
    left_out: list[LeftOut]
    """What of the folder is not used."""

    def __call__(self, index: int) -> Image.Image:
        """Returns one patch in RGB, at its own size."""
        left, top, right, bottom = self.boxes[index].tolist()
        return self.photographs[int(self.labels[index])].crop((left, top, right, bottom))


def cut_photos(folder: Path | None, seed: int) -> Patches:
    """Opens the photographs and draws their patches; the same seed and photographs give the same ones.

    Args:
        folder: Further photographs, or None.
        seed: Decides where the patches are.

    Raises:
        DataError: A photograph cannot be read, a wheel is not installed, or the folder holds none.
    """
    installed = _find_installed()
    found = Listing([], []) if folder is None else _list(folder)
    paths = installed | {show(path.relative_to(folder or "")): path for path in found.paths}
    left_out = list(found.left_out)
    photographs: dict[str, Image.Image] = {}
    boxes: list[Boxes] = []
    seen: list[NDArray[np.float32]] = []
    for name, path in paths.items():
        image = _open(path)
        drawn = _cut(image, np.random.default_rng([seed, len(photographs)]), seen)
        if isinstance(drawn, str):
            left_out.append(LeftOut(path, drawn))
            continue
        photographs[name] = image
        boxes.append(drawn)
    if folder is not None and len(photographs) == len(installed):
        why = f" ({show(left_out[-1].path.name)} is left out: {left_out[-1].reason})" if left_out else ""
        raise DataError(f"data {show(folder)}: got no photograph that can be cut up, expected at least one{why}")
    each = NUM_TRAIN + NUM_TEST
    place = np.arange(each * len(photographs))
    return Patches(
        class_names=list(photographs),
        photographs=list(photographs.values()),
        boxes=np.concatenate(boxes),
        labels=place // each,
        train=place[place % each < NUM_TRAIN],
        test=place[place % each >= NUM_TRAIN],
        left_out=left_out,
    )


def fingerprint_photos(folder: Path) -> str:
    """Returns a digest of path, size and time of change of every photograph in a folder.

    Raises:
        DataError: The folder cannot be read.
    """
    digest = hashlib.sha256()
    for path in _list(folder).paths:
        digest.update(state_of(path, folder))
    return digest.hexdigest()


def list_bands(length: int) -> list[tuple[int, int]]:
    """Returns where the bands of a side begin and end, in pixels; the odd ones test."""
    edges = [round(length * index / NUM_BANDS) for index in range(NUM_BANDS + 1)]
    gap = max(2, round(length * _GAP_SHARE))
    last = NUM_BANDS - 1
    return [
        (edges[index] + (gap - gap // 2 if index else 0), edges[index + 1] - (gap // 2 if index < last else 0))
        for index in range(NUM_BANDS)
    ]


def _find_installed() -> dict[str, Path]:
    """Finds the photographs in the wheels, by their names."""
    found: dict[str, Path] = {}
    for (module, package, folder), files in _WHEELS.items():
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                f"data photos: {package} is not installed, in whose wheel the photographs are; "
                "install it with: pip install 'temper[data]'"
            )
        place = Path(spec.submodule_search_locations[0], folder)
        found |= {Path(file).stem: place / file for file in files}
    return found


def _list(folder: Path) -> Listing:
    try:
        found = list_images(folder)
    except FolderError as error:
        raise DataError(f"data {error}; expected a folder of photographs, each a class of its own") from error
    if len(found.paths) > _MAX_FOUND:
        raise DataError(
            f"data {show(folder)}: got {len(found.paths):,} images, expected at most {_MAX_FOUND} photographs, "
            "each a class of its own; classes of many images are for source 'folder'"
        )
    return found


def _open(path: Path) -> Image.Image:
    from temper.imaging.read import decode_image

    try:
        image = decode_image(path, MAX_PIXELS)
    except ImageError as error:
        raise DataError(f"data {error}; repair or remove it") from error
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return image


def _cut(image: Image.Image, rng: np.random.Generator, seen: list[NDArray[np.float32]]) -> Boxes | str:
    """Draws the patches of a photograph; in their place, why it cannot be used."""
    longer, shorter = max(image.size), min(image.size)
    if longer < _MIN_SIDES[0] or shorter < _MIN_SIDES[1]:
        return f"smaller than {_MIN_SIDES[0]} x {_MIN_SIDES[1]} pixels"
    thumbnail = np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL)), np.float32)
    if any(np.abs(thumbnail - other).mean() < _SAME for other in seen):
        return "the same picture as another"
    grey = np.asarray(image.convert("L"))
    upright = image.height > image.width
    # Bands lie side by side along the columns; an upright photograph is turned for it, and its boxes turned back.
    plane = grey.T if upright else grey
    bands = list_bands(longer)
    drawn = [_draw(plane, bands[0::2], rng) for _ in range(NUM_TRAIN)]
    drawn += [_draw(plane, bands[1::2], rng) for _ in range(NUM_TEST)]
    boxes = [box for box in drawn if box is not None]
    if len(boxes) < len(drawn):
        return "flat nearly everywhere"
    seen.append(thumbnail)
    turned = np.array(boxes, np.int64)
    return turned[:, [1, 0, 3, 2]] if upright else turned


def _draw(
    plane: NDArray[np.uint8], bands: list[tuple[int, int]], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Draws a patch in one of some bands; None when it is flat wherever it is tried."""
    height = plane.shape[0]
    for _ in range(_MAX_DRAWS):
        start, stop = bands[rng.integers(len(bands))]
        largest = min(stop - start, height / _ASPECT)
        across = int(largest * rng.uniform(_SMALLEST, 1))
        down = min(height, round(across * _ASPECT))
        left = int(rng.integers(start, stop - across + 1))
        top = int(rng.integers(0, height - down + 1))
        if plane[top : top + down, left : left + across].std() >= MIN_CONTRAST:
            return left, top, left + across, top + down
    return None
