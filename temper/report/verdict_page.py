"""The page's section on the gate: each verdict with what every rule found."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from temper.report import html
from temper.report.verdict import Answer, Verdict
from temper.report.verdict_text import COLUMNS, cells, facts, headline

# Class of the style sheet, and a mark, so that no colour is needed to tell them apart.
_LOOKS: dict[Answer, tuple[str, str]] = {
    "SHIP": ("ship", "\N{CHECK MARK}"),
    "HOLD": ("hold", "\N{MULTIPLICATION X}"),
    "NOT ENOUGH DATA": ("undecided", "?"),
}


def verdict_section(verdicts: Sequence[Verdict]) -> str:
    """A table for each verdict, a row for each finding."""
    return "".join(map(_one, verdicts))


def _one(verdict: Verdict) -> str:
    said = headline(verdict).removeprefix(verdict.answer)
    rows = [[_badge(one.answer), *row[1:]] for one, row in zip(verdict.findings, cells(verdict), strict=True)]
    table = html.table(COLUMNS, rows, left=2) if rows else ""
    notes = html.folded("How it was judged", html.paragraphs(facts(verdict), "note"))
    return f'<h3>{_badge(verdict.answer)}{escape(said)}</h3><div class="judged">{table}</div>{notes}'


def _badge(answer: Answer) -> html.Raw:
    look, mark = _LOOKS[answer]
    return html.Raw(f'<span class="verdict {look}">{mark} {escape(answer)}</span>')
