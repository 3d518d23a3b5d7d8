"""The JSON Schema of a recipe, for editors; draft 2020-12.

It says what every key may be by itself. What is impossible across keys, and most ranges, `load_recipe` alone
refuses.
"""

from __future__ import annotations

import typing
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from temper.plugins import Tagged
from temper.run.keys import class_doc, key_docs, kinds_of
from temper.run.recipe import Recipe

if typing.TYPE_CHECKING:
    from pydantic_core import core_schema

_TITLE = "Temper recipe"


def recipe_schema() -> dict[str, Any]:
    """Returns the schema: every key with its meaning, its default and what it may be; plugins' keys among them."""
    schema = TypeAdapter(Recipe).json_schema(schema_generator=_Generator)
    return {"$schema": _Generator.schema_dialect, "title": _TITLE, **schema}


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, with the fields' texts, without null, which TOML lacks, and with kinds told apart."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        kind = schema["cls"]
        made = super().dataclass_schema(schema)
        made.pop("title", None)
        made["description"] = class_doc(kind)
        for key, text in key_docs(kind).items():
            made["properties"][key]["description"] = text
        if issubclass(kind, Tagged) and not kinds_of(kind):
            made["title"] = self._tell_apart(kind, made)
        return made

    def _tell_apart(self, kind: type[Tagged], made: JsonSchemaValue) -> str:
        """Lets a table be of this kind only when it says so, or says nothing and this is the default."""
        tag = getattr(kind, kind.tag_key)  # a dataclass's defaults are attributes of the class
        made["properties"][kind.tag_key] = {
            "const": tag,
            "description": made["properties"][kind.tag_key]["description"],
            **({"default": tag} if tag == kind.default_tag else {}),
        }
        if tag != kind.default_tag:
            made["required"] = [kind.tag_key, *made.get("required", [])]
        return str(tag)

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("default", ...) is None:
            del made["default"]
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value  # in the order of the dataclasses
