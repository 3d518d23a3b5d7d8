"""What is wrong with a recipe, in the words of its author: the key's path, what came, what is allowed.

pydantic's findings are about Python values; here they become sentences about TOML, with the allowed keys and
values taken from the same dataclasses that the recipe is read into.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard

from temper.builder.names import is_printable
from temper.plugins import Tagged
from temper.terminal import escape_line

Loc = Sequence[int | str]

_SCALARS: dict[object, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bool: ("true or false", "booleans"),
}
_MAX_SHOWN = 60
_MAX_DEPTH = 16
_MAX_BITS = 128


def format_errors(errors: Iterable[Mapping[str, Any]], root: type) -> list[str]:
    """One line per finding of pydantic (`ValidationError.errors()`), for a recipe read into `root`."""
    return list(dict.fromkeys(_format(error, root) for error in _joined(errors, root)))


def _joined(errors: Iterable[Mapping[str, Any]], root: type) -> Iterator[Mapping[str, Any]]:
    """One finding for a key that may be one thing or another, where pydantic has one for each of them."""
    told: set[Loc] = set()
    for error in errors:
        loc = tuple(error["loc"])
        places = (loc[:length] for length in range(1, len(loc)))
        key = next((place for place in places if _is_choice(type_at(root, place))), None)
        if key is None:
            yield error
        elif key not in told and len(loc) == len(key) + 1:  # not of what is in it: of the key's whole value
            told.add(key)
            yield {**error, "loc": key, "type": "choice"}


def _is_choice(kind: object) -> bool:
    return typing.get_origin(_without_none(kind)) in (typing.Union, types.UnionType)


def _format(error: Mapping[str, Any], root: type) -> str:
    loc, came = tuple(error["loc"]), error["input"]
    path = show_path(_without_tags(root, loc))
    if error["type"] == "unexpected_keyword_argument":
        return _unknown_key(loc, root)
    if error["type"] == "value_error":
        return _own_words(loc, str(error["ctx"]["error"]), root)
    if error["type"] == "union_tag_invalid":
        return _unknown_kind(path, came, type_at(root, loc))
    if error["type"] == "missing":
        if loc and isinstance(loc[-1], int):  # a fixed-length array that is too short
            path = show_path(_without_tags(root, loc[:-1]))
            return f"{path}: got {show(came)}, expected {describe(type_at(root, loc[:-1]))}"
        return f"{path}: missing, expected {describe(type_at(root, loc))}"
    return f"{path}: got {show(came)}, expected {describe(type_at(root, loc))}"


def _unknown_kind(path: str, came: Mapping[str, Any], family: object) -> str:
    assert _is_family(family), "only those have tags"
    kinds = ", ".join(json.dumps(name) for name in family.kinds())
    return f"{path}.{family.tag_key}: got {show(came.get(family.tag_key))}, expected one of {kinds}"


def _unknown_key(loc: Loc, root: type) -> str:
    key = str(loc[-1])
    elsewhere = _kinds_with(key, type_at(root, loc[:-2]), loc[-2] if len(loc) > 1 else None)
    if elsewhere:
        return f"{show_path(_without_tags(root, loc))}: no such key with {elsewhere}"
    allowed = _keys(type_at(root, loc[:-1]))
    close = difflib.get_close_matches(key, allowed, n=1)
    tables = [table for table, kind in typing.get_type_hints(root).items() if key in _keys(kind)]
    meant = [f"{table}.{key}" for table in tables[:1]] or close
    hint = f'did you mean "{meant[0]}"? ' if meant else ""
    return f"{show_path(_without_tags(root, loc))}: no such key, {hint}expected one of {', '.join(allowed)}"


def _kinds_with(key: str, family: object, kind: object) -> str:
    """Names the kinds that have a key, where another kind's table was given it; empty where none has."""
    family = _without_none(family)
    if not _is_family(family):
        return ""
    having = [name for name, other in family.kinds().items() if key in _keys(other)]
    expected = " or ".join(json.dumps(name) for name in having)
    return f"{family.tag_key} {json.dumps(kind)}, expected {expected}" if having else ""


