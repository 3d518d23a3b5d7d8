"""`temper promote`, `rollback`, `history` and `prune-versions`: what may be served, and what is kept of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from temper.builder.publish.ensemble import publish_ensemble
from temper.builder.publish.entry import publish
from temper.builder.publish.serving import ServingConfig
from temper.builder.publish.triton_config import EnsembleBackend, PluginBackend, TritonConfig
from temper.builder.publish.versions import served_version
from temper.cli.main import cli
from temper.serve.verify import verify_repository

OPENVINO = PluginBackend(engine="openvino", on_cpu=True)
CONFIG = TritonConfig(name="m", image_size=32, num_classes=2, max_batch=8, backend=OPENVINO, in_ensemble=True)
ANYWAY = ("--override", "--reason", "for the demo")


def add(repository: Path, content: bytes, **changes: Any) -> Path:
    """Publishes a version and returns its folder."""
    engine = repository.with_name("model.onnx")
    engine.write_bytes(content)
    config = dataclasses.replace(CONFIG, **changes)
    return publish(repository, config, engine_file=engine, labels=["cat", "dog"], card={}).path


def judge(folder: Path, answer: str = "SHIP", **changes: Any) -> None:
    """Writes a verdict on a version."""
    sums = hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
    candidate = {"model": folder.parent.name, "version": int(folder.name), "sums_sha256": sums, **changes}
    (folder / "verdict.json").write_text(json.dumps({"format": 1, "answer": answer, "candidate": candidate}))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two versions of m; the second is a candidate that may be shipped."""
    root = tmp_path / "repository"
    add(root, b"engine 1")
    judge(add(root, b"engine 2"))
    return root


def run(command: str, repository: Path, *more: str, model: str = "m") -> Result:
    return CliRunner().invoke(cli, [command, model, "--repository", str(repository), *more])


def served(repository: Path, model: str = "m") -> int | None:
    assert [one.reason for one in verify_repository(repository)] == [None] * len(list(repository.iterdir()))
    return served_version(repository / model)


def test_candidate_that_ships_is_promoted_and_rolled_back(repository: Path) -> None:
    for command, line, after in (
        ("promote", "m: version 2 is served, version 1 before", 2),
        ("promote", "m: version 2 is served already", 2),
        ("rollback", "m: version 1 is served, version 2 before", 1),
    ):
        result = run(command, repository)
        assert (result.exit_code, result.output) == (0, f"{line}\n")
        assert served(repository) == after
    again = run("rollback", repository)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: model m: nothing was served before version 1, as its history says")
    lines = [re.sub(r"^  (\S+Z  )?", "", line) for line in run("history", repository).output.splitlines()]
    assert lines == [
        "m: version 1 is served",
        "promoted     1 -> 2      SHIP",
        "rolled back  2 -> 1      no verdict",
        "version 1    served     no verdict",
        "version 2    candidate  SHIP",
    ]
    found = json.loads(run("history", repository, "--json").output)
    assert [(one["before"], one["after"], one["answer"]) for one in found["events"]] == [
        (1, 2, "SHIP"),
        (2, 1, None),
    ]
    assert [one["role"] for one in found["versions"]] == ["served", "candidate"]
    assert json.loads(run("promote", repository, "--json").output) == {
        "model": "m",
        "before": 1,
        "after": 2,
        "companions": [],
    }


