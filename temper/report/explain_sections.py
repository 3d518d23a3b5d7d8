"""The explanation's sections on the representation: blocks, similarity, features, attributions; machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from temper.report import explain_figures as figures, html, text
from temper.report.explain_answer import (
    block_names,
    block_of,
    cka,
    diagonal,
    kept,
    knows,
    moved,
    views,
)
from temper.report.explained import (
    Attribution,
    Block,
    CurveOfFeatures,
    Explanation,
    NetworkView,
    Selection,
    Similarity,
)
from temper.report.measured import Estimate
from temper.report.sections import flat

_NUM_MAPS = 4
"""Heat maps before the fold."""
_MAX_WRITTEN = 24
"""Columns of a heat map up to which its figures are written into it."""


def networks(explanation: Explanation) -> str:
    """Probes and ranks over the blocks, and when the features emerged."""
    shown = views(explanation)
    if not shown:
        return ""
    blocks, names = block_names(shown), [view.name for view in shown]
    pictures = html.figure(
        "What a linear classifier reads",
        figures.probes(shown, blocks),
        "Trained on each block's output, averaged over the image, of training images; accuracy on test images. "
        "Bands are 95 % intervals.",
        names,
    ) + html.figure(
        "How many directions the features use",
        figures.ranks(shown, blocks),
        "Effective rank of the same features: exponential of the entropy of their covariance's spectrum. A ring "
        "is a lower bound, from too few images for so many features.",
        names,
    )
    body = html.paragraphs(knows(explanation))
    body += html.figures(pictures)
    return body + html.folded("The figures, block by block", _block_table(shown, blocks)) + _emergence(explanation)


def _block_table(shown: Sequence[NetworkView], blocks: Sequence[str]) -> str:
    head = ["block", *(view.name for view in shown)]
    ran = [html.with_note("network", "its own head")]
    ran += [html.with_note(text.percent(view.accuracy.value), f"blocks from {view.runs_in}") for view in shown]
    return html.table(head, [ran, *([name, *(_block(block_of(view, name)) for view in shown)] for name in blocks)])


def _block(block: Block | None) -> object:
    if block is None:
        return "–"
    bound = "at least " if block.rank_limited else ""
    note = f"rank {bound}{block.effective_rank.value:.1f} of {block.num_features}"
    note += f", {block.num_dead} dead" if block.num_dead else ""
    return html.with_note(text.percent(block.probe.value) if block.probe else "–", note)


def _emergence(explanation: Explanation) -> str:
    """Probe accuracy by epoch and block: before finetuning, every snapshot, the network in the end."""
    snapshots = [view for view in explanation.networks if view.kind == "snapshot"]
    if not snapshots:
        return ""
    order = {"initial": 0, "snapshot": 1, "original": 2}
    rows = [view for view in explanation.networks if view.kind in order]
    rows.sort(key=lambda view: (order[view.kind], view.epoch or 0))
    blocks = block_names(rows)
    found = [block.probe.value for view in rows for block in view.blocks if block.probe]
    if not found:
        return ""
    low, wide = min(found), (max(found) - min(found)) or 1

    def cells(view: NetworkView) -> Iterator[object]:
        yield view.name
        for name in blocks:
            block = block_of(view, name)
            if block is None or block.probe is None:
                yield "–"
                continue
            note = f"{view.name}, {name}: {text.percent(block.probe.value)} "
            note += f"({text.interval(block.probe.low, block.probe.high)})"
            yield html.heat((block.probe.value - low) / wide, f"{100 * block.probe.value:.0f}", note)
        yield f"{100 * view.accuracy.value:.0f}"

    head = ["", *map(figures.short_block, blocks), "network"]
    note = (
        f"Accuracy of the linear probes in %, from {text.percent(low)} (faint) to {text.percent(max(found))}. "
        "4.1 is layer4.1. Last column: the network itself."
    )
    table = html.table(head, (list(cells(view)) for view in rows), dense=True)
    return f"<h3>When the features emerged</h3>{table}{html.paragraphs([note], 'note')}"


def similarity(explanation: Explanation) -> str:
    """What was moved, as a line per pair, and a heat map of every pair."""
    pairs = explanation.similarities
    if not pairs:
        return ""
    names = [view.name for view in views(explanation)]
    original = next((view.name for view in explanation.networks if view.kind == "original"), "")
    beside = {_other(pair, original): pair for pair in pairs if original in (pair.first, pair.second)}
    lines = [name for name in names if name in beside and name != original]
    blocks = list(dict.fromkeys(name for pair in pairs for name, _ in diagonal(pair)))
    picture = html.figure(
        "What was moved, block by block",
        figures.moves([beside[name] for name in lines], lines, blocks, first=1),
        f"Linear CKA of each block's features with those of its counterpart in {original}; 1 is the same but for "
        "rotation and scale. What finetuning moved is where the network before it is low. Bands: 95 % intervals.",
        lines,
        first=1,
    )
    maps = [_map(pair) for pair in pairs]
    note = (
        "Linear CKA, unbiased estimate, on the same test images; the pointer shows the 95 % interval of a cell. "
        "Rows: the first network's blocks; columns: the second's; 4.1 is layer4.1."
    )
    more = "".join(maps[_NUM_MAPS:])
    return (
        html.paragraphs(moved(explanation))
        + html.figures(picture)
        + f'<div class="maps">{"".join(maps[:_NUM_MAPS])}</div>'
        + html.folded(f"{len(maps) - _NUM_MAPS} more", f'<div class="maps">{more}</div>' if more else "")
        + html.paragraphs([note], "note")
    )


def _other(pair: Similarity, original: str) -> str:
    return pair.second if pair.first == original else pair.first


def _map(pair: Similarity) -> str:
    written = len(pair.columns) <= _MAX_WRITTEN

    def cells(name: str, row: Sequence[Estimate | None]) -> Iterator[object]:
        yield name
        for column, value in zip(pair.columns, row, strict=True):
            if value is None:
                yield html.heat(0, "–" if written else "", f"{name}, {column}: the same features for every image")
            else:
                shown = text.plain(value.value) if written else ""
                yield html.heat(min(max(value.value, 0), 1), shown, f"{name}, {column}: {cka(value)}")

    same = pair.first == pair.second
    heading = f"{pair.first}, with itself" if same else f"{pair.first} (rows) and {pair.second} (columns)"
    head = ["", *(map(figures.short_block, pair.columns) if written else len(pair.columns) * [""])]
    rows = [list(cells(name, row)) for name, row in zip(pair.rows, pair.values, strict=True)]
    known = [value for row in pair.values for value in row if value is not None]
    small = f"{pair.num_images} images"
    if known:
        widest = max(known, key=lambda value: value.high - value.low)
        small += f"; widest interval: {cka(widest)}"
    table = html.table(head, rows, dense=True)
    return f"<div><h3>{escape(heading)}</h3>{table}{html.paragraphs([small], 'note')}</div>"


def selection(explanation: Explanation) -> str:
    """Accuracy against the features kept, how stable the choices are, and the features' importance."""
    found = explanation.selection
    if found is None:
        return ""
    ranked = [one.method for one in found.importance]
    methods = list(dict.fromkeys([*ranked, *(curve.method for curve in found.curves)]))
    places = {method: place for place, method in enumerate(methods)}
    pictures = html.figure(
        "Accuracy against the features kept",
        figures.feature_curves(found.curves, places),
        "Of a head that is trained anew on these features. Whiskers are 95 % intervals; points beside one another "
        "are of the same number.",
        methods,
    ) + html.figure(
        "Importance, sorted",
        figures.importance(found.importance, places),
        "Each method's figures over its own largest.",
        ranked,
    )
    words = f"Chosen and trained on {found.num_train} training images, measured on {found.num_images} test images."
    return (
        html.paragraphs(kept(explanation))
        + html.paragraphs([f"{words} {found.note}".rstrip()], "note")
        + html.figures(pictures)
        + _curve_table(found)
    )


