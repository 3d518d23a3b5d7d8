"""What this machine can build and run, what is missing, and what installs it."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.builder.engines.gpu import Driver, read_driver
from temper.builder.engines.isa import instruction_set, is_exact
from temper.builder.engines.kind import ENGINES, EngineKind
from temper.host.machine import machine
from temper.host.packages import Part, Refusals, find_parts
from temper.plugins import PluginError

_INEXACT = (
    "this CPU has neither VNNI nor AMX: int8 gains less, and weights of 8 bits saturate; quantize.reduce_range, "
    "auto by default, gives them 7 bits where that matters"
)
_BUILD = ("torch", "torchvision", "ModelOpt", "ONNX")
_SERVE = ("tritonserver", "tritonclient")


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What can be done with one kind of engine here."""

    kind: str
    build: bool
    build_why: str
    run: bool
    run_why: str


def examine() -> dict[str, Any]:
    """Looks at the machine, the driver, the packages and the engines.

    Returns:
        `ready` (a recipe can be built and served here) and `why`, `machine`, `int8` (the instruction set that it
        runs on, None when it is not x86-64, and a warning or None), `driver` (or None) and `no_gpu` (why there is
        none), `parts` and `engines`, as `Part` and `EngineState` describe them.
    """
    driver, no_gpu = read_driver()
    kinds, broken = _find_kinds()
    parts, refusals = find_parts(kinds)
    engines = [
        conclude(kind, parts[kind.title], refusals.get(kind.name), parts["tritonserver"], driver) for kind in kinds
    ]
    engines += broken
    lacking = [name for name in (*_BUILD, *_SERVE) if not parts[name].ok]
    usable = [engine.kind for engine in engines if engine.build and engine.run]
    if lacking:
        why = f"{', '.join(lacking)} cannot be used"
    else:
        why = f"engine.kind = {' or '.join(usable)}" if usable else "no kind of engine is both built and run here"
    here = {key: value for key, value in machine().items() if key != "gpu"}
    return {
        "ready": bool(usable) and not lacking,
        "why": why,
        "machine": {**here, "disk_free_bytes": shutil.disk_usage(Path.cwd()).free},
        "int8": {"isa": instruction_set(), "warning": _INEXACT if not is_exact(instruction_set()) else None},
        "driver": dataclasses.asdict(driver) if driver else None,
        "no_gpu": no_gpu or None,
        "parts": [dataclasses.asdict(part) for part in parts.values()],
        "engines": [dataclasses.asdict(engine) for engine in engines],
    }


def _find_kinds() -> tuple[list[EngineKind[Any]], list[EngineState]]:
    """Returns the engine kinds that load, and what is to be said of the others."""
    kinds, broken = [], []
    for name in ENGINES.names():
        try:
            kinds.append(ENGINES.get(name))
        except PluginError as error:
            why = str(error)
            broken.append(EngineState(kind=name, build=False, build_why=why, run=False, run_why=why))
    return kinds, broken


def conclude(
    kind: EngineKind[Any], part: Part, refusals: Refusals | None, server: Part, driver: Driver | None
) -> EngineState:
    """Says what can be done with a kind of engine here.

    Args:
        kind: The kind.
        part: Its package.
        refusals: What the kind says; None when its package does not work.
        server: The embedded tritonserver.
        driver: The NVIDIA driver and its GPUs.
    """
    if refusals is None:
        return EngineState(kind=kind.name, build=False, build_why=_lack(part), run=False, run_why=_lack(part))
    library = f"{kind.title} {part.version}"
    device = driver.gpus[0].name if driver is not None and kind.device == "gpu" else "the CPU"
    on = f"{library} on {device}"
    if refusals.run is None:
        build_why = on
    else:
        build_why = f"{library}, which needs no GPU to build" if kind.builds_anywhere else library
    return EngineState(
        kind=kind.name,
        build=refusals.build is None,
        build_why=refusals.build or build_why,
        run=refusals.run is None and server.ok,
        run_why=refusals.run or (on if server.ok else _lack(server)),
    )


def _lack(part: Part) -> str:
    return f"{part.name} is {part.state}{f': {part.note}' if part.note else ''}"
