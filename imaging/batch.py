"""Many encoded images at once, as a server gets them: in threads, and within bounds that no request can move.

`Decoder.decode` is the seam between the server and what decodes for it: from encoded images to uint8 pixels, an
error for each that is none. A decoder on a GPU (nvImageCodec, DALI) would be another class with that method; its
pixels would be others than Pillow's by a few levels, so it would be a contract of its own.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from .errors import ImageError
from .fit import work_pixels
from .formats import MAX_PIXELS, served_pixels, share_of
from .preprocess import Preprocessing
from .read import Pixels, read_image

_MAX_THREADS = 16
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"
# A progressive JPEG is gone through once for every scan, and a scan of all pixels may be 30 bytes long. Cameras
# write 10; a video behind the image, as some phones put it there, holds the mark by chance.
_MAX_SCANS = 64


class Decoder:
    """Makes encoded images what a model takes, with `read_image`, so to the same pixels.

    Pillow lets go of Python's lock while it decodes and resizes, so threads use all cores.
    """

    def __init__(self, how: Preprocessing, num_threads: int | None = None) -> None:
        """Take the contract.

        Args:
            how: What the model takes.
            num_threads: Images decoded at once; one per core when not given, at most 16.
        """
        self._how = how
        self._limit = served_pixels(how.height, how.width)
        self._room = _Room(self._limit)
        self._pool = ThreadPoolExecutor(num_threads or min(_MAX_THREADS, len(os.sched_getaffinity(0))))

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def decode(self, files: Sequence[bytes]) -> tuple[Pixels, dict[int, ImageError]]:
        """Decodes images; what is wrong with one is its own.

        Args:
            files: Each a whole file in one of `formats.FORMATS`, of at most `served_pixels`; several that are
                decoded at a time have no more together, with what resizing them takes.

        Returns:
            uint8 [N, height, width, 3], RGB, and the errors by index; the pixels of such an image mean nothing.
        """
        pixels = np.empty((len(files), self._how.height, self._how.width, 3), np.uint8)

        def one(index: int) -> ImageError | None:
            try:
                pixels[index] = self._read(files[index])
            except ImageError as error:
                return error
            except Exception as error:  # such as a MemoryError, which the other images need not share
                return ImageError("image", f"cannot be made what the model takes ({type(error).__name__})")
            return None

        # One alone is done here, without the way to another thread.
        found = map(one, range(len(files))) if len(files) == 1 else self._pool.map(one, range(len(files)))
        return pixels, {index: error for index, error in enumerate(found) if error is not None}

    def _read(self, file: bytes) -> Pixels:
        taken = 0

        def admit(image: Image.Image) -> None:
            nonlocal taken
            _check_scans(file, image, self._limit)
            shares = self._limit // share_of(self._limit, image.format)
            work = max(work_pixels(size, self._how) for size in (image.size, image.size[::-1]))
            taken = shares * image.width * image.height + min(work, MAX_PIXELS)
            self._room.take(taken)

        try:
            return read_image(io.BytesIO(file), self._how, limit=self._limit, admit=admit)
        finally:
            self._room.give_back(taken)


class _Room:
    """How many pixels are held at once, by all threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._changed = threading.Condition()

    def take(self, pixels: int) -> None:
        """Waits until there is room; one that needs more than there is at all waits until it is alone."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + pixels <= self._size)
            self._used += pixels

    def give_back(self, pixels: int) -> None:
        """Gives back what was taken; 0 when nothing was."""
        with self._changed:
            self._used -= pixels
            self._changed.notify_all()


def _check_scans(file: bytes, image: Image.Image, limit: int) -> None:
    """Refuses a JPEG that is gone through more often than it has pixels for.

    Raises:
        ImageError: As said.
    """
    if not file.startswith(_JPEG):
        return
    scans, most = file.count(_SCAN), _MAX_SCANS * limit // (image.width * image.height)
    if scans > most:
        raise ImageError("image", f"is a JPEG of {scans:,} scans", f"at most {most:,} at its size")
