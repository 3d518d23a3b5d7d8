"""The library that corrupts images, and its randomness: the only file that imports it.

It is imagecorruptions-imaug, the kept fork of imagecorruptions: ImageNet-C's own code for images of any size (C.
Michaelis et al., "Benchmarking robustness in object detection", arXiv:1907.07484). imagecorruptions 1.1.2 itself
needs what setuptools, scipy and scikit-image have removed since. The strengths are ImageNet-C's, in pixels, at any
size; but elastic_transform bends by a share of the size, and motion_blur and snow do without ImageMagick.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from temper.client.corruptions.config import KINDS
from temper.client.errors import ClientError
from temper.client.robustness.draws import seeded_numpy
from temper.client.scores import UInt8Array

LIBRARIES = ("imagecorruptions-imaug", "numba", "numpy", "opencv-python", "pillow", "scikit-image", "scipy")
"""Packages, as pip names them, whose versions decide the pixels."""
MIN_SIZE = 32
"""Pixels on each side that the library takes at least."""
# These draw from generators of their own, and take a seed for it; the others draw from numpy's global one.
_OWN_SEED = ("impulse_noise", "glass_blur")


def library_versions() -> dict[str, str]:
    """Return the versions of `LIBRARIES`; "none" for one that is not installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def load_library() -> Callable[..., Any]:
    """Return the library's function.

    Raises:
        ClientError: it is not installed, or does not load.
    """
    try:
        from imagecorruptions import corrupt  # type: ignore[import-untyped]  # ships no types
    except ImportError as error:
        raise ClientError(
            f"corruptions: imagecorruptions-imaug cannot be imported ({error}); "
            "install it with: pip install 'temper[corruptions]'"
        ) from error
    found: Callable[..., Any] = corrupt
    return found


def corrupt_image(image: UInt8Array, index: int, kind: str, severity: int, seed: int) -> UInt8Array:
    """Return a corrupted image, uint8 [H, W, 3]: the same one whatever is corrupted before or beside it.

    Args:
        image: uint8 [H, W, 3], at least 32 pixels on each side.
        index: its index in the data set: with `kind`, `severity` and `seed` it decides every draw.
        kind: one of `KINDS`.
        severity: 1 to 5.
        seed: of the measurement.

    Raises:
        ClientError: the library is not installed.
    """
    corrupt = load_library()
    words = np.random.SeedSequence([seed, index, KINDS.index(kind), severity]).generate_state(4)
    own = {"seed": int(words[0])} if kind in _OWN_SEED else {}
    with seeded_numpy(words):
        found: UInt8Array = corrupt(np.array(image), severity, kind, **own)
    return found
