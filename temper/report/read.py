"""Reads explain.json, and report.json of this format or of the one before, which had other names for two keys."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from temper.errors import ReportError
from temper.report import EXPLAIN_FILE, REPORT_FILE, explained, model
from temper.report.explained import Explanation
from temper.report.model import Report

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Content = TypeVar("Content", Report, Explanation)


@dataclass(frozen=True, kw_only=True)
class _Kind(Generic[Content]):
    """A file, and what is said of a broken one."""

    type: type[Content]
    file: str
    """Its file's name."""
    noun: str
    """What it is."""
    article: str
    """Of both."""
    formats: tuple[int, ...]
    """Those that are read, up to this one."""
    again: str
    """What makes it anew."""

    @functools.cached_property
    def adapter(self) -> TypeAdapter[Content]:
        """Made once, as that takes longer than reading."""
        from pydantic import TypeAdapter

        return TypeAdapter(self.type)


_REPORT = _Kind(
    type=Report,
    file=REPORT_FILE,
    noun="report",
    article="a",
    formats=(1, model.FORMAT),
    again="run the recipe again, which reuses all that is kept",
)
_EXPLANATION = _Kind(
    type=Explanation,
    file=EXPLAIN_FILE,
    noun="explanation",
    article="an",
    formats=(explained.FORMAT,),
    again="run `temper explain` again, or delete it",
)


def read_report(path: Path) -> Report:
    """Reads the report of a run.

    Args:
        path: A report.json, or the run's folder.

    Raises:
        ReportError: The file cannot be read, is no report, or is one of a newer format.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    content = _read_json(file, _REPORT)
    try:
        content = _from_format_1(content) if content["format"] == 1 else content
    except (KeyError, TypeError) as error:
        raise ReportError(f"{file}: is no whole report of format 1 ({error!r}); {_REPORT.again}") from None
    return _validated(content, file, _REPORT)


def read_explanation(path: Path) -> Explanation:
    """Reads the explanation of a run.

    Args:
        path: An explain.json, or the run's folder.

    Raises:
        ReportError: The file cannot be read, is no explanation, or is one of a newer format.
    """
    file = path / EXPLAIN_FILE if path.is_dir() else path
    return _validated(_read_json(file, _EXPLANATION), file, _EXPLANATION)


def _validated(content: Any, file: Path, kind: _Kind[Content]) -> Content:
    from pydantic import ValidationError

    try:
        # Through JSON, where strict typing still takes an array for a tuple and an integer for a float.
        return kind.adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        place = ".".join(map(str, first["loc"]))
        more = f" (and {len(others)} more)" if others else ""
        raise ReportError(f"{file}: {place}: {first['msg']}{more}; {kind.again}") from None


def _read_json(file: Path, kind: _Kind[Content]) -> Any:
    """The file's JSON, an object of a format that is known."""
    wanted, formats = f"{kind.article} {kind.file}", list(map(str, kind.formats))
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ReportError(f"{file}: no such file, expected {wanted} or a run's folder") from None
    except OSError as error:
        raise ReportError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{file}: is not JSON ({error}), expected {wanted}; {kind.again}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if type(found) is not int or found < 1:
        known = " or ".join(formats)
        raise ReportError(f'{file}: is no {kind.noun} of a run, expected "format": {known}; {kind.again}')
    if found > kind.formats[-1]:
        raise ReportError(
            f"{file}: got {kind.article} {kind.noun} of format {found}, expected {' to '.join(formats)}; "
            f"take the Temper that wrote it, or {kind.again}"
        )
    return content


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """`stages` were both the run's timings and a variant's steps, which OpenVINO ran; no latency was an object."""

    def variant(row: dict[str, Any]) -> dict[str, Any]:
        load = [{**run, "latency_ms": run["latency_ms"] or None} for run in row["load"]]
        steps = [{"engine": "OpenVINO", **step} for step in row["stages"]]
        return {**row, "steps": steps, "load": load}

    variants = [variant(row) for row in content["variants"]]
    return {**content, "format": model.FORMAT, "timings": content["stages"], "variants": variants}