def _curve_table(found: Selection) -> str:
    if not found.curves:
        return ""
    counts = sorted({count for curve in found.curves for count in curve.num_features})
    head = ["chosen by", "stability", *(f"{count} features" for count in counts)]
    note = (
        "Small print: change against a head that was trained anew on all features, in points, with its 95 % "
        "interval, paired. Stability: how much the choices on resampled images have in common at a quarter of the "
        "features; 1 is the same ones, 0 what chance gives."
    )
    return html.table(head, (_curve(curve, counts) for curve in found.curves)) + html.paragraphs([note], "note")


def _curve(curve: CurveOfFeatures, counts: Sequence[int]) -> list[object]:
    stable = curve.stability
    by_count = dict(zip(curve.num_features, zip(curve.accuracy, curve.change, strict=True), strict=True))

    def at(count: int) -> object:
        if count not in by_count:
            return "–"
        accuracy, change = by_count[count]
        if count == counts[-1]:  # all of them
            return text.percent(accuracy.value)
        bounds = text.bounds(change.low, change.high)
        return html.with_note(text.percent(accuracy.value), f"{text.signed(100 * change.difference)} ({bounds})")

    return [
        curve.method,
        "–"
        if stable is None
        else html.with_note(text.plain(stable.value), f"{text.plain(stable.low)} to {text.plain(stable.high)}"),
        *map(at, counts),
    ]


