"""What a later look keeps of an earlier one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from temper.report import write_explanation
from temper.report.earlier import with_earlier
from temper.report.explained import Explanation

Json = dict[str, Any]
ADAPTER = TypeAdapter(Explanation)
LISTS = ("blames", "networks", "similarities", "attributions", "notes")


def typed(explanation: Json) -> Explanation:
    return ADAPTER.validate_json(json.dumps(explanation), strict=True)


def note(part: str | None, variant: str | None) -> Json:
    return {"part": part, "variant": variant, "words": f"{part} of {variant}: left out"}


@pytest.fixture
def whole(explanation: Json) -> Json:
    """A look at everything, with a note on every part of two variants, and two blames."""
    (blame,) = explanation["blames"]
    explanation["blames"].append(copy.deepcopy(blame) | {"variant": "pruned"})
    explanation["notes"] += [note(part, name) for part in ("blame", "attributions") for name in ("int8", "pruned")]
    return explanation


def later(whole: Json, parts: list[str], variants: list[str]) -> Json:
    """A look at some parts and variants, which finds nothing of what it looks at."""
    empty: dict[str, Any] = {**dict.fromkeys(LISTS, []), "selection": None}
    config = {**whole["config"], "parts": parts}
    return copy.deepcopy({**whole, **empty, "config": config, "variants": variants})


def merge(earlier: Json, now: Json, folder: Path) -> Json:
    write_explanation(typed(earlier), folder)
    found: Json = json.loads(json.dumps(with_earlier(typed(now), folder).to_json()))
    return found


def test_nothing_looked_at_keeps_everything(whole: Json, tmp_path: Path) -> None:
    found = merge(whole, later(whole, [], []), tmp_path)
    assert found["notes"] == whole["notes"][1:]  # the first is about all of a look
    assert {**found, "notes": []} == {**json.loads(json.dumps(whole)), "notes": []}


@pytest.mark.parametrize(
    ("parts", "variants", "left"),
    [
        (["blame"], ["int8"], {"blames": ["pruned"], "notes": 3}),
        (["blame"], ["fp32", "int8", "pruned"], {"blames": [], "notes": 2}),
        (["representation"], ["int8"], {"networks": ["pruned"], "similarities": [("float32", "pruned")]}),
        (["representation"], ["int8", "pruned"], {"networks": [], "similarities": []}),
        (["features"], ["fp32"], {"selection": None}),
        (["attributions"], ["pruned"], {"attributions": 2, "notes": 3}),
        (["attributions"], ["int8"], {"attributions": 0, "notes": 3}),
    ],
)
def test_what_was_looked_at_again_goes(
    whole: Json, tmp_path: Path, parts: list[str], variants: list[str], left: dict[str, Any]
) -> None:
    found = merge(whole, later(whole, parts, variants), tmp_path)
    shown = {
        "blames": [one["variant"] for one in found["blames"]],
        "networks": [one["name"] for one in found["networks"]],
        "similarities": [(one["first"], one["second"]) for one in found["similarities"]],
        "selection": found["selection"],
        "attributions": len(found["attributions"]),
        "notes": len(found["notes"]),
    }
    assert {name: shown[name] for name in left} == left
    untouched = {"blames", "networks", "similarities", "selection", "attributions"} - set(left)
    assert {name: found[name] for name in untouched} == json.loads(
        json.dumps({name: whole[name] for name in untouched})
    )


def test_what_is_found_anew_stands_in_its_place(whole: Json, tmp_path: Path) -> None:
    now = later(whole, ["representation", "blame"], ["int8"])
    now |= {name: copy.deepcopy(whole[name]) for name in ("networks", "similarities", "blames")}
    now["networks"] = [one for one in now["networks"] if one["name"] != "pruned"]
    now["similarities"] = [one for one in now["similarities"] if one["second"] != "pruned"]
    now["blames"] = [one | {"loss": 0.5} for one in now["blames"] if one["variant"] == "int8"]
    found = merge(whole, now, tmp_path)
    assert [one["name"] for one in found["networks"]] == [one["name"] for one in whole["networks"]]
    assert [one["second"] for one in found["similarities"]] == [one["second"] for one in whole["similarities"]]
    assert [one["loss"] for one in found["blames"]] == [0.5, whole["blames"][1]["loss"]]
    assert found["config"]["parts"] == list(whole["config"]["parts"])
    assert found["variants"] == whole["variants"]


@pytest.mark.parametrize(
    ("change", "is_kept"),
    [
        (lambda old, new: None, True),
        (lambda old, new: old.update(tried=False, recovered={"value": 0.1, "low": 0.0, "high": 0.2}), False),
        (lambda old, new: old.update(keep_high=["/other"]), False),
        (lambda old, new: new.update(tried=True), False),
    ],
    ids=["tried", "was not tried", "of other layers", "tried again"],
)
def test_suggestion_that_was_tried_stays_so(
    whole: Json, tmp_path: Path, change: Callable[[Json, Json], None], is_kept: bool
) -> None:
    now = later(whole, ["blame"], whole["variants"])
    now["blames"] = copy.deepcopy(whole["blames"][:1])
    old, new = whole["blames"][0]["suggestion"], now["blames"][0]["suggestion"]
    new |= {"tried": False, "recovered": {"value": 0.5, "low": 0.4, "high": 0.6}}
    change(old, new)
    found = merge(whole, now, tmp_path)["blames"][0]["suggestion"]
    assert found == json.loads(json.dumps(old if is_kept else new))


@pytest.mark.parametrize(
    "other",
    [
        {"graphs": {"fp32": "aa", "int8": "xx", "pruned": "cc"}},
        {"cpu": "Other"},
        {"versions": {"python": "3.12"}},
        {"config": {"num_images": 64, "num_train": 1000, "seed": 0, "parts": []}},
    ],
    ids=lambda other: "".join(other),
)
def test_another_look_keeps_nothing(whole: Json, tmp_path: Path, other: Json) -> None:
    now = later(whole, [], []) | other
    assert merge(whole, now, tmp_path) == json.loads(json.dumps(now))


def test_file_that_cannot_be_read_is_no_earlier_look(whole: Json, tmp_path: Path) -> None:
    now = typed(later(whole, [], []))
    assert with_earlier(now, tmp_path) == now
    (tmp_path / "explain.json").write_text("{")
    assert with_earlier(now, tmp_path) == now