def _own_words(loc: Loc, message: str, root: type) -> str:
    """A config's own `field: got X, expected Y`, with the path that leads to the config."""
    first = re.match(r"\w+", message)
    known = _keys(type_at(root, loc))
    joined = "." if loc and first and first[0] in known else ": " if loc else ""
    return f"{show_path(_without_tags(root, loc))}{joined}{message}"


def find_unjson(content: object, root: type) -> str | None:
    """What TOML can say and no recipe takes: dates, numbers without an end, text that does not print, depth."""
    for loc, value in _walk(content, ()):
        if len(loc) > _MAX_DEPTH:
            return f"{show_path(loc[:2])}: nested too deeply, expected {describe(type_at(root, loc[:2]))}"
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return f"{show_path(loc)}: got {show(value)}, expected an integer of 64 bits, as TOML has them"
        if not all(is_printable(part) for part in (*loc, value) if isinstance(part, str)):
            return f"{show_path(loc)}: got {show(value)}, expected printable text"
        if isinstance(value, datetime.date | datetime.time) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            return f"{show_path(loc)}: got {value}, expected {describe(type_at(root, loc))}"
    return None


def _walk(value: object, loc: tuple[int | str, ...]) -> Iterator[tuple[Loc, object]]:
    if len(loc) > _MAX_DEPTH:
        yield loc, None
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, (*loc, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, (*loc, index))
    else:
        yield loc, value


def show_path(loc: Loc) -> str:
    """`variants[1].compress[0].quantize.method`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return escape_line(text)


def show(value: object) -> str:
    """A value as the recipe's author wrote it, more or less, and not too long."""
    if isinstance(value, dict):
        return f"a table with {', '.join(map(str, value))}" if value else "an empty table"
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:  # Python writes no more than 4300 digits
        return f"an integer of {value.bit_length()} bits"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def describe(kind: object, *, plural: bool = False) -> str:
    """What a type allows, in words."""
    kind = _without_none(kind)
    if kind in _SCALARS:
        return _SCALARS[kind][plural]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        choices = ", ".join(json.dumps(choice) for choice in args)
        return choices if len(args) == 1 else f"one of {choices}"
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"an array of {count}{describe(args[0], plural=True)}"
    if _is_choice(kind):
        return " or ".join(describe(each) for each in args if each is not type(None))
    if dataclasses.is_dataclass(kind):
        return f"{'tables' if plural else 'a table'} with the keys {', '.join(_keys(kind))}"
    return "another type"


def type_at(root: object, loc: Loc) -> object:
    """The declared type of the key at `loc`; None where the path leaves what is declared."""
    kind: object = root
    for part in loc:
        kind = _step(_without_none(kind), part)
    return kind


def _without_tags(root: object, loc: Loc) -> Loc:
    """The path as its author knows it: pydantic puts the kind of a tagged table into it."""
    plain: list[int | str] = []
    kind: object = root
    for part in loc:
        kind = _without_none(kind)
        if not (_is_family(kind) and part in kind.kinds()):
            plain.append(part)
        kind = _step(kind, part)
    return plain


def _is_family(kind: object) -> TypeGuard[type[Tagged]]:
    return isinstance(kind, type) and issubclass(kind, Tagged) and "kinds" in vars(kind)


def _step(kind: object, part: int | str) -> object:
    if _is_family(kind):
        kinds = kind.kinds()
        if part == kind.tag_key:
            return Literal[tuple(kinds)]
        kind = kinds[part] if part in kinds else kinds[kind.default_tag]
        if part in kinds:
            return kind
    if isinstance(part, int) and typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        return args[0] if args[-1] is Ellipsis else args[min(part, len(args) - 1)]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind).get(str(part))
    return None


def _without_none(kind: object) -> object:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        others = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return others[0] if len(others) == 1 else kind
    return kind


def _keys(kind: object) -> list[str]:
    kind = _without_none(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return [item.name for item in dataclasses.fields(kind)]
    return []
