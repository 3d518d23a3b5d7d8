"""Evidence whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from temper.gate.evidence import Answers, Evidence

Make = Callable[..., Evidence]


@pytest.fixture
def counted() -> Make:
    """Makes evidence of exactly so many images lost and won, of n in classes that take turns."""

    def make(n: int, lost: int = 0, won: int = 0, *, classes: int = 2, of_class: int = 0, **more: Any) -> Evidence:
        labels = np.arange(n) % classes
        own = np.flatnonzero(labels == of_class)
        before, after = np.ones(n, dtype=np.bool_), np.ones(n, dtype=np.bool_)
        after[own[:lost]] = False
        before[own[lost : lost + won]] = False
        first, second = (Answers(classes=np.where(hits, labels, -1)) for hits in (before, after))
        names = ["cat", "dog", "bird", "fish"][:classes]
        return Evidence(class_names=names, labels=labels, reference=first, candidate=second, **more)

    return make
