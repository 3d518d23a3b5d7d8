"""The reference of every recipe key, as Markdown: `make reference` writes docs/recipe.md."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from temper.plugins import Tagged
from temper.run.keys import class_doc, default_of, key_docs, kinds_of, table_of
from temper.run.recipe import Recipe
from temper.run.recipe_errors import describe

COMMAND = "make reference"

_HEAD = f"""# Recipe keys

A recipe is a TOML file; this page lists every key that it may have. `temper init` writes one for a folder of
images, [recipes/digits.toml](../recipes/digits.toml) is one to copy, and `temper recipe FILE` says what is wrong
with one. A key whose default is *required* must be there; where it is *none*, leaving it out has the meaning that
the text gives.

For an editor that reads JSON Schema, such as Taplo or Even Better TOML:
`temper recipe --schema > recipe.schema.json`, and `#:schema ./recipe.schema.json` as the recipe's first line.

Written by `{COMMAND}` from the dataclasses that recipes are read into; do not edit.
"""


@dataclass(frozen=True)
class _Key:
    name: str
    values: str
    default: str
    text: str


def render_reference() -> str:
    """Returns the page: a table of keys for every table of the recipe, in the recipe's order."""
    return "\n".join([_HEAD, *_section("", Recipe, is_array=False)]).rstrip() + "\n"


def _section(path: str, table: type, *, is_array: bool) -> Iterator[str]:
    """The section of one table, then those of the tables in it; a family's kinds follow what they share."""
    title = "Top level" if not path else f"`[[{path}]]`" if is_array else f"`[{path}]`"
    kinds = kinds_of(table)
    keys = {tag: _keys(kind, path) for tag, kind in kinds.items()} or {"": _keys(table, path)}
    first, *others = keys.values()
    shared = [key for key in first if all(key in other for other in others)]
    yield f"## {title}\n"
    yield f"{class_doc(table)}\n"
    if kinds:
        yield from _say_kinds(table, list(kinds))
    yield from _table(shared)
    for tag, kind in kinds.items():
        yield f'### {title} with `{kind.tag_key} = "{tag}"`\n'
        yield f"{class_doc(kind)}\n"
        own = [key for key in keys[tag] if key not in shared and key.name != kind.tag_key]
        yield from _table(own)
    for kind in kinds.values() or [table]:
        yield from _inner(path, kind)


def _say_kinds(family: type, tags: list[str]) -> Iterator[str]:
    assert issubclass(family, Tagged), "only those have kinds"
    names = ", ".join(f'`"{tag}"`' for tag in tags)
    default = f'`"{family.default_tag}"` when not given'
    yield f"`{family.tag_key}` is one of {names}; {default}. Each has keys of its own.\n"


def _inner(path: str, table: type) -> Iterator[str]:
    hints = typing.get_type_hints(table)
    for item in dataclasses.fields(table):
        inner = table_of(hints[item.name])
        if inner is not None:
            is_array = typing.get_origin(hints[item.name]) is tuple
            yield from _section(_join(path, item.name), inner, is_array=is_array)


def _keys(table: type, path: str) -> list[_Key]:
    hints, texts = typing.get_type_hints(table), key_docs(table)
    return [
        _Key(item.name, _values(hints[item.name], _join(path, item.name)), _default(item), texts[item.name])
        for item in dataclasses.fields(table)
    ]


def _values(kind: object, path: str) -> str:
    if table_of(kind) is None:
        return describe(kind)
    is_array = typing.get_origin(kind) is tuple
    words = "an array of tables" if is_array else "a table"
    return f"[{words}](#{path.replace('.', '')})"  # as GitHub and MyST make a heading's anchor


def _default(item: dataclasses.Field[object]) -> str:
    default = default_of(item)
    if default is dataclasses.MISSING:
        return "*required*"
    if default is None or dataclasses.is_dataclass(default):
        return "*none*" if default is None else "*its defaults*"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _table(keys: list[_Key]) -> Iterator[str]:
    if not keys:
        return
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key in keys:
        cells = (f"`{key.name}`", key.values, key.default, key.text)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render_reference(), encoding="utf-8")