# What is wrong with version 2, and the line that refuses it.
REFUSED: dict[str, tuple[Any, str]] = {
    "none": (lambda folder: (folder / "verdict.json").unlink(), "verdict.json: no such file, expected a verdict"),
    "hold": (lambda folder: judge(folder, "HOLD"), "says 'HOLD', expected SHIP"),
    "not enough": (lambda folder: judge(folder, "NOT ENOUGH DATA"), "', expected SHIP; judge it again on as"),
    "another engine": (lambda folder: judge(folder, sums_sha256="0" * 64), "is of other files"),
    "another version": (lambda folder: judge(folder, version=1), "is the verdict on 'm' version 1, expected"),
    "no JSON": (lambda folder: (folder / "verdict.json").write_text("{"), "is no JSON that a verdict can be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_candidate_that_may_not_be_served_needs_an_override(repository: Path, case: str) -> None:
    change, line = REFUSED[case]
    change(repository / "m" / "2")
    result = run("promote", repository)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert line in result.stderr
    assert "; --override --reason TEXT promotes it all the same" in result.stderr
    assert served(repository) == 1
    for reason in ((), ("--reason", " ")):
        refused = run("promote", repository, "--override", *reason)
        assert refused.exit_code == 1
        assert "error: override: got no reason, expected one that the history keeps" in refused.stderr
    assert run("promote", repository, *ANYWAY).exit_code == 0
    assert served(repository) == 2
    (event,) = json.loads(run("history", repository, "--json").output)["events"]
    assert (event["override"], event["reason"]) == (True, "for the demo")
    assert "overridden: for the demo" in run("history", repository).output


def test_verdict_against_what_is_served_no_more_promotes_nothing(repository: Path) -> None:
    assert run("promote", repository).exit_code == 0
    folder = add(repository, b"engine 3")
    judge(folder)
    content = json.loads((folder / "verdict.json").read_text())
    for version, exit_code in ((1, 1), (2, 0)):
        content["reference"] = {"model": "m", "version": version}
        (folder / "verdict.json").write_text(json.dumps(content))
        result = run("promote", repository)
        assert result.exit_code == exit_code
    assert served(repository) == 3


@pytest.mark.parametrize("more", [(), ANYWAY], ids=["plain", "override"])
def test_version_that_asks_for_a_signed_verdict_is_not_served_without(
    repository: Path, more: tuple[str, ...]
) -> None:
    judge(add(repository, b"engine 3", serving=ServingConfig(require_verdict=True)))
    result = run("promote", repository, *more)
    assert result.exit_code == 1
    assert "verdict.json: is not signed; sign it with `temper gate --sign`; version 3 says require_verdict" in (
        result.stderr
    )
    assert served(repository) == 1


@pytest.mark.parametrize("more", [(), ANYWAY], ids=["plain", "override"])
@pytest.mark.parametrize(
    ("name", "line"), [("model.onnx", "model.onnx: SHA-256 is"), ("labels.txt", "labels.txt: SHA-256 is")]
)
def test_version_that_is_not_whole_is_never_served(
    repository: Path, name: str, line: str, more: tuple[str, ...]
) -> None:
    (repository / "m" / "2" / name).write_bytes(b"other")
    result = run("promote", repository, *more)
    assert result.exit_code == 1
    assert line in result.stderr
    assert served_version(repository / "m") == 1


@pytest.mark.parametrize(
    ("command", "model", "more", "line"),
    [
        ("promote", "gone", (), "model gone: is not in "),
        ("promote", "../repository/m", (), "model ../repository/m: is not in "),
        ("promote", "m", ("--version", "7"), "model m: got version 7, expected one of 1, 2"),
        ("rollback", "gone", (), "model gone: is not in "),
        ("rollback", "m", (), "model m: nothing was served before version 1, as its history says"),
        ("history", "go\x1bne", (), "model go\\x1bne: is not in "),
        ("prune-versions", "gone", ("--keep", "1"), "model gone: is not in "),
    ],
)
def test_wrong_request_is_one_line(
    repository: Path, command: str, model: str, more: tuple[str, ...], line: str
) -> None:
    result = run(command, repository, *more, model=model)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"error: {line}")
    assert served(repository) == 1


def test_what_was_served_before_may_be_gone(repository: Path) -> None:
    run("promote", repository)
    (repository / "m" / "1").rename(repository.with_name("1"))
    result = run("rollback", repository)
    assert result.stderr.startswith("error: model m: version 1 was served before and is gone; it has 2, of which")
    assert served(repository) == 2


def test_old_versions_are_removed(repository: Path) -> None:
    for number in (3, 4):
        add(repository, b"engine %d" % number)
    result = run("prune-versions", repository, "--keep", "1")
    assert (result.exit_code, result.output) == (0, "m: removed 2, 3; left 1, 4\n")
    found = run("prune-versions", repository, "--keep", "1", "--json")
    assert json.loads(found.output) == {"removed": {"m": []}, "stuck": []}


# Ensembles: answers that nobody measured together.


def pair(repository: Path, **card: Any) -> Path:
    config = dataclasses.replace(CONFIG, name="pair", backend=EnsembleBackend(members=("m", "other")))
    return publish_ensemble(repository, config, labels=["cat", "dog"], card=card).path


def test_ensemble_waits_for_its_members(repository: Path) -> None:
    add(repository, b"engine", name="other")
    pair(repository)
    judge(pair(repository, made="anew"))
    result = run("promote", repository, model="pair")
    line = (
        "ensemble pair: was measured with version 2 of its member m, of which version 1 is served; promote m first"
    )
    assert line in result.stderr
    assert served(repository, "pair") == 1
    for model in ("m", "pair"):
        assert run("promote", repository, model=model).exit_code == 0
    assert (served(repository, "pair"), served(repository, "pair_mean")) == (2, 2)
    result = run("rollback", repository, "--reason", "too slow", model="pair")
    assert "pair_mean: version 1 with it, version 2 before" in result.output


def test_member_that_breaks_an_ensemble_is_not_promoted(repository: Path) -> None:
    add(repository, b"engine", name="other")
    pair(repository)
    judge(add(repository, b"engine 3", max_batch=4))
    result = run("promote", repository)
    assert "ensemble pair: its member m takes batches of up to 4, expected 8" in result.stderr
    assert served(repository) == 1
