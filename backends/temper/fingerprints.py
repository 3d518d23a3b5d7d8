"""Which images of a stream are near-identical to earlier ones: a store of fingerprints of fixed size.

Attacks that only ask an endpoint send hundreds of images that differ little from one another: a square painted
over, noise around an image, one pixel changed. The fingerprint follows Blacklight (Li, Shan, Wenger, Zhang, Zheng,
Zhao, "Blacklight: Scalable Defense for Neural Networks against Query-Based Black-Box Attacks", USENIX Security
2022, arXiv:2006.14042): pixels are quantised, groups of them hashed under a secret, and two images match when they
share more than half of their hashes. Blacklight hashes every window of an image and keeps 50 of the values. Here
the groups are drawn once, secretly, over the whole image (bit sampling: Indyk and Motwani, "Approximate Nearest
Neighbors", STOC 1998), and each value of theirs is quantised at a secret offset of its own. So the hashes of an
image cost the same whatever its size, and a value that moves by d levels gets into another step of 64 with a
chance of d / 64, also where an image is flat. The price: an image that is shifted by a pixel does not match.

No image is kept: only hashes under a secret that this process alone holds. Only numpy: this runs inside Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]

# Two test images of digits share at most 5 of the 16 hashes, two of textures 1. With fewer values to a hash they
# share more; with more, the large squares at the beginning of an attack go unseen. The cost is their product.
NUM_HASHES = 16
_GROUP = 16
_STEP_BITS = 6
# Places of each hash, and runs that are remembered: 2.6 MB in all.
_TABLE_BITS = 14
_TABLE = 1 << _TABLE_BITS
# Exact repeats are told by a digest of all bytes; so many of them are remembered.
_SEEN_BITS = 16
_PART = 64
_LOW32 = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What some images were."""

    runs: Int64Array
    """int64 [N]: how long the run of each image is now, all of these included; 0 for an exact repeat."""
    reached: Int64Array
    """One image, by its index, of each run that has become long with these."""


