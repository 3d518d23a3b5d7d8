"""verdict.json in a version's folder: what it is bound to, who signed it, and what stays of it when it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from temper.backends.temper import artifact
from temper.backends.temper.verdict import check_verdict
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.errors import GateError
from temper.gate.keys import public_key
from temper.gate.seal import in_json, read_verdict, side_of, sign, write_verdict
from temper.report.verdict import Finding, Verdict
from temper.report.verdict_text import facts, render_text

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))
BACKEND = PluginBackend(engine="openvino", on_cpu=True)
CONFIG = TritonConfig(name="digits_int8", image_size=32, num_classes=2, max_batch=8, backend=BACKEND)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published version; nothing here parses its engine."""
    engine = tmp_path / "model.onnx"
    engine.write_bytes(b"engine")
    publish(tmp_path / "models", CONFIG, engine_file=engine, labels=["cat", "dog"], card={})
    return tmp_path / "models" / "digits_int8" / "1"


def verdict_on(folder: Path, **changes: Any) -> Verdict:
    """A SHIP, with whole numbers and a tuple where a file has other ones."""
    finding = Finding(
        rule="accuracy",
        name="accuracy",
        answer="SHIP",
        figure=0,
        low=-0.25,
        high=0.25,
        limit=1,
        unit="points",
        reason="it ends inside \N{INFINITY}",
    )
    side = side_of(folder)
    verdict = Verdict(
        answer="SHIP",
        candidate=side,
        reference=dataclasses.replace(side, model="digits_fp32"),
        findings=(finding,),
        confidence=0.95,
        correction="none",
        config={"accuracy": {"max_drop": 1}, "budgets": (1, 2.0)},
        data_sha256=None,
        num_images=500,
        created="2026-11-28T08:00:00Z",
        server="a tritonserver",
        machine="a CPU",
        versions={"python": "3.11"},
    )
    return dataclasses.replace(verdict, **changes)


def test_a_side_is_named_by_its_digests(folder: Path) -> None:
    side = side_of(folder)
    assert (side.model, side.version) == ("digits_int8", 1)
    assert side.engine_sha256 == hashlib.sha256(b"engine").hexdigest()
    assert side.sums_sha256 == hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
    with pytest.raises(GateError, match=r"holds no engine 'card.json', expected one of model.onnx"):
        side_of(folder, engine="card.json")
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(GateError, match="model.onnx: SHA-256 is .*; publish this version again"):
        side_of(folder)


@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
def test_what_is_written_holds_and_is_read_again(folder: Path, key: Ed25519PrivateKey | None) -> None:
    before = {path.name for path in folder.iterdir()}
    written = write_verdict(folder, verdict_on(folder), key)
    assert {path.name for path in folder.iterdir()} == before | {"verdict.json"}
    trusted = None if key is None else [public_key(key)]
    digests = artifact.verify_sums(folder)
    held = check_verdict(folder, model="digits_int8", digests=digests, trusted=trusted)
    read = read_verdict(folder)
    assert read is not None
    assert (read.signature, read.answer) == (written.signature, "SHIP")
    assert in_json(read) == held
    # Written once more as it was read, its signature is as good: a number keeps its spelling.
    (folder / "verdict.json").unlink()
    write_verdict(folder, read)
    assert check_verdict(folder, model="digits_int8", digests=digests, trusted=trusted) == held


def test_a_verdict_replaces_the_one_before(folder: Path) -> None:
    write_verdict(folder, verdict_on(folder), KEY)
    write_verdict(folder, verdict_on(folder, answer="HOLD"), OTHER)
    read = read_verdict(folder)
    assert read is not None and read.answer == "HOLD"
    assert read.signature is not None and read.signature.key == public_key(OTHER)


def test_looks_at_one_version_on_other_images_are_counted(folder: Path) -> None:
    def look(data: str | None) -> int:
        return write_verdict(folder, verdict_on(folder, data_sha256=data), KEY).looks

    assert [look(data) for data in ("a", "a", "b", "b", "c")] == [1, 1, 2, 2, 3]
    read = read_verdict(folder)
    assert read is not None
    assert (
        "Look 3 at this version on other images: each ships what breaks a limit in up to 5 % of" in facts(read)[-3]
    )
    assert "`confidence = 0.9833` in each" in render_text([read])
    (folder / "verdict.json").write_text("{}")
    assert look("d") == 1


def test_a_version_without_a_verdict_has_none(folder: Path) -> None:
    assert read_verdict(folder) is None


def test_signing_twice_is_refused(folder: Path) -> None:
    signed = sign(verdict_on(folder), KEY)
    with pytest.raises(
        GateError, match="on digits_int8 version 1 is signed already, by the key 8a88e3dd7409f195..."
    ):
        write_verdict(folder, signed, OTHER)
    assert not (folder / "verdict.json").exists()


@pytest.mark.parametrize("change", [{"model": "other"}, {"version": 2}, {"sums_sha256": "ab" * 32}])
def test_the_verdict_on_something_else_is_not_written(folder: Path, change: dict[str, Any]) -> None:
    verdict = verdict_on(folder)
    verdict = dataclasses.replace(verdict, candidate=dataclasses.replace(verdict.candidate, **change))
    with pytest.raises(GateError, match="1: is not what was judged, .*; judge it again"):
        write_verdict(folder, verdict)


@pytest.mark.parametrize(
    "change", [{"confidence": float("nan")}, {"config": {"a": object()}}, {"answer": "MAYBE"}]
)
def test_what_no_verdict_can_say_is_not_written(folder: Path, change: dict[str, Any]) -> None:
    with pytest.raises(GateError, match="^the verdict cannot be written: [^\n]+$"):
        write_verdict(folder, verdict_on(folder, **change))


def test_a_folder_that_is_gone_is_named(folder: Path) -> None:
    verdict = verdict_on(folder)
    with pytest.raises(GateError, match="SHA256SUMS: cannot be read: No such file or directory"):
        write_verdict(folder.with_name("2"), verdict)


def test_a_file_of_another_form_names_the_field(folder: Path) -> None:
    write_verdict(folder, verdict_on(folder))
    path = folder / "verdict.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_images": "many"}))
    with pytest.raises(
        GateError, match="verdict.json: is no verdict: num_images: Input should be a valid integer"
    ):
        read_verdict(folder)
    path.write_text("SHIP")
    with pytest.raises(GateError, match="verdict.json: is no JSON that a verdict can be"):
        read_verdict(folder)
