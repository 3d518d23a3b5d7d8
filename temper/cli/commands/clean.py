"""`temper clean`."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

from temper.builder.store.clean import Kept, find_kept, pick_unused, remove
from temper.errors import TemperError
from temper.terminal import echo

_DAY_S = 86400.0


class CleanError(TemperError):
    """The folder of runs cannot be read."""


def clean_command(runs: Path, *, unused_days: float, to_gb: float | None, yes: bool, as_json: bool) -> None:
    """Shows the stages that no run used for some days, or that are too much, and removes them when told to.

    Raises:
        CleanError: `runs` is no folder.
        StoreError: A stage cannot be removed.
    """
    if not runs.is_dir():
        raise CleanError(f"{runs}: is no folder, expected the one of `temper run`; name another one with --runs")
    kept = [one for store in sorted(runs.glob("*/stages")) for one in find_kept(store)]
    limit = None if to_gb is None else int(to_gb * 1e9)
    unused = pick_unused(kept, older_s=unused_days * _DAY_S, to_bytes=limit)
    if yes:
        unused = [one for one in unused if remove(one)]
    if as_json:
        rows = [{**dataclasses.asdict(one), "path": str(one.path)} for one in unused]
        echo(json.dumps({"removed": yes, "stages": rows}, indent=2))
        return
    for one in unused:
        echo(_line(one))
    size, rest = _size(unused), _size([one for one in kept if one not in unused])
    what = f"{len(unused):,} of {len(kept):,} stages, {size}"
    if yes:
        echo(f"removed {what}; {rest} are left")
    elif not unused:
        echo(f"nothing to remove; {rest} in {len(kept):,} stages were used since, or are no more than asked for")
    else:
        echo(f"{what}, can be removed: the same command with --yes does it; {rest} would be left")


def _line(one: Kept) -> str:
    day = datetime.datetime.fromtimestamp(one.used, datetime.UTC).strftime("%Y-%m-%d")
    state = "" if one.finished else "  not finished"
    return f"{one.path}  {_size([one])}  last used {day}{state}"


def _size(stages: list[Kept]) -> str:
    return f"{sum(one.size_bytes for one in stages) / 1e6:,.1f} MB"
