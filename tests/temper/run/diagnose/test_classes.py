"""A wrong list of the classes is seen in the answers, and nothing is read out of few images or a bad network."""

from __future__ import annotations

import numpy as np
import pytest

from temper.run.diagnose.classes import other_order

RIGHT = np.arange(24) % 4
REVERSED = "classes: 95.8 % instead of 0.0 % would be right in another order, in which output 0 is d, output 1 is"
# The right classes, the answers, and how what is said of them begins.
ORDERS = {
    "the same": (RIGHT, RIGHT, ""),
    "reversed": (RIGHT, np.where(np.arange(24) == 5, 0, 3 - RIGHT), REVERSED),
    "two swapped": (RIGHT, np.array([0, 2, 1, 3])[RIGHT], "classes: 100.0 % instead of 50.0 % would be right in"),
    "at random": (RIGHT, np.random.default_rng(0).integers(0, 4, 24), ""),
    "good, but for some": (RIGHT, np.where(np.arange(24) < 6, 3 - RIGHT, RIGHT), ""),
    "one image of each class": (np.arange(24), np.arange(24)[::-1], ""),
    "one output for all": (np.repeat([0, 1], [21, 3]), np.full(24, 2), ""),
    "one class taken for another": (np.repeat([0, 1], [16, 8]), np.repeat([3, 1], [16, 8]), ""),
    "two of very many": (
        RIGHT % 2,
        21_840 - RIGHT % 2,
        "classes: 100.0 % instead of 0.0 % would be right in another",
    ),
    "two classes, at chance": (RIGHT % 2, np.arange(24) // 2 % 2, ""),
}


@pytest.mark.parametrize(("right", "answers", "begins"), ORDERS.values(), ids=ORDERS.keys())
def test_another_order_of_the_classes(right: np.ndarray, answers: np.ndarray, begins: str) -> None:  # type: ignore[type-arg]
    said = other_order(answers, right, "abcd" if answers.max() < 4 else ())
    assert said.startswith(begins) and bool(said) == bool(begins)
    assert not begins or said.endswith("put the names into the order of the network's outputs: `labels` in [data]")


def test_outputs_without_names_are_numbered() -> None:
    assert "in which output 0 is 3, output 1 is 2" in other_order(3 - RIGHT, RIGHT, ())
