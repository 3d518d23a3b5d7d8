"""Logits into named probabilities; how images are read is tested with `imaging`, which does it."""

from __future__ import annotations

import numpy as np
import pytest

from temper.client.images import softmax, top_k


def test_softmax_does_not_overflow() -> None:
    probabilities = softmax(np.array([[1e4, 1e4, -1e4], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(probabilities, [[0.5, 0.5, 0.0], [1 / 3] * 3])


def test_top_k_is_best_first_and_named() -> None:
    first, second = top_k(np.array([[0.0, 3.0, 1.0], [9.0, 0.0, 0.0]]), ("cat", "dog"), k=2)
    assert [(p.label, p.index) for p in first] == [("dog", 1), ("2", 2)]
    assert first[0].probability == pytest.approx(np.exp(3) / (1 + np.exp(3) + np.exp(1)))
    assert [p.label for p in second] == ["cat", "dog"]
    assert len(top_k(np.zeros((1, 3)), k=9)[0]) == 3
