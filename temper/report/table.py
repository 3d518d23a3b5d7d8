"""The one table a run ends with, for the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from temper.report import text
from temper.report.measured import Share
from temper.report.model import Report, Variant

_NONE = "\N{EN DASH}"


def columns(report: Report) -> list[str]:
    """The table's head: the fixed columns and one per attack."""
    head = ["variant", "engine", "size", "accuracy", "images/s", "p50 ms", "p99 ms"]
    return head + [
        f"{attack} {text.budget(norm, epsilon)}" for attack, norm, epsilon in attack_keys(report.variants)
    ]


def attack_keys(variants: Sequence[Variant]) -> list[tuple[str, str, float]]:
    """The attacks that any variant went through: (attack, norm, epsilon), in the order of the recipe."""
    return list(dict.fromkeys(attack.key for variant in variants for attack in variant.robustness))


def rows(report: Report) -> list[list[str]]:
    """One row of text per variant, in the columns' order; a dash for what was not measured."""
    return [_row(variant, attack_keys(report.variants)) for variant in report.variants]


def _row(variant: Variant, attacks: Sequence[tuple[str, str, float]]) -> list[str]:
    latency, robust = variant.latency_ms, [variant.attack(key) for key in attacks]
    return [
        variant.name,
        variant.engine,
        text.size(variant.size_bytes),
        _share(variant.accuracy),
        text.number(variant.throughput_ips) if variant.throughput_ips else _NONE,
        text.number(latency.p50) if latency else _NONE,
        text.number(latency.p99) if latency else _NONE,
        *(_share(attack.share if attack else None) for attack in robust),
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
