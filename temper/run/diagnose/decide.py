"""When a cause is named: it leaves no more than the arithmetic does, and is clearly better than every other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from temper.client.stats import Estimate
from temper.run.diagnose.hypotheses import GEOMETRY, Hypothesis, Known, causes
from temper.run.diagnose.pipeline import BLACK, WHITE, Pipeline, Precision
from temper.run.diagnose.scores import correlation, explained, is_clearly_less, related, relative, squares, varying
from temper.run.diagnose.search import Bench, Progress, Tried, distinct, is_same, search

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT = 1e-3
"""What float32 may differ by, as a share of the scores' spread; other orders of summing differ by 1e-5."""
_TIMES_IMITATION = 3.0
"""How much more than PyTorch's imitation another precision may differ by: engines round in other places."""
_LIKE, _MAX_RATIO = 0.15, 4.0
"""The least correlation with an imitation's difference, and the most that their sizes may differ by."""
_MAX_PIXELS = 24 * 64 * 64
_GO_ALONG = 0.7
"""The least correlation, in what differs from image to image, of scores that are the same but for a little."""
_VARIES = 1e-6
"""Scores that differ less from image to image, as a share of the largest, are the same for all."""
_MOST, _NEARLY_ALL, _LITTLE = 0.5, 0.95, 0.3
_CLEARLY = 0.8
"""What the named cause leaves is less than this share of what the next one leaves."""
_ELSE = "Other weights, or a way to prepare images that is not in the table"
_PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "int8", "int8 of 7 bits", "int8, saturating")
_MENDS: dict[Precision, str] = {
    "fp16": "if fp16 is meant, say `--precision fp16`; else take the cast or `precision_hint` out, publish again",
    "bf16": 'if bf16 is meant, say `--precision bf16`; else `precision_hint` "f32" in config.pbtxt (OpenVINO '
    "takes bf16 by itself where the CPU has it)",
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
    effort: float,
    progress: Progress,
    probe: Callable[[], Bench] | None = None,
) -> Verdict:
    """Compares what was served with the right pipeline, and looks for a cause where they differ.

    Args:
        bench: The images and what was served.
        right: What the network was trained with; its `output` says what should be served.
        known: What is known of the served model.
        sent: How the client prepares the images, where that is known.
        precision: The arithmetic that is meant.
        effort: How much to search: 1 is some 25 s on a core.
        progress: Called with (tries done, tries in all).
        probe: Asks the server about `FLAT` pictures, which no way of sizing them changes.
    """
    seen: list[Cause] = []
    if bench.has_probabilities and right.output == "logits":
        softmax = next(one for one in causes(right, known) if one.changes == {"output": "softmax"})
        logits, right = right, softmax.apply(right)
        share = explained(*(squares(bench.answers, bench.answer(how)) for how in (logits, right)))
        seen = [Cause(hypothesis=softmax, share=share)]
    bench, budget = bench.afford(right, effort)
    before = bench.try_on((), right)
    scores = bench.scores(right)
    at_start, level = relative(before.squares, scores), _level(bench, right, precision)
    if at_start <= level and precision == "fp32":
        return Verdict(
            agrees=not seen, before=at_start, level=level, left=at_start, causes=tuple(seen), candidates=()
        )
    tried, is_late = search(bench, right, causes(right, known, sent), budget, progress)
    court = _Court(bench, right, before, scores, level, known)
    shown = [one for one in distinct(tried)[:5] if one.parts]
    candidates = tuple((one, explained(before.squares, one.squares)) for one in shown)
    found, left = court.name(tried, at_level=at_start <= level)
    if not found and at_start <= level and precision == "int8":
        found = court.saturation()
    note = ""
    if not found and at_start > level:
        if np.ptp(bench.served, axis=0).max() <= _VARIES * np.abs(bench.served).max():
            note, candidates = "every image gets the same scores: what is served does not look at it", ()
        else:
            found, note = court.eliminate(tried, probe, is_int8=precision.startswith("int8"))
        note += f"; not all was tried, `--effort {4 * effort:g}` tries more" if is_late and note else ""
    agrees = at_start <= level and not found and not seen
    # What says more of the output stands for what showed at first sight.
    named = (*(() if any("output" in one.hypothesis.changes for one in found) else seen), *found)
    return Verdict(
        agrees=agrees, before=at_start, level=level, left=left, causes=named, candidates=candidates, note=note
    )


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
            at_level: They agree as far as the arithmetic is known, so only what explains most of the rest counts.
        """
        best = self._simplest(tried)
        left = relative(best.squares, self.scores)
        share = explained(self.before.squares, best.squares)
        is_most = share["low"] >= _MOST or not best.parts
        rest = self._precision(best) if is_most and left > self.level and not at_level else None
        if not best.parts:
            return ([rest] if rest else []), left
        enough = share["low"] >= _MOST and (left <= self.level or rest is not None)
        # What explains nearly all, but not what differs from image to image, explains what is the same for all.
        enough = enough or (share["low"] >= _NEARLY_ALL and not at_level and self._alike(best) >= _GO_ALONG)
        rivals = self._rivals(best, tried)
        if not enough or (rivals and left > self.level):
            alone = None if at_level or is_most else self._precision(self.before)
            return ([alone] if alone else []), relative(self.before.squares, self.scores)
        twins = [one for one in tried if one is not best and is_same(one, best)]
        note = _say_twins([one.words for one in [*twins, *rivals]])
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
            and not is_same(one, best)
            and not set(map(id, one.parts)) & set(map(id, best.parts))
            and not is_clearly_less(best.squares, one.squares, _CLEARLY)
        ]

    def saturation(self) -> list[Cause]:
        """What is as near as int8 may be, and yet differs as saturating int8 does rather than as int8 does."""
        found = self._precision(self.before)
        return [found] if found and found.hypothesis.changes == {"precision": "int8, saturating"} else []

    def _precision(self, tried: Tried) -> Cause | None:
        """The precision whose imitation differs in the same way from what was tried."""
        best: tuple[float, Precision, Estimate] | None = None
        if self._alike(tried) < _GO_ALONG:
            return None
        ratio = 1.0
        for precision in _PRECISIONS:
            # Saturation, the last, only adds to what rounding does, and is slow to imitate.
            if precision == "int8, saturating" and ratio < _LITTLE:
                break
            alike, ratio = self._likeness(tried, precision)
            is_like = alike["value"] > _LIKE and alike["low"] > 0 and 1 / _MAX_RATIO < ratio < _MAX_RATIO
            if is_like and (best is None or alike["value"] > best[0]):
                best = (alike["value"], precision, alike)
        if best is None:
            return None
        _, name, alike = best
        mend = _MENDS[name]
        hypothesis = Hypothesis(
            kind="precision",
            words=f"arithmetic in {name}",
            changes={"precision": name},
            mends={"client": mend, "graph": mend},
        )
        note = (
            "by the size of what is left and its likeness to PyTorch's imitation: correlation "
            f"{alike['value']:.2f} ({alike['low']:.2f} to {alike['high']:.2f})"
        )
        num = self._num(name)
        sums = squares(self.bench.served[:num], self.bench.scores(hypothesis.apply(tried.how), num))
        return Cause(hypothesis=hypothesis, share=explained(self.before.squares[:num], sums), note=note)

    def _alike(self, tried: Tried) -> float:
        """The correlation with the served scores of what differs from image to image."""
        return correlation(varying(self.bench.served), varying(self.bench.scores(tried.how)))

    def _num(self, precision: Precision) -> int:
        """How many images a precision is imitated on: saturation takes seconds for each large one."""
        if precision != "int8, saturating":
            return len(self.bench)
        return min(len(self.bench), max(4, _MAX_PIXELS // (self.right.height * self.right.width)))

    def _likeness(self, tried: Tried, precision: Precision) -> tuple[Estimate, float]:
        """The correlation of what is left with an imitation's difference, and the ratio of their sizes."""
        num = self._num(precision)
        made = self.bench.scores(tried.how, num)
        imitated = self.bench.scores(replace(tried.how, precision=precision), num)
        left, size = float(tried.squares[:num].sum()), float(squares(imitated, made).sum())
        return related(self.bench.served[:num] - made, imitated - made), float(np.sqrt(left / max(size, 1e-12)))

    def eliminate(
        self, tried: Sequence[Tried], probe: Callable[[], Bench] | None, *, is_int8: bool
    ) -> tuple[list[Cause], str]:
        """Other weights, where nothing explains more than a little; else the words that say what explains most.

        Scales of int8 that fit no image leave as little of the answers, and cannot be told from them.
        """
        served = self.bench.served
        # An order that was found by values explains something of any scores, and so does what is the same for all
        # images: where the scores are not alike, only what explains more than their own mean counts.
        plain = [one for one in tried if one.how.order is None]
        best = next((one for one in plain if one.parts), self.before)
        share = explained(self.before.squares, best.squares)
        null = min(self.before.left, float(((served - served.mean(axis=0)) ** 2).sum()))
        most = 1 - min(one.left for one in plain) / null
        alike = max(self._alike(one) for one in plain)
        words = f"nothing explains it; {best.words} explains most, {100 * max(share['value'], 0):.0f} %"
        if probe is None:
            return [], f"{words}. {_ELSE}"
        if localised := self._localise(probe()):
            return [], f"{words}. {localised}"
        is_little = 1 - min(one.left for one in plain) / self.before.left < _LITTLE
        if not is_little and (alike >= _LITTLE or most >= _LITTLE):
            return [], f"{words}. {_ELSE}"
        known = self.known.weights[0]
        mend = f"publish the graph of {known} again, or give the checkpoint that is served as --weights"
        mend += "; of an int8 engine, calibrate it again on images prepared as in training" if is_int8 else ""
        weights = Hypothesis(
            kind="weights",
            words="the weights of another checkpoint, or of another epoch"
            + (", or int8 that was calibrated on images prepared otherwise" if is_int8 else ""),
            changes={},
            mends={"client": mend, "graph": mend},
        )
        note = (
            f"by elimination: {words}, nor does anything explain the answers to flat images; "
            f"what differs from image to image has a correlation of {alike:.2f} at best"
        )
        return [Cause(hypothesis=weights, share=Estimate(value=0.0, low=0.0, high=0.0), note=note)], ""

    def _localise(self, flat: Bench) -> str:
        """What the answers to flat images say; nothing when they are as little explained as the others."""
        scores = flat.scores(self.right)
        sums = squares(flat.served, scores)
        if relative(sums, scores) <= self.level:
            return (
                "Flat images are answered as in PyTorch: the weights, the colours, mean and std are right, so it "
                "is in how images are sized, cut, turned or decoded"
            )
        for one in causes(self.right, self.known):
            if one.kind in GEOMETRY or relative(flat.try_on((one,), self.right, 1).squares, scores) > self.level:
                continue
            if relative(flat.try_on((one,), self.right).squares, scores) <= self.level:
                return f"Flat images are answered as with {one.words}: beside it, images are sized otherwise"
        if all(relative(sums[index : index + 1], scores) <= self.level for index in (BLACK, WHITE)):
            return (
                "Black and white are answered as in PyTorch, what lies between is not: a gamma or a colour space"
            )
        return ""


def _say_twins(words: Sequence[str]) -> str:
    shown = "; or ".join(words[:3]) + (f"; or {len(words) - 3} more" if len(words) > 3 else "")
    return f"cannot tell between it and: {shown}. Give images on which they differ" if words else ""
