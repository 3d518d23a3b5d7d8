"""Text on its way to a terminal, which obeys what it is sent: names come from servers, folders and recipes."""

from __future__ import annotations

import re

import click

_ODD = re.compile(r"[^ -~\n]")


def escape(text: str) -> str:
    r"""Returns text in which only line feeds act on a terminal; an escape shows as `\u001b`, which is JSON too."""
    # Here, not at the top: `temper --help` imports nothing of the builder.
    from temper.builder.names import is_printable

    return _ODD.sub(lambda match: match[0] if is_printable(match[0]) else _escaped(match[0]), text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def escape_line(text: str) -> str:
    """As `escape`, for what must stay on one line, such as a name."""
    return escape(text).replace("\n", "\\u000a")


def echo(text: str, *, err: bool = False) -> None:
    """Prints text and a line feed to standard output, or to standard error."""
    click.echo(escape(text), err=err)
