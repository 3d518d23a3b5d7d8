"""How tritonserver is started where its secrets cannot be kept out of its command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from temper.serve import _launch

REFUSALS: dict[str, tuple[str, Callable[..., object]]] = {
    "no tracing": ("_libc.ptrace", lambda *_: -1),
    "ended at once": ("read_stat", lambda _: []),
    "no stack": ("read_file", lambda _: b"00400000-00401000 r--p 00000000 00:00 0 [heap]\n"),
    "no stand-in": ("read_stat", lambda _: ["0"] * 50),
}


def _children() -> set[str]:
    """This process's children, those that nobody waited for included; other tests' servers are among them."""
    return {child for task in Path("/proc/self/task").glob("*/children") for child in task.read_text().split()}


@pytest.mark.parametrize(("name", "instead"), REFUSALS.values(), ids=list(REFUSALS))
def test_secret_that_cannot_be_hidden_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, instead: Callable[..., object]
) -> None:
    before = _children()
    monkeypatch.setattr(f"temper.serve._launch.{name}", instead)
    with pytest.raises(_launch.CannotHideError, match="."):
        _launch.launch(["/bin/sleep"], ["600"], dict(os.environ), "/")
    assert _children() <= before


def test_program_that_is_not_there_is_not_mistaken_for_it() -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        _launch.launch(["/nowhere"], ["secret"], dict(os.environ), "/")
