"""Decoding an image file and fitting it to a model."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from .content import name_content
from .errors import ImageError
from .fit import fit_image, work_pixels
from .formats import EXPECTED, FORMATS, MAX_PIXELS, max_bytes, max_pixels, share_of
from .preprocess import Preprocessing

Pixels = npt.NDArray[np.uint8]

# What resizing may take, as a multiple of the largest image: a gigabyte. A photo takes a hundredth of that.
_MAX_WORK = 4
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # TIFF's tags
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow warns on standard error of damaged metadata, which nothing here uses, and of large images, which are
# refused.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


def read_image(
    source: Path | str | IO[bytes],
    how: Preprocessing,
    *,
    limit: int | None = None,
    name: Path | str | None = None,
    admit: Callable[[Image.Image], None] | None = None,
) -> Pixels:
    """Decodes an image file and makes it what a model takes.

    Args:
        source: A file in one of `FORMATS`, or such a file opened for reading.
        how: The geometry; scale, mean and std are computed in the engine.
        limit: The most pixels that it may have; `max_pixels` when not given.
        name: As in `decode_image`.
        admit: As in `decode_image`.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        ImageError: As `decode_image`; or it is so long and thin that resizing it takes more memory than any photo.
    """
    limit = max_pixels(how.height, how.width) if limit is None else limit
    image = decode_image(source, limit, upright=how.upright, name=name, admit=admit)
    if work_pixels(image.size, how) > _MAX_WORK * max(MAX_PIXELS, limit):
        what = f"is {image.width} x {image.height} pixels, too long and thin to be resized"
        raise ImageError(_name(source, name), what, "a photo")
    return np.asarray(fit_image(image, how))


def read_encoded(path: Path, how: Preprocessing) -> bytes:
    """Reads an image file as it is, for a server to decode.

    Raises:
        ImageError: It is missing, no regular file, or longer than any image that `read_image` takes.
    """
    try:
        with _open(path) as file:
            _check_file(path, file, max_pixels(how.height, how.width))
            return file.read()
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror}", "an image file") from error


def decode_image(
    source: Path | str | IO[bytes],
    limit: int,
    *,
    upright: bool = True,
    name: Path | str | None = None,
    admit: Callable[[Image.Image], None] | None = None,
    look: Callable[[Image.Image], None] | None = None,
) -> Image.Image:
    """Decodes an image file at its own size, in RGB; of several frames or pages the first.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, transparency is dropped.

    Args:
        source: A file in one of `FORMATS`, or such a file opened for reading, whose position does not matter.
        limit: The most pixels that it may have; checked before anything is decoded.
        upright: Apply the EXIF rotation.
        name: What messages call it; the path of one.
        admit: Is given the image when its size is known and nothing of it is decoded; may raise ImageError.
        look: Is given the image as the file has it, decoded and not yet in RGB.

    Raises:
        ImageError: The file is missing, no regular file, no image, damaged, or too large.
    """
    path = _name(source, name)
    try:
        with _open(source) as file:
            _check_file(path, file, limit)
            try:
                with Image.open(file, formats=tuple(FORMATS)) as image:
                    _check_size(path, image, limit)
                    if admit is not None:
                        admit(image)
                    image.load()
                    if look is not None:
                        look(image)
                    return to_rgb(image, upright=upright)
            except UnidentifiedImageError as error:
                raise ImageError(path, _what_is(file), EXPECTED) from error
    except ImageError:
        raise
    except FileNotFoundError as error:
        what = (
            "is a link to nothing" if isinstance(source, Path | str) and os.path.islink(source) else "no such file"
        )
        raise ImageError(path, what, "an image") from error
    except IsADirectoryError as error:
        raise ImageError(path, "is a folder", "an image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+", str(error))
        raise _too_large(path, f"{int(found[0]):,} pixels" if found else "more", limit) from error
    except OSError as error:
        # The system's error has a number, Pillow's for damaged data has none.
        reason = f"cannot be read: {error.strerror}" if error.errno else f"cannot be decoded ({error})"
        raise ImageError(path, reason, "a whole image file") from error
    # Pillow's decoders raise nearly anything for damaged data: ValueError, struct.error, MemoryError.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ImageError(path, f"cannot be decoded ({reason})", "a whole image file") from error


def to_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """Returns an image in 8-bit RGB, by its EXIF upright if wanted; it may be the same object.

    Raises:
        ValueError: Its pixels have no known scale: floating-point, or integers of more than 16 bits.
    """
    if upright:
        image = _upright(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose scale nobody knows")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's convert would clip rather than scale
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
            raise ValueError("grey pixels of more than 16 bits")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    image.info.pop("transparency", None)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it copies an image that is upright, and fails where it cannot rewrite the EXIF.
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF, which says nothing of the pixels
        return image
    return image if method is None else image.transpose(method)


def _name(source: Path | str | IO[bytes], name: Path | str | None) -> Path | str:
    return name if name is not None else source if isinstance(source, Path | str) else "image"


def _open(source: Path | str | IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    if not isinstance(source, Path | str):
        return contextlib.nullcontext(source)
    # A pipe must not be waited for; for regular files this changes nothing.
    file = open(source, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ImageError(source, "is no regular file", "an image")
    return file


def _check_file(path: Path | str, file: IO[bytes], limit: int) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > max_bytes(limit):
        raise _too_large(path, f"{size:,} bytes, more than any image", limit)


def _check_size(path: Path | str, image: Image.Image, limit: int) -> None:
    width, height = image.size
    limit = share_of(limit, image.format)
    if min(width, height) < 1:
        raise ImageError(path, f"is {width} x {height} pixels", "at least 1 x 1")
    if width * height > limit:
        raise _too_large(path, f"{width} x {height} = {width * height:,} pixels", limit)
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 1) * tags.get(_TILE_HEIGHT, 1)
    if tile > limit:  # decoded whole, whatever part of it the image takes
        raise _too_large(path, f"tiles of {tile:,} pixels", limit)


def _too_large(path: Path | str, size: str, limit: int) -> ImageError:
    return ImageError(path, f"is too large: {size}, expected at most {limit:,} pixels; scale it down first")


def _what_is(file: IO[bytes]) -> str:
    file.seek(0)
    what = name_content(file.read(1024))
    return f"is {what}" if what else "is no image that can be read"
