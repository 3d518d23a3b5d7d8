"""card.json as its types give it, once it is published: what its schema says, whatever kind of model it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships none
import pytest
from publishing import publish_bytes

from temper.builder.publish.card import Card, CardRecipe, CardStage
from temper.builder.publish.plans import Binding

SCHEMA = Path(__file__).parents[3] / "temper" / "report" / "schema" / "card.json"
RECIPE = CardRecipe(name="m", variant={"name": "int8"}, engine={"kind": "auto"}, data={"source": "digits"})
ENGINE = CardStage(name="engine", digest="ab", figures={"runtime": "TensorRT 11.0.0.114"})


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({}, {"engine_file"}),
        (
            {"binding": Binding(compute_capability="9.0", graph_sha256="a" * 64)},
            {"engine_file", "graph_sha256", "plans"},
        ),
    ],
    ids=["one engine", "plans"],
)
def test_published_card_is_as_its_schema_says(tmp_path: Path, settings: dict[str, Any], added: set[str]) -> None:
    card = Card(recipe=RECIPE, data_digest="cd", engine="tensorrt", versions={"temper": "0.1.0"}, stages=(ENGINE,))
    published = publish_bytes(tmp_path, card=card.to_json(), **settings)
    found = json.loads((published.path / "card.json").read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(found)
    assert found.keys() == {"format", "recipe", "data_digest", "engine", "versions", "stages", "model", *added}
    assert found["recipe"].keys() == {"name", "variant", "engine", "data"}
    if "plans" in added:
        assert [plan["runtime"] for plan in found["plans"]] == ["TensorRT 11.0.0.114"]
