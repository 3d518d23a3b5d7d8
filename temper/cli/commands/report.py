"""`temper report`, and how `run` and `sweep` show theirs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from temper.errors import ReportError
from temper.report import (
    EXPLAIN_FILE,
    EXPLAIN_PAGE_FILE,
    PAGE_FILE,
    REPORT_FILE,
    render_json,
    write_explain_page,
    write_page,
)
from temper.report.answer import answers, faults
from temper.report.table import render_table
from temper.report.verdict_text import render_text
from temper.terminal import echo

if TYPE_CHECKING:
    from temper.report.model import Report


def report_command(path: Path, *, as_json: bool) -> None:
    """Renders the pages of a run anew and shows the run as it was shown when it ended.

    Raises:
        ReportError: The report cannot be read, or a page cannot be written.
    """
    from temper.report.read import read_explanation, read_report

    report = read_report(path)
    folder = path if path.is_dir() else path.parent
    explanation = None
    if (folder / EXPLAIN_FILE).is_file():
        try:
            explanation = read_explanation(folder)
        except ReportError as error:  # the report is as good as it was
            echo(f"{error}; {PAGE_FILE} gets no link to it", err=True)
    if explanation is None:  # deleted after the run
        report = replace(report, explanation=None)
    page = folder / PAGE_FILE
    try:
        write_page(report, folder)
        if explanation is not None:
            page = folder / EXPLAIN_PAGE_FILE
            write_explain_page(explanation, folder)
    except OSError as error:
        raise ReportError(f"{page}: cannot be written: {error.strerror}") from error
    show_report(report, folder, as_json=as_json)
    if report.stopped is not None:
        echo(f"this run stopped early: {report.stopped}", err=True)


def show_report(report: Report, folder: Path, *, as_json: bool) -> None:
    """Prints a report's verdicts and table, what it says in words and where it lies; or report.json."""
    if as_json:
        echo(render_json(report))
        return
    if report.verdicts:
        echo(render_text(report.verdicts))
    click.echo(render_table(report, color=sys.stdout.isatty()))
    for warning in report.warnings:
        echo(warning)
    if best := ", ".join(variant.name for variant in report.variants if variant.frontier):
        echo(f"On the frontier: {best}.")
    else:
        for sentence in [*answers(report), *faults(report)]:
            echo(sentence)
    files = [PAGE_FILE, REPORT_FILE, *([report.explanation] if report.explanation else [])]
    echo("\n" + "\n".join(str(folder / name) for name in files))
