"""`temper run` and `temper build`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from temper.cli.commands.report import show_report
from temper.errors import WorkflowError
from temper.progress import Display
from temper.run.recipe import Recipe, load_recipe
from temper.terminal import echo

LOG_FILE = "temper.log"


def run_command(
    recipe_file: Path, *, url: str | None, repository: Path, runs: Path, sign: Path | None, as_json: bool
) -> None:
    """Runs a recipe, prints its table (or report.json) and says where the report is.

    Raises:
        WorkflowError: The measurements stopped early; the table and the report hold what was measured.
    """
    recipe = load_recipe(recipe_file)
    log_to_file(recipe, runs)
    from temper.run.workflow import run_recipe

    with resumable(), Display() as display:
        report = run_recipe(recipe, repository=repository, runs=runs, display=display, url=url, sign=sign)
    folder = runs / recipe.name
    show_report(report, folder, as_json=as_json)
    if report.stopped is not None:
        raise WorkflowError(f"{report.stopped}; what was measured is in {folder / 'report.html'}")


def build_command(recipe_file: Path, *, repository: Path, runs: Path, as_json: bool) -> None:
    """Builds and publishes a recipe's variants and prints what they are."""
    recipe = load_recipe(recipe_file)
    log_to_file(recipe, runs)
    from temper.run.workflow import build_recipe

    with resumable(), Display() as display:
        built = build_recipe(recipe, repository=repository, runs=runs, display=display)
    rows: list[dict[str, Any]] = [
        {
            "variant": one.variant,
            "model": one.model,
            "version": one.version,
            "served": one.served,
            "encoded_model": one.jpeg and one.jpeg.model,
            "engine": one.engine,
            "engine_reason": one.engine_reason,
            "size_bytes": one.size_bytes,
            "path": str(one.path),
            "reused": one.reused,
            "stages": [stage.to_json() for stage in one.stages],
        }
        for one in built
    ]
    if as_json:
        echo(json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for row in rows:
        state = "reused" if row["reused"] else "published"
        if row["served"] != row["version"]:
            state += f", a candidate (version {row['served']} is served)"
        echo(
            f"{row['model']} version {row['version']} {state}: {row['engine']}, {row['size_bytes'] / 1e6:.1f} MB, "
            f"{row['path']}" + (f"; {row['encoded_model']} takes image files" if row["encoded_model"] else "")
        )


@contextmanager
def resumable() -> Iterator[None]:
    """Lets Ctrl-C say that nothing finished is lost."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        reason = str(stopped) or "interrupted"
        raise KeyboardInterrupt(f"{reason}; what was finished is kept, run it again to go on") from None


def log_to_file(recipe: Recipe, runs: Path) -> None:
    """Sends the libraries' log and warnings into the run's folder instead of between the bars."""
    folder = runs / recipe.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(
            filename=folder / LOG_FILE,
            filemode="w",
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        )
    except OSError as error:
        raise WorkflowError(
            f"{folder}: cannot be written: {error.strerror}; choose another folder with --runs"
        ) from error
    logging.captureWarnings(True)
