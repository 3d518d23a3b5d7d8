"""The ways to choose features, by name; apart from what does it, as a recipe is checked without torch."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["greedy", "l1", "shapley", "permutation", "taylor", "activation", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
