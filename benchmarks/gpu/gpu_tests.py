"""Part `tests`: those of the test suite that need a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import ROOT, Context, Results

_TAIL_LINES = 40
_SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected)")


def run(context: Context, results: Results) -> None:
    """Run pytest on the files that hold such tests, so that no other needs to be importable here."""
    files = find_files(ROOT / "tests")
    results.begin(files=[str(path.relative_to(ROOT)) for path in files])
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    try:
        # A crash of the driver ends pytest with it, so it has a process of its own.
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(1.0, context.left_s - 5),
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        results.put("pytest", {"error": "no time left", "output": output.splitlines()[-_TAIL_LINES:]})
        results.end("stopped", "no time left; run again")
        return
    row: dict[str, Any] = {"exit_status": done.returncode, "counts": count(done.stdout)}
    failed = None if done.returncode == 0 else f"pytest ended with status {done.returncode}"
    results.put("pytest", row | {"error": failed, "output": done.stdout.splitlines()[-_TAIL_LINES:]})
    results.end("complete" if failed is None else "failed", failed)


def find_files(folder: Path) -> list[Path]:
    """Test files that mark a test `gpu`."""
    return [path for path in sorted(folder.rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text()]


def count(output: str) -> dict[str, int]:
    """The numbers of pytest's last line."""
    lines = [line for line in output.splitlines() if _SUMMARY.search(line)]
    return {what.rstrip("s"): int(number) for number, what in _SUMMARY.findall(lines[-1])} if lines else {}
