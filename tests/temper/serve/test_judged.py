"""`temper verify` on verdicts: what each is worth, and what a server that trusts some keys would not load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from temper.builder.publish.ensemble import publish_ensemble
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import EnsembleBackend, NativeBackend, PluginBackend, TritonConfig
from temper.cli.main import cli
from temper.gate.keys import public_key
from tests.verdicts import KEY, OTHER, judge

LABELS = ["cat", "dog"]
OPENVINO = PluginBackend(engine="openvino", on_cpu=True)
CONFIG = TritonConfig(name="a", image_size=32, num_classes=2, max_batch=8, backend=OPENVINO, in_ensemble=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two members of an ensemble, one of them for Triton's own backend; nothing parses their engines."""
    root = tmp_path / "repository"
    engine = tmp_path / "engine"
    engine.write_bytes(b"engine")
    for config in (CONFIG, dataclasses.replace(CONFIG, name="b", backend=NativeBackend())):
        publish(root, config, engine_file=engine, labels=LABELS, card={})
    pair = dataclasses.replace(CONFIG, name="pair", backend=EnsembleBackend(members=("a", "b")))
    publish_ensemble(root, pair, labels=LABELS, card={})
    return root


def verify(repository: Path, *more: object) -> Result:
    return CliRunner().invoke(cli, ["verify", str(repository), *map(str, more)])


def test_each_version_says_what_its_verdict_is_worth(repository: Path) -> None:
    judge(repository / "a" / "1")
    judge(repository / "b" / "1", "HOLD", None)
    judge(repository / "pair" / "1", key=None)
    (repository / "pair_mean" / "1" / "verdict.json").write_text("{}")
    result = verify(repository)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line for line in lines if not line.startswith("    ")] == [
        "a: version 1 (temper) is what was published",
        "b: version 1 (tensorrt) is what was published",
        "pair: version 1 (ensemble) is what was published",
        "pair_mean: version 1 (temper_mean) is what was published",
    ]
    verdict = "    verdict on version 1: "
    assert lines[1] == f"{verdict}SHIP, signed by the key 8a88e3dd7409f195..."
    assert lines[3].startswith(f"{verdict}{repository}/b/1/verdict.json: says 'HOLD', expected SHIP; ")
    assert lines[5] == f"{verdict}SHIP, not signed"
    assert lines[7].startswith(f"{verdict}{repository}/pair_mean/1/verdict.json: is no verdict; ")
    found = json.loads(verify(repository, "--json").output)
    assert found[0]["verdicts"] == {"1": "SHIP, signed by the key 8a88e3dd7409f195..."}


def test_with_trusted_keys_what_the_plugin_refuses_fails(repository: Path, tmp_path: Path) -> None:
    """An ensemble is made of members that have verdicts; Triton's own backend asks for none, but this does."""
    keys = tmp_path / "release.pub"
    keys.write_text(f"ed25519 {public_key(KEY)}\n")
    judge(repository / "a" / "1", key=OTHER)
    result = verify(repository, "--trusted-keys", keys)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith(
        f"a: {repository}/a/1/verdict.json: is signed by the key 8139770ea87d175f..., which"
    )
    assert lines[2].startswith(
        f"b: {repository}/b/1/verdict.json: no such file, expected a verdict that says SHIP"
    )
    judge(repository / "a" / "1")
    judge(repository / "b" / "1")
    assert verify(repository, "--trusted-keys", keys).exit_code == 0
    assert verify(repository, "--trusted-keys", keys.parent).exit_code == 0
    (repository / "b" / "1" / "engine").write_bytes(b"other")
    assert verify(repository, "--trusted-keys", keys).exit_code == 1


def test_trusted_keys_that_are_none_are_one_line(repository: Path, tmp_path: Path) -> None:
    result = verify(repository, "--trusted-keys", tmp_path / "none.pub")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "none.pub: no such file, expected a public key or a folder of them" in result.output


def test_history_does_not_show_what_was_written_into_a_signed_verdict(repository: Path) -> None:
    judge(repository / "a" / "1", "HOLD")

    def line() -> str:
        return CliRunner().invoke(cli, ["history", "a", "--repository", str(repository)]).output.splitlines()[-1]

    assert line() == "  version 1    served     HOLD"
    path = repository / "a" / "1" / "verdict.json"
    path.write_text(path.read_text().replace('"HOLD"', '"SHIP"'))
    assert line() == "  version 1    served     not what was written; see `temper verify`"
