"""Part `engines` where no engine runs: what PyTorch alone makes of the networks, and what it has for int8.

A row is measured in groups, and written after each: every group is measured in turn with eager fp16. What compiles
has only the time that is left, so that the slowest, `max-autotune`, comes last and takes nothing from the others.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu import convolutions, device
from benchmarks.gpu.context import ARCHS, Context, Results
from benchmarks.gpu.engines import EAGER, agreement
from benchmarks.gpu.networks import build_network
from benchmarks.gpu.pytorch import Reference
from benchmarks.gpu.timing import Contender, interleave
from temper.builder.compress.qat import fold_batch_norms

_BATCHES = (128, 1)
# A group is not begun with less.
_LEAST_S = 15.0
# Measuring takes about so many times `seconds` per contender and round.
_LENGTHS = 3.0
_INT8 = "PyTorch's compilers have no int8 convolution for CUDA; its single kernels are timed layer by layer"

Makers = Iterator[tuple[str, Callable[[], Contender]]]


class TimeUpError(BaseException):
    """Compiling took too long; no Exception, as compilers catch those of a candidate and go on."""


def run(context: Context, results: Results, reason: str) -> None:
    """Measure group by group, the important ones first, until the time is up.

    Args:
        context: Settings.
        results: Begun; its rows have the form of the part `engines`.
        reason: Why no engine runs.
    """
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 in the last layer, as in the convolutions
    _name_crashed(results)
    late = False
    for arch, batch, group in _plan(context):
        key = f"{arch} {batch}"
        row = results.content["rows"].setdefault(key, _new_row())
        if group in row["groups"]:
            continue
        if context.left_s < _LEAST_S:
            results.end("stopped", f"{reason}; no time left before {key}, {group}; run again to go on")
            return
        results.attempt(f"{key} {group}")
        if _GROUPS[group](context, arch, batch, row):
            row["groups"].append(group)
        else:
            late = True
        results.put(key, row)
        print(f"{key} {group}: {_line(row)}", file=sys.stderr, flush=True)
        if context.device.startswith("cuda"):
            torch.cuda.synchronize()  # an error that stays ends the process here, and the next one leaves this out
    if late:
        results.end("stopped", f"{reason}; not all was ready in time; run again to go on")
    else:
        results.end("complete", reason)


def _new_row() -> dict[str, Any]:
    return {"contenders": {}, "engines": {}, "agreement": {}, "errors": {"int8": _INT8}, "groups": []}


def _line(row: dict[str, Any]) -> str:
    shown = [f"{name} {figures['ips']:.0f}/s" for name, figures in row["contenders"].items()]
    return ", ".join(shown + [f"no {name}: {error}" for name, error in row["errors"].items() if name != "int8"])


def _name_crashed(results: Results) -> None:
    """Moves what ended an earlier process, as `Results.begin` says it, into the row of its group."""
    rows = results.content["rows"]
    for key in [key for key in rows if len(key.split(maxsplit=2)) == 3]:
        arch, batch, group = key.split(maxsplit=2)
        row = rows.setdefault(f"{arch} {batch}", _new_row())
        row["errors"][group] = rows.pop(key)["error"]
        row["groups"].append(group)


def _plan(context: Context) -> Iterator[tuple[str, int, str]]:
    first, *others = context.archs or ARCHS
    batches = context.batches or _BATCHES
    compiled = ("compile", "ahead of time") if context.compiled else ()
    for batch in batches:
        yield from ((first, batch, group) for group in ("plain", *compiled))
    yield first, batches[0], "convolutions"
    if context.compiled:
        yield from ((first, batch, "autotune") for batch in batches)
    for arch in others:
        for batch in batches:
            yield from ((arch, batch, group) for group in ("plain", *compiled[:1]))


@functools.lru_cache(maxsize=1)
def _networks(arch: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The network as it was trained, and with its batch normalisations in the convolutions, as engines have it."""
    network = build_network(arch)
    return network, fold_batch_norms(network)


def _eager(network: torch.nn.Module, on: str, dtype: torch.dtype, batch: int, size: int) -> Contender:
    return Reference(network, on, dtype).eager(batch, size)


