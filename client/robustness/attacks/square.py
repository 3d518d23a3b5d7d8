"""Square Attack, L-inf and L2: random search with square-shaped updates, one query per image and step."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from temper.client.robustness.base import Attack, AttackConfig, AttackKind, Slots, margin
from temper.client.robustness.draws import UInt64Array, below, image_keys, random_words
from temper.client.scores import Float32Array, Int64Array, UInt8Array

# After these iterations of 10,000 the covered share is halved once more.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# The first query draws from counters that the steps, two words each, never reach.
_START_COUNTER = 1 << 40
_LOW32 = np.uint64(0xFFFFFFFF)
# The first query of L2 is a mosaic of so many windows in each direction.
_TILES = 5


@dataclass(frozen=True, kw_only=True)
class SquareConfig(AttackConfig):
    """Square Attack."""

    name: Literal["square"] = "square"
    norm: Literal["linf", "l2"] = "linf"
    p_init: float = 0.8
    """Share of the image that the first squares cover; 0.8 as in AutoAttack, 0.05 for undefended ImageNet models
    in the paper."""

    def __post_init__(self) -> None:
        """Check the share as well.

        Raises:
            ValueError: a field is out of its range.
        """
        super().__post_init__()
        if not 0 < self.p_init < 1:
            raise ValueError(f"p_init: got {self.p_init:g}, expected a share between 0 and 1")


class Square(Attack):
    """Square Attack in the L-inf norm.

    The first query puts vertical stripes of +-budget on the image; each further one paints one square, +-budget
    per channel, and keeps it when the margin falls. Where the authors' code never reaches the last row and column,
    this follows the paper and draws the position from all that fit.

    Source: Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack
    via random search", ECCV 2020, arXiv:1912.00049, algorithms 1 and 2.
    """

    def __init__(self, slots: Slots) -> None:
        """Allocate the two images per slot that the search needs: the best so far and the candidate."""
        super().__init__(slots)
        assert isinstance(slots.config, SquareConfig)
        self._seed = slots.config.seed
        num_slots, (height, width, _) = len(slots.label), slots.image_shape
        self._candidate: UInt8Array = np.zeros_like(slots.low)
        self._best: UInt8Array = np.zeros_like(slots.low)
        self._loss: Float32Array = np.zeros(num_slots, dtype=np.float32)
        self._square: Int64Array = np.zeros((num_slots, 3), dtype=np.int64)  # top, left, side of the last one
        self._sides = square_sides(slots.config.p_init, slots.config.max_queries, height, width)

    def propose(self, slots: Int64Array) -> UInt8Array:
        """Return the candidates, uint8 [n, H, W, 3]: stripes first, then the best image with one new square."""
        step = self.slots.num_queries[slots]
        keys = image_keys(self._seed, self.slots.index[slots])
        fresh = step == 0
        if fresh.any():
            self._paint_stripes(slots[fresh], keys[fresh])
        if not fresh.all():
            self._paint_squares(slots[~fresh], keys[~fresh], step[~fresh])
        chosen: UInt8Array = self._candidate[slots]
        return chosen

    def observe(self, slots: Int64Array, scores: Float32Array, /) -> None:
        """Keep the squares that lowered the margin, take back the others; only the square is copied."""
        loss = margin(scores, self.slots.label[slots])
        fresh = self.slots.num_queries[slots] == 1
        better = fresh | (loss < self._loss[slots])
        self._loss[slots[better]] = loss[better]
        rows = zip(slots.tolist(), self._square[slots].tolist(), fresh.tolist(), better.tolist(), strict=True)
        for slot, (top, left, side), is_fresh, is_better in rows:
            best, candidate = self._best[slot], self._candidate[slot]
            if is_fresh:
                best[:] = candidate
                continue
            window = (slice(top, top + side), slice(left, left + side))
            if is_better:
                best[window] = candidate[window]
            else:
                candidate[window] = best[window]

    def _paint_stripes(self, slots: Int64Array, keys: UInt64Array) -> None:
        width = self.slots.image_shape[1]
        counters = _START_COUNTER + np.arange(math.ceil(width * 3 / 64))
        words = random_words(keys[:, None], counters)
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), axis=1)[:, : width * 3].astype(np.bool_)
        for slot, row in zip(slots.tolist(), bits.reshape(-1, 1, width, 3), strict=True):
            self._candidate[slot] = np.where(row, self.slots.high[slot], self.slots.low[slot])

    def _paint_squares(self, slots: Int64Array, keys: UInt64Array, step: Int64Array) -> None:
        height, width, _ = self.slots.image_shape
        side = self._sides[step]
        place, signs = random_words(keys, 2 * step), random_words(keys, 2 * step + 1)
        top = below(place & _LOW32, height - side + 1)
        left = below(place >> np.uint64(32), width - side + 1)
        self._square[slots] = np.stack([top, left, side], axis=1)
        sign = (signs & np.uint64(7)).astype(np.int64)
        other = 1 + below(signs >> np.uint64(32), np.full_like(side, 7))
        columns = (slots, top, left, side, sign, (sign + other) % 8)
        for slot, y, x, s, first, second in zip(*(column.tolist() for column in columns), strict=True):
            window = (slot, slice(y, y + s), slice(x, x + s))
            low, high = self.slots.low[window], self.slots.high[window]
            current = self._best[window]
            painted = np.where(_SIGNS[first], high, low)
            # A square that changes nothing would waste the query. One of the other seven sign patterns is what
            # drawing again until it differs comes to.
            if painted.tobytes() == current.tobytes():
                painted = np.where(_SIGNS[second], high, low)
            self._candidate[window] = painted


# The eight sign patterns of a square, bool [8, 3]: True paints that channel up.
_SIGNS = (np.arange(8)[:, None] >> np.arange(3) & 1).astype(np.bool_)


class SquareL2(Attack):
    """Square Attack in the L2 norm.

    The first query is a mosaic of windows of the whole budget. Each further one takes the change out of one window
    and gives its norm, and what the budget has left, to another of the same size, whose change is drawn towards a
    pattern of two halves of opposite sign; it is kept when the margin falls. What is kept is the change before it
    is rounded to the grid. As in L-inf, the windows reach the last row and column, unlike in the authors' code.

    Source: as `Square`, algorithm 3 and the paragraph on the pattern eta.
    """

    def __init__(self, slots: Slots) -> None:
        """Allocate two changes per slot: the best so far and the candidate's."""
        super().__init__(slots)
        config, num_slots, (height, width, _) = slots.config, len(slots.label), slots.image_shape
        assert isinstance(config, SquareConfig)
        self._seed = config.seed
        # No image is farther than that from another.
        self._epsilon = min(config.epsilon, 255 * math.sqrt(slots.original[0].size))
        self._best: Float32Array = np.zeros(slots.original.shape, dtype=np.float32)
        self._candidate: Float32Array = np.zeros(slots.original.shape, dtype=np.float32)
        self._loss: Float32Array = np.zeros(num_slots, dtype=np.float32)
        self._sides = window_sides(config.p_init, config.max_queries, height, width)

    def propose(self, slots: Int64Array) -> Float32Array:
        """Return the candidates, float32 [n, H, W, 3], cut at 0 and 255; the harness brings them to the grid."""
        state = self.slots
        steps, keys = state.num_queries[slots], image_keys(self._seed, state.index[slots])
        windows = self._draw_windows(keys, steps)
        proposals = state.original[slots].astype(np.float32)
        for row, (proposal, slot, step) in enumerate(zip(proposals, slots.tolist(), steps.tolist(), strict=True)):
            change = self._candidate[slot]
            if step == 0:
                self._lay_mosaic(change, keys[row : row + 1])
            else:
                change[:] = self._best[slot]
                self._move(change, int(self._sides[step]), *windows[row])
            # What black and white cut off is left for a later window.
            change *= self._epsilon / np.linalg.norm(change)
            np.clip(proposal + change, 0, 255, out=change)
            original, proposal[:] = proposal.copy(), change
            change -= original
        return proposals

    def observe(self, slots: Int64Array, scores: Float32Array, /) -> None:
        """Keep the changes that lowered the margin."""
        loss = margin(scores, self.slots.label[slots])
        better = (self.slots.num_queries[slots] == 1) | (loss < self._loss[slots])
        self._loss[slots[better]] = loss[better]
        for slot in slots[better].tolist():
            self._best[slot] = self._candidate[slot]

    def _draw_windows(self, keys: UInt64Array, steps: Int64Array) -> list[list[int]]:
        """Return top and left of the window to fill and of that to empty, and eight random bits, per image."""
        height, width, _ = self.slots.image_shape
        side = self._sides[steps]
        words = [random_words(keys, 3 * steps + number) for number in range(3)]
        places = [
            below(half, size - side + 1)
            for word in words[:2]
            for half, size in ((word & _LOW32, height), (word >> np.uint64(32), width))
        ]
        found: list[list[int]] = np.stack([*places, (words[2] & np.uint64(255)).astype(np.int64)], axis=1).tolist()
        return found

    def _lay_mosaic(self, change: Float32Array, key: UInt64Array) -> None:
        height, width, _ = self.slots.image_shape
        side = max(1, min(height, width) // _TILES)
        rows, columns = height // side, width // side
        words = random_words(key, _START_COUNTER + np.arange(math.ceil(rows * columns / 8)))
        bits = words.astype("<u8").view(np.uint8)[: rows * columns].reshape(rows, columns)
        change[:] = 0
        for row, column in np.ndindex(rows, columns):
            top, left = row * side + (height - rows * side) // 2, column * side + (width - columns * side) // 2
            change[top : top + side, left : left + side] = _signed(side, int(bits[row, column]))

    def _move(
        self, change: Float32Array, side: int, top: int, left: int, top2: int, left2: int, bits: int
    ) -> None:
        filled = change[top : top + side, left : left + side]
        unused = max(0.0, self._epsilon**2 - float(np.vdot(change, change)))
        squares = (filled**2).sum(axis=(0, 1))
        pattern = _signed(side, bits) + filled / (np.sqrt(squares) + 1e-10)
        # Where the two windows overlap, what is there counts once.
        change[top : top + side, left : left + side] = 0
        emptied = change[top2 : top2 + side, left2 : left2 + side]
        squares += (emptied**2).sum(axis=(0, 1))
        emptied[:] = 0
        norms = np.sqrt((pattern**2).sum(axis=(0, 1))) + 1e-10
        change[top : top + side, left : left + side] = pattern * (np.sqrt(unused / 3 + squares) / norms)


@cache
def eta(side: int) -> Float32Array:
    """Return the pattern of a window of L2, float32 [side, side], of norm 1.

    The upper half is a pile of squares around its centre, the k-th 2k - 1 pixels wide, cut at its ends, of
    the weight 1 / k**2; the lower half is the same with the other sign.
    """
    pattern = np.zeros((side, side), dtype=np.float32)
    for rows, sign in ((pattern[: side // 2], 1), (pattern[side // 2 :], -1)):
        height = len(rows)
        y, x = height // 2, side // 2
        for k in range(1, max(y, x) + 2):
            rows[max(0, y - k + 1) : y + k, max(0, x - k + 1) : x + k] += sign / k**2
    pattern /= np.linalg.norm(pattern)
    return pattern


def _signed(side: int, bits: int) -> Float32Array:
    """Return the pattern with a sign for each channel (bits 0 to 2), lying on its side or not (bit 3)."""
    pattern = eta(side).T if bits & 8 else eta(side)
    signs = np.array([1 if bits >> channel & 1 else -1 for channel in range(3)], dtype=np.float32)
    return pattern[..., None] * signs


def window_sides(p_init: float, max_queries: int, height: int, width: int) -> Int64Array:
    """Return the side of the windows of L2 for every query: as `square_sides`, but odd and at least 3."""
    largest = (min(height, width) - 1) | 1
    return np.minimum(np.maximum(square_sides(p_init, max_queries, height, width), 3) | 1, largest)


def square_sides(p_init: float, max_queries: int, height: int, width: int) -> Int64Array:
    """Return the side of the square in pixels for every query 0 to max_queries - 1 (0 is the stripes).

    The covered share starts at `p_init` and is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of
    10,000 iterations, scaled to `max_queries`; a square never covers the whole side of the image.
    """
    sides = np.zeros(max_queries, dtype=np.int64)
    largest = max(1, min(height, width) - 1)
    for query in range(max_queries):
        iteration = int(max(query - 1, 0) / max_queries * 10_000)
        share = p_init / 2 ** bisect_left(_HALVINGS, iteration)
        sides[query] = min(max(1, round(math.sqrt(share * height * width))), largest)
    return sides


SQUARE = AttackKind(
    about="Square Attack: random search with square-shaped updates, one query per step",
    config=SquareConfig,
    sees="scores",
    attack=lambda slots: (SquareL2 if slots.config.norm == "l2" else Square)(slots),
)
