"""Colour textures with noise, 20 classes: a data set that is generated, so that it needs no download.

A class is the shape of a pattern. Its direction, size, phase and two colours are drawn anew for every image,
part of it is covered, and noise is added; so neither a colour nor an edge tells two classes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # float32 [64, 64]; numpy 1.26 types most of what makes one as Any.
    Plane: TypeAlias = Any

SIZE = 64
NUM_TRAIN = 4000
NUM_TEST = 2000
_ROWS, _COLUMNS = (plane.astype(np.float32) for plane in np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5)
_TURN = np.float32(2 * np.pi)
_MAX_PATCHES = 2


def make_texture(seed: int, index: int) -> NDArray[np.uint8]:
    """Draws one image; the same seed and index give the same one.

    Args:
        seed: Of the data set.
        index: Of the image; its class is `index % 20`.

    Returns:
        uint8 [64, 64, 3].
    """
    rng = np.random.default_rng([seed, index])
    pattern = list(_PATTERNS.values())[index % len(_PATTERNS)](rng)
    low, high = pattern.min(), pattern.max()
    share = ((pattern - low) / max(high - low, 1e-6))[:, :, None]
    first, second = _colours(rng)
    pixels = first + share * (second - first)
    for _ in range(rng.integers(0, _MAX_PATCHES + 1)):
        _cover(pixels, rng)
    pixels += rng.normal(0, rng.uniform(5, 25), pixels.shape).astype(np.float32)
    image: NDArray[np.uint8] = np.rint(pixels).clip(0, 255).astype(np.uint8)
    return image


def _colours(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Returns two colours, float32 [3]; they differ by 90 to 220 of 255 in the channel where they do most."""
    first = rng.uniform(0, 255, 3).astype(np.float32)
    step = rng.uniform(-1, 1, 3)
    step *= rng.uniform(90, 220) / np.abs(step).max()
    # Away from the edge, or most of the step would be clipped off.
    step = np.where((first + step < 0) | (first + step > 255), -step, step)
    return first, (first + step).astype(np.float32)


