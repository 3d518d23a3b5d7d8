"""`temper explain`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from temper.builder.explain.config import ExplainConfig, Part
from temper.cli.commands.main_job import log_to_file, resumable
from temper.errors import ReportError, WorkflowError
from temper.progress import Display
from temper.report import (
    EXPLAIN_FILE,
    EXPLAIN_PAGE_FILE,
    REPORT_FILE,
    render_json,
    write_explanation,
    write_report,
)
from temper.report.earlier import with_earlier
from temper.report.explain_table import render_explain
from temper.report.read import read_report
from temper.run.recipe import Recipe, load_recipe
from temper.terminal import echo


def explain_command(
    recipe_file: Path,
    *,
    variants: tuple[str, ...],
    parts: tuple[Part, ...],
    num_images: int | None,
    mend: bool,
    keep_high: tuple[str, ...],
    repository: Path,
    runs: Path,
    as_json: bool,
) -> None:
    """Builds what is not built yet, looks into it, writes explain.html and explain.json, and prints what it found.

    A report beside them gets a link to the page.

    Raises:
        WorkflowError: There is no such variant.
        BuilderError: A variant cannot be built, or not looked into.
    """
    recipe = _with_look(load_recipe(recipe_file), parts, num_images)
    folder = runs / recipe.name
    log_to_file(recipe, runs)
    from temper.run.explain import check_asked, explain_recipe
    from temper.run.workflow import alone, build_recipe

    check_asked(recipe, variants, tries=mend or bool(keep_high))
    with resumable(), Display() as display, alone(folder, display):
        built = build_recipe(recipe, repository=repository, runs=runs, display=display)
        explanation = explain_recipe(
            recipe, built, folder=folder, display=display, variants=variants, mend=mend, keep_high=keep_high
        )
        merged = with_earlier(explanation, folder)
        write_explanation(merged, folder)
        _link(folder)
    if as_json:
        echo(render_json(merged))
        return
    click.echo(render_explain(explanation, color=sys.stdout.isatty()))
    echo(f"{folder / EXPLAIN_PAGE_FILE}\n{folder / EXPLAIN_FILE}")


def _with_look(recipe: Recipe, parts: tuple[Part, ...], num_images: int | None) -> Recipe:
    """The recipe with the look that was asked for."""
    config = recipe.explain or ExplainConfig()
    if parts:
        config = replace(config, parts=tuple(dict.fromkeys(parts)))
    if num_images is not None:
        config = replace(config, num_images=num_images)
    try:
        return replace(recipe, explain=config)
    except ValueError as error:  # a part that the recipe's network cannot be asked for
        raise WorkflowError(str(error)) from error


def _link(folder: Path) -> None:
    """Lets the report of an earlier run, where there is one that can be read, name the page."""
    if not (folder / REPORT_FILE).exists():
        return
    try:
        report = read_report(folder)
    except ReportError as error:
        echo(f"{error}; it gets no link to {EXPLAIN_PAGE_FILE}", err=True)
        return
    write_report(replace(report, explanation=EXPLAIN_PAGE_FILE), folder)
