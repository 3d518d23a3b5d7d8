"""Reads a report.json back: of this format, or of the one before, which had other names for two keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper.errors import ReportError
from temper.report import REPORT_FILE
from temper.report.model import FORMAT, Report

_AGAIN = "run the recipe again, which reuses all that is kept"


def read_report(path: Path) -> Report:
    """Reads the report of a run.

    Args:
        path: A report.json, or the run's folder.

    Raises:
        ReportError: The file cannot be read, is no report, or is one of a newer format.
    """
    from pydantic import TypeAdapter, ValidationError

    file = path / REPORT_FILE if path.is_dir() else path
    content = _upgraded(_read_json(file), file)
    try:
        # Through JSON, where strict typing still takes an array for a tuple and an integer for a float.
        return TypeAdapter(Report).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        place = ".".join(map(str, first["loc"]))
        more = f" (and {len(others)} more)" if others else ""
        raise ReportError(f"{file}: {place}: {first['msg']}{more}; {_AGAIN}") from None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ReportError(f"{file}: no such file, expected a {REPORT_FILE} or a run's folder") from None
    except OSError as error:
        raise ReportError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{file}: is not JSON ({error}), expected a {REPORT_FILE}; {_AGAIN}") from None


def _upgraded(content: Any, file: Path) -> Any:
    found = content.get("format") if isinstance(content, dict) else None
    if type(found) is not int or found < 1:
        raise ReportError(f'{file}: is no report of a run, expected "format": 1 or {FORMAT}; {_AGAIN}')
    if found > FORMAT:
        raise ReportError(
            f"{file}: got a report of format {found}, expected 1 to {FORMAT}; "
            f"take the Temper that wrote it, or {_AGAIN}"
        )
    try:
        return _from_format_1(content) if found == 1 else content
    except (KeyError, TypeError) as error:
        raise ReportError(f"{file}: is no whole report of format 1 ({error!r}); {_AGAIN}") from None


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """`stages` were both the run's timings and a variant's steps, which OpenVINO ran; no latency was an object."""

    def variant(row: dict[str, Any]) -> dict[str, Any]:
        load = [{**run, "latency_ms": run["latency_ms"] or None} for run in row["load"]]
        steps = [{"engine": "OpenVINO", **step} for step in row["stages"]]
        return {**row, "steps": steps, "load": load}

    variants = [variant(row) for row in content["variants"]]
    return {**content, "format": FORMAT, "timings": content["stages"], "variants": variants}
