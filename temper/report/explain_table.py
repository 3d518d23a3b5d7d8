"""The explanation for the terminal: the worst layers, what to do about them, and what each block knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from temper.builder.names import short_names
from temper.report import text
from temper.report.explain_answer import (
    blamed,
    block_names,
    block_of,
    kept,
    moved,
    part,
    views,
    where,
    worst,
)
from temper.report.explain_figures import short_block
from temper.report.explained import Blame, Block, Explanation, LayerBlame, NetworkView
from temper.report.table import text_table
from temper.terminal import escape_line

_NUM_LAYERS = 8
_NONE = "\N{EN DASH}"


def render_explain(explanation: Explanation, *, color: bool = False) -> str:
    """The explanation as text, ending in a new line. What is not printable in it is escaped.

    Args:
        explanation: The explanation.
        color: Whether to emphasise with ANSI codes, for a terminal.
    """
    return "\n".join(_pieces(explanation, color))


def _pieces(explanation: Explanation, color: bool) -> Iterator[str]:
    """Paragraphs and tables, each ending in a new line."""
    for blame in explanation.blames:
        yield _lines([*blamed(blame), where(blame)])
        yield _layer_table(blame, color)
        if blame.snippet:
            yield _lines(["As a line of the recipe:", blame.snippet])
    if shown := views(explanation):
        yield _block_table(shown, color)
    if sentences := [*kept(explanation), *moved(explanation), *(note.words for note in explanation.notes)]:
        yield _lines(sentences)


def _lines(sentences: Sequence[str]) -> str:
    return "".join(f"{escape_line(sentence)}\n" for sentence in sentences)


def _layer_table(blame: Blame, color: bool) -> str:
    short = short_names([layer.name for layer in blame.layers])
    head = ["layer", "share of the loss", "SNR dB", "cosine", "clipped", "outlier", "findings"]
    rows = (_layer(layer, short[layer.name]) for layer in worst(blame)[:_NUM_LAYERS])
    return text_table(head, rows, left=(0, 6), color=color)


def _layer(layer: LayerBlame, short: str) -> list[str]:
    return [
        short,
        part(layer.share) if layer.share else _NONE,
        _NONE if layer.signal_to_noise_db is None else text.plain(layer.signal_to_noise_db, 1),
        _NONE if layer.cosine is None else text.plain(layer.cosine, 4),
        _NONE if layer.clipped is None else text.fine_percent(layer.clipped),
        _NONE if layer.outlier is None else text.times(layer.outlier),
        "; ".join(layer.findings),
    ]


def _block_table(shown: Sequence[NetworkView], color: bool) -> str:
    """Accuracy of a linear probe in %, by block."""
    blocks = block_names(shown)
    head = ["linear probe, %", *map(short_block, blocks), "network"]
    rows = (
        [
            view.name,
            *(_probe(block_of(view, name)) for name in blocks),
            f"{100 * view.accuracy.value:.1f}",
        ]
        for view in shown
    )
    return text_table(head, rows, left=(0,), color=color)


def _probe(block: Block | None) -> str:
    return f"{100 * block.probe.value:.0f}" if block and block.probe else _NONE
