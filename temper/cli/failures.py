"""How a command ends when it fails: one line on standard error and an exit status, never a traceback."""

from __future__ import annotations

import sys
import tempfile
import traceback
from typing import Any

import click

from temper.errors import TemperError
from temper.plugins import PluginError
from temper.serve.temporary import explain, is_trouble
from temper.terminal import echo

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class Group(click.Group):
    """A command group whose commands fail in one line.

    Errors that Temper, the builder or the client raise on purpose print their text and exit 1. Anything else is a
    bug: one line says where its traceback was saved. Ctrl-C exits 130. With `--debug` the traceback is shown.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command and turns what it raises into a line and a status."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as stopped:
            echo(str(stopped) or "interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            for line in _lines(error):
                echo(f"error: {line}", err=True)
            ctx.exit(EXIT_FAILED)


def _lines(error: Exception) -> list[str]:
    if isinstance(error, _own_errors()):
        return str(error).split("\n") if str(error) else [type(error).__name__]
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        extra = "client" if package in ("grpc", "tritonclient", "numpy", "PIL", "rich") else "builder,embedded"
        return [f"the package {package} is not installed; run `pip install 'temper[{extra}]'`"]
    if isinstance(error, OSError) and is_trouble(error):
        return [explain(error)]
    return [f"unexpected {_summary(error)}; {_save(error)}"]


def _own_errors() -> tuple[type[Exception], ...]:
    """The bases of the errors raised on purpose; a package that nobody imported has raised none."""
    kinds: list[type[Exception]] = [TemperError, PluginError]
    for module, name in (("temper.builder.errors", "BuilderError"), ("temper.client.errors", "ClientError")):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return tuple(kinds)


def _summary(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _save(error: Exception) -> str:
    """Says where the traceback is; where nothing can be written there is `--debug`."""
    try:
        with tempfile.NamedTemporaryFile("wb", prefix="temper-", suffix=".traceback.txt", delete=False) as file:
            file.write("".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
    except OSError as trouble:
        return f"its traceback could not be saved ({trouble.strerror}; TMPDIR names the place); see --debug"
    return f"its traceback is in {file.name}"
