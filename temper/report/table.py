"""The one table a run ends with, for the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from temper.report import text
from temper.report.measured import Share
from temper.report.model import Report, Variant

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
    """The table as text, ending in a new line. Widths follow the content, never the terminal.

    Args:
        report: The run's report.
        color: Whether to emphasise with ANSI codes, for a terminal.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns(report)):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for row in rows(report):
        table.add_row(*row)
    stream = io.StringIO()
    console = Console(file=stream, width=400, force_terminal=color, color_system="standard" if color else None)
    console.print(table, markup=False, highlight=False)
    return "".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines() if line.strip())