def _cover(pixels: Plane, rng: np.random.Generator) -> None:
    height, width = rng.integers(SIZE // 8, SIZE // 3, 2)
    top, left = rng.integers(0, SIZE - height), rng.integers(0, SIZE - width)
    pixels[top : top + height, left : left + width] = rng.uniform(0, 255, 3)


def _turned(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Returns the coordinates of every pixel in a frame that is turned by a random angle."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * _COLUMNS + sin * _ROWS, cos * _ROWS - sin * _COLUMNS


def _phases(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Returns two perpendicular coordinates in periods, three to nine over the image, with random phases."""
    along, across = _turned(rng)
    periods = np.float32(rng.uniform(3, 9))
    shift = rng.uniform(0, 1, 2).astype(np.float32)
    return along * periods + shift[0], across * periods + shift[1]


def _polar(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Returns distance and angle from a point near the middle; the angle is in turns."""
    row, column = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    angle = np.arctan2(_ROWS - row, _COLUMNS - column) / _TURN
    return np.hypot(_ROWS - row, _COLUMNS - column), angle + np.float32(rng.uniform(0, 1))


def _smooth(rng: np.random.Generator, rows: int, columns: int) -> Plane:
    """Returns noise of so many cells, smoothly enlarged to the image's size."""
    cells = Image.fromarray(rng.normal(size=(rows, columns)).astype(np.float32))
    return np.asarray(cells.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _grating(rng: np.random.Generator) -> Plane:
    return np.sin(_TURN * _phases(rng)[0])


def _stripes(rng: np.random.Generator) -> Plane:
    return np.float32(_phases(rng)[0] % 1 < 0.5)


def _sawtooth(rng: np.random.Generator) -> Plane:
    return _phases(rng)[0] % 1


def _diamonds(rng: np.random.Generator) -> Plane:
    """Squares inside one another."""
    along, across = _turned(rng)
    row, column = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    distance = np.maximum(np.abs(along - row), np.abs(across - column))
    return np.sin(_TURN * (distance * np.float32(rng.uniform(4, 9)) + np.float32(rng.uniform(0, 1))))


def _chirp(rng: np.random.Generator) -> Plane:
    """A grating that gets finer."""
    along = _turned(rng)[0] + np.float32(0.8)
    return np.sin(_TURN * (along**2 * np.float32(rng.uniform(3, 7)) + np.float32(rng.uniform(0, 1))))


def _waves(rng: np.random.Generator) -> Plane:
    """A grating that winds."""
    along, across = _phases(rng)
    return np.sin(_TURN * (along + np.float32(0.35) * np.sin(across * _TURN * np.float32(0.6))))


def _zigzag(rng: np.random.Generator) -> Plane:
    along, across = _phases(rng)
    return np.float32((along + np.abs(across / 2 % 1 - 0.5) * 2.5) % 1 < 0.5)


def _checker(rng: np.random.Generator) -> Plane:
    along, across = _phases(rng)
    return np.float32((along % 1 < 0.5) != (across % 1 < 0.5))


def _plaid(rng: np.random.Generator) -> Plane:
    along, across = _phases(rng)
    return np.sin(_TURN * along) + np.sin(_TURN * across)


def _streaks(rng: np.random.Generator) -> Plane:
    """Noise that is drawn out along one axis."""
    plane = _smooth(rng, int(rng.integers(3, 5)), int(rng.integers(16, 30)))
    return plane if rng.random() < 0.5 else plane.T


def _bricks(rng: np.random.Generator) -> Plane:
    along, across = _phases(rng)
    row = np.floor(across)
    return np.float32(((along / 2 + row / 2) % 1 < 0.12) | (across % 1 < 0.2))


def _grid_dots(rng: np.random.Generator) -> Plane:
    along, across = _phases(rng)
    return np.float32((along % 1 - 0.5) ** 2 + (across % 1 - 0.5) ** 2 < 0.08)


def _distances(rng: np.random.Generator) -> Plane:
    """Returns the distances of every pixel to random points, nearest two first, [2, S, S]."""
    points = rng.uniform(-0.6, 0.6, (int(rng.integers(15, 40)), 2, 1, 1)).astype(np.float32)
    squares = (_ROWS - points[:, 0]) ** 2 + (_COLUMNS - points[:, 1]) ** 2
    return np.sqrt(np.partition(squares, 1, axis=0)[:2])


def _random_dots(rng: np.random.Generator) -> Plane:
    return np.float32(_distances(rng)[0] < rng.uniform(0.04, 0.06))


def _mosaic(rng: np.random.Generator) -> Plane:
    """Voronoi cells, each of one shade."""
    points = rng.uniform(-0.6, 0.6, (int(rng.integers(15, 40)), 2, 1, 1)).astype(np.float32)
    squares = (_ROWS - points[:, 0]) ** 2 + (_COLUMNS - points[:, 1]) ** 2
    return rng.random(len(points)).astype(np.float32)[squares.argmin(0)]


def _cracks(rng: np.random.Generator) -> Plane:
    """The borders of Voronoi cells."""
    nearest, second = _distances(rng)
    return np.float32(second - nearest < 0.03)


def _rings(rng: np.random.Generator) -> Plane:
    distance, _ = _polar(rng)
    return np.sin(_TURN * (distance * np.float32(rng.uniform(4, 9)) + np.float32(rng.uniform(0, 1))))


def _spokes(rng: np.random.Generator) -> Plane:
    return np.sin(_TURN * _polar(rng)[1] * rng.integers(5, 13))


def _spiral(rng: np.random.Generator) -> Plane:
    distance, angle = _polar(rng)
    turns = distance * np.float32(rng.uniform(4, 8)) * rng.choice([-1, 1])
    return np.sin(_TURN * (turns + angle * rng.integers(2, 5)))


def _blobs(rng: np.random.Generator) -> Plane:
    """Smooth noise."""
    cells = int(rng.integers(5, 11))
    return _smooth(rng, cells, cells)


def _camouflage(rng: np.random.Generator) -> Plane:
    """Smooth noise of two levels."""
    return np.float32(_blobs(rng) > 0)


_PATTERNS: dict[str, Callable[[np.random.Generator], Plane]] = {
    "grating": _grating,
    "stripes": _stripes,
    "sawtooth": _sawtooth,
    "diamonds": _diamonds,
    "chirp": _chirp,
    "waves": _waves,
    "zigzag": _zigzag,
    "checker": _checker,
    "plaid": _plaid,
    "streaks": _streaks,
    "bricks": _bricks,
    "grid_dots": _grid_dots,
    "random_dots": _random_dots,
    "mosaic": _mosaic,
    "cracks": _cracks,
    "rings": _rings,
    "spokes": _spokes,
    "spiral": _spiral,
    "blobs": _blobs,
    "camouflage": _camouflage,
}
CLASS_NAMES = tuple(_PATTERNS)
"""One per label, in order."""
