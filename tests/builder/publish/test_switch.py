"""Which version is served: switching it with what belongs to it, its history, and what stays to go back to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from publishing import CONFIG, check_repository, publish_bytes, read_config, serve_bytes

from temper.builder.errors import PublishError
from temper.builder.publish.ensemble import NotYetError, publish_ensemble, publish_jpeg
from temper.builder.publish.history import Change, What, served_before
from temper.builder.publish.switch import companions_of, prune_versions, read_history, settle, switch, versions_of
from temper.builder.publish.triton_config import EnsembleBackend
from temper.imaging.preprocess import Preprocessing

LABELS = ["cat", "dog"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three versions of m_int8, of which the first is served."""
    for number in (1, 2, 3):
        publish_bytes(tmp_path, f"engine {number}".encode())
    return tmp_path / "repository"


def story(repository: Path, model: str = "m_int8") -> list[tuple[str, int | None, int]]:
    return [(one.event, one.before, one.after) for one in read_history(repository, model)]


def test_switch_is_written_into_the_history(repository: Path) -> None:
    assert read_history(repository, "m_int8") == []
    done = switch(
        repository, "m_int8", 3, event="promoted", reason="büro", verdict={"answer": "HOLD"}, override=True
    )
    assert (done.before, done.after, done.companions) == (1, 3, ())
    assert check_repository(repository) == [("m_int8", 3, "engine 3")]
    again = switch(repository, "m_int8", 3, event="promoted")
    assert (again.before, again.after) == (3, 3)
    switch(repository, "m_int8", 1, event="rolled back")
    assert check_repository(repository) == [("m_int8", 1, "engine 1")]
    assert story(repository) == [("promoted", 1, 3), ("rolled back", 3, 1)]
    first = json.loads((repository / "m_int8" / "history.jsonl").read_text().splitlines()[0])
    assert (first["answer"], first["override"], first["reason"]) == ("HOLD", True, "büro")
    assert len(first["sums_sha256"]) == 64
    assert [path.name for path in repository.with_name(".repository-work").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("model", "version", "message"),
    [
        ("m_int8", 4, "model m_int8: has no version 4 to serve; it has 1, 2, 3"),
        ("gone", 1, "model gone: has no version 1 to serve; it has none"),
        ("../repository/m_int8", 1, "has no version 1 to serve; it has none"),
    ],
)
def test_version_that_is_not_there_is_not_served(repository: Path, model: str, version: int, message: str) -> None:
    with pytest.raises(PublishError, match=message):
        switch(repository, model, version, event="promoted")
    assert check_repository(repository) == [("m_int8", 1, "engine 1")]


@pytest.mark.parametrize("name", ["config.pbtxt", "labels.txt", "SHA256SUMS"])
def test_changed_version_is_not_served(repository: Path, name: str) -> None:
    (repository / "m_int8" / "2" / name).write_text("")
    with pytest.raises(PublishError, match="has no version 2 to serve"):
        switch(repository, "m_int8", 2, event="promoted")


def test_repository_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="model repository .*gone: no such folder"):
        switch(tmp_path / "gone", "m", 1, event="promoted")


@pytest.mark.parametrize("torn", [b"", b'{"time": "2026', b"\0\0\0"], ids=["whole", "half", "zeros"])
def test_torn_last_line_is_mended(repository: Path, torn: bytes) -> None:
    switch(repository, "m_int8", 2, event="promoted")
    with (repository / "m_int8" / "history.jsonl").open("ab") as file:
        file.write(torn)
    assert story(repository) == [("promoted", 1, 2)]
    switch(repository, "m_int8", 3, event="promoted")
    assert story(repository) == [("promoted", 1, 2), ("promoted", 2, 3)]
    assert b"\0" not in (repository / "m_int8" / "history.jsonl").read_bytes()


