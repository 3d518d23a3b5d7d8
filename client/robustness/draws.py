"""Random streams addressed by (seed, image, counter): the same draw whatever is computed beside or before it.

A numpy generator per image would cost more than a proposal; these words are computed for all slots at once.
"""

from __future__ import annotations

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


def _mix(words: UInt64Array) -> UInt64Array:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
