"""The explanation's section on blame: which layers a variant's loss comes from, and what mends it."""

from __future__ import annotations

from html import escape

from temper.builder.names import short_names
from temper.report import explain_figures as figures, html, text
from temper.report.explain_answer import part_bounds, where, worst
from temper.report.explained import (
    Blame,
    Explanation,
    LayerBlame,
    Mended,
)
from temper.report.measured import Estimate, Paired
from temper.report.sections import share

_NUM_ROWS = 10
"""Layers that a table shows before the fold."""
_NOTE = (
    "Share of the loss: what goes when the layer alone is put back to float, with its 95 % interval. SNR: signal "
    "to quantisation noise of its output. Clipped: its input's values beyond the range of its scale; range used: "
    "its input's largest value over that range; outlier: the widest channel of its input over the median one. "
    "Dead: channels of its output that are always zero after the ReLU."
)


def blames(explanation: Explanation) -> str:
    """For every quantised variant: pictures of its layers, the table, and what the suggestion gives."""
    return "".join(_blame(blame) for blame in explanation.blames)


def _blame(blame: Blame) -> str:
    short = short_names([layer.name for layer in blame.layers])
    note = (
        "From the network's input at the top to its head. Whiskers are 95 % intervals over the images; below 0 "
        "the loss grows without the layer's noise, as errors can cancel."
    )
    note += " The other colour: the layers of the suggestion." if blame.suggestion else ""
    pictures = html.figure("What each layer explains", figures.blame_shares(blame, short), note) + html.figure(
        "Noise on the way",
        figures.blame_noise(blame, short),
        "Of each layer's output; the noise of those before is part of it. A ring computes in float.",
    )
    return (
        f"<h3>{escape(blame.variant)}</h3>"
        + html.paragraphs([where(blame)], "note")
        + html.figures(pictures)
        + _layers(blame, short)
        + (_mended(blame, blame.suggestion) if blame.suggestion else "")
    )


def _layers(blame: Blame, short: dict[str, str]) -> str:
    """The layers, the worst first."""
    if not blame.layers:
        return ""
    head = ["layer", "share of the loss", "SNR", "cosine", "clipped", "range used", "outlier", "dead"]
    head.append(html.cell("findings", tag="th", left=True))
    rows = [_layer(layer, short[layer.name]) for layer in worst(blame)]
    more = rows[_NUM_ROWS:]
    return (
        html.table(head, rows[:_NUM_ROWS])
        + (html.folded(f"{len(more)} more", html.table(head, more)) if more else "")
        + html.paragraphs([_NOTE], "note")
    )


def _layer(layer: LayerBlame, short: str) -> list[object]:
    snr, range_used, outlier = layer.signal_to_noise_db, layer.range_used, layer.outlier
    found = layer.share
    channel = "" if layer.outlier_channel is None else f"channel {layer.outlier_channel}"
    return [
        html.cell(html.with_note(short, layer.op), left=True, note=layer.name),
        _loss_share(found) if found else "–" if layer.quantized else "in float",
        "–" if snr is None else f"{text.plain(snr, 1)} dB",
        "–" if layer.cosine is None else text.plain(layer.cosine, 4),
        "–" if layer.clipped is None else text.fine_percent(layer.clipped),
        "–" if range_used is None else text.whole_percent(range_used),
        "–" if outlier is None else html.with_note(text.times(outlier), channel),
        f"{layer.num_dead} of {layer.num_channels}",
        html.Raw(f'<td class="text findings">{escape("; ".join(layer.findings))}</td>'),
    ]


def _mended(blame: Blame, mended: Mended) -> str:
    """The compressed variant and what the suggestion makes of it, side by side."""
    head = ["", "float32's answer", "accuracy", "change", "loss that goes", "latency", "size"]
    how = "quantised anew" if mended.tried else "put back in the quantised graph, not built anew"
    latency, ratio = mended.latency_ms, mended.latency_ratio
    against = (
        f"{text.times(ratio.value)} that of {blame.variant} ({text.times(ratio.low)} to {text.times(ratio.high)})"
        if ratio
        else ""
    )
    rows: list[list[object]] = [
        [
            blame.variant,
            share(blame.agreement),
            share(blame.accuracy),
            _change(blame.accuracy_change, "against float32"),
            *3 * ["–"],
        ],
        [
            html.with_note("suggested", how),
            share(mended.agreement),
            share(mended.accuracy),
            _change(mended.accuracy_change, f"against {blame.variant}"),
            _loss_share(mended.recovered),
            "–" if latency is None else html.with_note(f"{text.number(latency)} ms", against),
            "–" if mended.size_bytes is None else text.size(mended.size_bytes),
        ],
    ]
    return f"<h3>The suggestion for {escape(blame.variant)}</h3>{html.table(head, rows)}"


def _loss_share(found: Estimate) -> html.Raw:
    return html.with_note(text.percent(found.value), part_bounds(found))


def _change(change: Paired, against: str) -> html.Raw:
    bounds = f"{text.bounds(change.low, change.high)} {against}"
    return html.with_note(f"{text.signed(100 * change.difference)} points", bounds)
