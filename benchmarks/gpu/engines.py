"""Part `engines`: engines in process against PyTorch, in the same run and in turn.

Where no engine runs, it is PyTorch alone: torch_only.py.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu import device
from benchmarks.gpu.context import ARCHS, PRECISIONS, Context, Results, read
from benchmarks.gpu.engine import BATCHES, EngineContender, PluginContender, open_runner, publish_engine
from benchmarks.gpu.timing import Contender, interleave

# The figure to reach is at 128, so a run that is cut short has it.
_BATCH_ORDER = (128, 1, 32, 8, 256)
# A row is not begun without the time of the longest so far, or this at least: engine, compilation and rounds.
_ROW_S = 60.0
EAGER = "torch eager fp16"
# A contender whose labels are eager's for a smaller share of the images is wrong, whatever its speed. As images
# may be few, a label counts as eager's if eager scores it as its own, but for this share of its largest logit.
_LEAST_LABELS, _TIE = 0.9, 0.05


def run(context: Context, results: Results) -> None:
    """Measure every network and batch, the important ones first, until the time is up."""
    probe = read(context, "probe") or {}
    kind = probe.get("kind")
    results.begin(kind=kind, rounds=context.rounds, seconds=context.seconds)
    if kind is None:
        from benchmarks.gpu import torch_only

        torch_only.run(context, results, f"without engines: {probe.get('reason') or 'probe did not run'}")
        return
    longest = _ROW_S
    for arch, batches in _cells(context, results):
        if context.left_s < longest:
            results.end("stopped", f"no time left before {arch}; run again to go on")
            return
        with Network(context, kind, arch) as network:
            for batch in batches:
                if context.left_s < longest:
                    results.end("stopped", f"no time left before {arch} at batch {batch}; run again to go on")
                    return
                begin = time.monotonic()
                results.attempt(f"{arch} {batch}")
                row = network.measure(batch)
                longest = max(longest, time.monotonic() - begin)
                results.put(f"{arch} {batch}", row)
                print(f"{arch} batch {batch}: {_line(row)}", file=sys.stderr, flush=True)
    results.end("complete")


def _cells(context: Context, results: Results) -> Iterator[tuple[str, list[int]]]:
    """Networks and the batches that are still to be measured."""
    wanted = context.batches or BATCHES
    order = sorted(wanted, key=lambda batch: _BATCH_ORDER.index(batch) if batch in _BATCH_ORDER else 99)
    for arch in context.archs or ARCHS:
        batches = [batch for batch in order if not results.has(f"{arch} {batch}")]
        if batches:
            yield arch, batches


class Network:
    """One network's engines and its PyTorch reference, a context manager."""

    def __init__(self, context: Context, kind: str, arch: str) -> None:
        """Build and load every precision; one that does not is an error in the rows."""
        from benchmarks.gpu.pytorch import Reference

        self._context, self._arch = context, arch
        self._runners: dict[str, Any] = {}
        self._about: dict[str, dict[str, Any]] = {}
        self._reference = Reference(arch, context.device)
        for precision in context.precisions or PRECISIONS:
            before, begin = device.memory_used_bytes(), time.monotonic()
            try:
                published = publish_engine(context, kind, arch, precision)
                self._runners[precision] = open_runner(published, kind, context)
                about = {name: published.get(name) for name in ("size_bytes", "build_s", "engine_audit")}
                about |= {"gpu_mib": device.used_mib(before), "ready_s": round(time.monotonic() - begin, 1)}
                self._about[precision] = about
            except Exception as error:  # one precision of one network: the others are measured all the same
                self._about[precision] = {"error": f"{type(error).__name__}: {error}"}

    def __enter__(self) -> Network:
        """Hold it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the GPU's memory back."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        del self._reference
        gc.collect()

    def measure(self, batch: int) -> dict[str, Any]:
        """One row: every contender at one batch size.

        Returns:
            contenders, by name: the figures of `timing.interleave`, and gpu_mib; engines, by precision: how they
            were built; agreement, by contender: against PyTorch's eager fp16 answers.
        """
        contenders: dict[str, Contender] = {}
        memory: dict[str, int | None] = {}
        errors = {name: about["error"] for name, about in self._about.items() if "error" in about}
        for name, make in self._makers(batch):
            before = device.memory_used_bytes()
            try:
                contenders[name] = make()
                memory[name] = device.used_mib(before)
            except Exception as error:  # out of memory, or a compiler's own
                errors[name] = f"{type(error).__name__}: {error}".splitlines()[0][:400]
        try:
            agreed = agreement(contenders, errors)
            measured = interleave(contenders, self._context.rounds, self._context.seconds)
        finally:
            for contender in contenders.values():
                contender.close()
        for name, figures in measured.items():
            figures["gpu_mib"] = self._about.get(name, {}).get("gpu_mib", memory[name])
        return {"contenders": measured, "engines": self._about, "agreement": agreed, "errors": errors}

    def _makers(self, batch: int) -> Iterator[tuple[str, Any]]:
        size = self._context.image_size
        yield EAGER, lambda: self._reference.eager(batch, size)
        if self._context.compiled:
            mode = "max-autotune" if self._context.device.startswith("cuda") else "default"
            yield "torch.compile fp16", lambda: self._reference.compiled(batch, size, mode)
        for precision, runner in self._runners.items():
            yield precision, lambda runner=runner: EngineContender(runner, batch, size)
            yield f"{precision} plugin", lambda runner=runner: PluginContender(runner, batch, size)


def agreement(contenders: dict[str, Any], errors: dict[str, str]) -> dict[str, dict[str, float]]:
    """How far each contender's answers are from eager's, on the same images.

    Args:
        contenders: Eager first, if it runs. One whose answers are wrong is closed and taken out.
        errors: Receives the reason.
    """
    found, expected = {}, None
    for name in list(contenders):
        answer = _answer(contenders[name])
        fault = _fault(answer, expected)
        if fault is not None:
            errors[name] = fault
            contenders.pop(name).close()
        elif name == EAGER:
            expected = answer
        elif expected is not None:
            found[name] = {
                "labels": float((answer.argmax(1) == expected.argmax(1)).mean()),
                "max_abs_diff": float(np.abs(answer - expected).max()),
                "max_abs_logit": float(np.abs(expected).max()),
            }
    return found


def _answer(contender: Any) -> Any:
    if isinstance(contender, EngineContender):
        return contender.logits()
    contender.infer()
    return contender.logits.float().numpy()


def _fault(answer: Any, expected: Any) -> str | None:
    """Why a contender's answers are wrong, None where they are not; `expected` is None without eager's."""
    if not np.isfinite(answer).all():
        return "its answers were not finite"
    if expected is None:
        return None
    scores = expected[np.arange(len(expected)), answer.argmax(1)]
    same = float((scores >= expected.max(1) - _TIE * np.abs(expected).max()).mean())
    return None if same >= _LEAST_LABELS else f"its labels were eager's for {100 * same:.0f} % of the images"


def _line(row: dict[str, Any]) -> str:
    shown = [f"{name} {figures['ips']:.0f}/s" for name, figures in row["contenders"].items()]
    return ", ".join(shown + [f"{name} failed: {error}" for name, error in row["errors"].items()])
