"""What this machine can build and run, what is missing, and what installs it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.builder.engines.isa import instruction_set, is_exact
from temper.host.gpu import Driver, read_driver
from temper.host.machine import machine
from temper.host.packages import Part, cuda_release, find_parts

_INEXACT = (
    "this CPU has neither VNNI nor AMX: int8 gains less, and weights of 8 bits saturate; quantize.reduce_range, "
    "auto by default, gives them 7 bits where that matters"
)
_BUILD = ("torch", "torchvision", "ModelOpt", "ONNX")
_SERVE = ("tritonserver", "tritonclient")
_PACKAGE = {"TensorRT": "tensorrt", "TensorRT-RTX": "tensorrt_rtx"}


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
    parts = find_parts()
    engines = [
        _openvino(parts),
        *(_gpu_engine(name, parts, driver, no_gpu) for name in ("TensorRT-RTX", "TensorRT")),
    ]
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


def _openvino(parts: Mapping[str, Part]) -> EngineState:
    part = parts["OpenVINO"]
    why = f"OpenVINO {part.version} on the CPU" if part.ok else _lack(part)
    server = parts["tritonserver"]
    run_why = why if server.ok or not part.ok else _lack(server)
    return EngineState(kind="openvino", build=part.ok, build_why=why, run=part.ok and server.ok, run_why=run_why)


def _gpu_engine(name: str, parts: Mapping[str, Part], driver: Driver | None, no_gpu: str) -> EngineState:
    part, kind = parts[name], name.lower()
    if not part.ok:
        return EngineState(kind=kind, build=False, build_why=_lack(part), run=False, run_why=_lack(part))
    refusal = _why_not_run(part, parts, driver, no_gpu)
    compiles = f"{name} {part.version}"
    if refusal is None:
        assert driver is not None
        on = f"{compiles} on {driver.gpus[0].name}"
        return EngineState(kind=kind, build=True, build_why=on, run=True, run_why=on)
    if name == "TensorRT-RTX":
        # Ahead of time, for other machines.
        return EngineState(
            kind=kind, build=True, build_why=f"{compiles}, which needs no GPU to build", run=False, run_why=refusal
        )
    build = driver is not None and refusal == _lack(parts["cuda-bindings"])
    why = compiles if build else f"{refusal}; a plan is compiled on the GPU that will run it"
    return EngineState(kind=kind, build=build, build_why=why, run=False, run_why=refusal)


def _why_not_run(part: Part, parts: Mapping[str, Part], driver: Driver | None, no_gpu: str) -> str | None:
    """Says why the first GPU does not run a library's engines; None when it does."""
    if driver is None:
        return no_gpu
    release = cuda_release(_PACKAGE[part.name])
    if release is not None and driver.cuda[0] < release:
        return (
            f"the NVIDIA driver {driver.version or ''} knows CUDA {driver.cuda[0]}.{driver.cuda[1]}, {part.name} "
            f"needs {release}; install a newer driver"
        )
    capability = driver.gpus[0].compute_capability
    if part.capabilities and capability not in part.capabilities:
        return (
            f"{part.name} {part.version} has no kernels for compute capability {capability}, only for "
            f"{', '.join(part.capabilities)}"
        )
    return None if parts["cuda-bindings"].ok else _lack(parts["cuda-bindings"])


def _lack(part: Part) -> str:
    return f"{part.name} is {part.state}{f': {part.note}' if part.note else ''}"
