"""The one table a run ends with, for the terminal."""

import io
from collections.abc import Mapping
from typing import Any

from temper.report import text

_NONE = "\N{EN DASH}"


def columns(report: Mapping[str, Any]) -> list[str]:
    """The table's head: the fixed columns and one per attack."""
    head = ["variant", "engine", "size", "accuracy", "images/s", "p50 ms", "p99 ms"]
    return head + [f"{attack} {text.budget(norm, epsilon)}" for attack, norm, epsilon in attack_keys(report)]


def attack_keys(report: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """The attacks that any variant went through: (attack, norm, epsilon), in the order of the recipe."""
    keys: dict[tuple[str, str, float], None] = {}
    for variant in report["variants"]:
        for row in variant.get("robustness", []):
            keys.setdefault((row["attack"], row["norm"], row["epsilon"]))
    return list(keys)


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """One row of text per variant, in the columns' order; a dash for what was not measured."""
    return [_row(variant, attack_keys(report)) for variant in report["variants"]]


def _row(variant: Mapping[str, Any], attacks: list[tuple[str, str, float]]) -> list[str]:
    latency = variant.get("latency_ms") or {}
    done = {(row["attack"], row["norm"], row["epsilon"]): row for row in variant.get("robustness", [])}
    accuracy = variant.get("accuracy")
    return [
        variant["name"],
        variant["engine"],
        text.size(variant["size_bytes"]),
        _share(accuracy["value"], accuracy) if accuracy else _NONE,
        text.number(variant["throughput_ips"]) if variant.get("throughput_ips") else _NONE,
        text.number(latency["p50"]) if latency else _NONE,
        text.number(latency["p99"]) if latency else _NONE,
        *(_share(done[key]["accuracy"], done[key]) if key in done else _NONE for key in attacks),
    ]


def _share(value: float, bounds: Mapping[str, Any]) -> str:
    return f"{text.percent(value)} [{text.interval(bounds['low'], bounds['high'])}]"


def render_table(report: Mapping[str, Any], *, color: bool = False) -> str:
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
