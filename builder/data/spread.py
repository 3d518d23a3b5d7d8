"""Some rows of many, wherever a sample has to look like the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def spread(total: int, wanted: int) -> NDArray[np.int64]:
    """Returns at most `wanted` of `total` rows in order, spread evenly: images may be sorted by class."""
    count = min(total, wanted)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)
