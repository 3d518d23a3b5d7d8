"""Tables for the terminal, and the one that a run ends with."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from temper.report import text
from temper.report.measured import Share
from temper.report.model import Report, Variant
from temper.terminal import escape_line

_NONE = "\N{EN DASH}"


def columns(report: Report) -> list[str]:
    """The table's head: the fixed columns, and the worst case at the budget of each norm that is told first."""
    head = ["variant", "engine", "size", "accuracy", "images/s", "p50 ms", "p99 ms"]
    return head + [f"worst case {text.budget(*budget)}" for budget in report.budgets()]


def all_budgets(variants: Sequence[Variant]) -> list[tuple[str, float]]:
    """The budgets, (norm, epsilon), that any variant was attacked at, by norm and size."""
    return sorted({case.budget for variant in variants for case in variant.worst_case})


def rows(report: Report) -> list[list[str]]:
    """One row of text per variant, in the columns' order; a dash for what was not measured."""
    return [_row(variant, report.budgets()) for variant in report.variants]


def _row(variant: Variant, budgets: Sequence[tuple[str, float]]) -> list[str]:
    latency = variant.latency_ms
    return [
        variant.name,
        variant.engine,
        text.size(variant.size_bytes),
        _share(variant.accuracy),
        text.number(variant.throughput_ips) if variant.throughput_ips else _NONE,
        text.number(latency.p50) if latency else _NONE,
        text.number(latency.p99) if latency else _NONE,
        *(_share(variant.worst_at(budget)) for budget in budgets),
    ]


def _share(share: Share | None) -> str:
    return f"{text.percent(share.value)} [{text.interval(share.low, share.high)}]" if share else _NONE


def render_table(report: Report, *, color: bool = False) -> str:
    """The table as text, ending in a new line.

    Args:
        report: The run's report.
        color: Whether to emphasise with ANSI codes, for a terminal.
    """
    return text_table(columns(report), rows(report), left=(0, 1), color=color)


def text_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], *, left: Collection[int], color: bool = False
) -> str:
    """A table as text, ending in a new line. Widths follow the content, never the terminal.

    Args:
        head: Names of the columns.
        lines: The rows' cells; what is not printable in them is escaped.
        left: Columns that hold words; the others are numbers.
        color: Whether to emphasise with ANSI codes, for a terminal.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(escape_line(name), justify="left" if index in left else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(escape_line, line))
    stream = io.StringIO()
    system: Literal["standard"] | None = "standard" if color else None
    # As wide as the table wants: a cell that does not fit would end in dots.
    console = Console(file=stream, width=10_000, force_terminal=color, color_system=system, emoji=False)
    console.print(table, markup=False, highlight=False)
    return "".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines() if line.strip())
