"""Equal and nearly equal numbers among many: digests of files, and perceptual hashes of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DISTANCE = 4
"""Of 64 bits: a recompressed or resized image differs by up to two, other pictures by some twenty."""
_MAX_CANDIDATES = 8
# Two hashes that differ in at most 4 bits are equal in at least one of five bands.
_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))
_ONES = np.array([bin(number).count("1") for number in range(1 << 16)], dtype=np.uint8)


def group_equal(digests: NDArray[np.uint64], ok: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Yields the indices of every digest that occurs more than once, in order of the first of them.

    Args:
        digests: Of every image.
        ok: Which of them count.
    """
    used = np.flatnonzero(ok)
    order = used[np.argsort(digests[used], kind="stable")]
    ends = np.flatnonzero(np.diff(digests[order]) != 0) + 1
    groups = [group for group in np.split(order, ends) if len(group) > 1]
    yield from sorted(groups, key=lambda group: int(group[0]))


def find_near(hashes: NDArray[np.uint64], among: NDArray[np.uint64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Finds which hashes have others within `MAX_DISTANCE` bits; memory is a few times that of the hashes.

    Args:
        hashes: What is looked for.
        among: Where it is looked for.

    Yields:
        The index of a hash and those of some that are near it, the nearest first.
    """
    found: dict[int, dict[int, int]] = {}
    places = _thin_out(among)
    among = among[places]
    for start, length in _BANDS:
        mask = np.uint64((1 << length) - 1)
        keys = (among >> np.uint64(start)) & mask
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        wanted = (hashes >> np.uint64(start)) & mask
        lows, highs = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        for index in np.flatnonzero(highs > lows):
            bucket = order[lows[index] : highs[index]]
            distances = _distances(among[bucket], hashes[index])
            near = np.flatnonzero(distances <= MAX_DISTANCE)
            near = near[np.argsort(distances[near], kind="stable")][:_MAX_CANDIDATES]
            if len(near):
                entry = found.setdefault(int(index), {})
                entry.update(zip(bucket[near].tolist(), distances[near].tolist(), strict=True))
    for index in sorted(found):
        nearest = sorted(found[index].items(), key=lambda pair: (pair[1], pair[0]))[:_MAX_CANDIDATES]
        yield index, places[[other for other, _ in nearest]]


def _thin_out(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns the indices of a few of every hash: of plain images thousands may have the same one."""
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order[:1]]) != 0)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[rank < _MAX_CANDIDATES])


def _distances(hashes: NDArray[np.uint64], other: np.uint64) -> NDArray[np.int64]:
    """How many bits differ."""
    parts: NDArray[np.uint16] = np.ascontiguousarray(hashes ^ other).view(np.uint16).reshape(-1, 4)
    total: NDArray[np.int64] = _ONES[parts].sum(axis=1, dtype=np.int64)
    return total
