"""Small pieces of HTML, escaped where they are made."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from temper.report.figures import style


class Raw(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def cell(value: object, *, tag: str = "td", left: bool = False, css: str = "") -> str:
    """One table cell; right aligned unless `left`; `css` is an inline style."""
    body = value if isinstance(value, Raw) else escape(str(value))
    attributes = (' class="text"' if left else "") + (f' style="{escape(css)}"' if css else "")
    return f"<{tag}{attributes}>{body}</{tag}>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> str:
    """A table; its first `left` columns hold words, the others numbers. A cell may be HTML (`Raw`)."""
    top = "".join(cell(name, tag="th", left=index < left) for index, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(_body_cell(value, index < left) for index, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _body_cell(value: object, left: bool) -> str:
    return value if isinstance(value, Raw) and value.startswith("<td") else cell(value, left=left)


def heat(share: float, shown: str) -> Raw:
    """A table cell whose background grows stronger with `share` (0 to 1)."""
    return Raw(f'<td class="heat" style="--share:{share:.2f}">{escape(shown)}</td>')


def with_note(value: str, note: str) -> Raw:
    """A value with a smaller line under it."""
    return Raw(f"{escape(value)}<small>{escape(note)}</small>")


def definitions(pairs: Mapping[str, object]) -> str:
    """A list of names and values."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items())
    return f"<dl>{items}</dl>"


def legend(names: Sequence[str]) -> str:
    """The variants' names beside their colours; nothing for a single one."""
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li class="{style(i)}"><i></i><span>{escape(name)}</span></li>' for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def figure(heading: str, picture: str | None, caption: str, names: Sequence[str]) -> str:
    """A picture with its heading, legend and caption; nothing when there is no picture."""
    if picture is None:
        return ""
    words = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure><h3>{escape(heading)}</h3>{legend(names)}{picture}{words}</figure>"


def png(path: Path, alt: str) -> str:
    """A PNG file as an image inside the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
