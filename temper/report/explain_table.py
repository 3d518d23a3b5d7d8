"""The explanation for the terminal: the worst layers, what to do about them, and what each block knows."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from temper.report import text
from temper.report.explain_answer import (
    blamed,
    block_names,
    block_of,
    moved,
    part,
    short_names,
    views,
    where,
    worst,
)
from temper.report.explain_figures import short_block
from temper.report.explained import Blame, Block, Explanation, LayerBlame, NetworkView

if TYPE_CHECKING:
    from rich.console import RenderableType

_NUM_LAYERS = 8
_NONE = "\N{EN DASH}"


def render_explain(explanation: Explanation, *, color: bool = False) -> str:
    """The explanation as text, ending in a new line. Widths follow the content, never the terminal.

    Args:
        explanation: The explanation.
        color: Whether to emphasise with ANSI codes, for a terminal.
    """
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=400, force_terminal=color, color_system="standard" if color else None)
    for piece in _pieces(explanation):
        console.print(piece, markup=False, highlight=False)
    lines = [line.rstrip() for line in stream.getvalue().strip("\n").splitlines()]
    # A table begins and ends with an empty line of its own; no two stand together.
    kept = [line for index, line in enumerate(lines) if line or lines[index - 1]]
    return "\n".join(kept) + "\n"


def _pieces(explanation: Explanation) -> Iterator[RenderableType]:
    for blame in explanation.blames:
        yield "\n".join(["", *blamed(blame), where(blame)])
        yield _layer_table(blame)
        if blame.snippet:
            yield f"{blame.snippet}\n"
    if shown := views(explanation):
        yield _block_table(shown)
    sentences = [*moved(explanation), *explanation.notes]
    if sentences:
        yield "\n".join(["", *sentences])


def _layer_table(blame: Blame) -> RenderableType:
    short = short_names([layer.name for layer in blame.layers])
    head = ["layer", "share of the loss", "SNR dB", "cosine", "clipped", "outlier", "findings"]
    rows = (_layer(layer, short[layer.name]) for layer in worst(blame)[:_NUM_LAYERS])
    return _table(head, rows, left=(0, 6))


def _layer(layer: LayerBlame, short: str) -> list[str]:
    return [
        short,
        part(layer.share) if layer.share else _NONE,
        _NONE if layer.signal_to_noise_db is None else text.plain(layer.signal_to_noise_db, 1),
        _NONE if layer.cosine is None else text.plain(layer.cosine, 4),
        _NONE if layer.clipped is None else f"{100 * layer.clipped:.2f} %",
        _NONE if layer.outlier is None else text.times(layer.outlier),
        "; ".join(layer.findings),
    ]


def _block_table(shown: Sequence[NetworkView]) -> RenderableType:
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
    return _table(head, rows, left=(0,))


def _probe(block: Block | None) -> str:
    return f"{100 * block.probe.value:.0f}" if block and block.probe else _NONE


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int]) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
