"""A verdict in words, in every form that it takes: page, terminal, Markdown, JUnit; hostile names stay names."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter

from temper.cli.main import cli
from temper.report import write_report
from temper.report.model import Report
from temper.report.read import read_report
from temper.report.verdict import Answer, Finding, Side, Verdict
from temper.report.verdict_text import (
    COLUMNS,
    headline,
    render_junit,
    render_markdown,
    render_text,
    with_unit,
)

HOSTILE = "a|b`c<script>alert(1)</script>\n| --- |\x1b[2J\u202e @all #1 [x](http://e.vil) \ud800 ]]> &amp; \\"


def finding(answer: Answer = "SHIP", **changes: Any) -> Finding:
    one = Finding(
        rule="accuracy",
        name="drop of accuracy",
        answer=answer,
        figure=0.125,
        low=-0.25,
        high=0.4,
        limit=0.5,
        unit="points",
        reason="the interval lies inside the limit",
        num_images=4500,
    )
    return dataclasses.replace(one, **changes)


SIZE = finding(rule="size", name="size", figure=0.26, low=None, high=None, limit=0.3, unit="x", num_images=None)
BROKEN = finding("HOLD", name="drop in the worst class", figure=6.0, low=4.0, high=8.0, reason="class 9 lost it")
OPEN = finding("NOT ENOUGH DATA", needed=2470, reason="2,470 images would decide")
UNMEASURED = finding("NOT ENOUGH DATA", figure=None, low=None, high=None, reason="nobody attacked it")


def verdict(answer: Answer, *findings: Finding, model: str = "digits_int8") -> Verdict:
    side = Side(model=model, version=3, sums_sha256="ab" * 32, engine_sha256="cd" * 32)
    return Verdict(
        answer=answer,
        candidate=side,
        reference=dataclasses.replace(side, model="digits_fp32", version=2),
        findings=findings,
        confidence=0.95,
        correction="none was needed",
        config={},
        data_sha256=None,
        num_images=4500,
        created="2026-11-28T08:00:00Z",
        server="a tritonserver",
        machine="a CPU",
        versions={},
    )


HEADLINES = [
    (verdict("SHIP", finding()), "the limit is kept"),
    (verdict("SHIP", finding(), SIZE), "all 2 limits are kept"),
    (verdict("HOLD", finding(), BROKEN), "drop in the worst class 6.00 points, limit 0.50 points"),
    (
        verdict("NOT ENOUGH DATA", OPEN, dataclasses.replace(OPEN, needed=900)),
        "2,470 test images would decide (drop of accuracy 0.12 points, limit 0.50 points; drop of accuracy 0.12 "
        "points, limit 0.50 points)",
    ),
    (
        verdict("NOT ENOUGH DATA", OPEN, UNMEASURED),
        "drop of accuracy 0.12 points, limit 0.50 points; drop of accuracy was not measured",
    ),
    (verdict("NOT ENOUGH DATA"), "no rule decided"),
]


@pytest.mark.parametrize(("judged", "said"), HEADLINES)
def test_headline_begins_with_the_answer_and_says_what_decided(judged: Verdict, said: str) -> None:
    against = "digits_int8 version 3 against digits_fp32 version 2"
    assert headline(judged) == f"{judged.answer} {against}: {said}"


def test_a_server_that_names_no_versions_has_none() -> None:
    judged = verdict("SHIP", SIZE)
    side = dataclasses.replace(judged.reference, version=None)
    said = headline(dataclasses.replace(judged, candidate=side, reference=side))
    assert said == "SHIP digits_fp32 against digits_fp32: the limit is kept"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (-0.25, "points", "−0.25 points"),
        (-0.001, "points", "0.00 points"),
        (1.0, "%", "1.00 %"),
        (14.234, "ms", "14.23 ms"),
        (0.26, "x", "0.26×"),
        (0.01234, "", "0.01234"),
    ],
)
def test_figures_have_the_unit_of_their_rule(value: float, unit: str, shown: str) -> None:
    assert with_unit(value, unit) == shown


def test_terminal_has_a_table_and_the_reasons_of_what_was_not_kept() -> None:
    lines = render_text([verdict("HOLD", finding(), BROKEN, SIZE)]).splitlines()
    assert lines[0].startswith("HOLD digits_int8 version 3 against")
    assert [re.split("  +", line.strip()) for line in lines[5:7]] == [
        ["HOLD", "drop in the worst class", "6.00 points", "4.00 to 8.00 points", "0.50 points", "4,500"],
        ["SHIP", "size", "0.26×", "–", "0.30×", "–"],
    ]
    assert lines[-1] == "drop in the worst class: class 9 lost it"
    assert not any("the interval lies inside" in line for line in lines)


def test_terminal_gets_no_line_or_command_from_a_name() -> None:
    judged = verdict("HOLD", finding("HOLD", name=HOSTILE, reason=HOSTILE), model=HOSTILE)
    text = render_text([judged])
    assert "\x1b" not in text and "\u202e" not in text
    assert len(text.splitlines()) == len(render_text([verdict("HOLD", BROKEN)]).splitlines())


def table(markdown: str) -> list[list[str]]:
    """The cells of GitHub's table, as GFM splits a row: at every pipe without a backslash."""
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    split = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return [[html.unescape(cell) for cell in row] for row in split]


