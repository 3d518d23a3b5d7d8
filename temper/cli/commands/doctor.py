"""`temper doctor`: what this machine can build and run, as `host/doctor.py` finds it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from temper.host.doctor import examine
from temper.terminal import echo

EXIT_NOT_READY = 1
_MARKS = {"ok": "[green]ok[/green]", "missing": "[yellow]missing[/yellow]", "broken": "[red]broken[/red]"}


def doctor_command(*, as_json: bool) -> None:
    """Prints what this machine can do, and exits 0 when a recipe can be built and served here, else 1."""
    found = examine()
    if as_json:
        echo(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(found)
    if not found["ready"]:
        sys.exit(EXIT_NOT_READY)


def _print(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # A wide page where nobody's terminal says otherwise: a wrapped command cannot be copied.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for line in _machine_lines(found):
        console.print(escape(line))
    table = Table("part", "", "version", "", title=None, box=None, pad_edge=False, header_style="bold")
    for part in found["parts"]:
        table.add_row(part["name"], _MARKS[part["state"]], part["version"] or "", escape(part["note"]))
    console.print()
    console.print(table)
    table = Table("engine", "build", "", "run", "", box=None, pad_edge=False, header_style="bold")
    for engine in found["engines"]:
        yes = {True: "[green]yes[/green]", False: "[yellow]no[/yellow]"}
        run_why = "" if engine["run_why"] == engine["build_why"] else escape(engine["run_why"])
        table.add_row(
            engine["kind"], yes[engine["build"]], escape(engine["build_why"]), yes[engine["run"]], run_why
        )
    console.print()
    console.print(table)
    console.print()
    for part in found["parts"]:
        if part["install"]:
            console.print(escape(f"{part['name']}: {part['install']}"), soft_wrap=True)
    console.print(escape(f"{'ready' if found['ready'] else 'not ready'}: {found['why']}"))


def _machine_lines(found: Mapping[str, Any]) -> list[str]:
    here, driver = found["machine"], found["driver"]
    lines = [
        f"{here['cpu']}, {here['cores']} cores, {_gib(here['ram_bytes'])} of memory, "
        f"{_gib(here['disk_free_bytes'])} of disk free, {here['os']}",
        f"flags: {' '.join(here['flags']) or 'none of those that matter'}",
        *([f"int8: {found['int8']['warning']}"] if found["int8"]["warning"] else []),
    ]
    if driver is None:
        return [*lines, f"GPU: {found['no_gpu']}"]
    release = ".".join(map(str, driver["cuda"]))
    lines.append(f"NVIDIA driver {driver['version'] or 'of unknown version'}, CUDA up to {release}")
    for gpu in driver["gpus"]:
        lines.append(
            f"GPU: {gpu['name']}, compute capability {gpu['compute_capability']}, {_gib(gpu['memory_bytes'])}"
        )
    return lines


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.1f} GiB"
