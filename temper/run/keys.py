"""What a recipe's dataclasses say of themselves: the text under every field, and the kinds of a tagged family.

The schema for editors and the reference in the docs are both made from this, and so name no single step, attack or
engine: what a plugin brings is in them as well.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Any

from temper.plugins import Tagged


def key_docs(kind: type) -> dict[str, str]:
    """The text of every field of a dataclass on one line, from the string under it in the source.

    A field without one, as of a class made at run time, has what its metadata says under "doc", or else the first
    paragraph of its own type's docstring.
    """
    written: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        written |= _strings_under_fields(base)
    hints = typing.get_type_hints(kind)
    return {
        item.name: written.get(item.name) or item.metadata.get("doc") or class_doc(table_of(hints[item.name]))
        for item in dataclasses.fields(kind)
    }


def class_doc(kind: object) -> str:
    """The first paragraph of a dataclass's docstring on one line; empty for anything else."""
    text = inspect.getdoc(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
    return " ".join((text or "").split("\n\n")[0].split())


def table_of(kind: object) -> type | None:
    """The dataclass that a key's type reads tables into: its own, an optional one, or that of an array's items."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind
    found = (table_of(arg) for arg in typing.get_args(kind))
    return next((table for table in found if table is not None), None)


def kinds_of(table: type) -> dict[str, type[Tagged]]:
    """The kinds of a tagged family by their tag; none for one of the kinds, or a plain dataclass."""
    return table.kinds() if issubclass(table, Tagged) and "kinds" in vars(table) else {}


def default_of(item: dataclasses.Field[Any]) -> object:
    """A field's default; MISSING where it must be given."""
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _strings_under_fields(kind: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # built in, or made at run time
        return {}
    (tree,) = ast.parse(source).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    found = {}
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_string(below):
            found[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def _is_string(node: ast.stmt) -> typing.TypeGuard[ast.Expr]:
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)