def test_markdown_is_a_table_with_a_row_for_each_finding() -> None:
    text = render_markdown([verdict("HOLD", finding(), BROKEN, SIZE), verdict("SHIP", SIZE)])
    head, rule, first, second, third, *others = table(text)
    assert tuple(head) == COLUMNS
    assert all(set(cell) <= set(":- ") for cell in rule)
    assert first[0] == "✅ SHIP" and first[2:6] == ["0.12 points", "−0.25 to 0.40 points", "0.50 points", "4,500"]
    assert second[0] == "⛔ HOLD" and second[-1] == "class 9 lost it"
    assert third[3] == "–"
    assert len(others) == 3
    titles = [html.unescape(line) for line in text.splitlines() if line.startswith("#")]
    assert [title.split(" version")[0] for title in titles] == [
        "### ⛔ HOLD digits_int8",
        "### ✅ SHIP digits_int8",
    ]


def test_markdown_of_hostile_names_is_text_and_the_same_table() -> None:
    judged = verdict("HOLD", finding("HOLD", name=HOSTILE, reason=HOSTILE), model=HOSTILE)
    text = render_markdown([judged])
    _, _, row = table(text)
    assert len(row) == len(COLUMNS)
    assert "a|b`c<script>alert(1)</script> | --- |" in row[1]
    plain = text.replace("<details><summary>", "").replace("</summary>", "").replace("</details>", "")
    assert not re.search(r"[`<>\[\]*_\\\x1b\u202e]|@\w|(?<!&)#\w|://", plain.replace("###", ""))
    assert len(text.splitlines()) == len(render_markdown([verdict("HOLD", BROKEN)]).splitlines())


def test_junit_has_a_case_for_each_finding() -> None:
    root = ElementTree.fromstring(render_junit([verdict("HOLD", finding(), BROKEN, OPEN), verdict("SHIP", SIZE)]))
    first, second = root.findall("testsuite")
    assert first.attrib == {
        "name": "temper gate: digits_int8 version 3",
        "timestamp": "2026-11-28T08:00:00",
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
        "time": "0",
    }
    kept, broken, undecided = first.findall("testcase")
    assert [case.get("name") for case in (kept, broken)] == ["drop of accuracy", "drop in the worst class"]
    assert [child.tag for child in kept] == ["system-out"]
    assert broken.find("failure").attrib == {"type": "HOLD", "message": "class 9 lost it"}  # type: ignore[union-attr]
    assert undecided.find("error").get("type") == "NOT ENOUGH DATA"  # type: ignore[union-attr]
    assert second.get("failures") == second.get("errors") == "0"


@pytest.mark.parametrize(("answer", "tag"), [("HOLD", "failure"), ("NOT ENOUGH DATA", "error")])
def test_junit_is_not_green_when_no_finding_has_the_verdicts_answer(answer: Answer, tag: str) -> None:
    root = ElementTree.fromstring(render_junit([verdict(answer), verdict(answer, SIZE)]))
    assert len(root.findall(f"testsuite/testcase[@name='verdict']/{tag}")) == 2


def test_junit_of_hostile_names_is_xml_with_those_names() -> None:
    judged = verdict("HOLD", finding("HOLD", name=HOSTILE, reason=HOSTILE), model=HOSTILE)
    text = render_junit([judged])
    text.encode()
    (case,) = ElementTree.fromstring(text).iter("testcase")
    assert "a|b`c<script>alert(1)</script>" in (case.get("name") or "")
    assert "]]> &amp; \\" in (case.findtext("failure") or "")
    assert "\x1b" not in text and "\ud800" not in text


JUDGED = (
    verdict("HOLD", finding(), dataclasses.replace(BROKEN, name="class <b>9</b>")),
    verdict("SHIP", SIZE, model="digits_fp16"),
)


def judged_report(report: dict[str, Any]) -> Report:
    typed = TypeAdapter(Report).validate_json(json.dumps(report), strict=True)
    return dataclasses.replace(typed, verdicts=JUDGED)


def test_page_begins_with_the_verdicts(
    report: dict[str, Any], tmp_path: Path, parse_page: Callable[[str], Any]
) -> None:
    page = write_report(judged_report(report), tmp_path)[1].read_text(encoding="utf-8")
    words = parse_page(page).words
    title = "HOLD digits_int8, SHIP digits_fp16: Temper report: digits"
    assert [word for word in words if word == title] == [title, title]
    assert words.index(headline(JUDGED[0])) < words.index(headline(JUDGED[1])) < words.index("Verdict")
    section = words[words.index("Verdict") : words.index("Results")]
    for word in ("✕ HOLD", "✓ SHIP", "class <b>9</b>", "4.00 to 8.00 points", "class 9 lost it", "Not signed."):
        assert word in section
    assert read_report(tmp_path).verdicts == JUDGED


def test_page_without_a_gate_says_nothing_of_one(report: dict[str, Any], tmp_path: Path) -> None:
    typed = TypeAdapter(Report).validate_json(json.dumps(report), strict=True)
    page = write_report(typed, tmp_path)[1].read_text(encoding="utf-8")
    assert "<title>Temper report: digits</title>" in page
    assert "Verdict" not in page


def test_terminal_begins_with_the_verdicts(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(judged_report(report), tmp_path)
    result = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert result.exit_code == 0
    assert result.output.startswith(headline(JUDGED[0]))
    assert result.output.index(headline(JUDGED[1])) < result.output.index("variant")
