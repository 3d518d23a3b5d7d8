"""`temper verify`: one line per model, whatever runs it, and nothing is served that was changed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from temper.builder.publish.ensemble import publish_ensemble
from temper.builder.publish.entry import publish
from temper.builder.publish.switch import switch
from temper.builder.publish.triton_config import EnsembleBackend, NativeBackend, PluginBackend, TritonConfig
from temper.cli.main import cli
from temper.serve.verify import find_changed

LABELS = ["cat", "dog"]
OPENVINO = PluginBackend(engine="openvino", on_cpu=True)
CONFIG = TritonConfig(name="a", image_size=32, num_classes=2, max_batch=8, backend=OPENVINO, in_ensemble=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One entry of every kind; nothing here parses their engines."""
    root = tmp_path / "repository"
    # Empty, as the batch sizes are that get no CUDA graph: the text form has no value there.
    plain = dataclasses.replace(CONFIG, parameters={"graph_batches": ""})
    native = dataclasses.replace(plain, name="b", backend=NativeBackend())
    for config, file in ((plain, "model.onnx"), (native, "model.plan")):
        engine = tmp_path / file
        engine.write_bytes(b"engine")
        publish(root, config, engine_file=engine, labels=LABELS, card={})
    pair = dataclasses.replace(CONFIG, name="pair", backend=EnsembleBackend(members=("a", "b")))
    publish_ensemble(root, pair, labels=LABELS, card={})
    (root / "README.md").write_text("not a model")
    (root / ".hidden").mkdir()
    return root


def verify(repository: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["verify", str(repository), *more])


def test_what_was_published_is_verified(repository: Path) -> None:
    result = verify(repository)
    assert (result.exit_code, result.output.splitlines()) == (
        0,
        [
            "a: version 1 (temper) is what was published",
            "b: version 1 (tensorrt) is what was published",
            "pair: version 1 (ensemble) is what was published",
            "pair_mean: version 1 (temper_mean) is what was published",
        ],
    )
    found = json.loads(verify(repository, "--json").output)
    assert found[1] == {"model": "b", "version": 1, "backend": "tensorrt", "reason": None, "verdicts": {}}


def replace(old: str, new: str) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        config = model / "config.pbtxt"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))

    return change


def make_pipe(path: Path) -> None:
    """Whoever reads it waits for ever."""
    path.unlink()
    os.mkfifo(path)


# The model, what is done to its folder, and what its line says.
CHANGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "engine": ("b", lambda model: (model / "1" / "model.plan").write_bytes(b"other"), "model.plan: SHA-256 is "),
    "labels": (
        "pair",
        lambda model: (model / "1" / "labels.txt").write_text("dog\ncat\n"),
        "labels.txt: SHA-256 is",
    ),
    "card": (
        "pair_mean",
        lambda model: (model / "1" / "card.json").unlink(),
        "card.json is named in SHA256SUMS but ",
    ),
    "config": (
        "b",
        replace("count: 1", "count: 9"),
        "is not the one that was published with version 1; set what it",
    ),
    "backend": ("a", replace('"temper"', '"python"'), "got the backend 'python', which temper never publishes"),
    "no config": (
        "a",
        lambda model: (model / "config.pbtxt").unlink(),
        "config.pbtxt: no such file, expected one",
    ),
    "broken config": (
        "a",
        lambda model: (model / "config.pbtxt").write_text("{"),
        "is no config that Triton reads",
    ),
    "other name": (
        "a",
        replace('name: "a"', 'name: "z"'),
        "got name 'z' and versions ['1'], expected 'a' and one",
    ),
    "other version": ("a", replace("versions: 1", "versions: 2"), "2/SHA256SUMS cannot be read (No such file"),
    "pipe": (
        "a",
        lambda model: make_pipe(model / "1" / "SHA256SUMS"),
        "SHA256SUMS cannot be read (it is no file)",
    ),
    "code beside": ("a", lambda model: (model / "1" / "model.py").write_text(""), "1/model.py: is not named in"),
    "code above": (
        "pair",
        lambda model: (model / "model.py").write_text(""),
        "pair/model.py: nobody published it",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_one_line_and_fails(repository: Path, name: str) -> None:
    model, change, message = CHANGES[name]
    change(repository / model)
    result = verify(repository)
    assert result.exit_code == 1
    lines = dict(line.split(": ", 1) for line in result.output.splitlines())
    assert list(lines) == ["a", "b", "pair", "pair_mean"]
    assert message in lines.pop(model)
    if model != "pair":
        assert f"its step {model} is not what was published" in lines.pop("pair")
    assert all("is what was published" in line for line in lines.values())


def test_config_with_right_digests_but_another_backend_is_refused(
    repository: Path, accept_config: Callable[[Path], None]
) -> None:
    replace('"temper"', '"python"')(repository / "a")
    accept_config(repository / "a")
    assert "got the backend 'python', which temper never publishes" in verify(repository).output


@pytest.mark.parametrize("command", [["query", "--model", "pair"], ["load", "--model", "a"]], ids=" ".join)
def test_no_server_is_started_on_what_was_changed(repository: Path, tmp_path: Path, command: list[str]) -> None:
    replace('"temper"', '"python"')(repository / "a")
    (tmp_path / "x.png").write_bytes(b"")
    files = [str(tmp_path / "x.png")] if command[0] == "query" else []
    result = CliRunner().invoke(cli, [*command, *files, "--repository", str(repository)])
    assert result.exit_code == 1
    assert "error: model a: " in result.stderr
    assert "got the backend 'python', which temper never publishes" in result.stderr


def test_serve_is_given_only_what_was_published(repository: Path) -> None:
    for model in ("a", "b", "pair_mean"):
        (repository / model / "1" / "card.json").write_text("{}")
    result = CliRunner().invoke(cli, ["serve", "--repository", str(repository)])
    assert result.exit_code == 1
    *_, line = result.stderr.splitlines()
    head = f"error: no model of {repository} is what was published: model a: "
    assert line.startswith(f"{head}{repository}/a/1/card.json: SHA-256 is ")
    assert all(f"; model {model}: " in line for model in ("b", "pair", "pair_mean"))


@pytest.mark.parametrize("change", ["engine", "digests", "beside"])
def test_version_that_is_not_served_is_verified_too(repository: Path, tmp_path: Path, change: str) -> None:
    """One may go back to it; the served one is what was published meanwhile, and is served."""
    engine = tmp_path / "model.onnx"
    engine.write_bytes(b"better engine")
    publish(repository, CONFIG, engine_file=engine, labels=LABELS, card={})
    switch(repository, "a", 2, event="promoted")
    assert "a: version 2 (temper) is what was published" in verify(repository).output
    old = repository / "a" / "1"
    if change == "engine":
        (old / "model.onnx").write_bytes(b"other")
    elif change == "digests":
        (old / "SHA256SUMS").unlink()
    else:
        (old / "model.py").write_text("")
    result = verify(repository)
    assert result.exit_code == 1
    assert f"a: {old}" in result.output
    assert find_changed(repository) == {}


def test_missing_member_is_named(repository: Path) -> None:
    (repository / "b").rename(repository.parent / "b")
    assert "pair: its step b is not what was published: " in verify(repository).output


@pytest.mark.parametrize(
    ("name", "line"),
    [("gone", "error: model repository {}: cannot be read: No such file"), ("empty", "error: {}: holds no model")],
)
def test_repository_that_is_none_is_one_line(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "empty").mkdir()
    result = verify(tmp_path / name)
    assert result.exit_code == 1
    assert result.stderr.startswith(line.format(tmp_path / name))
