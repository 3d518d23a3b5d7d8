"""Small pieces of HTML, escaped where they are made."""

import base64
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from temper.report.figures import style


class Raw(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of its own: the parts that are not empty, under the title, with the style inside it."""
    css = importlib.resources.files("temper.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def section(heading: str, body: str) -> str:
    """A section of the page; nothing when its body is empty."""
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def cell(value: object, *, tag: str = "td", left: bool = False, css: str = "", note: str = "") -> Raw:
    """One table cell; right aligned unless `left`; `css` is an inline style, `note` is what the pointer shows."""
    body = value if isinstance(value, Raw) else escape(str(value))
    attributes = (' class="text"' if left else "") + (f' style="{escape(css)}"' if css else "")
    attributes += f' title="{escape(note)}"' if note else ""
    return Raw(f"<{tag}{attributes}>{body}</{tag}>")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1, dense: bool = False) -> str:
    """A table; its first `left` columns hold words, the others numbers. A cell may be HTML (`Raw`).

    A `dense` one is as narrow as what it holds, for many short cells.
    """

    def line(values: Sequence[object], tag: str) -> str:
        cells = (
            value
            if isinstance(value, Raw) and value.startswith(f"<{tag}")
            else cell(value, tag=tag, left=index < left)
            for index, value in enumerate(values)
        )
        return f"<tr>{''.join(cells)}</tr>"

    top, body = line(head, "th"), "".join(line(row, "td") for row in rows)
    look = ' class="dense"' if dense else ""
    return f'<div class="wide"><table{look}><thead>{top}</thead><tbody>{body}</tbody></table></div>'


def heat(share: float, shown: str, note: str = "") -> Raw:
    """A table cell whose background grows stronger with `share` (0 to 1); `note` is what the pointer shows."""
    title = f' title="{escape(note)}"' if note else ""
    return Raw(f'<td class="heat" style="--share:{share:.2f}"{title}>{escape(shown)}</td>')


def with_note(value: str, note: str) -> Raw:
    """A value with a smaller line under it."""
    return Raw(f"{escape(value)}<small>{escape(note)}</small>")


def paragraphs(sentences: Iterable[str], look: str = "") -> str:
    """A paragraph for each sentence that is not empty; `look` is their class."""
    opening = f'<p class="{look}">' if look else "<p>"
    return "".join(f"{opening}{escape(sentence)}</p>" for sentence in sentences if sentence)


def definitions(pairs: Mapping[str, object]) -> str:
    """A list of names and values."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items())
    return f"<dl>{items}</dl>"


def folded(summary: str, body: str) -> str:
    """What is shown on request; nothing when the body is empty."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def legend(names: Sequence[str], first: int = 0) -> str:
    """The names beside their colours, of which the first is at the place `first`; nothing for a single one."""
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li class="{style(i)}"><i></i><span>{escape(name)}</span></li>' for i, name in enumerate(names, first)
    )
    return f'<ul class="legend">{items}</ul>'


def figure(heading: str, picture: str | None, caption: str, names: Sequence[str] = (), *, first: int = 0) -> str:
    """A picture with its heading, legend and caption; nothing when there is no picture."""
    if picture is None:
        return ""
    words = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure><h3>{escape(heading)}</h3>{legend(names, first)}{picture}{words}</figure>"


def figures(*pictures: str) -> str:
    """Figures beside one another; nothing when all are empty."""
    body = "".join(pictures)
    return f'<div class="figures">{body}</div>' if body else ""


def png(source: Path | bytes, alt: str) -> str:
    """A PNG, from its file or as its bytes, as an image inside the page."""
    data = base64.b64encode(source if isinstance(source, bytes) else source.read_bytes()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
