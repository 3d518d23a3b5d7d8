"""When a cause is named: it leaves no more than the arithmetic does, and is clearly better than every other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.client.stats import Estimate
from temper.run.diagnose.hypotheses import Hypothesis, Known, causes
from temper.run.diagnose.pipeline import Pipeline, Precision
from temper.run.diagnose.scores import explained, is_clearly_less, related, relative, squares, varying
from temper.run.diagnose.search import Bench, Progress, Tried, search

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT = 1e-3
"""What float32 may differ by, as a share of the scores' spread; other orders of summing differ by 1e-5."""
_TIMES_IMITATION = 3.0
"""How much more than PyTorch's imitation another precision may differ by: engines round in other places."""
_LIKE, _MAX_RATIO = 0.15, 4.0
"""The least correlation with an imitation's difference, and the most that their sizes may differ by."""
_MOST, _NEARLY_ALL, _LITTLE = 0.5, 0.95, 0.3
_CLEARLY = 0.8
"""What the named cause leaves is less than this share of what the next one leaves."""
_PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "int8", "int8 of 7 bits", "int8, saturating")
_MENDS: dict[Precision, str] = {
    "fp16": "if fp16 is meant, say `--precision fp16`; else take `precision_hint` or the cast out and publish again",
    "bf16": 'if bf16 is meant, say `--precision bf16`; else `precision_hint` "f32" in config.pbtxt (OpenVINO takes '
    "bf16 by itself where the CPU has it)",
    "int8": "if int8 is meant, say `--precision int8`; else publish the float32 graph",
    "int8 of 7 bits": "if int8 is meant, say `--precision int8-7bit`; else publish the float32 graph",
    "int8, saturating": "the serving CPU has neither VNNI nor AMX: `quantize.reduce_range = true` in the recipe, "
    "and publish again, or serve on a CPU that has them",
}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A cause that is named."""

    hypothesis: Hypothesis
    """What it is."""
    share: Estimate
    """The share of the difference that it explains, alone or with those before it."""
    note: str = ""
    """What speaks for it beside that, or cannot be told apart from it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison came to."""

    agrees: bool
    """The served scores are the network's, as far as its arithmetic is known."""
    before: float
    """Root mean square of the difference over the spread of the scores."""
    level: float
    """Up to which they agree."""
    left: float
    """As `before`, with the causes."""
    causes: tuple[Cause, ...]
    """What is named; none when they agree, or nothing explains it."""
    candidates: tuple[tuple[Tried, Estimate], ...]
    """The best that was tried, with the share of the difference that each explains."""
    note: str = ""
    """What else there is to say."""


def judge(
    bench: Bench,
    right: Pipeline,
    known: Known,
    *,
    sent: Pipeline | None,
    precision: Precision,
    limit_s: float,
    progress: Progress,
) -> Verdict:
    """Compares what was served with the right pipeline, and looks for a cause where they differ.

    Args:
        bench: The images and what was served.
        right: What the network was trained with; its `output` says what should be served.
        known: What is known of the served model.
        sent: How the client prepares the images, where that is known.
        precision: The arithmetic that is meant.
        limit_s: How long to search, in seconds.
        progress: Called with (tries done, tries in all).
    """
    seen: list[Cause] = []
    if bench.has_probabilities and right.output == "logits":
        softmax = next(one for one in causes(right, known) if one.changes == {"output": "softmax"})
        seen, right = [Cause(hypothesis=softmax, share=_all())], softmax.apply(right)
    before = bench.try_on((), right)
    scores = bench.scores(right)
    at_start, level = relative(before.squares, scores), _level(bench, right, precision)
    if at_start <= level and precision == "fp32":
        return Verdict(
            agrees=not seen, before=at_start, level=level, left=at_start, causes=tuple(seen), candidates=()
        )
    tried, is_late = search(bench, right, causes(right, known, sent), limit_s, progress)
    court = _Court(bench, right, before, scores, level, known)
    candidates = tuple((one, explained(before.squares, one.squares)) for one in tried[:5] if one.parts)
    found, left = court.name(tried, at_level=at_start <= level)
    note = ""
    if not found and at_start > level:
        found, note = court.eliminate(tried)
        note += "; the time was over before all was tried, --limit gives it more" if is_late else ""
    agrees = at_start <= level and not found and not seen
    named = (*seen, *found)
    return Verdict(
        agrees=agrees, before=at_start, level=level, left=left, causes=named, candidates=candidates, note=note
    )


def _all() -> Estimate:
    return Estimate(value=1.0, low=1.0, high=1.0)


def _level(bench: Bench, right: Pipeline, precision: Precision) -> float:
    if precision == "fp32":
        return EXACT
    scores = bench.scores(right)
    imitated = bench.scores(replace(right, precision=precision))
    return max(EXACT, _TIMES_IMITATION * relative(squares(imitated, scores), scores))


