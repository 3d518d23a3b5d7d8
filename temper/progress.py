"""What a run shows while it works: one line per stage on standard error, a bar while a stage goes on.

On a terminal the bars are drawn with rich and disappear when their stage ends, leaving one line. Elsewhere
(a pipe, a CI log) the same lines are printed plainly, and a long stage reports its share every few seconds.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from temper.terminal import escape

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total), as every long function of builder and client does."""

_PLAIN_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A stage that has ended."""

    stage: str
    """Its label."""
    seconds: float
    """How long it took."""
    reused: bool
    """True when nothing had to run."""
    note: str
    """The figure that mattered."""


class Stage:
    """One stage on the display; calling it with (done, total) moves its bar."""

    def __init__(self, display: "Display", label: str) -> None:
        """Belongs to `display`; use `Display.stage`."""
        self.label = label
        self.reused = False
        self.note = ""
        self.started = time.monotonic()
        self._display = display
        self._last_plain = self.started
        self.task: TaskID | None = None

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` steps are over."""
        bars = self._display.bars
        if bars is not None:
            if self.task is not None:
                bars.update(self.task, completed=done, total=max(total, 1))
            return
        now = time.monotonic()
        if now - self._last_plain >= _PLAIN_EVERY_S and total > 0:
            self._last_plain = now
            self._display.say(f"  {self.label}: {100 * done // total} %")

    def restart(self) -> None:
        """Counts the seconds from now on: what came before belongs to another stage."""
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """The time since the stage began, in seconds."""
        return time.monotonic() - self.started


class Display:
    """A context manager that owns standard error while a command works.

    Args:
        stream: Where to draw; standard error unless given.
        quiet: Draw no bars and print no stage lines; `say` still prints.
    """

    def __init__(self, stream: IO[str] | None = None, *, quiet: bool = False) -> None:
        """Draws nothing yet."""
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self.finished: list[Finished] = []
        self.bars: Progress | None = None
        self._console: Console | None = None

    def __enter__(self) -> Self:
        """Starts drawing; bars only when the stream is a terminal."""
        if self._stream.isatty() and not self._quiet:
            self._console, self.bars = _make_bars(self._stream)
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the bars."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None
            self._console = None

    def say(self, text: str) -> None:
        """Prints one line, above the bars when there are any."""
        text = escape(text)
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Stage]:
        """Shows a stage while it goes on, and one line with its seconds when it has ended.

        Set `reused` on the yielded stage when nothing had to run, and `note` to add a word to the line.
        """
        stage = Stage(self, label)
        if self.bars is not None:
            stage.task = self.bars.add_task(escape(label), total=None)
        try:
            yield stage
        except BaseException:
            if not self._quiet:
                self.say(f"✗ {label}  stopped after {stage.seconds:.1f} s")
            raise
        finally:
            if self.bars is not None and stage.task is not None:
                self.bars.remove_task(stage.task)
        self.finished.append(
            Finished(stage=label, seconds=round(stage.seconds, 2), reused=stage.reused, note=stage.note)
        )
        if not self._quiet:
            self.say(_line(stage))


def _line(stage: Stage) -> str:
    """`✓ int8 accuracy             2.1 s  note`."""
    took = " reused" if stage.reused else f"{stage.seconds:5.1f} s"
    return f"✓ {stage.label:<44} {took}  {stage.note}".rstrip()


def _make_bars(stream: IO[str]) -> "tuple[Console, Progress]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=stream)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return console, Progress(*columns, console=console, transient=True)
