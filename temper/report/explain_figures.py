"""The explanation's pictures, each from the explanation's figures alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set

from temper.report import text
from temper.report.explain_answer import block_of, cka, diagonal, part
from temper.report.explained import (
    Blame,
    CurveOfFeatures,
    FeatureImportance,
    NetworkView,
    Similarity,
)
from temper.report.figures import style
from temper.report.measured import Estimate
from temper.report.svg import WIDTH, Axis, Plot, Rows, log_span, span

_MAX_NAME = 26
"""Letters of a layer's name in a picture."""
_MAX_POINTS = 200
"""Points of a line; a network may have 2048 features."""


def blame_shares(blame: Blame, short: Mapping[str, str]) -> str | None:
    """A bar per layer in the graph's order: the share of the loss that goes when it alone is put back."""
    known = [(row, layer.share) for row, layer in enumerate(blame.layers) if layer.share is not None]
    if not known:
        return None
    values = [100 * end for _, share in known for end in (share.low, share.high)]
    x = span([0.0, *values], "share of the loss", suffix=" %")
    plot = _rows(blame, short, x, f"Share of the loss that each layer of {blame.variant} explains")
    suggested = blame.suggestion.keep_high if blame.suggestion else ()
    for row, share in known:
        name = blame.layers[row].name
        look = style(1) if name in suggested else style(0)
        plot.bar(row, 100 * share.value, look, f"{short[name]}: {part(share)}")
        plot.error_bar(row, 100 * share.low, 100 * share.high, "ink")
    return plot.svg()


def blame_noise(blame: Blame, short: Mapping[str, str]) -> str | None:
    """Signal to quantisation noise of every layer's output, in the graph's order: noise gathers on the way."""
    known = [
        (row, layer.signal_to_noise_db)
        for row, layer in enumerate(blame.layers)
        if layer.signal_to_noise_db is not None
    ]
    if not known:
        return None
    x = span([value for _, value in known], "signal to quantisation noise", suffix=" dB")
    plot = _rows(blame, short, x, f"Signal to quantisation noise by layer of {blame.variant}")
    plot.line(known, style(0))
    for row, value in known:
        look = style(0) if blame.layers[row].quantized else f"{style(0)} ring"
        plot.marker(row, value, look, f"{short[blame.layers[row].name]}: {value:.1f} dB")
    return plot.svg()


def _rows(blame: Blame, short: Mapping[str, str], x: Axis, title: str) -> Rows:
    names = [layer.name for layer in blame.layers]
    shown = [short[name] for name in names]
    shown = [name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}" for name in shown]
    return Rows(shown, x, title, notes=names)


def probes(networks: Sequence[NetworkView], blocks: Sequence[str]) -> str | None:
    """Accuracy of a linear classifier on every block's features, a line per network."""

    def value(view: NetworkView, block: str) -> Estimate | None:
        found = block_of(view, block)
        probe = found.probe if found else None
        return Estimate(value=100 * probe.value, low=100 * probe.low, high=100 * probe.high) if probe else None

    lines = [[value(view, block) for block in blocks] for view in networks]
    if not (ends := _ends(lines)):
        return None
    y = span(ends, "accuracy of a linear probe", suffix=" %")
    return _over_blocks(blocks, [view.name for view in networks], lines, y, lambda one: f"{one.value:.1f} %")


def ranks(networks: Sequence[NetworkView], blocks: Sequence[str]) -> str | None:
    """The features' effective rank at every block, a line per network; rings are lower bounds."""
    found = [[block_of(view, block) for block in blocks] for view in networks]
    lines = [[block.effective_rank if block else None for block in each] for each in found]
    if not (ends := _ends(lines)):
        return None
    limited = {
        (row, place)
        for row, each in enumerate(found)
        for place, block in enumerate(each)
        if block and block.rank_limited
    }
    y = log_span(ends, "effective rank")
    names = [view.name for view in networks]
    return _over_blocks(blocks, names, lines, y, lambda one: f"{one.value:.1f}", rings=limited)


