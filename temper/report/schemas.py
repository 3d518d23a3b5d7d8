"""The JSON Schemas of report.json and the others, made from their types; `make schemas` writes them.

They are in the tree, and so in what is installed, for those who read the files without Temper.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper.builder.publish.card import Card
from temper.report.explained import Explanation
from temper.report.model import Report
from temper.report.shadowed import Shadow
from temper.report.verdict import Verdict

FOLDER = Path(__file__).with_name("schema")
TYPES: dict[str, type[Any]] = {
    "report.json": Report,
    "explain.json": Explanation,
    "shadow.json": Shadow,
    "card.json": Card,
    "verdict.json": Verdict,
}
"""What each file holds, by its name; its schema has the same name."""


def render_schema(kind: type[Any]) -> str:
    """Returns the JSON Schema (draft 2020-12) of a type as text."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    schema = {"$schema": GenerateJsonSchema.schema_dialect, **TypeAdapter(kind).json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes the schemas."""
    FOLDER.mkdir(exist_ok=True)
    for name, kind in TYPES.items():
        (FOLDER / name).write_text(render_schema(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