class _Court:
    """What the rules need: the difference there is at first, and up to where it is the arithmetic's."""

    def __init__(
        self,
        bench: Bench,
        right: Pipeline,
        before: Tried,
        scores: NDArray[np.float32],
        level: float,
        known: Known,
    ) -> None:
        self.bench, self.right, self.before, self.scores, self.level = bench, right, before, scores, level
        self.known = known

    def name(self, tried: Sequence[Tried], *, at_level: bool) -> tuple[list[Cause], float]:
        """The causes that may be named, and what they leave.

        Args:
            tried: On all images, the best first.
            at_level: They agree as far as the arithmetic is known, so that only what explains most of the rest counts.
        """
        best = self._simplest(tried)
        left = relative(best.squares, self.scores)
        share = explained(self.before.squares, best.squares)
        rest = None if left <= self.level or at_level else self._precision(best)
        if not best.parts:
            return ([rest] if rest else []), left
        enough = share["low"] >= _MOST and (left <= self.level or rest is not None)
        enough = enough or (share["low"] >= _NEARLY_ALL and not at_level)
        rivals = self._rivals(best, tried)
        if not enough or (rivals and left > self.level):
            alone = None if at_level else self._precision(self.before)
            return ([alone] if alone else []), relative(self.before.squares, self.scores)
        note = f"on these images no different from {'; '.join(one.words for one in rivals)}" if rivals else ""
        found = [Cause(hypothesis=part, share=share, note=note) for part in best.parts]
        return [*found, *([rest] if rest else [])], left

    def _simplest(self, tried: Sequence[Tried]) -> Tried:
        """The best; or one with fewer causes that is not clearly worse, or leaves no more than the arithmetic."""
        best = tried[0]
        for one in tried[1:]:
            is_simpler = len(one.parts) < len(best.parts)
            is_as_good = relative(one.squares, self.scores) <= min(self.level, EXACT) or not is_clearly_less(
                best.squares, one.squares, _CLEARLY
            )
            if is_simpler and is_as_good:
                best = one
        return best

    def _rivals(self, best: Tried, tried: Sequence[Tried]) -> list[Tried]:
        """Other causes that explain it about as well."""
        return [
            one
            for one in tried
            if one.parts
            and not set(map(id, one.parts)) & set(map(id, best.parts))
            and not is_clearly_less(best.squares, one.squares, _CLEARLY)
        ]

    def _precision(self, tried: Tried) -> Cause | None:
        """The precision whose imitation differs in the same way from what was tried."""
        made = self.bench.scores(tried.how)
        found: list[tuple[float, Precision, Estimate, Tried]] = []
        for precision in _PRECISIONS:
            how = replace(tried.how, precision=precision)
            imitated = self.bench.scores(how)
            alike = related(self.bench.served - made, imitated - made)
            ratio = float(np.sqrt(tried.squares.sum() / max(squares(imitated, made).sum(), 1e-12)))
            if alike["value"] > _LIKE and alike["low"] > 0 and 1 / _MAX_RATIO < ratio < _MAX_RATIO:
                sums = squares(self.bench.served, imitated)
                found.append((alike["value"], precision, alike, Tried(tried.parts, how, sums)))
        if not found:
            return None
        _, name, alike, one = max(found, key=lambda each: each[0])
        mend = _MENDS[name]
        hypothesis = Hypothesis(
            kind="precision",
            words=f"arithmetic in {name}",
            changes={"precision": name},
            mends={"client": mend, "graph": mend},
        )
        note = (
            f"by the size of what is left and its likeness to PyTorch's imitation: correlation {alike['value']:.2f} "
            f"({alike['low']:.2f} to {alike['high']:.2f})"
        )
        return Cause(hypothesis=hypothesis, share=explained(self.before.squares, one.squares), note=note)

    def eliminate(self, tried: Sequence[Tried]) -> tuple[list[Cause], str]:
        """Other weights, where nothing explains more than a little; else the words that say what explains most."""
        best = next((one for one in tried if one.parts), self.before)
        share = explained(self.before.squares, best.squares)
        alike = [_correlation(varying(self.bench.served), varying(self.bench.scores(one.how))) for one in tried]
        words = f"nothing explains it; {best.words} explains most, {100 * max(share['value'], 0):.0f} %"
        if share["value"] >= _LITTLE and max(alike) >= _LITTLE:
            return [], words
        mend = f"publish the graph of {self.known.weights[0]} again, or give the checkpoint that is served as --weights"
        weights = Hypothesis(
            kind="weights",
            words="the weights of another checkpoint, or of another epoch",
            changes={},
            mends={"client": mend, "graph": mend},
        )
        note = f"by elimination: {words}; what differs from image to image has a correlation of {max(alike):.2f} at best"
        return [Cause(hypothesis=weights, share=Estimate(value=0.0, low=0.0, high=0.0), note=note)], words


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    product: Any = (first * second).sum()
    return float(product) / norm if norm else 0.0
