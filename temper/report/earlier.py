"""What an earlier look at the same graphs found, for a later one that was asked for less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from temper.builder.explain.config import PARTS
from temper.errors import ReportError
from temper.report.explained import Blame, Explanation, NetworkView, Note, Similarity
from temper.report.read import read_explanation

_KINDS = ("original", "initial", "variant", "snapshot")
_SAME = ("num_images", "num_train", "seed")
"""What of the config has to be the same: it decides which images are looked at."""


def with_earlier(explanation: Explanation, folder: Path) -> Explanation:
    """Adds what the explanation in a run's folder says of what this one did not look at.

    Nothing is added from other graphs, images, libraries or another machine.
    """
    try:
        earlier = read_explanation(folder)
    except ReportError:  # there is none, or none that can be read
        return explanation
    return explanation if _setting(earlier) != _setting(explanation) else _Merge(earlier, explanation).merged()


def _setting(explanation: Explanation) -> list[Any]:
    config = [explanation.config.get(name) for name in _SAME]
    return [explanation.graphs, explanation.versions, explanation.cpu, *config]


class _Merge:
    """Two looks, of which the later one's findings stand."""

    def __init__(self, earlier: Explanation, later: Explanation) -> None:
        self._earlier, self._later, self._variants = earlier, later, list(later.graphs)
        self._parts = later.config["parts"]

    def merged(self) -> Explanation:
        networks = sorted((*self._later.networks, *self._kept_networks()), key=self._place)
        places = {one.name: place for place, one in enumerate(networks)}
        similarities = (*self._later.similarities, *self._kept_similarities())
        attributions = [
            one for one in self._earlier.attributions if not self._looked_at("attributions", one.maps[-1].network)
        ]
        parts = {*self._parts, *self._earlier.config["parts"]}
        return replace(
            self._later,
            config={**self._later.config, "parts": [part for part in PARTS if part in parts]},
            variants=tuple(
                name for name in self._variants if name in (*self._later.variants, *self._earlier.variants)
            ),
            notes=(*self._later.notes, *self._kept_notes()),
            blames=tuple(sorted(self._blames(), key=lambda one: self._variants.index(one.variant))),
            networks=tuple(networks),
            similarities=tuple(
                sorted(
                    similarities,
                    key=lambda one: max(places.get(name, len(places)) for name in (one.first, one.second)),
                )
            ),
            selection=self._later.selection if "features" in self._parts else self._earlier.selection,
            attributions=tuple(
                sorted(
                    (*self._later.attributions, *attributions),
                    key=lambda one: self._variants.index(one.maps[-1].network),
                )
            ),
        )

    def _looked_at(self, part: str, variant: str | None) -> bool:
        return part in self._parts and (variant is None or variant in self._later.variants)

    def _kept_notes(self) -> Iterator[Note]:
        for note in self._earlier.notes:
            if note.part is not None and not self._looked_at(note.part, note.variant):
                yield note

    def _blames(self) -> Iterator[Blame]:
        """A suggestion that had been tried stays so."""
        before = {one.variant: one for one in self._earlier.blames}
        for blame in self._later.blames:
            old, new = before[blame.variant].suggestion if blame.variant in before else None, blame.suggestion
            was_tried = old is not None and old.tried and new is not None and old.keep_high == new.keep_high
            yield replace(blame, suggestion=old) if was_tried and new and not new.tried else blame
        for blame in self._earlier.blames:
            if not self._looked_at("blame", blame.variant):
                yield blame

    def _kept_networks(self) -> Iterator[NetworkView]:
        now = {(view.kind, view.name) for view in self._later.networks}
        for view in self._earlier.networks:
            variant = view.name if view.kind == "variant" else None
            if (view.kind, view.name) not in now and not self._looked_at("representation", variant):
                yield view

    def _kept_similarities(self) -> Iterator[Similarity]:
        """Of a variant that was not looked at: one of the two networks is the original."""
        variants = {view.name for view in self._earlier.networks if view.kind == "variant"}
        now = {(pair.first, pair.second) for pair in self._later.similarities}
        for pair in self._earlier.similarities:
            variant = next((name for name in (pair.second, pair.first) if name in variants), None)
            if (pair.first, pair.second) not in now and not self._looked_at("representation", variant):
                yield pair

    def _place(self, view: NetworkView) -> tuple[int, int]:
        """The original first, then what came before it, the variants, and the snapshots."""
        inner = self._variants.index(view.name) if view.kind == "variant" else view.epoch or 0
        return _KINDS.index(view.kind), inner
