"""Decoded images in a file, as an array that is mapped into memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap


def create_images(path: Path, num: int, height: int, width: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Creates a .npy file of images, uint8 [num, height, width, 3], mapped into memory for writing.

    All its room is taken at once: a full disk is an error here, and would be a SIGBUS at the first write beyond.

    Raises:
        OSError: There is not room enough, or the file cannot be written.
    """
    images: np.memmap[Any, np.dtype[np.uint8]] = open_memmap(  # type: ignore[no-untyped-call]  # numpy 1.26 lacks it
        path, mode="w+", dtype=np.uint8, shape=(num, height, width, 3)
    )
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images
