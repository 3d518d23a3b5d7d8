"""The attack `stripes`: random vertical stripes; of the answers it is shown the classes, and keeps the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from temper.client.robustness.base import Attack, AttackConfig, AttackKind, Slots


@dataclass(frozen=True, kw_only=True)
class StripesConfig(AttackConfig):
    """Stripes, random in place and sign."""

    name: Literal["stripes"] = "stripes"
    norm: Literal["linf", "l2"] = "linf"
    width: int = 2
    """Width of a stripe in pixels."""

    def __post_init__(self) -> None:
        """Check the width as well.

        Raises:
            ValueError: a field is out of its range.
        """
        super().__post_init__()
        if self.width < 1:
            raise ValueError(f"width: got {self.width}, expected at least 1")


class Stripes(Attack):
    """Random stripes of +-budget per channel. With the answers that it keeps a cleverer attack would begin."""

    def __init__(self, slots: Slots) -> None:
        """Start without an answer; one row per slot, as nothing is shared between them."""
        super().__init__(slots)
        self.answered = np.full(len(slots.label), -1, dtype=np.int64)

    def propose(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return one fresh draw per slot, int64 [n, H, W, 3]; the harness keeps it in the budget."""
        state = self.slots
        assert isinstance(state.config, StripesConfig)
        proposals = state.original[slots].astype(np.int64)
        num_stripes = -(-state.image_shape[1] // state.config.width)
        for proposal, slot in zip(proposals, slots.tolist(), strict=True):
            key = [state.config.seed, int(state.index[slot]), int(state.num_queries[slot])]
            signs = np.random.default_rng(key).choice([-1, 1], (num_stripes, 3))
            stripes = signs.repeat(state.config.width, axis=0)[: state.image_shape[1]]
            proposal += stripes * state.ball.reach
        return proposals

    def observe(self, slots: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], /) -> None:
        """Note the classes."""
        self.answered[slots] = labels


STRIPES = AttackKind(about="Random stripes", config=StripesConfig, sees="labels", attack=Stripes)