BAD = [
    "7",
    "{}",
    "[" * 100_000,
    "\xff",
    '{"time": "x", "event": "sold", "before": 1, "after": 2, "companions": []}',
    '{"time": "x", "event": "promoted", "before": "1", "after": 2, "companions": []}',
    '{"time": "x", "event": "promoted", "before": 1, "after": 2, "companions": [7]}',
    '{"time": "x", "event": "promoted", "before": 1, "after": 2, "companions": [], "answer": 7}',
]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_history_edited_by_hand_is_one_line(repository: Path, line: str) -> None:
    (repository / "m_int8" / "history.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(PublishError, match="history.jsonl: line 1 is no event that temper wrote; put that line"):
        read_history(repository, "m_int8")


def test_no_switch_takes_the_place_of_another(repository: Path) -> None:
    """As of two who promote at a time: each judged its version against what was served then."""
    switch(repository, "m_int8", 2, event="promoted", instead_of=1)
    with pytest.raises(PublishError, match="m_int8: version 2 is served by now, expected version 1, so nothing"):
        switch(repository, "m_int8", 3, event="promoted", instead_of=1)
    assert story(repository) == [("promoted", 1, 2)]


def test_what_somebody_else_switched_is_accounted_for(repository: Path) -> None:
    switch(repository, "m_int8", 2, event="promoted")
    model = repository / "m_int8"
    (model / "config.pbtxt").write_bytes((model / "3" / "config.pbtxt").read_bytes())
    written = (model / "history.jsonl").read_bytes()
    assert story(repository) == [("promoted", 1, 2), ("recovered", 2, 3)]
    assert (model / "history.jsonl").read_bytes() == written, "whoever reads writes nothing"
    switch(repository, "m_int8", 2, event="rolled back")
    assert story(repository) == [("promoted", 1, 2), ("recovered", 2, 3), ("rolled back", 3, 2)]


def test_rollbacks_go_back_further_and_never_to_what_was_left(repository: Path) -> None:
    """After 1 -> 2 -> 3 one goes back to 2, then to 1, and then there is nothing."""
    found = []
    for version in (2, 3):
        switch(repository, "m_int8", version, event="promoted")
    while (before := served_before(read_history(repository, "m_int8"))) is not None:
        found.append(before)
        switch(repository, "m_int8", before, event="rolled back")
    assert found == [2, 1]


def test_old_versions_are_removed_but_for_those_to_go_back_to(repository: Path, tmp_path: Path) -> None:
    for number in (4, 5, 6):
        publish_bytes(tmp_path, f"engine {number}".encode())
    assert versions_of(repository, "m_int8") == [1, 2, 3, 4, 5, 6]
    for version in (2, 4):
        switch(repository, "m_int8", version, event="promoted")
    assert prune_versions(repository, "m_int8", 1).gone == {"m_int8": [1, 3, 5]}
    assert versions_of(repository, "m_int8") == [2, 4, 6]
    assert prune_versions(repository, "m_int8", 1).gone == {"m_int8": []}
    with pytest.raises(PublishError, match="model gone: is not in .*repository; publish it with `temper build`"):
        prune_versions(repository, "gone", 1)


# A model with companions.

ENTRIES = ["m_int8", "m_int8_jpeg", "m_int8_jpeg_decode"]


def publish_with_jpeg(folder: Path, content: bytes, **changes: Any) -> None:
    publish_bytes(folder, content, in_ensemble=True, card={"made of": content.decode()}, **changes)
    config = replace(CONFIG, in_ensemble=True, **changes)
    publish_jpeg(folder / "repository", config, labels=LABELS, card={"made of": content.decode()})


def served(repository: Path) -> dict[str, int]:
    return {
        path.name: read_config(path).version_policy.specific.versions[0] for path in sorted(repository.iterdir())
    }


def test_companions_are_switched_along_and_back(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for number in (1, 2, 3):
        how = Preprocessing(height=32 * number, width=32 * number)
        publish_with_jpeg(tmp_path, f"engine {number}".encode(), image_size=32 * number, preprocessing=how)
    assert served(repository) == dict.fromkeys(ENTRIES, 1)
    done = switch(repository, "m_int8", 2, event="promoted")
    assert done.companions == tuple(Change(model=name, before=1, after=2) for name in ENTRIES[:0:-1])
    assert served(repository) == dict.fromkeys(ENTRIES, 2)
    for model in ENTRIES[1:]:
        assert story(repository, model) == [("promoted", 1, 2)]
    switch(repository, "m_int8", 1, event="rolled back")
    assert served(repository) == dict.fromkeys(ENTRIES, 1)
    switch(repository, "m_int8", 3, event="promoted")
    assert served(repository) == dict.fromkeys(ENTRIES, 3)
    assert prune_versions(repository, "m_int8", 1).gone == {name: [2] for name in ("m_int8", *ENTRIES[:0:-1])}


def test_companion_whose_history_was_edited_stops_the_switch(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for number in (1, 2):
        publish_with_jpeg(tmp_path, f"engine {number}".encode())
    (repository / "m_int8_jpeg" / "history.jsonl").write_text("7\n")
    with pytest.raises(PublishError, match="m_int8_jpeg/history.jsonl: line 1 is no event that temper wrote"):
        switch(repository, "m_int8", 2, event="promoted")
    assert served(repository) == dict.fromkeys(ENTRIES, 1)


def test_companion_that_was_published_anew_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    """Its numbers begin again when it was removed, and the history names one of them."""
    repository = tmp_path / "repository"
    sizes: dict[int, dict[str, Any]] = {}
    for number in (1, 2):
        how = Preprocessing(height=32 * number, width=32 * number)
        sizes[number] = {"image_size": 32 * number, "preprocessing": how}
        publish_with_jpeg(tmp_path, f"engine {number}".encode(), **sizes[number])
    switch(repository, "m_int8", 2, event="promoted")
    for name in ENTRIES[1:]:
        shutil.rmtree(repository / name)
    publish_with_jpeg(tmp_path, b"engine 3", **sizes[2])
    publish_with_jpeg(tmp_path, b"engine 4", **sizes[1])
    assert companions_of(repository, "m_int8", 2) == dict.fromkeys(ENTRIES[:0:-1], 1)
    assert companions_of(repository, "m_int8", 1)["m_int8_jpeg_decode"] == 2


def test_companion_that_was_removed_is_not_missed(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for number in (1, 2):
        publish_with_jpeg(tmp_path, f"engine {number}".encode())
    shutil.rmtree(repository / "m_int8_jpeg_decode")
    switch(repository, "m_int8", 2, event="promoted")
    assert served(repository) == {"m_int8": 2, "m_int8_jpeg": 2}


def test_new_ensemble_waits_for_what_it_is_made_of(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish_bytes(tmp_path, image_size=64)
    line = r"version 1 of m_int8, which is served, takes images of \[64, 64\] .*; promote m_int8 first, then build"
    with pytest.raises(NotYetError, match=line):
        publish_with_jpeg(tmp_path, b"engine 2")
    assert served(repository) == {"m_int8": 1}
    switch(repository, "m_int8", 2, event="promoted")
    publish_with_jpeg(tmp_path, b"engine 2")
    assert served(repository) == {"m_int8": 2, "m_int8_jpeg": 1, "m_int8_jpeg_decode": 1}


def test_new_ensemble_does_not_wait_for_the_queues_of_its_members(tmp_path: Path) -> None:
    publish_bytes(tmp_path)
    publish_with_jpeg(tmp_path, b"engine 2")
    assert served(tmp_path / "repository") == dict.fromkeys(ENTRIES, 1)


def test_mean_is_switched_with_its_ensemble(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in ("a", "b"):
        publish_bytes(tmp_path, name=name, in_ensemble=True)
    for card in ({}, {"made": "anew"}):
        pair = replace(CONFIG, name="pair", backend=EnsembleBackend(members=("a", "b")))
        publish_ensemble(repository, pair, labels=LABELS, card=card)
    done = switch(repository, "pair", 2, event="promoted")
    assert done.companions == (Change(model="pair_mean", before=1, after=2),)
    assert served(repository) == {"a": 1, "b": 1, "pair": 2, "pair_mean": 2}


def test_settled_repository_is_left_alone(tmp_path: Path) -> None:
    serve_bytes(tmp_path, b"engine 2")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "repository").rglob("*")}
    settle(tmp_path / "repository")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "repository").rglob("*")}


@pytest.mark.parametrize("text", ["", "7", "{}", '{"model": "m_int8", "event": 7}'])
def test_intent_of_somebody_else_does_no_harm(repository: Path, text: str) -> None:
    repository.with_name(".repository-work").joinpath("switch.json").write_text(text)
    switch(repository, "m_int8", 2, event="promoted")
    assert story(repository) == [("promoted", 1, 2)]


def test_what_a_server_did_not_load_is_none_to_go_back_to(repository: Path) -> None:
    events: list[tuple[int, What]] = [(2, "promoted"), (1, "promoted"), (2, "rolled back"), (1, "taken back")]
    for version, event in events:
        switch(repository, "m_int8", version, event=event)
    assert served_before(read_history(repository, "m_int8")) == 2
