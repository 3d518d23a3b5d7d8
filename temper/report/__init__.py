"""What a run leaves behind: `report.json`, one table for the terminal and a self-contained `report.html`.

In scope: rendering a finished report. Not in scope: measuring (`temper/run/workflow.py`). Read `page.py` first.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_report(report: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes `report.json` and `report.html` into `folder`, each in one step.

    Args:
        report: The run's report, JSON throughout.
        folder: The run's folder; made when missing. The gallery's files are named relative to it.

    Returns:
        The paths of report.json and report.html.
    """
    from temper.report.page import render_page

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _replace(folder / "report.json", text), _replace(folder / "report.html", render_page(report, folder))


def _replace(path: Path, text: str) -> Path:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
