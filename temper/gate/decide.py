"""The decision: what all rules' looks amount to, with the error over all of them within what is asked for.

Source: for shipping, R. L. Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24
(1982), 295-300; for holding, S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
Journal of Statistics 6 (1979), 65-70.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from temper.client.stats import is_above_chance, proportion
from temper.gate.config import GateConfig
from temper.gate.evidence import Evidence
from temper.gate.rules.base import Look, More
from temper.gate.rules.paired import right
from temper.report.verdict import Answer, Finding


def decide(config: GateConfig, evidence: Evidence) -> tuple[Answer, tuple[Finding, ...], str]:
    """Returns the answer, what every rule found, and in one sentence how the error is kept over all of them.

    SHIP when all findings say so, HOLD when one does, and NOT ENOUGH DATA otherwise.

    Args:
        config: The rules.
        evidence: What was measured; a rule whose key is in `missing` looks at nothing.
    """
    looks = [(rule, look) for rule in config.rules for look in _looks(config, evidence, rule)]
    tested = [look.broken for _, look in looks if look.sure is None]
    broken = iter(_holm(tested))
    judged = [
        _Judged(rule, look, 1.0 if look.sure else next(broken), config, num_tests=len(tested))
        for rule, look in looks
    ]
    # All that are open must come out well on the next images.
    num_open = sum(one.more(config.power) is not None for one in judged)
    findings = tuple(one.finding(num_open) for one in judged)
    answers = [finding.answer for finding in findings]
    answer = next(one for one in _WORST_FIRST if one in answers)
    return answer, findings, _correction(config.confidence)


_MOST = 100_000_000
"""Images that nobody has: so near to its limit a figure is as good as at it."""
_WORST_FIRST: tuple[Answer, ...] = ("HOLD", "NOT ENOUGH DATA", "SHIP")


def _looks(config: GateConfig, evidence: Evidence, rule: str) -> Sequence[Look]:
    judge = config.rules[rule]
    if (why := evidence.missing.get(rule)) is not None:
        return [judge.nothing(why)]
    if judge.needs_labels and (why := _no_reference(evidence)) is not None:
        return [judge.nothing(why)]
    return judge.judge(evidence, config.confidence)


def _no_reference(evidence: Evidence) -> str | None:
    """Why nothing follows from who was right: two that are wrong everywhere are alike, and neither is good."""
    if not len(evidence.labels):
        return "there are no test images with labels"
    share = proportion(right(evidence.reference, evidence))
    counts = np.unique(evidence.labels, return_counts=True)[1]
    if len(counts) < 2 or is_above_chance(share["low"], share["high"], float(counts.max() / counts.sum())):
        return None
    return (
        f"the reference is right for {100 * share['value']:.1f} % of the images, not clearly above chance; check "
        "the labels, and how the images are prepared"
    )


def _holm(errors: Sequence[float]) -> list[float]:
    """Returns the errors adjusted, so that each may be compared with what all of them together are allowed."""
    most, adjusted = 0.0, [0.0] * len(errors)
    for rank, index in enumerate(sorted(range(len(errors)), key=lambda index: errors[index])):
        most = adjusted[index] = max(most, min(1.0, (len(errors) - rank) * errors[index]))
    return adjusted


def _correction(confidence: float) -> str:
    error = _percent(1 - confidence)
    return (
        f"SHIP needs every rule, class and budget, each tested at {error}, which needs no correction (an "
        f"intersection-union test); HOLD takes one, by Bonferroni over classes and Holm over rules, so that what "
        f"keeps all limits is held in {error} of cases at most."
    )


@dataclass(frozen=True)
class _Judged:
    """A look among all others."""

    rule: str
    look: Look
    broken: float
    """Its error of saying that the limit is broken, adjusted."""
    config: GateConfig
    num_tests: int

    @property
    def allowed(self) -> float:
        return 1 - self.config.confidence

    @property
    def answer(self) -> Answer:
        if self.look.sure is not None:
            return self.look.sure
        if self.broken <= self.allowed:
            return "HOLD"
        return "SHIP" if self.look.kept <= self.allowed else "NOT ENOUGH DATA"

    def more(self, power: float) -> More | None:
        """What would decide it with a power of its own; None where it is decided, or nothing would."""
        if self.answer != "NOT ENOUGH DATA" or self.look.needs is None:
            return None
        more = self.look.needs(self.config.confidence, power)
        return None if more is None or more.num > _MOST else more

    def finding(self, num_open: int) -> Finding:
        """Says it, as one of all that are open."""
        look, more = self.look, self.more(1 - (1 - self.config.power) / max(1, num_open))
        return Finding(
            rule=self.rule,
            name=look.name,
            answer=self.answer,
            figure=look.figure,
            low=look.low,
            high=look.high,
            limit=look.limit,
            unit=look.unit,
            reason=look.said or (self._decided() if more is None else self._asked(more, num_open)),
            num_images=look.num_images,
            needed=None if more is None or more.what != "test images" else _three_figures(more.num),
        )

    def _asked(self, more: More, num_open: int) -> str:
        joint = f" for the {num_open} that are open together" if num_open > 1 else ""
        power = f"power {100 * self.config.power:g} %"
        # Beyond the limit already, but not surely.
        hope = ", if nothing is lost in truth" if self.look.broken < self.look.kept else ""
        return f"{_three_figures(more.num):,} {more.what} would decide{hope}: {more.given}, {power}{joint}"

    def _decided(self) -> str:
        answer, look, allowed = self.answer, self.look, _percent(self.allowed)
        if answer == "SHIP":
            return f"at the limit {_percent(look.kept)} of samples would look this good; {allowed} are allowed"
        bad = f"at the limit {_percent(self.look.broken)} of samples would look this bad"
        if self.num_tests > 1 and self.broken != self.look.broken:
            bad += f", {_percent(self.broken)} among {self.num_tests} tests"
        if answer == "HOLD":
            return f"{bad}; {allowed} are allowed"
        return f"the figure is at the limit or beyond it, so no number would decide; {bad}, too many to hold it"


def _percent(share: float) -> str:
    return "less than 0.01 %" if share < 0.0001 else f"{float(f'{100 * share:.2g}'):g} %"


def _three_figures(number: int) -> int:
    """The number, rounded up to three figures."""
    step: int = 10 ** max(0, len(str(number)) - 3)
    return math.ceil(number / step) * step
