"""Lists of class names, wherever they stand: in a file, a checkpoint, a hub's config.json."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from temper.builder.errors import DataError
from temper.imaging.errors import show

EXPECTED = (
    "expected the class names in the order of the network's outputs: text, one a line, or JSON: a list, "
    '{"0": name}, {name: 0}, or Hugging Face\'s config.json'
)


def as_class_names(value: object) -> list[str]:
    """Returns the names in a list, `{"0": name}` or `{name: 0}`, in the order of their numbers.

    Of ImageNet's `{"0": [id, name]}` it takes the id, its folder's name.

    Raises:
        ValueError: It is none of these; the text says why, to follow the name of what holds it.
    """
    if isinstance(value, dict):
        value = _in_order(value)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"is other JSON, {EXPECTED}")
    return list(value)


def check_same_order(where: str, own: Sequence[str], listed: Sequence[str], path: str) -> None:
    """Refuses a list that has a network's classes in another order than the network says itself.

    A list of other names is one of classes that were renamed.

    Args:
        where: What messages begin with.
        own: What the network's outputs are called.
        listed: What they are called in the list.
        path: The file that has the list.

    Raises:
        DataError: They are the same names in another order.
    """
    if list(own) == list(listed) or sorted(own) != sorted(listed):
        return
    index = next(index for index, names in enumerate(zip(own, listed, strict=True)) if len(set(names)) > 1)
    raise DataError(
        f"{where}: calls its output {index} {show(own[index])}, labels {show(path)} calls it "
        f"{show(listed[index])}; put the list into the order of the outputs, or leave it out"
    )


def to_number(text: object) -> int | None:
    """Returns a label as a number where it is one, as 3, "3" and 3.0 are; None otherwise."""
    if isinstance(text, bool):
        return int(text)
    if isinstance(text, Integral):
        return int(text)
    if isinstance(text, float) and text.is_integer():
        return int(text)
    if isinstance(text, str) and text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20:
        return int(text)
    return None


def _in_order(content: dict[Any, Any]) -> list[Any]:
    places: dict[int | None, Any]
    if all(isinstance(value, int) and not isinstance(value, bool) for value in content.values()):
        places = {value: key for key, value in content.items()}
    elif None not in (numbers := {key: to_number(key) for key in content}).values():
        places = {number: content[key] for key, number in numbers.items()}
    else:
        raise ValueError(f"is other JSON, {EXPECTED}")
    if len(places) < len(content) or sorted(places, key=lambda each: each or 0) != list(range(len(content))):
        raise ValueError(f"got {len(content)} classes, expected the indices 0 to {len(content) - 1}, each once")
    ordered = [places[index] for index in range(len(content))]
    return [each[0] if isinstance(each, list) and each else each for each in ordered]
