"""Looks into a recipe's network and what its compression did to it: what explain.json and explain.html hold.

Every look is a stage that is kept, so a second time does only what changed. All runs in process, in the engine
that serves where it gives inner tensors out, and no server is needed; `temper/run/workflow.py` measures what is
served.

In scope: the order of the looks, their figures with intervals, and
attributions (`maps.py`), as the builder knows nothing of the client's surrogates. Not in scope: how the
other looks are taken (`builder/explain`), and the page (`temper/report`). Read `look.py` first.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from temper.builder.built import Built
from temper.errors import WorkflowError
from temper.host.machine import commit, machine, versions
from temper.report.explained import FORMAT, Explanation
from temper.run.explain.attribution import attribute_variants
from temper.run.explain.blame import blame_variants
from temper.run.explain.look import Look, Network, graphs_of
from temper.run.explain.represent import represent, select_features

if TYPE_CHECKING:
    from temper.progress import Display
    from temper.run.recipe import Recipe


def explain_recipe(
    recipe: Recipe,
    built: Sequence[Built],
    *,
    folder: Path,
    display: Display,
    variants: Sequence[str] = (),
    mend: bool = False,
    keep_high: Sequence[str] = (),
) -> Explanation:
    """Looks into what was built of a recipe; the recipe's `explain` says how, or the defaults do.

    Args:
        recipe: The recipe.
        built: Its variants, from `build_recipe`.
        folder: The run's folder, with its stages; pictures go into `explain` in it.
        display: Where progress is shown.
        variants: Names of those to look at; all when not given.
        mend: Quantises anew with what is suggested, and measures that.
        keep_high: Layers to leave unquantised and measure so, in place of what is suggested.

    Raises:
        WorkflowError: There is no such variant or layer, or what was asked for does not exist of it.
        BuilderError: The images cannot be read. A look that cannot be taken is noted, and the others are taken.
    """
    started = datetime.datetime.now(datetime.UTC), time.monotonic()
    check_asked(recipe, variants, tries=mend or bool(keep_high))
    chosen = [one for one in built if one.variant in (variants or _with_network(recipe))]
    look = Look(recipe, built, folder, display, chosen)
    parts = look.config.parts
    blames = (
        tuple(blame_variants(look, mend=mend, named=bool(variants), keep_high=keep_high))
        if "blame" in parts
        else ()
    )
    networks: list[Network] = []
    with look.leaving_out("the networks", "representation"):
        networks = look.networks() if set(parts) - {"blame"} else []
    views, similarities = represent(look, networks) if "representation" in parts and networks else ((), ())
    selection = None
    with look.leaving_out("which features matter", "features"):
        selection = select_features(look, networks[0]) if "features" in parts and networks else None
    attributions = tuple(attribute_variants(look, networks)) if "attributions" in parts and networks else ()
    return Explanation(
        format=FORMAT,
        recipe=recipe.name,
        created=started[0].strftime("%Y-%m-%d %H:%M UTC"),
        seconds=round(time.monotonic() - started[1], 1),
        commit=commit(),
        cpu=machine()["cpu"],
        versions=versions(),
        config=asdict(look.config),
        graphs=graphs_of(built),
        variants=tuple(one.variant for one in look.chosen),
        notes=tuple(look.notes),
        blames=blames,
        networks=views,
        similarities=similarities,
        selection=selection,
        attributions=attributions,
    )


def check_asked(recipe: Recipe, variants: Sequence[str], *, tries: bool) -> None:
    """Refuses what a recipe has no look for; before anything is built.

    Args:
        recipe: The recipe.
        variants: Names of those to look at.
        tries: Whether layers are to be tried unquantised.

    Raises:
        WorkflowError: There is no such variant, or no part that tries layers.
    """
    known = _with_network(recipe)
    for name in variants:
        if name not in [one.name for one in recipe.variants]:
            raise WorkflowError(f"explain: got variant {name!r}, expected one of {', '.join(known)}")
        if name not in known:
            raise WorkflowError(
                f"explain: variant {name!r} is an ensemble, which has no network of its own; name its members"
            )
    if tries and "blame" not in recipe.look.parts:
        raise WorkflowError("explain: nothing to try without the part blame; add --part blame")


def _with_network(recipe: Recipe) -> list[str]:
    return [one.name for one in recipe.variants if not one.ensemble]
