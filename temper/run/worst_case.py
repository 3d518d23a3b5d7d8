"""What is left when every attack of a recipe may try: the worst case, and signs that an attack saw only a mask.

An image counts as robust when it was right before and after every attack that was aimed at it, at this budget or a
smaller one of the same norm: what fooled the endpoint within 4/255 lies within 8/255 too. Attacks that compare
with a reference are aimed at a difference, not at robustness, and are left out.

Source of the signs: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
arXiv:1802.00420, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.builder.store.artifacts import Artifact
from temper.client.robustness.base import ATTACKS
from temper.client.robustness.result import INDICES_FILE, SURVIVED_FILE, TAKEN_FOR_FILE, count_pairs
from temper.client.stats import PairedComparison, compare_paired, proportion, proportion_per_class
from temper.gate.evidence import WORST_CASE, Attacked
from temper.report import text
from temper.report.measured import ClassShare, Confusion, Mask, PairedAttack, PairedWorstCase, WorstCase
from temper.report.model import Variant

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Budget = tuple[str, float]
"""Norm and epsilon."""
_MAX_STUCK = 0.05
"""Of the queries. Networks in float32, int8 and fp8 stayed below 0.0005; logits rounded to 1/100 gave 0.18."""


@dataclass(frozen=True)
class _Outcome:
    """One attack, or several together, on one variant."""

    info: Mapping[str, Any]
    indices: Indices
    survived: Bools
    taken_for: Indices
    """The class that each fooled image was taken for; -1 where none was."""

    @cached_property
    def sees(self) -> str:
        """What the attack was shown."""
        return ATTACKS.get(self.info["attack"]).sees

    @property
    def budget(self) -> Budget:
        return self.info["norm"], self.info["epsilon"]

    @property
    def key(self) -> tuple[str, str, float]:
        return (self.info["attack"], *self.budget)

    @property
    def share(self) -> float:
        return float(self.survived.mean())


def _load(artifacts: Sequence[Artifact]) -> list[_Outcome]:
    """Loads the attacks that were aimed at robustness."""
    files = (INDICES_FILE, SURVIVED_FILE, TAKEN_FOR_FILE)
    return [
        _Outcome(one.info, *(np.load(one.path / file) for file in files))
        for one in artifacts
        if not ATTACKS.get(one.info["attack"]).compares
    ]


def _together(outcomes: Sequence[_Outcome]) -> _Outcome:
    """Returns what survived all of them, on the images that any was aimed at."""
    indices = np.unique(np.concatenate([one.indices for one in outcomes]))
    survived = np.ones(len(indices), dtype=np.bool_)
    for one in outcomes:
        survived[np.searchsorted(indices, one.indices)] &= one.survived
    return _Outcome({}, indices, survived, np.full(len(indices), -1))


def _worst(outcomes: Sequence[_Outcome], budget: Budget) -> tuple[list[_Outcome], _Outcome]:
    norm, epsilon = budget
    within = [one for one in outcomes if one.budget[0] == norm and one.budget[1] <= epsilon]
    return within, _together(within)


def _shared_rows(first: _Outcome, second: _Outcome) -> tuple[Indices, Indices]:
    """Returns where the images that both judged stand in each."""
    _, mine, theirs = np.intersect1d(first.indices, second.indices, assume_unique=True, return_indices=True)
    return mine, theirs


def _compare(first: _Outcome, second: _Outcome) -> PairedComparison | None:
    """Compares on the images that both judged; None when there are none."""
    mine, theirs = _shared_rows(first, second)
    return compare_paired(first.survived[mine], second.survived[theirs]) if mine.size else None


def with_worst_case(
    variant: Variant, attacks: Sequence[Artifact], labels: Indices, class_names: Sequence[str]
) -> Variant:
    """Returns a variant with the worst case at every budget, and with the attacks that saw only a mask.

    Args:
        variant: The variant.
        attacks: Its attack stages.
        labels: int64 [N], the test images' classes.
        class_names: The names of the classes.
    """
    outcomes = _load(attacks)
    masks = tuple(_masks(outcomes))
    budgets = dict.fromkeys(one.budget for one in outcomes)
    cases = tuple(_worst_case(outcomes, budget, masks, labels, class_names) for budget in budgets)
    return replace(variant, worst_case=cases, masks=masks)


def _worst_case(
    outcomes: Sequence[_Outcome],
    budget: Budget,
    masks: Sequence[Mask],
    labels: Indices,
    class_names: Sequence[str],
) -> WorstCase:
    within, worst = _worst(outcomes, budget)
    shares = proportion_per_class(worst.survived, labels[worst.indices])
    # What several attacks made of one image counts once for each class that it was taken for.
    found = np.concatenate([np.stack([one.indices, one.taken_for], axis=1) for one in within])
    images, answers = np.unique(found[found[:, 1] >= 0], axis=0).T
    return WorstCase.of(
        dict(proportion(worst.survived)),
        norm=budget[0],
        epsilon=budget[1],
        attacks=tuple(dict.fromkeys(one.info["attack"] for one in within)),
        per_class=tuple(ClassShare.of(share, label=class_names[index]) for index, share in shares.items()),
        pairs=tuple(named_pairs(count_pairs(labels[images], answers), class_names)),
        doubt=_doubt(within, worst, budget, masks),
    )


def named_pairs(pairs: Sequence[Mapping[str, int]], class_names: Sequence[str]) -> Iterator[Confusion]:
    """Yields pairs of classes, as `count_pairs` returns them, by name."""
    for pair in pairs:
        yield Confusion.of(pair, label=class_names[pair["label"]], answer=class_names[pair["answer"]])


def _doubt(within: Sequence[_Outcome], worst: _Outcome, budget: Budget, masks: Sequence[Mask]) -> str | None:
    """Returns why the worst case may be none, in a clause; None when nothing speaks against it.

    What vouches for it is an attack at this very budget that followed the gradients of the variant's own graph.
    """
    evidence = {mask.key: f"{mask.attack}: {mask.evidence}" for mask in masks}
    white = [one for one in within if one.info["white_box"] and one.budget == budget and one.key not in evidence]
    if white:
        seen, num = len(_together(white).indices), len(worst.indices)
        return None if seen == num else f"gradients were followed on {seen:,} of the {num:,} images alone"
    masked = [evidence[one.key] for one in within if one.key in evidence]
    if masked:
        return f"gradients or scores are masked ({'; '.join(masked)})"
    if any(one.info["draws"] for one in within):
        return "gradients were followed through random draws, where luck fools and spares images too"
    if any(one.sees != "nothing" for one in within):
        return "no attack followed the gradients of all that is served at this budget, step by step"
    return "nothing but noise was tried"


def _masks(outcomes: Sequence[_Outcome]) -> Iterator[Mask]:
    for one in outcomes:
        evidence = [*_equal_scores(one), *_beaten(one, outcomes), *_rising(one, outcomes)]
        if evidence:
            yield Mask.of(one.info, evidence="; ".join(evidence))


def _equal_scores(one: _Outcome) -> Iterator[str]:
    if one.info["stuck"] > _MAX_STUCK:
        what = "scores were equal to those before" if one.sees == "scores" else "gradients were zero"
        yield f"{text.percent(one.info['stuck'])} of its {what}"


def _beaten(one: _Outcome, outcomes: Sequence[_Outcome]) -> Iterator[str]:
    """A white box is masked where an attack without gradients leaves fewer images."""
    if not one.info["white_box"]:
        return
    same = [other for other in outcomes if other.budget == one.budget]
    white = _together([other for other in same if other.sees == "surrogate"])
    for other in same:
        if other.sees != "surrogate" and (paired := _compare(white, other)) is not None and paired.high < 0:
            yield (
                f"{other.info['attack']} leaves {text.percent(other.share)}, all that follow gradients "
                f"{text.percent(white.share)}"
            )


def _rising(one: _Outcome, outcomes: Sequence[_Outcome]) -> Iterator[str]:
    """More budget cannot leave more images; one step over a curved loss can."""
    if one.sees == "surrogate" and not one.info["white_box"]:
        return
    name, (norm, epsilon) = one.info["attack"], one.budget
    budgets = sorted(
        (other for other in outcomes if other.info["attack"] == name and other.budget[0] == norm),
        key=lambda other: other.budget[1],
    )
    for smaller, larger in pairwise(budgets):
        paired = _compare(smaller, larger)
        if larger.budget[1] == epsilon and paired is not None and paired.low > 0:
            yield (
                f"leaves {text.percent(larger.share)} where it left {text.percent(smaller.share)} at "
                f"{text.budget(*smaller.budget)}"
            )


def compare_worst_cases(
    first: Sequence[Artifact], second: Sequence[Artifact], variants: tuple[Variant, Variant]
) -> Iterator[PairedWorstCase]:
    """Compares the worst case of a variant with the baseline's, image by image, at every budget of both.

    Args:
        first: The baseline's attack stages.
        second: The variant's.
        variants: The two, with their worst cases.
    """
    for budget, mine, theirs, doubt in _worst_of_both(first, second, variants):
        paired = _compare(mine, theirs)
        if paired is not None:
            yield PairedWorstCase.of(paired.to_json(), norm=budget[0], epsilon=budget[1], doubt=doubt)


def _worst_of_both(
    first: Sequence[Artifact], second: Sequence[Artifact], variants: tuple[Variant, Variant]
) -> Iterator[tuple[Budget, _Outcome, _Outcome, str | None]]:
    """Yields every budget with the worst case of both, and why one of them may be none."""
    one, two = _load(first), _load(second)
    # A run that stopped early has some attacks on one of them alone: the worst of unequal sets is no comparison.
    both = {each.key for each in one} & {each.key for each in two}
    one, two = ([each for each in part if each.key in both] for part in (one, two))
    for budget in dict.fromkeys(each.budget for each in one):
        cases = (variant.worst_at(budget) for variant in variants)
        doubts = dict.fromkeys(case.doubt for case in cases if case is not None and case.doubt is not None)
        yield budget, _worst(one, budget)[1], _worst(two, budget)[1], "; ".join(doubts) or None


def withstood(
    first: Sequence[Artifact], second: Sequence[Artifact], variants: tuple[Variant, Variant]
) -> Iterator[Attacked]:
    """Yields who withstood each attack, and the worst of them, at every budget; see `compare_worst_cases`."""
    for budget, mine, theirs, doubt in _worst_of_both(first, second, variants):
        yield _attacked(WORST_CASE, budget, mine, theirs, doubt)
    masks = {mask.key: mask.evidence for variant in variants for mask in variant.masks}
    others = {each.key: each for each in _load(second)}
    for one in _load(first):
        if one.key in others:
            yield _attacked(one.info["attack"], one.budget, one, others[one.key], masks.get(one.key))


def _attacked(name: str, budget: Budget, first: _Outcome, second: _Outcome, doubt: str | None) -> Attacked:
    mine, theirs = _shared_rows(first, second)
    return Attacked(
        name=name,
        norm=budget[0],
        epsilon=budget[1],
        reference=first.survived[mine],
        candidate=second.survived[theirs],
        doubt=doubt,
    )


def compare_attacks(
    first: Sequence[Artifact], second: Sequence[Artifact], variants: tuple[Variant, Variant]
) -> Iterator[PairedAttack]:
    """Compares them under every attack that both went through; see `compare_worst_cases`."""
    masks = {mask.key: mask.evidence for variant in variants for mask in variant.masks}
    theirs = {each.key: each for each in _load(second)}
    for mine in _load(first):
        if mine.key in theirs and (paired := _compare(mine, theirs[mine.key])) is not None:
            yield PairedAttack.of({**mine.info, **paired.to_json()}, masked=masks.get(mine.key))
