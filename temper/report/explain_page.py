"""The explanation as one page that needs nothing else, in the manner of the report's."""

from __future__ import annotations

from html import escape
from pathlib import Path

from temper.report import html, text
from temper.report.explain_answer import blamed
from temper.report.explain_blame import blames
from temper.report.explain_sections import attributions, machine, networks, notes, selection, similarity
from temper.report.explained import Explanation


def render_explanation(explanation: Explanation, folder: Path, report: str) -> str:
    """The page as text.

    Args:
        explanation: The explanation.
        folder: Where it lies; the pictures' files are named relative to it.
        report: The file name of the report's page, which is linked where it lies beside.
    """
    title = f"Temper explanation: {explanation.recipe}"
    parts = [
        _header(explanation, title, folder / report),
        html.section("Which layer is to blame", blames(explanation)),
        html.section("What each block knows", networks(explanation)),
        html.section("Similarity", similarity(explanation)),
        html.section("Features", selection(explanation)),
        html.section("Where two variants look", attributions(explanation, folder)),
        html.section("Notes", notes(explanation)),
        html.section("Machine and versions", machine(explanation)),
    ]
    return html.page(title, parts)


def _header(explanation: Explanation, title: str, report: Path) -> str:
    facts = f"{explanation.created} · {explanation.cpu} · took {text.seconds(explanation.seconds)}"
    parts = [f"<header><h1>{escape(title)}</h1>", f'<p class="muted">{escape(facts)}</p>']
    if report.is_file():
        parts.append(f'<p><a href="{report.name}">The report of the run</a></p>')
    for blame in explanation.blames:
        first, *others = blamed(blame)
        parts.append(f'<p class="answer">{escape(first)}</p>')
        parts.append(html.paragraphs(others))
        parts.append(f"<pre>{escape(blame.snippet)}</pre>" if blame.snippet else "")
    return "".join(parts) + "</header>"
