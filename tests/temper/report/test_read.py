"""Reports read back: of this format, of the one before, and what is refused; and the schemas of the types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships none
import pytest
from click.testing import CliRunner

from temper.cli.main import cli
from temper.errors import ReportError
from temper.report import write_report
from temper.report.read import read_report
from temper.report.schemas import FOLDER, TYPES, render_schema

Json = dict[str, Any]


def write(report: Json, folder: Path) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps(report))
    return path


def format_1(report: Json) -> Json:
    """The same run as it was written in format 1."""
    old: Json = json.loads(json.dumps(report))
    old["format"] = 1
    old["stages"] = old.pop("timings")
    del old["failed"]
    for variant in old["variants"]:
        variant["stages"] = variant.pop("steps")
        del variant["frontier"]
        for run in variant["load"]:
            run["latency_ms"] = run["latency_ms"] or {}
    return old


def test_report_reads_back_as_it_was_written(report: Json, tmp_path: Path) -> None:
    report["variants"][1]["load"][0] |= {"completed": 0, "latency_ms": None, "server": None}
    read = read_report(write(report, tmp_path))
    write_report(read, tmp_path / "again")
    assert read_report(tmp_path / "again") == read
    assert read.variants[1].load[0].latency_ms is None


def test_report_of_format_1_is_read(report: Json, tmp_path: Path) -> None:
    report["variants"][1]["load"][0] |= {"completed": 0, "latency_ms": None}
    now = read_report(write(report, tmp_path))
    assert read_report(write(format_1(report), tmp_path)) == now


def test_key_that_nobody_knows_is_left_alone(report: Json, tmp_path: Path) -> None:
    now = read_report(write(report, tmp_path))
    assert read_report(write({**report, "mood": "good"}, tmp_path)) == now


AGAIN = "run the recipe again, which reuses all that is kept"
NEWER = f": got a report of format 3, expected 1 to 2; take the Temper that wrote it, or {AGAIN}"
REFUSED = {
    "newer": ('{"format": 3}', NEWER),
    "no format": ("{}", f': is no report of a run, expected "format": 1 or 2; {AGAIN}'),
    "true": ('{"format": true}', ": is no report of a run, "),
    "list": ("[]", ": is no report of a run, "),
    "no JSON": ("{", ": is not JSON (Expecting property name "),
    "deep": ("[" * 100_000, ": is not JSON (maximum recursion depth exceeded"),
    "not UTF-8": (b"\xff\x00", ": is not JSON ("),
    "part of format 1": ('{"format": 1, "variants": []}', ": is no whole report of format 1 (KeyError('stages'))"),
    "odd format 1": ('{"format": 1, "variants": 3}', ": is no whole report of format 1 (TypeError("),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_file_that_is_no_report_is_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ReportError) as caught:
        read_report(tmp_path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": "long"}, "seconds: Input should be a valid number"),
        ({"seconds": float("inf")}, "seconds: Input should be a finite number"),
        ({"variants": [{"name": "fp32"}]}, "variants.0.model: Field required (and 7 more)"),
    ],
)
def test_wrong_value_is_named(report: Json, tmp_path: Path, change: Json, message: str) -> None:
    path = write({**report, **change}, tmp_path)
    with pytest.raises(ReportError) as caught:
        read_report(path)
    assert str(caught.value) == f"{path}: {message}; {AGAIN}"


def test_missing_report_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"x: no such file, expected a report.json or a run's folder"):
        read_report(tmp_path / "x")


def test_command_renders_the_page_again(report: Json, tmp_path: Path) -> None:
    write(format_1({**report, "stopped": "the embedded tritonserver died"}), tmp_path)
    result = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["fp32", "int8"]
    assert any(line.startswith("int8 against fp32: accuracy −0.2 points") for line in lines)
    assert lines[-2:] == [str(tmp_path / "report.html"), str(tmp_path / "report.json")]
    assert result.stderr == "this run stopped early: the embedded tritonserver died\n"
    assert "Temper report: digits" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_command_prints_this_format(report: Json, tmp_path: Path) -> None:
    path = write(format_1(report), tmp_path)
    before = path.read_bytes()
    result = CliRunner().invoke(cli, ["report", str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["format"] == 2
    assert path.read_bytes() == before


def test_command_says_what_is_on_the_frontier(report: Json, tmp_path: Path) -> None:
    report["variants"][1]["frontier"] = True
    result = CliRunner().invoke(cli, ["report", str(write(report, tmp_path))])
    assert "On the frontier: int8." in result.stdout.splitlines()


def test_command_refuses_a_newer_report_in_one_line(report: Json, tmp_path: Path) -> None:
    path = write({**report, "format": 3}, tmp_path)
    result = CliRunner().invoke(cli, ["report", str(path)])
    assert result.exit_code == 1
    assert result.stderr == f"error: {path}{NEWER}\n"


@pytest.mark.parametrize("name", TYPES)
def test_schema_is_what_the_types_give(name: str) -> None:
    schema = (FOLDER / name).read_text(encoding="utf-8")
    assert schema == render_schema(TYPES[name]), "run `make schemas`"
    jsonschema.Draft202012Validator.check_schema(json.loads(schema))


def test_schema_takes_a_report_and_refuses_another(report: Json) -> None:
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / "report.json").read_text()))
    validator.validate(json.loads(json.dumps(report)))
    for wrong in ({"format": 1}, {"seconds": "long"}, {"variants": [{"name": "fp32"}]}):
        assert not validator.is_valid({**report, **wrong})
