"""Which images the store of fingerprints takes for near-identical: what attacks send, and what others do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fingerprints import FingerprintStore

Images = npt.NDArray[np.uint8]
Rng = np.random.Generator

# The second is no multiple of 8 bytes.
SHAPES = ((32, 32, 3), (33, 31, 3))
COUNT = 40


def _store(shape: tuple[int, ...], long_run: int = 25) -> FingerprintStore:
    return FingerprintStore(int(np.prod(shape)), long_run=long_run, seed=0)


def _add(store: FingerprintStore, images: Images, client: int = 0, together: int = 64) -> npt.NDArray[np.int64]:
    runs = []
    for start in range(0, len(images), together):
        for image in images[start : start + together]:
            store.take(image[None], client)
        runs.append(store.add().runs)
    return np.concatenate(runs)


def _draw(rng: Rng, shape: tuple[int, ...], count: int = COUNT) -> Images:
    return rng.integers(0, 256, (count, *shape), np.uint8)


def _squares(rng: Rng, image: Images) -> Images:
    """A square of 6 pixels moves over an image with stripes, by 24 levels, as in the middle of Square."""
    base = np.clip(image + 24 * rng.choice([-1, 1], (1, image.shape[1], 3)), 0, 255)
    images = np.repeat(base.astype(np.uint8)[None], COUNT, axis=0)
    for one, (top, left) in zip(images, rng.integers(0, 24, (COUNT, 2)).tolist(), strict=True):
        window = (slice(top, top + 6), slice(left, left + 6))
        one[window] = np.clip(image[window] + 24 * rng.choice([-1, 1], 3), 0, 255)
    return images


def _noise(rng: Rng, image: Images) -> Images:
    images: Images = np.clip(image + rng.integers(-1, 2, (COUNT, *image.shape)), 0, 255).astype(np.uint8)
    return images


def _one_value(rng: Rng, image: Images) -> Images:
    """One value after the other, the last ones of the image too, and each change stays."""
    images = np.repeat(image[None], COUNT, axis=0)
    flat = images.reshape(COUNT, -1)
    places = [*rng.choice(flat.shape[1] - 8, COUNT - 8, replace=False), *range(-8, 0)]
    for number, place in enumerate(places):
        flat[number:, place] ^= 128
    return images


def _redder(rng: Rng, image: Images) -> Images:
    """By a level each time, so that the first and the last are unlike."""
    images = np.repeat(image[None], COUNT, axis=0)
    images[..., 0] = [np.minimum(image[..., 0], 255 - step) + np.uint8(step) for step in range(COUNT)]
    return images


@pytest.mark.parametrize("together", [1, 7, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("send", [_squares, _noise, _one_value, _redder])
def test_near_identical_images_are_one_run(
    send: Callable[[Rng, Images], Images], shape: tuple[int, ...], together: int
) -> None:
    rng = np.random.default_rng(1)
    images = send(rng, _draw(rng, shape)[0])
    store = _store(shape)
    runs = _add(store, images, together=together)
    # An early square may begin a run of its own.
    assert runs[-1] >= COUNT - 4
    assert store.longest == runs.max() <= COUNT


def test_flat_image_with_noise_is_one_run() -> None:
    """Wherever its level is: each value has a step of its own."""
    for level in range(0, 256, 15):
        flat = np.full((32, 32, 3), level, np.uint8)
        assert _add(_store(flat.shape), _noise(np.random.default_rng(1), flat))[-1] == COUNT


def _sparse(rng: Rng, shape: tuple[int, ...]) -> Images:
    """A quarter of each is its own, and the rest black."""
    images = np.zeros((COUNT, *shape), np.uint8)
    for one, (top, left) in zip(images, rng.integers(0, 16, (COUNT, 2)).tolist(), strict=True):
        one[top : top + 16, left : left + 16] = _draw(rng, (16, 16, 3), 1)[0]
    return images


def _again(rng: Rng, shape: tuple[int, ...]) -> Images:
    """A load test: one after the other, again and again."""
    images: Images = _draw(rng, shape)[np.arange(400) % COUNT]
    return images


@pytest.mark.parametrize("together", [1, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("draw", [_draw, _sparse, _again])
def test_other_images_are_no_run(
    draw: Callable[[Rng, tuple[int, ...]], Images], shape: tuple[int, ...], together: int
) -> None:
    images = draw(np.random.default_rng(1), shape)
    runs = _add(_store(shape), images, together=together)
    assert runs.tolist() == [1] * COUNT + [0] * (len(images) - COUNT)


def test_repeats_in_the_middle_of_a_run_are_not_counted() -> None:
    images = _noise(np.random.default_rng(1), _draw(np.random.default_rng(2), (32, 32, 3))[0]).repeat(3, axis=0)
    runs = _add(_store((32, 32, 3)), images, together=1)
    assert runs.tolist() == [count if repeat == 0 else 0 for count in range(1, COUNT + 1) for repeat in range(3)]


def test_clients_have_runs_of_their_own() -> None:
    rng = np.random.default_rng(1)
    images = _noise(rng, _draw(rng, (32, 32, 3))[0])
    store = _store((32, 32, 3))
    assert _add(store, images, client=-7)[-1] == COUNT
    assert _add(store, images, client=2**70)[-1] == COUNT
    assert store.longest == COUNT


def test_long_run_is_told_once() -> None:
    rng = np.random.default_rng(1)
    first, second = (_noise(rng, image) for image in _draw(rng, (32, 32, 3), 2))
    store = _store((32, 32, 3), long_run=10)
    reached = []
    for start in range(0, COUNT, 8):
        for images in (first, second):
            store.take(images[start : start + 8])
        reached.append(len(store.add().reached))
    assert reached == [0, 2, 0, 0, 0]
    assert store.add().reached.tolist() == []


def test_run_is_forgotten_and_memory_stays() -> None:
    rng = np.random.default_rng(1)
    shape = (8, 8, 3)
    images = _noise(rng, _draw(rng, shape)[0])
    store = _store(shape)

    def size() -> int:
        return sum(value.nbytes for value in vars(store).values() if isinstance(value, np.ndarray))

    before = size()
    assert before < 6e6
    assert _add(store, images[:20])[-1] == 20
    _add(store, _draw(rng, shape, 8000))
    assert _add(store, images[20:30])[-1] == 30, "not yet"
    _add(store, _draw(rng, shape, 20_000))
    assert store.longest < 30
    assert _add(store, images[30:])[-1] <= 10
    assert (size(), store._taken) == (before, [])


def test_numbers_of_runs_end_and_begin_again() -> None:
    rng = np.random.default_rng(1)
    images = _noise(rng, _draw(rng, (32, 32, 3))[0])
    store: Any = _store((32, 32, 3))
    store._latest = 2**32 - 2
    assert _add(store, _draw(rng, (32, 32, 3), 1), together=1).tolist() == [1]
    assert _add(store, images[:20], together=1)[-1] == 20
    others = _add(store, _draw(rng, (32, 32, 3), 8), together=1)
    assert others.tolist() == [1] * 8
    assert _add(store, images[20:], together=1)[-1] == COUNT
