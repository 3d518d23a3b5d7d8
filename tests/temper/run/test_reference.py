"""The schema for editors and the reference in the docs say what the dataclasses say, plugins' kinds included."""

from __future__ import annotations

import copy
import tomllib
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # ships none
from pydantic import TypeAdapter

from temper.plugins import Tagged
from temper.run import reference, schema
from temper.run.keys import key_docs, table_of

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
DIGITS = tomllib.loads((ROOT / "recipes" / "digits.toml").read_text())


@dataclass(frozen=True, kw_only=True)
class Pet(Tagged):
    """An animal that lives in the house."""

    tag_key: ClassVar[str] = "animal"
    default_tag: ClassVar[str] = "cat"

    age: int
    """In years,
    or so."""

    @classmethod
    def kinds(cls) -> dict[str, type[Tagged]]:
        return {"cat": Cat, "dog": Dog}


@dataclass(frozen=True, kw_only=True)
class Cat(Pet):
    """It goes alone."""

    animal: Literal["cat"] = "cat"
    """Which one."""


@dataclass(frozen=True, kw_only=True)
class Dog(Pet):
    """It wants | to walk."""

    animal: Literal["dog"] = "dog"
    """Which one."""
    walks: tuple[int, ...] = (7, 19)
    """Hours | of the day."""


@dataclass(frozen=True, kw_only=True)
class House:
    """Who lives there."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    pets: tuple[Pet, ...] = ()
    """All of them."""
    door: Literal["open", "shut"] | None = None
    """How it is left."""


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Draft202012Validator:
    monkeypatch.setattr(schema, "Recipe", House)
    return Draft202012Validator(schema.recipe_schema())


@pytest.fixture(scope="module")
def recipes() -> Draft202012Validator:
    found = schema.recipe_schema()
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_schema_takes_our_recipes(recipes: Draft202012Validator, path: Path) -> None:
    recipes.validate(tomllib.loads(path.read_text()))


# What is changed in the digits recipe, by path, and the message of jsonschema.
WRONG = {
    "unknown table": (("colour",), {}, "'colour' was unexpected"),
    "unknown key": (("data", "sise"), 3, "'sise' was unexpected"),
    "string for an integer": (("data", "num_calibration"), "32", "'32' is not of type 'integer'"),
    "neither one nor the other": (("data", "resize"), "all", "'all' is not valid under any"),
    "unknown source": (("data", "source"), "digit", "'digit' is not one of ['digits', "),
    "unknown architecture": (("model", "arch"), "vgg16", "'vgg16' is not one of ['resnet18', "),
    "two means": (("data", "mean"), [0.5, 0.5], "[0.5, 0.5] is too short"),
    "variants as a table": (("variants",), {}, "{} is not of type 'array'"),
    "no name": (("name",), None, "'name' is a required property"),
}


@pytest.mark.parametrize(("path", "value", "message"), WRONG.values(), ids=WRONG.keys())
def test_schema_refuses(recipes: Draft202012Validator, path: tuple[str, ...], value: Any, message: str) -> None:
    changed = copy.deepcopy(DIGITS)
    *tables, key = path
    table = changed[tables[0]] if tables else changed
    table.pop(key, None)
    if value is not None:
        table[key] = value
    (error,) = recipes.iter_errors(changed)
    assert message in error.message


def test_schema_says_what_every_key_means(recipes: Draft202012Validator) -> None:
    def keys(node: Any) -> list[tuple[str, Any]]:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        own = list(node["properties"].items()) if isinstance(node, dict) and "properties" in node else []
        return own + [each for child in inner for each in keys(child)]

    assert [key for key, value in keys(recipes.schema) if not value.get("description")] == []
    assert recipes.schema["$defs"]["DataConfig"]["properties"]["image_size"]["default"] == 224
    assert "null" not in str(recipes.schema).replace("no null", "")


# A list of pets; whether the schema of the family takes it.
PETS: list[tuple[dict[str, Any], bool]] = [
    ({"age": 3}, True),
    ({"age": 3, "animal": "cat"}, True),
    ({"age": 3, "animal": "dog", "walks": [8]}, True),
    ({"age": 3, "walks": [8]}, False),
    ({"age": 3, "animal": "cat", "walks": [8]}, False),
    ({"age": 3, "animal": "cow"}, False),
    ({"animal": "dog"}, False),
]


@pytest.mark.parametrize(("pet", "fits"), PETS, ids=lambda value: str(value))
def test_schema_tells_kinds_apart(house: Draft202012Validator, pet: dict[str, Any], fits: bool) -> None:
    assert house.is_valid({"pets": [pet]}) == fits
    assert house.is_valid({"door": "open", "pets": []})
    if fits:
        TypeAdapter(House).validate_python({"pets": (pet,)})


def test_docs_of_keys_come_from_the_source_and_its_bases() -> None:
    assert key_docs(Dog) == {"age": "In years, or so.", "animal": "Which one.", "walks": "Hours | of the day."}


def test_docs_of_a_class_made_at_run_time() -> None:
    made = make_dataclass(
        "Made", [("cat", Cat | None, None), ("legs", int, field(default=4, metadata={"doc": "How many."}))]
    )
    assert key_docs(made) == {"cat": "It goes alone.", "legs": "How many."}
    assert [table_of(kind) for kind in (Cat | None, tuple[Cat, ...], int, tuple[int, ...])] == [
        Cat,
        Cat,
        None,
        None,
    ]


PAGE = r"""Who lives there.

| key | value | default | meaning |
| --- | --- | --- | --- |
| `pets` | [an array of tables](#pets) | `[]` | All of them. |
| `door` | one of "open", "shut" | *none* | How it is left. |

## `[[pets]]`

An animal that lives in the house.

`animal` is one of `"cat"`, `"dog"`; `"cat"` when not given. Each has keys of its own.

| key | value | default | meaning |
| --- | --- | --- | --- |
| `age` | an integer | *required* | In years, or so. |

### `[[pets]]` with `animal = "cat"`

It goes alone.

### `[[pets]]` with `animal = "dog"`

It wants | to walk.

| key | value | default | meaning |
| --- | --- | --- | --- |
| `walks` | an array of integers | `[7, 19]` | Hours \| of the day. |
"""


def test_reference_of_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "Recipe", House)
    assert reference.render_reference().partition("## Top level\n\n")[2] == PAGE


def test_reference_is_what_the_dataclasses_say() -> None:
    written = (ROOT / "docs" / "recipe.md").read_text()
    assert written == reference.render_reference(), (
        f"docs/recipe.md is old; write it again with `{reference.COMMAND}`"
    )
