"""`temper sweep`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from temper.cli.commands.main_job import log_to_file, resumable
from temper.cli.commands.report import show_report
from temper.errors import WorkflowError
from temper.progress import Display
from temper.run.recipe import load_recipe
from temper.run.sweep import parse_over, sweep_recipe

if TYPE_CHECKING:
    from temper.run.recipe import Recipe
    from temper.run.sweep_run import Outcome


def sweep_command(
    recipe_file: Path,
    *,
    over: Sequence[str],
    variant: str | None,
    repository: Path,
    runs: Path,
    ray: str | None,
    num_gpus: float | None,
    num_cpus: float | None,
    as_json: bool,
) -> None:
    """Builds and measures a grid of variants, prints their table and marks those on the frontier.

    Raises:
        WorkflowError: A variant failed; the table and the report hold the others.
    """
    recipe = sweep_recipe(load_recipe(recipe_file), [parse_over(text) for text in over], variant=variant)
    log_to_file(recipe, runs)
    from temper.run.sweep_run import run_here, run_sweep

    with resumable(), Display() as display:

        def run_all(pairs: Sequence[Recipe]) -> Iterator[Outcome]:
            if ray is None:
                return run_here(pairs, repository=repository, runs=runs, display=display)
            from temper.run.cluster import run_on_ray

            wanted = {"num_gpus": num_gpus, "num_cpus": num_cpus}
            return run_on_ray(pairs, address=ray, repository=repository, runs=runs, display=display, **wanted)

        report = run_sweep(recipe, runs=runs, run_all=run_all)
    folder = runs / recipe.name
    show_report(report, folder, as_json=as_json)
    if report.stopped is not None:
        raise WorkflowError(f"{report.stopped}; the other variants are in {folder / 'report.html'}")