def moves(pairs: Sequence[Similarity], names: Sequence[str], blocks: Sequence[str], first: int) -> str | None:
    """Linear CKA of every block with its counterpart in the other network, a line per pair."""
    lines = [[dict(diagonal(pair)).get(block) for block in blocks] for pair in pairs]
    if not (ends := _ends(lines)):
        return None
    y = Axis(low=min(0.0, *ends), high=max(1.0, *ends), label="linear CKA")
    return _over_blocks(blocks, names, lines, y, cka, first=first)


def _ends(lines: Sequence[Sequence[Estimate | None]]) -> list[float]:
    return [end for each in lines for one in each if one for end in (one.low, one.high)]


def _over_blocks(
    blocks: Sequence[str],
    names: Sequence[str],
    lines: Sequence[Sequence[Estimate | None]],
    y: Axis,
    write: Callable[[Estimate], str],
    *,
    first: int = 0,
    rings: Set[tuple[int, int]] = frozenset(),
) -> str:
    """A line with the band of its interval per network; `first` is the first one's place among the colours."""
    x = Axis(low=0, high=len(blocks), label="block")
    plot = Plot(x, y, f"{y.label[0].upper()}{y.label[1:]} by block, per network", x_names=_thinned(blocks))
    known = [[(place + 0.5, one, place) for place, one in enumerate(each) if one is not None] for each in lines]
    for row, each in enumerate(known, first):
        plot.band([(place, one.low, one.high) for place, one, _ in each], style(row))
    for row, (name, each) in enumerate(zip(names, known, strict=True)):
        look = style(first + row)
        plot.line([(place, one.value) for place, one, _ in each], look)
        for place, one, index in each:
            ring = f"{look} ring" if (row, index) in rings else look
            plot.marker(place, one.value, ring, f"{name}, {blocks[index]}: {write(one)}")
    return plot.svg()


def short_block(name: str) -> str:
    """`layer3.1` as `3.1`."""
    return name.removeprefix("layer")


def _thinned(blocks: Sequence[str]) -> list[str]:
    """The blocks' names, as many as there is room for."""
    names = [short_block(name) for name in blocks]
    room = (WIDTH - 100) / len(names)
    every = math.ceil((7 * max(map(len, names)) + 4) / room)
    return [name if index % every == 0 else "" for index, name in enumerate(names)]


def feature_curves(curves: Sequence[CurveOfFeatures], places: Mapping[str, int]) -> str | None:
    """Accuracy against the number of features kept, a line per method."""
    kept = [count for curve in curves for count in curve.num_features]
    if not kept:
        return None
    ends = [100 * end for curve in curves for share in curve.accuracy for end in (share.low, share.high)]
    x, y = log_span(kept, "features kept"), span(ends, "accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy against the features kept, per method")
    for index, curve in enumerate(curves):
        look = style(places[curve.method])
        # Beside one another, so that whiskers at the same number stay apart.
        points = [
            (count * 1.025 ** (index - (len(curves) - 1) / 2), count, share)
            for count, share in zip(curve.num_features, curve.accuracy, strict=True)
        ]
        plot.line([(place, 100 * share.value) for place, _, share in points], look)
        for place, count, share in points:
            plot.error_bar(place, 100 * share.low, 100 * share.high, look)
            note = f"{curve.method}, {count} features: {text.percent(share.value)}"
            plot.marker(place, 100 * share.value, look, note)
    return plot.svg()


def importance(methods: Sequence[FeatureImportance], places: Mapping[str, int]) -> str | None:
    """The features' importance from the largest down, over the largest, a line per method."""
    known = [(one.method, sorted(one.values, reverse=True)) for one in methods if max(one.values, default=0) > 0]
    if not known:
        return None
    x = Axis(low=0, high=max(len(values) for _, values in known), label="features, the most important first")
    lowest = min(values[-1] / values[0] for _, values in known)
    y = Axis(low=min(0.0, lowest), high=1, label="importance over the largest")
    plot = Plot(x, y, "Importance of the features, sorted, per method")
    for method, values in known:
        step = math.ceil(len(values) / _MAX_POINTS)
        ranks = [*range(0, len(values), step), len(values) - 1]
        plot.line([(rank + 1, values[rank] / values[0]) for rank in ranks], style(places[method]))
    return plot.svg()
