"""Runs the variants of a sweep, each beside the first one, and joins their reports into one with a frontier.

On one machine they run in order; on a Ray cluster they are its tasks. A variant that cannot be built, for example
because its budget cannot be met, is listed with its reason and stops nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from temper.builder.errors import BuilderError
from temper.client.errors import ClientError
from temper.errors import TemperError, WorkflowError
from temper.report import write_report
from temper.report.model import AnyAttack, Failure, Report, Variant
from temper.run.frontier import mark_frontier
from temper.run.summary import moved
from temper.run.sweep import with_variants

if TYPE_CHECKING:
    from temper.progress import Display
    from temper.run.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one variant of a sweep ended."""

    variant: str
    """Its name."""
    report: Report | None
    """The report of the run of the first variant and this one; None when it failed."""
    reason: str | None
    """Why it failed, in one line."""


RunAll = Callable[["Sequence[Recipe]"], Iterator[Outcome]]
"""Runs recipes of one variant each, beside what it needs; the outcomes come in any order."""


def run_sweep(recipe: Recipe, *, runs: Path, run_all: RunAll) -> Report:
    """Runs a sweep and writes its report.

    Args:
        recipe: From `sweep_recipe`.
        runs: The report's folder is `runs/<recipe>`.
        run_all: `run_here`, or a cluster's.

    Returns:
        The report, as `run_recipe` gives it, with `failed`, and with `frontier` of every variant.

    Raises:
        WorkflowError: No variant could be measured.
    """
    started = time.monotonic()
    folder = runs / recipe.name
    pairs = list(pairs_of(recipe))
    outcomes: dict[str, Outcome] = {}
    try:
        for outcome in run_all(pairs):
            outcomes[outcome.variant] = outcome
    finally:
        done = [outcomes[pair.variants[-1].name] for pair in pairs if pair.variants[-1].name in outcomes]
        report = _join(recipe, done)
        if report is not None:
            report = dataclasses.replace(report, seconds=round(time.monotonic() - started, 1))
            write_report(report, folder)
    if report is None:
        reasons = dict.fromkeys(outcome.reason for outcome in done)
        raise WorkflowError(f"sweep {recipe.name}: no variant could be measured: {'; '.join(map(str, reasons))}")
    return report


def pairs_of(recipe: Recipe) -> Iterator[Recipe]:
    """Yields a recipe for every variant that no other one needs: the first one, those that are needed, and it."""
    first, *others = recipe.variants
    named = {name for one in recipe.variants for name in (*one.ensemble, one.against)}
    shared = [one for one in others if one.name in named]
    alone = [one for one in others if one.name not in named]
    for place in range(max(len(alone), 1)):
        yield with_variants(recipe, (first, *shared, *alone[place : place + 1]))


def run_here(
    pairs: Iterable[Recipe], *, repository: Path, runs: Path, display: Display, url: str | None = None
) -> Iterator[Outcome]:
    """Runs one after the other on this machine."""
    for pair in pairs:
        yield run_pair(pair, repository=repository, runs=runs, display=display, url=url)


def run_pair(pair: Recipe, *, repository: Path, runs: Path, display: Display, url: str | None = None) -> Outcome:
    """Runs one variant beside the first; never raises what one variant alone is to blame for."""
    from temper.run.workflow import run_recipe

    name = pair.variants[-1].name
    folder = runs / pair.name / "variants" / name
    try:
        report = run_recipe(pair, repository=repository, runs=runs, display=display, url=url, folder=folder)
    except (BuilderError, ClientError, TemperError) as error:
        return Outcome(variant=name, report=None, reason=str(error))
    return Outcome(variant=name, report=report, reason=report.stopped)


def _join(recipe: Recipe, outcomes: Sequence[Outcome]) -> Report | None:
    measured = [(outcome.variant, outcome.report) for outcome in outcomes if outcome.report is not None]
    if not measured:
        return None
    baseline, first = measured[0]
    own = {name for name, _ in measured} - {first.variants[0].name}
    variants = [_moved(variant, baseline) for variant in first.variants if variant.name not in own]
    variants += [
        _moved(variant, name) for name, part in measured for variant in part.variants if variant.name in own
    ]
    failed = [(outcome.variant, outcome.reason) for outcome in outcomes if outcome.reason is not None]
    parts = [part for _, part in measured]
    return dataclasses.replace(
        first,
        config=dataclasses.asdict(recipe),
        variants=mark_frontier(variants),
        comparisons=tuple(
            each
            for name, part in measured
            for each in part.comparisons
            if each.variant == name or part is first  # what is shared is compared in every part
        ),
        timings=tuple(each for part in parts for each in part.timings),
        deaths=tuple(each for part in parts for each in part.deaths),
        failed=tuple(Failure(variant=name, reason=reason) for name, reason in failed),
        stopped="; ".join(f"{name}: {reason}" for name, reason in failed) or None,
    )


def _moved(variant: Variant, name: str) -> Variant:
    """Returns a variant whose gallery is named from the sweep's folder, not from that of the run of `name`."""
    place = f"variants/{name}"
    robustness, differential = (
        _attacks_moved(variant.robustness, place),
        _attacks_moved(variant.differential, place),
    )
    return dataclasses.replace(variant, robustness=robustness, differential=differential)


def _attacks_moved(attacks: Sequence[AnyAttack], place: str) -> tuple[AnyAttack, ...]:
    return tuple(
        dataclasses.replace(attack, gallery=tuple(moved(picture, place) for picture in attack.gallery))
        for attack in attacks
    )
