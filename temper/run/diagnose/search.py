"""Which causes are tried: all of them on a few images, the best on all, then pairs, within a limit of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from temper.run.diagnose.hypotheses import Hypothesis, permuted
from temper.run.diagnose.network import Networks
from temper.run.diagnose.pipeline import Picture, Pipeline, finish, fit, normalise
from temper.run.diagnose.scores import are_probabilities, as_logits, match_columns, squares

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]

_FEW = 4
"""Images that every cause is tried on: a wrong one is far off on any."""
_NUM_BEST = 4
"""Causes that are tried on all images, and that others are joined to."""
_NUM_WHOLE, _AT_LEAST = 16, 8
"""How often all images are gone through in a search, about; and how many they are at least."""
_GOOD = 1e-4
"""The share of the difference that a cause may leave and still be all there is to look for."""


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
        self._pictures, self._networks, self._answers = pictures, networks, served
        served = served[:num]
        self.has_probabilities = are_probabilities(served)
        self.served = as_logits(served) if self.has_probabilities else served
        self._fitted: dict[tuple[object, ...], NDArray[np.uint8]] = {}
        self._logits: dict[tuple[object, ...], NDArray[np.float32]] = {}

    def affordable(self, how: Pipeline, limit_s: float) -> Bench:
        """The same on so many of the images that a search has the time for; at least some."""
        started = time.monotonic()
        self.scores(how, _FEW)
        image_s = (time.monotonic() - started) / min(_FEW, len(self))
        num = max(_AT_LEAST, int(limit_s / 2 / _NUM_WHOLE / image_s))
        return self if num >= len(self) else Bench(self._pictures, self._networks, self._answers, num)

    def __len__(self) -> int:
        """The number of images that are compared."""
        return len(self.served)

    def scores(self, how: Pipeline, num: int | None = None) -> NDArray[np.float32]:
        """What a pipeline makes of the first images, as the served scores are compared: [num, classes]."""
        num = len(self) if num is None else num
        made = finish(self._run(how, num), how)
        if not self.has_probabilities:
            return made
        # Clipped as what was served is.
        is_softmax = how.output.startswith("softmax")
        return as_logits(made if is_softmax else finish(made, replace(how, output="softmax", order=None)))

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

    def values(self, how: Pipeline) -> NDArray[np.float32]:
        """What the network is given, of all images: float32 [N, 3, H, W]."""
        return normalise(self._fit(how, len(self._pictures)), how)

    def _run(self, how: Pipeline, num: int) -> NDArray[np.float32]:
        size = how.batch_norm or 1
        whole = min(
            len(self._pictures), -(-num // size) * size
        )  # a batch's statistics are those of all its images
        key = (how.pixels, how.batch_norm, how.network, how.precision)
        known = self._logits.get(key)
        if known is None or len(known) < whole:
            values = normalise(self._fit(how, whole), how)
            known = self._logits[key] = self._networks.logits(values, how)
        return known[:num]

    def _fit(self, how: Pipeline, num: int) -> NDArray[np.uint8]:
        known = self._fitted.get(how.geometry)
        if known is None or len(known) < num:
            known = self._fitted[how.geometry] = np.stack([fit(one, how) for one in self._pictures[:num]])
        return known[:num]


def search(
    bench: Bench, right: Pipeline, single: Sequence[Hypothesis], end: float, progress: Progress
) -> tuple[list[Tried], bool]:
    """Tries causes until one leaves next to nothing, or the time is over.

    Args:
        bench: The images and what was served.
        right: The pipeline that the causes change.
        single: The causes.
        end: When to begin no further try, by `time.monotonic`.
        progress: Called with (tries done, tries in all).

    Returns:
        What was tried on all images, the best first, the right pipeline among them; and whether the time was over
        before all was tried.
    """
    before = bench.try_on((), right)
    few = min(_FEW if len(bench) > _AT_LEAST else _FEW // 2, len(bench))  # few images are slow ones
    total = len(single) * (1 + _NUM_BEST)
    singles: list[Tried] = []
    late = False
    for done, cause in enumerate(single):
        late = late or time.monotonic() > end
        if not late:
            singles.append(bench.try_on((cause,), right, few))
        progress(done + 1, total)
    singles = _distinct(sorted(singles, key=lambda one: one.left))
    final = [before, *_on_all(bench, right, singles, end), *_reordered(bench, right, singles, few)]
    best = min(final, key=lambda one: one.left)
    if late or best.left <= _GOOD * before.left:
        progress(total, total)
        return _ranked(final), late
    pairs, late = _pairs(bench, right, singles, few, end, lambda done: progress(len(single) + done, total))
    final += _on_all(bench, right, pairs, end)
    final += _reordered(bench, right, pairs[: 2 * _NUM_BEST], few)
    progress(total, total)
    return _ranked(final), late


def _on_all(bench: Bench, right: Pipeline, tried: Sequence[Tried], end: float) -> list[Tried]:
    """The best on all images, at least two of them."""
    found: list[Tried] = []
    # EXIF's orientation is that of some images only, and the first few may have none.
    turned = [one for one in tried[_NUM_BEST:] if [part.kind for part in one.parts] == ["exif"]]
    for one in [*tried[:_NUM_BEST], *turned]:
        if len(found) < 2 or one in turned or time.monotonic() < end:
            found.append(bench.try_on(one.parts, right))
    return found


def _distinct(tried: Sequence[Tried]) -> list[Tried]:
    """Without those that leave exactly what one before them leaves: on these images they are the same."""
    kept: list[Tried] = []
    for one in tried:
        if not any(np.array_equal(one.squares, other.squares) for other in kept):
            kept.append(one)
    return kept


def _reordered(bench: Bench, right: Pipeline, tried: Sequence[Tried], few: int) -> list[Tried]:
    """The causes whose scores are nearest to the served ones in another order of the outputs, and that order.

    The order is found on half of the images, so that on the other half it explains nothing by chance.
    """
    candidates = []
    for one in [bench.try_on((), right, few), *(one for one in tried if one.how.order is None)]:
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
    bench: Bench, right: Pipeline, singles: Sequence[Tried], few: int, end: float, progress: Callable[[int], None]
) -> tuple[list[Tried], bool]:
    """The best causes with every other of another kind, on a few images; the likelier first."""
    found: list[Tried] = []
    done = 0
    for first in singles[:_NUM_BEST]:
        for second in singles:
            done += 1
            progress(done)
            if not _go_together(first.parts[0], second.parts[0]):
                continue
            if time.monotonic() > end:
                return sorted(found, key=lambda one: one.left), True
            found.append(bench.try_on((*first.parts, *second.parts), right, few))
    return _distinct(sorted(found, key=lambda one: one.left)), False


def _go_together(first: Hypothesis, second: Hypothesis) -> bool:
    return first.kind != second.kind and not set(first.changes) & set(second.changes)


def _ranked(tried: Sequence[Tried]) -> list[Tried]:
    """The best first; of those that leave the same the one with fewer causes."""
    return sorted(_distinct(sorted(tried, key=lambda one: len(one.parts))), key=lambda one: one.left)
