"""What a run shows on standard error, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from temper.progress import Display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_display_plain_lines() -> None:
    stream = io.StringIO()
    with Display(stream) as display:
        with display.stage("int8: accuracy") as stage:
            stage(1, 2)
            stage.note = "98.0 %"
        with display.stage("data") as stage:
            stage.reused = True
    first, second = stream.getvalue().splitlines()
    assert first.startswith("✓ int8: accuracy  ") and first.endswith(" s  98.0 %")
    assert second.split() == ["✓", "data", "reused"]
    assert [(one.stage, one.reused) for one in display.finished] == [("int8: accuracy", False), ("data", True)]


def test_display_plain_reports_a_long_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temper.progress._PLAIN_EVERY_S", 0.0)
    stream = io.StringIO()
    with Display(stream) as display, display.stage("finetune") as stage:
        stage(1, 4)
    assert "  finetune: 25 %" in stream.getvalue().splitlines()


def test_display_says_what_stopped() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), Display(stream) as display, display.stage("load"):
        raise KeyError
    assert stream.getvalue().startswith("✗ load  stopped after ")
    assert display.finished == []


def test_display_terminal_draws_a_bar_and_leaves_a_line() -> None:
    stream = Terminal()
    with Display(stream) as display:
        with display.stage("[int8] load") as stage:
            stage(50, 100)
            assert display.bars is not None
            display.bars.refresh()
            assert "50%" in stream.getvalue()
        display.say("[red]not markup[/red]")
    assert "✓ [int8] load" in stream.getvalue()
    assert "[red]not markup[/red]" in stream.getvalue()


def test_display_quiet_prints_only_what_is_said() -> None:
    stream = Terminal()
    with Display(stream, quiet=True) as display, display.stage("load"):
        display.say("word")
    assert stream.getvalue() == "word\n"
