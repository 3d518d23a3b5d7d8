"""Random noise within the budget: the baseline that an attack must beat to mean anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from temper.client.robustness.base import Attack, AttackConfig, AttackKind
from temper.client.robustness.draws import image_keys
from temper.client.scores import Int64Array


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(AttackConfig):
    """Random noise."""

    name: Literal["noise"] = "noise"
    norm: Literal["linf", "l2"] = "linf"


class Noise(Attack):
    """Independent draws, of two sorts in turn.

    L-inf: even queries uniform in the ball, odd ones on its corners (+-budget everywhere).
    L2: even queries uniform on the sphere, odd ones spread over the values as evenly as whole steps can be, each
    up or down. What the sphere asks of a single value may be less than half a step of the grid, and rounds to
    nothing; whole steps use the budget up.
    """

    def propose(self, slots: Int64Array) -> npt.NDArray[Any]:
        """Return one fresh draw per slot, int16 or float32 [n, H, W, 3]; the harness cuts it at 0 and 255."""
        state = self.slots
        config, size = state.config, state.original[0].size
        draw, dtype = (_draw_l2, np.float32) if config.norm == "l2" else (_draw_linf, np.int16)
        keys = image_keys(config.seed, state.index[slots])
        drawn = np.empty((len(slots), *state.image_shape), dtype=dtype)
        columns = (slots, keys, state.num_queries[slots])
        rows = zip(drawn, *(column.tolist() for column in columns), strict=True)
        for out, slot, key, query in rows:
            generator = np.random.Generator(np.random.Philox(key=key, counter=query << 64))
            change = draw(generator, query % 2 == 0, config.epsilon, size)
            np.add(change.reshape(out.shape), state.original[slot], out=out, casting="unsafe")
        return drawn


def _draw_linf(generator: np.random.Generator, inside: bool, epsilon: float, size: int) -> npt.NDArray[Any]:
    budget = math.floor(epsilon)
    if inside:
        steps = generator.integers(0, 2 * budget, size, dtype=np.uint16, endpoint=True)
    else:
        steps = _bits(generator, size) * np.uint16(2 * budget)
    return np.subtract(steps, budget, dtype=np.int16, casting="unsafe")


def _draw_l2(generator: np.random.Generator, dense: bool, epsilon: float, size: int) -> npt.NDArray[Any]:
    epsilon = min(epsilon, 255 * math.sqrt(size))  # no image is farther than that from another
    if dense:
        direction = generator.standard_normal(size, dtype=np.float32)
        return direction * np.float32(epsilon / np.linalg.norm(direction))
    step = math.floor(epsilon / math.sqrt(size))
    num_more = max(0, math.floor((epsilon**2 - size * step**2) / (2 * step + 1)))
    change = np.full(size, step, dtype=np.int16)
    change[generator.permutation(size)[:num_more]] += 1
    return change * (2 * _bits(generator, size).astype(np.int16) - 1)


def _bits(generator: np.random.Generator, num: int) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(generator.bytes(-(-num // 8)), dtype=np.uint8), count=num)


NOISE = AttackKind(
    about="Random noise: independent draws, the baseline of every attack",
    config=NoiseConfig,
    sees="nothing",
    attack=Noise,
)
