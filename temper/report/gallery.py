"""The gallery's pictures: what the attack started from, what fooled the model, and the difference, amplified."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


def amplified_difference(original: Images, adversarial: Images) -> Images:
    """The signed difference on grey, scaled so that its largest change fills the range.

    Args:
        original: uint8 [H, W, 3].
        adversarial: uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3]; 128 where nothing changed.
    """
    difference = adversarial.astype(np.int16) - original.astype(np.int16)
    largest = max(int(np.abs(difference).max()), 1)
    return (128 + difference * (127 / largest)).round().astype(np.uint8)


def write_gallery(entries: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Writes three PNG files per adversarial image.

    Args:
        entries: Each with `original` and `adversarial` (uint8 [H, W, 3]); whatever else it holds is kept.
        folder: Where the files go; made when missing.

    Returns:
        The entries with the names of the files, inside `folder`, in place of the arrays, and a `difference`.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, entry in enumerate(entries):
        original, adversarial = entry["original"], entry["adversarial"]
        difference = amplified_difference(original, adversarial)
        files = {}
        for kind, pixels in (("original", original), ("adversarial", adversarial), ("difference", difference)):
            name = f"{number:02d}-{kind}.png"
            Image.fromarray(pixels).save(folder / name)
            files[kind] = name
        written.append({**entry, **files})
    return written
