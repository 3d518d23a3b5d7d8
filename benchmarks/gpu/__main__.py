"""The command line of the GPU benchmark: the parts one after the other, each in a process of its own.

Started by any Python from 3.11 with nothing installed: what the parts need, the part `install` sets up.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import device, table
from benchmarks.gpu.context import ARCHS, IMAGE_SIZE, PARTS, PRECISIONS, ROOT, Context, Results, read
from benchmarks.gpu.install import environment

# For what is left to do when the time is up: the table, and copying the results.
_RESERVE_S = 10.0
# A part stops by itself between two rows, and is killed so much after its time when a row takes longer.
_GRACE_S = 5.0
# A row that ends the process is left out the next time; so often is a part begun again.
_ATTEMPTS = 5
# Of the time that is left, so that the parts after it get some; the last one gets all.
_SHARES = {"probe": 0.3, "tests": 0.35, "served": 0.5, "engines": 0.6, "training": 0.75, "gradients": 0.75}
_NEED_GPU = ("probe", "engines", "training", "gradients", "served", "tests", "sanitizer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 0 when none of them failed, 1 otherwise."""
    options = _parse(arguments)
    context = _context(options)
    parts = [part for part in PARTS if part in options.only]
    reason = device.describe().get("no_gpu")
    if reason and set(parts) & set(_NEED_GPU) and context.device != "cpu":
        print(f"no NVIDIA GPU: {reason}; run this on a machine with one (make gpu-pack makes what it needs)")
        return 1
    print(
        f"{', '.join(parts)}: at most {context.left_s:.0f} s; every part keeps its results as it goes on",
        flush=True,
    )
    states = {}
    for part in parts:
        if part == "table":
            continue
        followed = any(other in PARTS[PARTS.index(part) + 1 : -1] for other in parts)
        states[part] = run_part(context, part, _SHARES.get(part, 1.0) if followed else 1.0)
        print(f"{part}: {states[part]}", flush=True)
        if part == "install" and states[part].startswith(("incomplete", "failed")):
            return int(states[part].startswith("failed"))  # the others would only fail for want of packages
    for path in (context.work / "results").glob("*.json"):
        shutil.copyfile(path, context.out / path.name)  # also those of earlier runs on this machine
    if "table" in parts:
        text = table.render(context.out)
        (context.out / "table.md").write_text(text)
        print(text)
    return 1 if any(state.startswith("failed") for state in states.values()) else 0


def run_part(context: Context, part: str, share: float) -> str:
    """Run a part until it ends or its share of the time is up, and return how it ended, with the reason."""
    limit_s = share * (context.left_s - _RESERVE_S)
    if limit_s <= 0:
        return "not run: no time left; run again to go on"
    context = dataclasses.replace(context, deadline=time.monotonic() + limit_s)
    for _ in range(_ATTEMPTS):
        content = _run_child(context, part)
        if content["state"] != "failed" or "attempt" not in content or context.left_s <= 0:
            break
    state, reason = content["state"], content.get("reason")
    return f"{state}: {reason}" if reason else str(state)


def _run_child(context: Context, part: str) -> dict[str, Any]:
    """Run a part's process once, and return its results with how it ended."""
    installed: dict[str, Any] = {} if part == "install" else read(context, "install") or {}
    interpreter = installed.get("interpreter", sys.executable)
    command = [interpreter, "-m", "benchmarks.gpu.child", part, context.to_json()]
    variables = _variables(context, installed)
    try:
        status: int | None = subprocess.run(
            command, cwd=ROOT, env=variables, timeout=max(0.0, context.left_s) + _GRACE_S
        ).returncode
    except subprocess.TimeoutExpired:
        status = None
    results = Results(context, part)
    if status is None:
        results.end("stopped", "no time left in the middle of a row; run again to go on")
    elif results.content.get("state") == "running":
        # A signal, such as a crash of the driver's library, gave it no chance to say so itself.
        results.end("failed", f"the process ended with status {status}")
    elif "state" not in results.content:
        results.end("failed", f"the process did not start: status {status}")
    return results.content


def _variables(context: Context, installed: dict[str, Any]) -> dict[str, str]:
    """The environment of a part: what it compiles is kept for the next run on this machine."""
    interpreter = Path(installed.get("interpreter", sys.executable))
    libraries = [Path(path) for path in installed.get("libraries", ())]
    own = "libraries" in installed and interpreter.is_relative_to(context.work)
    variables = environment(interpreter.parents[1], libraries) if own else dict(os.environ)
    for name, folder in (("TEMPER_CACHE_DIR", "cache"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        (context.work / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        variables[name] = str(context.work / folder)
    return variables


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    default_out = os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu"
    default_work = Path(tempfile.gettempdir()) / f"temper-gpu-{os.getuid()}"
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"parts, with commas: {','.join(PARTS)}")
    parser.add_argument(
        "--out", type=Path, default=default_out, help="receives the results; default: $OUT, else %(default)s"
    )
    parser.add_argument("--work", type=Path, default=default_work, help="kept between runs; default: %(default)s")
    parser.add_argument(
        "--carried", type=Path, default=ROOT / ".gpu", help="parts of gpu-pack; default: %(default)s"
    )
    parser.add_argument(
        "--limit-s", type=float, default=3600.0, help="end after so many seconds; default: %(default)s"
    )
    parser.add_argument("--kind", default="auto", choices=("auto", "tensorrt", "tensorrt-rtx", "openvino"))
    parser.add_argument("--arch", nargs="+", default=(), help="networks; default: all three")
    parser.add_argument("--batch", nargs="+", type=int, default=(), help="batch sizes; default: 1 8 32 128 256")
    parser.add_argument("--precision", nargs="+", default=(), help="default: int8 fp8 fp16 fp32")
    parser.add_argument(
        "--rounds", type=int, default=3, help="measurements of each contender; default: %(default)s"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of one measurement; default: %(default)s")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out, a minute or more per row"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: only to try the code")
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="in pixels; default: %(default)s")
    options = parser.parse_args(arguments)
    for name, given, known in (("arch", options.arch, ARCHS), ("precision", options.precision, PRECISIONS)):
        if unknown := [each for each in given if each not in known]:
            parser.error(f"--{name}: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    if any(batch < 1 for batch in options.batch):
        parser.error(f"--batch: got {min(options.batch)}, expected 1 or more")
    return options


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected some of {', '.join(PARTS)}")
    return parts


def _context(options: argparse.Namespace) -> Context:
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    return Context(
        out=options.out.resolve(),
        work=options.work.resolve(),
        carried=options.carried.resolve(),
        deadline=time.monotonic() + options.limit_s,
        kind=options.kind,
        archs=tuple(options.arch),
        batches=tuple(options.batch),
        precisions=tuple(options.precision),
        rounds=options.rounds,
        seconds=options.seconds,
        compiled=not options.no_compile,
        device=options.device,
        image_size=options.image_size,
    )


if __name__ == "__main__":
    sys.exit(main())
