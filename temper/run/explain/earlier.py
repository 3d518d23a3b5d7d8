"""What an earlier look into the same graphs found, for a later one that was asked for less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from temper.errors import ReportError
from temper.report.explained import Attribution, Blame, Explanation, NetworkView, Similarity
from temper.run.explain.look import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

_KINDS = get_args(Kind)
_IMAGES = ("num_images", "num_train", "seed")
"""What of the config decides which images are looked at."""


def with_earlier(explanation: Explanation, folder: Path) -> Explanation:
    """Adds what the explanation in a run's folder has beside this one, of the same graphs on the same images."""
    from temper.report.read import read_explanation

    try:
        earlier = read_explanation(folder)
    except ReportError:  # there is none, or none that can be read
        return explanation
    if earlier.graphs != explanation.graphs or _images(earlier) != _images(explanation):
        return explanation
    variants = list(explanation.graphs)
    networks = _networks(earlier.networks, explanation.networks, variants)
    return replace(
        explanation,
        notes=tuple(dict.fromkeys((*explanation.notes, *earlier.notes))),
        blames=_blames(earlier.blames, explanation.blames, variants),
        networks=networks,
        similarities=_similarities(earlier.similarities, explanation.similarities, [one.name for one in networks]),
        selection=explanation.selection or earlier.selection,
        attributions=_attributions(earlier.attributions, explanation.attributions, variants),
    )


def _images(explanation: Explanation) -> list[Any]:
    return [explanation.config.get(name) for name in _IMAGES]


def _blames(earlier: Iterable[Blame], now: Iterable[Blame], variants: Sequence[str]) -> tuple[Blame, ...]:
    """By variant; a suggestion that had been tried stays so."""
    found = {blame.variant: blame for blame in earlier}
    for blame in now:
        before = found[blame.variant].suggestion if blame.variant in found else None
        same = before and blame.suggestion and before.keep_high == blame.suggestion.keep_high
        is_tried = blame.suggestion is not None and blame.suggestion.tried
        found[blame.variant] = replace(blame, suggestion=before) if same and not is_tried else blame
    return tuple(sorted(found.values(), key=lambda blame: variants.index(blame.variant)))


def _networks(
    earlier: Iterable[NetworkView], now: Iterable[NetworkView], variants: Sequence[str]
) -> tuple[NetworkView, ...]:
    def place(view: NetworkView) -> tuple[int, int]:
        return _KINDS.index(view.kind), variants.index(view.name) if view.kind == "variant" else view.epoch or 0

    found = {(view.kind, view.name): view for view in (*earlier, *now)}
    return tuple(sorted(found.values(), key=place))


def _similarities(
    earlier: Iterable[Similarity], now: Iterable[Similarity], networks: Sequence[str]
) -> tuple[Similarity, ...]:
    """By the two networks, one of which is the original: the first of all."""
    found = {(pair.first, pair.second): pair for pair in (*earlier, *now)}
    return tuple(sorted(found.values(), key=lambda pair: max(map(networks.index, (pair.first, pair.second)))))


def _attributions(
    earlier: Iterable[Attribution], now: Sequence[Attribution], variants: Sequence[str]
) -> tuple[Attribution, ...]:
    """By the two variants: the later look has replaced the pictures of its own."""

    def pair(one: Attribution) -> tuple[str, ...]:
        return tuple(each.network for each in one.maps)

    again = {pair(one) for one in now}
    found = (*(one for one in earlier if pair(one) not in again), *now)
    return tuple(sorted(found, key=lambda one: variants.index(pair(one)[-1])))
