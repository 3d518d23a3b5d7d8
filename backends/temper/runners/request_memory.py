"""The memory in which Triton hands images over, pinned once, so that the GPU reads them where they lie.

Triton's Python backend passes host tensors in one region of shared memory per instance. It maps the region anew
when it grows, and keeps the older mappings for as long as the process lives (python_backend, src/shm_manager.cc):
so what is pinned stays what it is, and the newest mapping is the one that later requests come in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runners import cuda

_SHARED = "/dev/shm/"  # noqa: S108  # not written: it is where the system has it
_MAPPINGS = Path("/proc/self/maps")
# Addresses outside of shared memory that are remembered, as looking one up reads a file.
_MOST_OTHERS = 64


class RequestMemory:
    """What is pinned of it; a mapping that cannot be pinned costs a copy on the host and nothing else.

    Args:
        log: Told in one line why nothing is pinned.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        """Pin nothing yet."""
        self._log = log
        self._is_refused = False
        self._pinned: list[tuple[int, int]] = []
        self._others: set[int] = set()

    def find(self, images: npt.NDArray[np.uint8]) -> int | None:
        """The address of images that the GPU may read directly; None when they must be copied first."""
        if not images.flags.c_contiguous:
            return None
        start: int = images.__array_interface__["data"][0]
        if self._covers(start, images.nbytes) or (self._pin_around(start) and self._covers(start, images.nbytes)):
            return start
        return None

    def keep_newest(self) -> None:
        """Unpin all but the newest mapping; no copy may be under way."""
        self._unpin(self._pinned[:-1])

    def close(self) -> None:
        """Unpin everything; no copy may be under way."""
        self._unpin(self._pinned)

    def _unpin(self, ranges: list[tuple[int, int]]) -> None:
        for found in list(ranges):
            self._pinned.remove(found)
            try:
                cuda.unpin(found[0])
            except cuda.CudaError as error:  # it stays pinned, which costs memory that cannot be swapped out
                self._log(f"shared memory stays pinned: {error}")

    def _covers(self, start: int, nbytes: int) -> bool:
        return any(first <= start and start + nbytes <= end for first, end in self._pinned)

    def _pin_around(self, address: int) -> bool:
        if self._is_refused or address in self._others:
            return False
        found = _shared_mapping(address)
        if found is None:
            if len(self._others) == _MOST_OTHERS:
                self._others.clear()
            self._others.add(address)
            return False
        try:
            cuda.pin(found[0], found[1] - found[0])
        except cuda.CudaError as error:
            self._log(f"Triton's shared memory is not pinned, so images are copied on the host first: {error}")
            self._is_refused = True  # asking again would cost every request
            return False
        self._pinned.append(found)
        return True


def _shared_mapping(address: int) -> tuple[int, int] | None:
    """The mapping of shared memory that an address lies in, from its first byte to behind its last."""
    for line in _MAPPINGS.read_text().splitlines():
        addresses, access, _, _, _, *path = line.split(maxsplit=5)
        first, end = (int(text, 16) for text in addresses.split("-"))
        if first <= address < end:
            shared = access.startswith("rw") and access[3] == "s" and "".join(path).startswith(_SHARED)
            return (first, end) if shared else None
    return None
