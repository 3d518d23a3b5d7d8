"""Which causes are tried: all of them on a few images, the best on all, then pairs, as far as the budget goes.

The budget is counted in images that a network is run on, never in seconds: a slow machine finds the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from temper.run.diagnose.hypotheses import Hypothesis, permuted
from temper.run.diagnose.network import Networks
from temper.run.diagnose.pipeline import Picture, Pipeline, finish, fit, normalise
from temper.run.diagnose.scores import are_probabilities, as_logits, match_columns, squares, writing_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]

_FEW = 4
"""Images that every cause is tried on: a wrong one is far off on any."""
_NUM_BEST = 4
"""Causes that are tried on all images, and that others are joined to."""
_NUM_WHOLE, _AT_LEAST = 32, 8
"""The share of the budget that one pass over all images may take; and how many images they are at least."""
_GOOD = 1e-4
"""The share of the difference that a cause may leave and still be all there is to look for."""
_CHUNK = 16
"""Images that are in memory as the network takes them."""
_MAX_FITTED = 1 << 28
"""Bytes of sized images that are remembered."""
_MACS = 1e12
"""Multiplications that an effort of 1 pays for: some 25 s of one core."""


@dataclass(frozen=True, eq=False)
class Tried:
    """Some causes together, on the first images or on all."""

    parts: tuple[Hypothesis, ...]
    """The causes; none is the right pipeline."""
    how: Pipeline
    """With them."""
    squares: NDArray[np.float64]
    """What it leaves of the served scores, by image."""

    @property
    def left(self) -> float:
        """What it leaves in all."""
        return float(self.squares.sum())

    @property
    def words(self) -> str:
        """The causes in words."""
        return " and ".join(part.words for part in self.parts) or "as the network was trained"


class Bench:
    """The images, the networks, and what was served: scores any pipeline against it."""

    def __init__(
        self, pictures: Sequence[Picture], networks: Networks, served: NDArray[np.float32], num: int | None = None
    ) -> None:
        """Takes the pictures in the order in which they were answered, and the answers [N, classes].

        Of these the first `num` are compared; the others only complete the batches that they were answered in.
        """
        self._pictures, self._networks, self._all = pictures, networks, served
        self.answers = served[:num]
        self.has_probabilities = are_probabilities(self.answers)
        self.served = as_logits(self.answers) if self.has_probabilities else self.answers
        self._written = writing_of(self.answers)
        self._fitted: dict[tuple[object, ...], NDArray[np.uint8]] = {}
        self._logits: dict[tuple[object, ...], NDArray[np.float32]] = {}
        self.num_run = 0
        """Images that a network was run on; the same pixels are not run again."""

    def afford(self, how: Pipeline, effort: float) -> tuple[Bench, int]:
        """The same on so many of the images, at least some, as an effort pays for, and that budget in images."""
        budget = int(effort * _MACS / self._networks.num_macs(how))
        num = max(_AT_LEAST, budget // _NUM_WHOLE)
        cut = Bench(self._pictures, self._networks, self._all, num)
        return (self if num >= len(self) else cut), budget

    def __len__(self) -> int:
        """The number of images that are compared."""
        return len(self.served)

    def answer(self, how: Pipeline, num: int | None = None) -> NDArray[np.float32]:
        """What a pipeline answers to the first images, written as the served scores are: [num, classes]."""
        return self._written(finish(self._run(how, len(self) if num is None else num), how))

    def scores(self, how: Pipeline, num: int | None = None) -> NDArray[np.float32]:
        """What a pipeline makes of the first images, as the served scores are compared: [num, classes]."""
        if not self.has_probabilities:
            return self.answer(how, num)
        if how.output.startswith("softmax"):
            return as_logits(self.answer(how, num))
        made = finish(self._run(how, len(self) if num is None else num), how)
        return as_logits(self._written(finish(made, replace(how, output="softmax", order=None))))

    def try_on(self, parts: Sequence[Hypothesis], how: Pipeline, num: int | None = None) -> Tried:
        """Tries causes on the first images, or on all."""
        num = len(self) if num is None else num
        for part in parts:
            how = part.apply(how)
        return Tried(tuple(parts), how, squares(self.served[:num], self.scores(how, num)))

    def order_of(self, how: Pipeline, images: slice) -> tuple[int, ...]:
        """The order of outputs that some images' scores show."""
        made = self.scores(replace(how, order=None))
        return tuple(match_columns(self.served[images], made[images]))

    def _run(self, how: Pipeline, num: int) -> NDArray[np.float32]:
        """Logits, batch by batch where batch normalisation makes one of it, else image by image."""
        size = how.batch_norm or 1
        fitted = self._fit(how, min(len(self._pictures), -(-num // size) * size))
        made: list[NDArray[np.float32]] = []
        for start in range(0, len(fitted), -(-_CHUNK // size) * size):
            values = normalise(fitted[start : start + -(-_CHUNK // size) * size], how)
            units = [values[begin : begin + size] for begin in range(0, len(values), size)]
            keys = [(how.network, size * (how.batch_norm > 0), how.precision, _digest(unit)) for unit in units]
            new = [index for index, key in enumerate(keys) if key not in self._logits]
            if new:
                logits = self._networks.logits(np.concatenate([units[index] for index in new]), how)
                self.num_run += len(logits)
                for place, index in enumerate(new):
                    self._logits[keys[index]] = logits[place * size : (place + 1) * size]
            made += [self._logits[key] for key in keys]
        return np.concatenate(made)[:num]

    def _fit(self, how: Pipeline, num: int) -> NDArray[np.uint8]:
        known = self._fitted.pop(how.geometry, None)
        if known is None or len(known) < num:
            known = np.stack([fit(one, how) for one in self._pictures[:num]])
        self._fitted[how.geometry] = known
        while sum(each.nbytes for each in self._fitted.values()) > _MAX_FITTED and len(self._fitted) > 1:
            del self._fitted[next(iter(self._fitted))]
        return known[:num]


def _digest(values: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(values.tobytes(), digest_size=16).digest()


def search(
    bench: Bench, right: Pipeline, single: Sequence[Hypothesis], budget: int, progress: Progress
) -> tuple[list[Tried], bool]:
    """Tries causes until one leaves next to nothing, or the budget is spent.

    Args:
        bench: The images and what was served.
        right: The pipeline that the causes change.
        single: The causes.
        budget: Images that a network may have been run on when a further try begins.
        progress: Called with (tries done, tries in all).

    Returns:
        What was tried on all images, the best first, the right pipeline among them; and whether the budget was
        spent before all was tried.
    """
    before = bench.try_on((), right)
    few = min(_FEW if len(bench) > _AT_LEAST else _FEW // 2, len(bench))  # few images are slow ones
    total = len(single) * (1 + _NUM_BEST)
    singles: list[Tried] = []
    is_spent = False
    for done, cause in enumerate(single):
        is_spent = is_spent or bench.num_run > budget
        if not is_spent:
            singles.append(bench.try_on((cause,), right, few))
        progress(done + 1, total)
    singles.sort(key=lambda one: one.left)
    final = [before, *_on_all(bench, right, singles, budget), *_reordered(bench, right, singles, few)]
    best = min(final, key=lambda one: one.left)
    if is_spent or best.left <= _GOOD * before.left:
        progress(total, total)
        return _ranked(final), is_spent
    pairs, is_spent = _pairs(bench, right, singles, few, budget, lambda done: progress(len(single) + done, total))
    final += _on_all(bench, right, pairs, budget)
    final += _reordered(bench, right, distinct(pairs)[: 2 * _NUM_BEST], few)
    progress(total, total)
    return _ranked(final), is_spent


def _on_all(bench: Bench, right: Pipeline, tried: Sequence[Tried], budget: int) -> list[Tried]:
    """The best on all images, at least two of them; with each what leaves the same on the few."""
    groups = [[one for one in tried if is_same(one, best)] for best in distinct(tried)]
    # EXIF's orientation is that of some images only, and the first few may have none.
    turned = [one for one in tried if [part.kind for part in one.parts] == ["exif"]]
    chosen = [one for group in groups[:_NUM_BEST] for one in group]
    found = [bench.try_on(one.parts, right) for one in turned]
    for index, one in enumerate(one for one in chosen if one not in turned):
        if index < 2 or bench.num_run <= budget:
            found.append(bench.try_on(one.parts, right))
    return found


def is_same(one: Tried, other: Tried) -> bool:
    """Whether two leave exactly the same: on these images they are no different."""
    return np.array_equal(one.squares, other.squares)


def distinct(tried: Sequence[Tried]) -> list[Tried]:
    """Without those that are the same as one before them."""
    kept: list[Tried] = []
    for one in tried:
        if not any(is_same(one, other) for other in kept):
            kept.append(one)
    return kept


def _reordered(bench: Bench, right: Pipeline, tried: Sequence[Tried], few: int) -> list[Tried]:
    """The causes whose scores are nearest to the served ones in another order of the outputs, and that order.

    The order is found on half of the images, so that on the other half it explains nothing by chance.
    """
    candidates = []
    for one in [bench.try_on((), right, few), *(one for one in distinct(tried) if one.how.order is None)]:
        order = match_columns(bench.served[:few], bench.scores(one.how, few))
        if order != list(range(len(order))):
            candidates.append((bench.try_on((*one.parts, permuted(order)), right, few).left, one))
    found = []
    for _, one in sorted(candidates, key=lambda each: each[0])[:2]:
        order = list(bench.order_of(one.how, slice(0, None, 2)))
        if order != list(range(len(order))):
            found.append(bench.try_on((*one.parts, permuted(order)), right))
    return found


def _pairs(
    bench: Bench,
    right: Pipeline,
    singles: Sequence[Tried],
    few: int,
    budget: int,
    progress: Callable[[int], None],
) -> tuple[list[Tried], bool]:
    """The best causes with every other of another kind, on a few images; the likelier first."""
    found: list[Tried] = []
    done = 0
    for first in distinct(singles)[:_NUM_BEST]:
        for second in singles:
            done += 1
            progress(done)
            if not _go_together(first.parts[0], second.parts[0]):
                continue
            if bench.num_run > budget:
                return sorted(found, key=lambda one: one.left), True
            found.append(bench.try_on((*first.parts, *second.parts), right, few))
    return sorted(found, key=lambda one: one.left), False


def _go_together(first: Hypothesis, second: Hypothesis) -> bool:
    return first.kind != second.kind and not set(first.changes) & set(second.changes)


def _ranked(tried: Sequence[Tried]) -> list[Tried]:
    """The best first; of those that leave the same the ones with the fewest causes."""
    ranked = sorted(tried, key=lambda one: (one.left, len(one.parts)))
    kept: list[Tried] = []
    for one in ranked:
        if not any(
            is_same(one, other) and (len(other.parts) < len(one.parts) or other.how == one.how) for other in kept
        ):
            kept.append(one)
    return kept