def _plain(context: Context, arch: str, batch: int) -> Makers:
    network, folded = _networks(arch)
    on, size = context.device, context.image_size
    for name, made, dtype in (
        ("torch eager fp16, folded", folded, torch.float16),
        ("torch eager bf16", network, torch.bfloat16),
        ("torch eager TF32" if on.startswith("cuda") else "torch eager fp32", network, torch.float32),
    ):
        yield name, functools.partial(_eager, made, on, dtype, batch, size)
    if on.startswith("cuda"):
        yield "torch eager fp16, folded, CUDA graph", lambda: Reference(folded, on).graphed(batch, size)


def _compile(context: Context, arch: str, batch: int) -> Makers:
    mode = "reduce-overhead" if context.device.startswith("cuda") else "default"
    reference = Reference(_networks(arch)[1], context.device)
    yield f"torch.compile fp16 {mode}", lambda: reference.compiled(batch, context.image_size, mode)


def _autotune(context: Context, arch: str, batch: int) -> Makers:
    mode = "max-autotune" if context.device.startswith("cuda") else "default"
    reference = Reference(_networks(arch)[1], context.device)
    yield "torch.compile fp16", lambda: reference.compiled(batch, context.image_size, mode)


def _ahead_of_time(context: Context, arch: str, batch: int) -> Makers:
    reference, size = Reference(_networks(arch)[1], context.device), context.image_size
    package = context.work / "packages" / f"{arch}-{size}-{batch}.pt2"

    def make() -> Contender:
        package.parent.mkdir(parents=True, exist_ok=True)
        reference.ahead_of_time(batch, size, package)
        return reference.load(batch, size, package)

    yield "AOTInductor fp16", make
    if context.device.startswith("cuda"):
        yield "AOTInductor fp16, CUDA graph", lambda: reference.load(batch, size, package, graphed=True)


def _measure(
    makers: Callable[[Context, str, int], Makers], context: Context, arch: str, batch: int, row: dict[str, Any]
) -> bool:
    """Measures a group's contenders in turn with eager fp16, into the row; False when one took too long."""
    contenders: dict[str, Contender] = {}
    about: dict[str, dict[str, Any]] = {}
    in_time = True

    def make_eager() -> Contender:
        return Reference(_networks(arch)[0], context.device).eager(batch, context.image_size)

    for name, make in [(EAGER, make_eager), *makers(context, arch, batch)]:
        before, begin = device.memory_used_bytes(), time.monotonic()
        row["errors"].pop(name, None)
        limit_s = context.left_s - _LENGTHS * context.seconds * context.rounds * (len(contenders) + 1)
        try:
            with limited(limit_s):
                contenders[name] = make()
            about[name] = {
                "gpu_mib": device.used_mib(before),
                "ready_s": round(time.monotonic() - begin, 1),
            }
        except TimeUpError:
            row["errors"][name] = f"not ready within {limit_s:.0f} s"
            in_time = False
        except Exception as error:  # out of memory, or a compiler's own
            row["errors"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:400]
    try:
        row["agreement"] |= agreement(contenders, row["errors"])
        measured = interleave(contenders, context.rounds, context.seconds)
    finally:
        for contender in contenders.values():
            contender.close()
        gc.collect()
    beside = {figure: measured[EAGER][figure] for figure in ("device_ips", "ips")} if EAGER in measured else None
    for name, figures in measured.items():
        if name != EAGER or EAGER not in row["contenders"]:
            row["contenders"][name] = figures | about[name] | {"eager_beside": beside}
    return in_time


def _convolutions(context: Context, arch: str, batch: int, row: dict[str, Any]) -> bool:
    network = Reference(_networks(arch)[1], context.device).network
    row["convolutions"] = convolutions.measure(network, batch, context.image_size, context.device)
    return True


_GROUPS: dict[str, Callable[[Context, str, int, dict[str, Any]], bool]] = {
    "plain": functools.partial(_measure, _plain),
    "compile": functools.partial(_measure, _compile),
    "ahead of time": functools.partial(_measure, _ahead_of_time),
    "autotune": functools.partial(_measure, _autotune),
    "convolutions": _convolutions,
}


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeUpError after so many seconds, at least one, in the main thread, which must be this one."""

    def stop(*_: object) -> None:
        raise TimeUpError

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1.0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
