"""Writes features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.builder.explain.features import Features, FeaturesWriter

MakeFeatures = Callable[[Mapping[str, npt.NDArray[np.floating[Any]]]], Features]


@pytest.fixture
def make_features(tmp_path: Path) -> MakeFeatures:
    """Writes [n, features] by block, in appends of 100 images, and opens it."""
    made: list[Path] = []

    def make(arrays: Mapping[str, npt.NDArray[np.floating[Any]]]) -> Features:
        made.append(tmp_path / str(len(made)))
        count = len(next(iter(arrays.values())))
        with FeaturesWriter(made[-1], {name: array.shape[1] for name, array in arrays.items()}, count) as writer:
            for start in range(0, count, 100):
                writer.append({name: array[start : start + 100] for name, array in arrays.items()})
        return Features(made[-1])

    return make
