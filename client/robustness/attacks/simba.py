"""SimBA: one direction of a basis after the other, up or down, kept when the true class grows less likely."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from temper.client.robustness.base import Attack, AttackConfig, AttackKind, Slots
from temper.client.robustness.draws import image_keys
from temper.client.scores import Float32Array, Int64Array

# The paper's step, 0.2 on values of 0 to 1.
_STEP = 51.0
# Directions of the cosine basis are tried in bands of this share of each side's frequencies, the lowest first.
_BAND = 1 / 8


@dataclass(frozen=True, kw_only=True)
class SimbaConfig(AttackConfig):
    """SimBA."""

    name: Literal["simba"] = "simba"
    norm: Literal["linf", "l2"] = "linf"
    basis: Literal["dct", "pixel"] = "dct"
    """Directions: two-dimensional cosines of one channel, low frequencies first, or single values of the image."""
    step: float | None = None
    """Length of one step (L2) in units of 1/255. When not given: 51, or, where that would round to nothing, what
    changes a value of the image by 2; with single values in L-inf the budget."""

    def __post_init__(self) -> None:
        """Check the step as well.

        Raises:
            ValueError: a field is out of its range.
        """
        super().__post_init__()
        if self.step is not None and not 1 <= self.step < math.inf:
            raise ValueError(f"step: got {self.step:g}, expected at least 1, and finite (units of 1/255)")


class Simba(Attack):
    """SimBA with the basis of pixels or of cosines.

    The first query is the image itself. Then each direction, in random order and without repetition, is tried
    upwards and, if that did not help, downwards; a change that makes the true class less likely is kept, as it was
    before it is rounded to the grid. It never leaves the budget: in L2 it is scaled back to the sphere.

    Source: Guo, Gardner, You, Wilson, Weinberger, "Simple black-box adversarial attacks", ICML 2019,
    arXiv:1905.07121, algorithm 1 and section 3.1.
    """

    def __init__(self, slots: Slots) -> None:
        """Allocate the order of directions, and two changes per slot: the best so far and the candidate's."""
        super().__init__(slots)
        assert isinstance(slots.config, SimbaConfig)
        self._config, num_slots = slots.config, len(slots.label)
        self._length = _step_length(slots.config, slots.image_shape)
        num_directions = min(slots.original[0].size, slots.config.max_queries)
        self._order: Int64Array = np.zeros((num_slots, num_directions), dtype=np.int64)
        self._next: Int64Array = np.zeros(num_slots, dtype=np.int64)
        self._up = np.ones(num_slots, dtype=np.bool_)
        self._best: Float32Array = np.zeros(slots.original.shape, dtype=np.float32)
        self._candidate: Float32Array = np.zeros(slots.original.shape, dtype=np.float32)
        self._loss: Float32Array = np.zeros(num_slots, dtype=np.float32)

    def propose(self, slots: Int64Array) -> Float32Array:
        """Return the candidates, float32 [n, H, W, 3]: the image itself first, then one step each."""
        state = self.slots
        proposals = state.original[slots].astype(np.float32)
        for proposal, slot in zip(proposals, slots.tolist(), strict=True):
            change = self._candidate[slot]
            if state.num_queries[slot] == 0:
                self._start(slot)
                continue
            np.add(self._best[slot], self._step(slot), out=change)
            if self._config.norm == "linf":
                np.clip(change, -state.ball.reach, state.ball.reach, out=change)
            elif (norm := float(np.linalg.norm(change))) > self._config.epsilon:
                change *= self._config.epsilon / norm
            np.clip(change, -proposal, 255 - proposal, out=change)
            proposal += change
        return proposals

    def observe(self, slots: Int64Array, scores: Float32Array, /) -> None:
        """Keep what made the true class less likely; turn to the next direction after it, or after both signs."""
        loss = _log_odds(scores, self.slots.label[slots])
        first = self.slots.num_queries[slots] == 1
        better = first | (loss < self._loss[slots])
        self._loss[slots[better]] = loss[better]
        for slot in slots[better & ~first].tolist():
            self._best[slot] = self._candidate[slot]
        going, going_better = slots[~first], better[~first]
        over = going_better | ~self._up[going]
        self._next[going[over]] += 1
        self._up[going] = over

    def _start(self, slot: int) -> None:
        """Begin a new image."""
        self._next[slot], self._up[slot], self._best[slot] = 0, True, 0
        key = image_keys(self._config.seed, self.slots.index[slot : slot + 1])
        generator = np.random.Generator(np.random.Philox(key=int(key[0])))
        order = generator.permutation(self.slots.original[0].size)
        if self._config.basis == "dct":
            order = order[np.argsort(_bands(self.slots.image_shape)[order], kind="stable")]
        self._order[slot] = order[: self._order.shape[1]]

    def _step(self, slot: int) -> Float32Array:
        """Return one step along the direction whose turn it is, [H, W, 3]; after the last comes the first."""
        shape = self.slots.image_shape
        y, x, channel = np.unravel_index(self._order[slot, self._next[slot] % self._order.shape[1]], shape)
        length = self._length if self._up[slot] else -self._length
        step: Float32Array = np.zeros(shape, dtype=np.float32)
        if self._config.basis == "pixel":
            step[y, x, channel] = length
        else:
            step[..., channel] = length * np.outer(cosines(shape[0])[y], cosines(shape[1])[x])
        return step


@cache
def cosines(size: int) -> Float32Array:
    """Return the orthonormal cosine basis (DCT-II) of a side of this many pixels, float32 [frequency, pixel]."""
    pixel, frequency = np.arange(size) + 0.5, np.arange(size)[:, None]
    basis = np.cos(np.pi / size * frequency * pixel) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.astype(np.float32)


@cache
def _bands(shape: tuple[int, int, int]) -> Int64Array:
    """Return the band of each direction, int64 [H * W * 3]: that of its higher frequency."""
    rows, columns = (np.arange(size) // max(1, math.ceil(size * _BAND)) for size in shape[:2])
    bands = np.broadcast_to(np.maximum(rows[:, None], columns)[..., None], shape)
    return bands.reshape(-1).astype(np.int64)


def _step_length(config: SimbaConfig, shape: tuple[int, int, int]) -> float:
    if config.step is not None:
        return config.step
    if config.basis == "pixel":
        return config.ball.reach if config.norm == "linf" else min(_STEP, config.epsilon)
    # A cosine of length L changes a value by at most 2 * L / sqrt(H * W).
    length = max(_STEP, math.sqrt(shape[0] * shape[1]))
    return length if config.norm == "linf" else min(length, config.epsilon)


def _log_odds(scores: Float32Array, labels: Int64Array) -> Float32Array:
    """Return float32 [n]: the logarithm of p / (1 - p) of the true class; unlike p, it does not saturate."""
    rows = np.arange(len(labels))
    others = scores.astype(np.float64)
    others[rows, labels] = -np.inf
    top = others.max(axis=1)
    rest = top + np.log(np.exp(others - top[:, None]).sum(axis=1))
    odds: npt.NDArray[np.float32] = (scores[rows, labels] - rest).astype(np.float32)
    return odds


SIMBA = AttackKind(
    about="SimBA: steps along pixels or cosines, kept when the true class grows less likely",
    config=SimbaConfig,
    sees="scores",
    attack=Simba,
)
