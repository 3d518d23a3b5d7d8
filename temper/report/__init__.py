"""What a run leaves behind: `report.json`, one table for the terminal and a self-contained `report.html`.

In scope: the report's own form (`model.py`), reading and rendering it; the same for an explanation, `explain.json`
and `explain.html`, whose form is `explained.py`; writing two versions' answers, `shadow.json` and `shadow.html`,
whose form is `shadowed.py`. Not in scope: measuring (`temper/run/workflow.py`). Read `model.py` first, then
`page.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from temper.report.explained import Explanation
    from temper.report.model import Report
    from temper.report.shadowed import Shadow

REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
EXPLAIN_FILE = "explain.json"
EXPLAIN_PAGE_FILE = "explain.html"
SHADOW_FILE = "shadow.json"
SHADOW_PAGE_FILE = "shadow.html"


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Writes `report.json` and `report.html` into `folder`, each in one step.

    Args:
        report: The run's report.
        folder: The run's folder; made when missing. The gallery's files are named relative to it.

    Returns:
        The paths of report.json and report.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _replace(folder / REPORT_FILE, render_json(report) + "\n"), write_page(report, folder)


def write_page(report: Report, folder: Path) -> Path:
    """Writes `report.html` alone, as `write_report` does, and returns its path."""
    from temper.report.page import render_page

    return _replace(folder / PAGE_FILE, render_page(report, folder))


def write_explanation(explanation: Explanation, folder: Path) -> tuple[Path, Path]:
    """Writes `explain.json` and `explain.html` into `folder`, each in one step.

    Args:
        explanation: The explanation.
        folder: The run's folder; made when missing. The pictures' files are named relative to it.

    Returns:
        The paths of explain.json and explain.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _replace(folder / EXPLAIN_FILE, render_json(explanation) + "\n")
    return path, write_explain_page(explanation, folder)


def write_explain_page(explanation: Explanation, folder: Path) -> Path:
    """Writes `explain.html` alone, as `write_explanation` does, and returns its path."""
    from temper.report.explain_page import render_explanation

    return _replace(folder / EXPLAIN_PAGE_FILE, render_explanation(explanation, folder, PAGE_FILE))


def write_shadow(shadow: Shadow, folder: Path) -> Path:
    """Writes `shadow.json` and `shadow.html` into `folder`, beside the pictures, and returns the page's path."""
    from temper.report.shadow_page import render_shadow

    _replace(folder / SHADOW_FILE, render_json(shadow) + "\n")
    return _replace(folder / SHADOW_PAGE_FILE, render_shadow(shadow, folder))


def render_json(report: Report | Explanation | Shadow) -> str:
    """Returns the text of report.json, of explain.json, or of shadow.json."""
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)


def _replace(path: Path, text: str) -> Path:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
