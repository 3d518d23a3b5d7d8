"""`temper report`, and how `run` and `sweep` show theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from temper.errors import ReportError
from temper.report import PAGE_FILE, REPORT_FILE, render_json, write_page
from temper.report.answer import answers, faults
from temper.report.table import render_table
from temper.terminal import echo

if TYPE_CHECKING:
    from temper.report.model import Report


def report_command(path: Path, *, as_json: bool) -> None:
    """Renders the page of a run anew and shows the run as it was shown when it ended.

    Raises:
        ReportError: The report cannot be read, or the page cannot be written.
    """
    from temper.report.read import read_report

    report = read_report(path)
    folder = path if path.is_dir() else path.parent
    try:
        write_page(report, folder)
    except OSError as error:
        raise ReportError(f"{folder / PAGE_FILE}: cannot be written: {error.strerror}") from error
    show_report(report, folder, as_json=as_json)
    if report.stopped is not None:
        echo(f"this run stopped early: {report.stopped}", err=True)


def show_report(report: Report, folder: Path, *, as_json: bool) -> None:
    """Prints a report's table, what it says in words and where it lies; or report.json."""
    if as_json:
        echo(render_json(report))
        return
    click.echo(render_table(report, color=sys.stdout.isatty()))
    if best := ", ".join(variant.name for variant in report.variants if variant.frontier):
        echo(f"On the frontier: {best}.")
    else:
        for sentence in [*answers(report), *faults(report)]:
            echo(sentence)
    echo(f"\n{folder / PAGE_FILE}\n{folder / REPORT_FILE}")
