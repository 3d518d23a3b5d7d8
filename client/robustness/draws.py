"""Random streams addressed by (seed, image, counter): the same draw whatever is computed beside or before it.

A numpy generator per image would cost more than a proposal; these words are computed for all slots at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.scores import Int64Array

UInt64Array = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def image_keys(seed: int, indices: Int64Array) -> UInt64Array:
    """Return one stream key per image, uint64 [n]."""
    start = np.full(1, seed, dtype=np.uint64)
    return _mix(_mix(start + _GOLDEN) + indices.astype(np.uint64) * _GOLDEN)


def random_words(keys: UInt64Array, counters: npt.NDArray[np.integer[npt.NBitBase]]) -> UInt64Array:
    """Return 64 random bits for each key and counter (broadcast), by splitmix64 in counter mode.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    return _mix(keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def below(bits: UInt64Array, bounds: Int64Array) -> Int64Array:
    """Turn 32 random bits each into an integer of 0 to bounds - 1 (multiply and shift; bounds below 2**31)."""
    return ((bits * bounds.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def draw_images(num_available: int, num_images: int | None, seed: int) -> Int64Array:
    """Return the indices of the images to evaluate, ascending: drawn by the seed, the same for every model.

    Fewer images are among more of the same seed.

    Args:
        num_available: images that there are.
        num_images: how many are wanted; all when not given.
        seed: of the draw.

    Raises:
        ValueError: more images are asked for than there are.
    """
    if num_images is None:
        return np.arange(num_available)
    if num_images > num_available:
        raise ValueError(f"num_images: got {num_images}, expected at most {num_available}, all there are")
    return np.sort(np.random.default_rng(seed).permutation(num_available)[:num_images].astype(np.int64))


@contextmanager
def seeded_numpy(seed: list[int] | npt.NDArray[np.integer[Any]]) -> Iterator[None]:
    """Seed numpy's global generator for a library that draws from it, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _mix(words: UInt64Array) -> UInt64Array:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
