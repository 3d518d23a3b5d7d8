"""What reaches a terminal acts on none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from temper.cli.commands.query import _text
from temper.cli.main import cli
from temper.client.images import Prediction
from temper.progress import Display
from temper.terminal import echo, escape, escape_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain \u00e9 \u4e2d \U0001f600 10 %", "plain \u00e9 \u4e2d \U0001f600 10 %"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred\x1b]0;title\x07", r"\u001b[31mred\u001b]0;title\u0007"),
        ("back\rward\x9b\x7f\0", r"back\u000dward\u009b\u007f\u0000"),
        ("a\u2028b\u202ec", r"a\u2028b\u202ec"),
        ("not utf-8: \udcff", r"not utf-8: \udcff"),
        ("tag \U000e0041", r"tag \udb40\udc41"),
    ],
    ids=ascii,
)
def test_escape(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_escaped_json_is_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"label": "\x1b[31m\x9b\u2028\U000e0041 \u00e9\n"}
    echo(json.dumps(value, ensure_ascii=False))
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert printed.isprintable() or printed.rstrip("\n").isprintable()


def test_names_stay_on_their_line() -> None:
    assert escape_line("a\nb") == r"a\u000ab"
    best = [
        Prediction(index=0, label="cat\n\x1b[2J", probability=0.9),
        Prediction(index=1, label="dog", probability=0.1),
    ]
    lines = _text(Path("x\x1b.png"), best).split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_error_with_a_files_name_is_escaped(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["build", str(tmp_path / "x\x1b[31m\u2028.toml")])
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"error: {tmp_path}/x\\u001b[31m\\u2028.toml: no such file, expected a recipe "
    )
    assert result.stderr.count("\n") == 1


def test_progress_is_escaped() -> None:
    stream = io.StringIO()
    with Display(stream) as display, display.stage("a\x1b[31m") as stage:
        stage.note = "\x9b2J"
    assert stream.getvalue().rstrip("\n").isprintable()
