"""Part `sanitizer`: compute-sanitizer over the plugin's CUDA calls, with the stand-in as its engine."""

from __future__ import annotations

import shutil
import subprocess
import sys

from benchmarks.gpu.context import ROOT, Context, Results

# racecheck looks at shared memory of kernels, of which the plugin has none; it is there for what a library adds.
_TOOLS = ("memcheck", "initcheck", "racecheck")
_TAIL_LINES = 15
_FOUND = 9


def run(context: Context, results: Results) -> None:
    """Run the exercise once under each tool."""
    results.begin()
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        results.end("skipped", "compute-sanitizer is not installed")
        return
    for tool in _TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "10"]
        command += [sys.executable, "-m", "benchmarks.standin.exercise"]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, context.left_s - 2)
            )
        except subprocess.TimeoutExpired:
            results.end("stopped", f"no time left in {tool}; run again to go on")
            return
        lines = (done.stdout + done.stderr).splitlines()
        why = "compute-sanitizer found errors" if done.returncode == _FOUND else f"status {done.returncode}"
        error = None if done.returncode == 0 else why
        results.put(tool, {"error": error, "output": lines[-_TAIL_LINES:]})
        print(f"sanitizer {tool}: {error or 'clean'}", file=sys.stderr, flush=True)
    results.end("complete")