class FingerprintStore:
    """Fingerprints of the latest images, and the runs of near-identical ones among them.

    An image belongs to the run with which it shares more than half of its hashes, and its hashes are the run's
    from then on, so a run follows an attack as it moves. An image that was already sent, byte for byte, is not
    counted: a load test or a health check is no attack. A run is forgotten after some 10,000 other images.

    `take` reads images and `add` finds their runs: a call for many images costs little more than one for a single
    image. The tables are allocated once; what was taken and not yet added comes on top, some 280 bytes an image.
    One caller at a time.

    Args:
        image_bytes: Height x width x channels of every image.
        long_run: From this length on a run is long.
        seed: Makes the secret repeatable, for tests; None draws it from the system.
    """

    def __init__(self, image_bytes: int, *, long_run: int, seed: int | None = None) -> None:
        """Draw the secret and allocate the tables."""
        rng = np.random.default_rng(seed)
        self.long_run = long_run
        self.num_taken = 0
        self._taken: list[tuple[UInt8Array, UInt64Array]] = []
        self._salts: list[int] = []
        self._places = rng.integers(0, image_bytes, NUM_HASHES * _GROUP)
        # Values are halved, so that one and its offset stay within a byte.
        self._offsets = rng.integers(0, 1 << (_STEP_BITS - 1), NUM_HASHES * _GROUP, np.uint8)
        self._factors = _odd(rng, NUM_HASHES * 2).reshape(2, NUM_HASHES)
        self._word_factors = _odd(rng, image_bytes // 8)
        self._tail_factors = _odd(rng, image_bytes % 8)
        self._salt_factor = _odd(rng, 1)
        # Of each hash: the latest run that had it (lower half), and a tag of the hash.
        self._table: UInt64Array = np.zeros(NUM_HASHES * _TABLE, np.uint64)
        self._tables = np.arange(NUM_HASHES, dtype=np.uint64) * np.uint64(_TABLE)
        self._seen: UInt64Array = np.zeros(1 << _SEEN_BITS, np.uint64)
        self._lengths: Int64Array = np.zeros(_TABLE, np.int64)
        self._latest = 0

    @property
    def longest(self) -> int:
        """Length of the longest run that is not yet forgotten; 0 without any."""
        return int(self._lengths.max())

    def take(self, images: UInt8Array, client: int = 0) -> None:
        """Read images, uint8 [n, H, W, 3], of one client, whose number is any integer.

        Images of two clients never match.
        """
        flat = images.reshape(len(images), -1)
        self._taken.append((flat.take(self._places, axis=1), self._digest(flat)))
        self._salts += [client & (2**64 - 1)] * len(images)
        self.num_taken += len(images)

    def add(self) -> Watched:
        """Find the runs of all images that were taken, in their order."""
        runs = np.zeros(self.num_taken, np.int64)
        if not self.num_taken:
            return Watched(runs=runs, reached=runs)
        salts = np.array(self._salts, np.uint64) * self._salt_factor
        pixels, digests = (np.concatenate(parts) for parts in zip(*self._taken, strict=True))
        self._taken, self._salts, self.num_taken = [], [], 0
        fresh = self._first_seen(digests + salts)
        if not len(fresh):
            return Watched(runs=runs, reached=fresh)
        hashes = self._hash(pixels[fresh]) + salts[fresh, None]
        # In parts, as within one each image is compared with every other.
        parts = [hashes[start : start + _PART] for start in range(0, len(hashes), _PART)]
        joined = np.concatenate([self._join(part) for part in parts])
        places = joined % _TABLE
        before = self._lengths[places]
        np.add.at(self._lengths, places, 1)
        after = runs[fresh] = self._lengths[places]
        (crossed,) = np.nonzero((before < self.long_run) & (after >= self.long_run))
        once = np.unique(joined[crossed], return_index=True)[1]
        return Watched(runs=runs, reached=fresh[crossed[once]])

    def _digest(self, flat: UInt8Array) -> UInt64Array:
        """A number for all bytes of each image: multilinear hashing, in which one changed word always shows."""
        num_words = len(self._word_factors)
        words = np.ascontiguousarray(flat[:, : 8 * num_words]).view(np.uint64)
        digests: UInt64Array = words @ self._word_factors
        if len(self._tail_factors):
            digests += flat[:, 8 * num_words :].astype(np.uint64) @ self._tail_factors
        return digests

    def _first_seen(self, digests: UInt64Array) -> Int64Array:
        """The images, by index, that were sent for the first time."""
        first = np.sort(np.unique(digests, return_index=True)[1])
        places = digests >> np.uint64(64 - _SEEN_BITS)
        fresh: Int64Array = first[self._seen[places[first]] != digests[first]]
        self._seen[places[fresh]] = digests[fresh]
        return fresh

    def _hash(self, pixels: UInt8Array) -> UInt64Array:
        """Every group's hash, uint64 [N, hashes]; the high bits are the good ones."""
        quantised = ((pixels >> 1) + self._offsets) >> (_STEP_BITS - 1)
        # A group's 16 bytes are two words.
        words = quantised.view(np.uint64).reshape(len(pixels), NUM_HASHES, 2)
        hashes: UInt64Array = words[..., 0] * self._factors[0] + words[..., 1] * self._factors[1]
        return hashes

    def _join(self, hashes: UInt64Array) -> Int64Array:
        """The number of each image's run, int64 [N]; the images' hashes are the runs' now."""
        if self._latest + len(hashes) > _LOW32:
            self._latest = 0
            self._table[:] = 0
            self._lengths[:] = 0
        # The place is in the highest bits, and the tag in the 32 after them.
        places = ((hashes >> np.uint64(64 - _TABLE_BITS)) + self._tables).astype(np.intp)
        tags = (hashes << np.uint64(_TABLE_BITS)) & ~_LOW32
        runs = self._majority(places, tags)
        (alone,) = np.nonzero(runs == 0)
        if len(alone):
            runs[alone] = self._latest + 1 + np.arange(len(alone))
            self._latest += len(alone)
            self._lengths[runs[alone] % _TABLE] = 0
        self._write(places, tags, runs)
        # Where two share more than half of their hashes, the later has them now: seldom, but for an attack.
        if len(alone) and (self._majority(places, tags) != runs).any():
            for image, other in zip(alone.tolist(), _find_earlier(hashes, alone).tolist(), strict=True):
                if other >= 0:
                    runs[image] = runs[other]
            self._write(places, tags, runs)
        return runs

    def _majority(self, places: npt.NDArray[np.intp], tags: UInt64Array) -> Int64Array:
        """The run that more than half of each image's hashes belong to, int64 [N]; 0 where there is none."""
        found = self._table.take(places)
        runs = np.where((found ^ tags) <= _LOW32, found & _LOW32, np.uint64(0)).astype(np.int64)
        # What fills more than half of a sorted row stands in its middle.
        middle = np.partition(runs, NUM_HASHES // 2, axis=1)[:, NUM_HASHES // 2]
        shared = (runs == middle[:, None]).sum(axis=1)
        remembered = middle > max(0, self._latest - _TABLE)
        return np.where((shared > NUM_HASHES // 2) & remembered, middle, 0)

    def _write(self, places: npt.NDArray[np.intp], tags: UInt64Array, runs: Int64Array) -> None:
        self._table[places] = tags | runs.astype(np.uint64)[:, None]


def _find_earlier(hashes: UInt64Array, images: Int64Array) -> Int64Array:
    """For each of these images the latest one before it that shares more than half of its hashes; -1 for none."""
    shared = np.zeros((len(images), len(hashes)), np.uint8)
    for column in np.ascontiguousarray((hashes >> np.uint64(32)).astype(np.uint32).T):
        shared += (column[images, None] == column).view(np.uint8)
    before = np.arange(len(hashes)) < images[:, None]
    numbers = np.where((shared > NUM_HASHES // 2) & before, np.arange(len(hashes)), -1)
    return numbers.max(axis=1)  # type: ignore[no-any-return]


def _odd(rng: np.random.Generator, count: int) -> UInt64Array:
    """Random odd numbers: no two different values of a byte or a word have the same product with one."""
    numbers: UInt64Array = rng.integers(0, 2**64, count, np.uint64) | np.uint64(1)
    return numbers
