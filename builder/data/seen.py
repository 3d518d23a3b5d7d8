"""One look at every image of a source, by several threads, and the few bytes that are kept of each."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image

from temper.builder.data.encoded import Found
from temper.imaging.errors import ImageError
from temper.imaging.formats import max_bytes
from temper.imaging.read import decode_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]

_CHUNK = 512
_THUMBNAIL = 16


@dataclass
class Seen:
    """What is kept of every image, in arrays."""

    ok: NDArray[np.bool_]
    """Whether it can be decoded."""
    digest: NDArray[np.uint64]
    """Of the file."""
    near: NDArray[np.uint64]
    """The perceptual hash."""
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    grey: NDArray[np.bool_]
    turned: NDArray[np.bool_]

    @classmethod
    def empty(cls, num: int) -> Seen:
        """Makes room for so many images."""
        flags = [np.zeros(num, np.bool_) for _ in range(3)]
        words = [np.zeros(num, np.uint64) for _ in range(2)]
        sides = [np.zeros(num, np.int32) for _ in range(2)]
        return cls(flags[0], words[0], words[1], sides[0], sides[1], flags[1], flags[2])


@dataclass(frozen=True)
class One:
    """What was seen of one image."""

    digest: int = 0
    near: int = 0
    size: tuple[int, int] = (0, 0)
    grey: bool = False
    turned: bool = False
    form: str | None = None
    broken: str | None = None


@dataclass
class Images:
    """The images that are looked at, with labels and parts as far as they are known."""

    found: Found
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    limit: int

    @property
    def hashed(self) -> bool:
        """Whether perceptual hashes can be made: ImageHash is installed."""
        return _can_hash()

    def name(self, index: int) -> str:
        """Returns what messages call an image."""
        return self.found.items.name(int(self.found.order[index]))

    def named(self, indices: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Returns what messages call some images."""
        return [self.name(int(index)) for index in indices]

    def open(self, index: int) -> Path | IO[bytes]:
        """Returns what `decode_image` takes."""
        return self.found.items.open(int(self.found.order[index]), max_bytes(self.limit))


def look_at(images: Images, seen: Seen, progress: Progress | None) -> Iterator[tuple[int, One]]:
    """Looks at all images, fills `seen`, and yields each in order."""
    total = len(images.found.order)
    hashed = images.hashed
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, total, _CHUNK):  # in parts: what is waiting is kept in memory
            indices = range(start, min(start + _CHUNK, total))
            for index, one in zip(
                indices, pool.map(lambda index: _look(images, index, hashed), indices), strict=True
            ):
                _keep(seen, index, one)
                yield index, one
                if progress is not None:
                    progress(index + 1, total)


def _look(images: Images, index: int, hashed: bool) -> One:
    """Reads and decodes one image; it may be of any kind and never raises what is the image's fault."""
    form: list[Any] = []

    def look(image: Image.Image) -> None:
        form.extend((image.format, image.mode, _is_turned(image)))

    try:
        source, data = images.open(index), b""
        if isinstance(source, Path):
            # Decoded first: a pipe must not be waited for, and what is too long not be read.
            image = decode_image(source, images.limit, name=images.name(index), look=look)
            data = source.read_bytes()
        else:
            data = source.read()
            image = decode_image(BytesIO(data), images.limit, name=images.name(index), look=look)
    except ImageError as error:
        return One(broken=error.reason)
    except OSError as error:
        return One(broken=f"cannot be read: {error.strerror}")
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
    near = _perceptual(image) if hashed else 0
    return One(digest, near, image.size, _is_grey(image, form[1]), form[2], form[0])


def _keep(seen: Seen, index: int, one: One) -> None:
    seen.ok[index] = one.broken is None
    seen.digest[index], seen.near[index] = one.digest, one.near
    seen.width[index], seen.height[index] = one.size
    seen.grey[index], seen.turned[index] = one.grey, one.turned


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # damaged EXIF, which says nothing
        return False


def _is_grey(image: Image.Image, mode: str) -> bool:
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        return True
    small = np.asarray(image.resize((32, 32), Image.Resampling.BOX), dtype=np.int16)
    return int(np.ptp(small, axis=2).max()) <= 2  # a JPEG's rounding


def _perceptual(image: Image.Image) -> int:
    import imagehash

    bits: NDArray[np.bool_] = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _can_hash() -> bool:
    try:
        return importlib.util.find_spec("imagehash") is not None
    except ValueError:  # made unavailable in sys.modules
        return False


def thumbnail(images: Images, index: int) -> NDArray[np.float32] | None:
    """Returns an image at 16 x 16 pixels, float32 [16, 16, 3] of 0 to 255; None where it can no longer be read."""
    try:
        image = decode_image(images.open(index), images.limit, name=images.name(index))
    except ImageError:  # changed since
        return None
    return np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