def attributions(explanation: Explanation, folder: Path) -> str:
    """The images with the maps of both networks, side by side; one whose files are gone is left out."""
    shots = "".join(_shot(one, folder) for one in explanation.attributions)
    note = (
        "Images that two variants answer differently. Integrated gradients: red speaks for the network's own "
        "answer, blue against it. Grad-CAM: the brighter, the more the last features there speak for it."
    )
    return f'{html.paragraphs([note], "note")}<div class="gallery looks">{shots}</div>' if shots else ""


def _shot(one: Attribution, folder: Path) -> str:
    files = [one.image, *(name for maps in one.maps for name in (maps.integrated_gradients, maps.grad_cam))]
    if not all((folder / name).is_file() for name in files):
        return ""
    cells = ""
    for number, maps in enumerate(one.maps):
        image = html.png(folder / one.image, f"test image {one.index}") if number == 0 else "<b></b>"
        cells += image + html.png(folder / maps.integrated_gradients, f"integrated gradients of {maps.network}")
        cells += html.png(folder / maps.grad_cam, f"Grad-CAM of {maps.network}")
        cells += f"<span>{'image' if number == 0 else ''}</span>"
        cells += f"<span>{escape(maps.network)}: integrated gradients</span><span>Grad-CAM</span>"
    answers = ", ".join(f"{escape(maps.network)} says <b>{escape(maps.answer)}</b>" for maps in one.maps)
    words = f"<p><b>{escape(one.label)}</b>: {answers} (image {one.index})</p>"
    return f'<div class="shot"><div>{cells}</div>{words}</div>'


def notes(explanation: Explanation) -> str:
    """What was left out or is not valid."""
    items = "".join(f"<li>{escape(note.words)}</li>" for note in explanation.notes)
    return f"<ul>{items}</ul>" if items else ""


def machine(explanation: Explanation) -> str:
    """Where and with what it was measured, and the settings."""
    facts = {
        "CPU": explanation.cpu,
        "begun": explanation.created,
        "took": text.seconds(explanation.seconds),
        "commit": explanation.commit or "unknown",
        **{f"explain.{key}": value for key, value in flat(explanation.config)},
    }
    return (
        f'<div class="columns"><div><h3>Machine and settings</h3>{html.definitions(facts)}</div>'
        f"<div><h3>Versions</h3>{html.definitions(explanation.versions)}</div></div>"
    )
