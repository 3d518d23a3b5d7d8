"""Runs one part in this process: `python -m benchmarks.gpu.child <part> <settings>`."""

from __future__ import annotations

import importlib
import sys
import traceback

from benchmarks.gpu.context import Context, Results

_MODULES = {"tests": "gpu_tests"}


def main() -> int:
    """Run the part; what stops it is written down and ends it with 1."""
    part, settings = sys.argv[1:]
    context = Context.from_json(settings)
    results = Results(context, part)
    try:
        module = importlib.import_module(f"benchmarks.gpu.{_MODULES.get(part, part)}")
        module.run(context, results)
    except Exception as error:  # a part may fail in any library; the others run all the same
        traceback.print_exc()
        results.end("failed", f"{type(error).__name__}: {error}"[:600])
    return 1 if results.content.get("state") == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
