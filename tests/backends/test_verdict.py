"""A version's verdict, as the plugin and a promotion read it: what holds, and the line for everything else."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from temper.backends.temper import artifact, verdict
from temper.backends.temper.artifact import ArtifactError

Content = dict[str, Any]
KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))
PUBLIC, OTHER_PUBLIC = (key.public_key().public_bytes_raw().hex() for key in (KEY, OTHER))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version's folder with all that is published but an engine that anything could run."""
    version = tmp_path / "digits_int8" / "3"
    version.mkdir(parents=True)
    lines = []
    for name in ("model.onnx", "card.json"):
        (version / name).write_text(name)
        lines.append(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n")
    (version / "SHA256SUMS").write_text("".join(lines))
    return version


def make(folder: Path, key: Ed25519PrivateKey | None = KEY, **changes: Any) -> Content:
    """A SHIP verdict on the folder, signed after the changes."""
    candidate = {
        "model": "digits_int8",
        "version": 3,
        "sums_sha256": hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest(),
        "engine_sha256": artifact.verify_sums(folder)["model.onnx"],
    }
    candidate |= changes.pop("candidate", {})
    content: Content = {"format": 1, "answer": "SHIP", "candidate": candidate, "findings": [{"low": -0.25}]}
    content |= {"signature": None} | changes
    if key is not None:
        public = key.public_key().public_bytes_raw().hex()
        content["signature"] = {"key": public, "value": key.sign(verdict.canonical(content)).hex()}
    return content


def check(folder: Path, *trusted: str) -> Content:
    digests = artifact.verify_sums(folder)
    return verdict.check_verdict(folder, model="digits_int8", digests=digests, trusted=trusted or None)


@pytest.mark.parametrize(
    ("key", "trusted"),
    [(None, ()), (KEY, ()), (KEY, (PUBLIC,)), (KEY, (OTHER_PUBLIC, PUBLIC))],
    ids=["unsigned", "signed and nobody asks", "signed", "one of two keys"],
)
def test_a_verdict_that_holds_is_returned(
    folder: Path, key: Ed25519PrivateKey | None, trusted: tuple[str, ...]
) -> None:
    content = make(folder, key)
    # Spelled otherwise: what is signed is what it says.
    (folder / "verdict.json").write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert check(folder, *trusted) == content


# What lies in verdict.json, given the folder, and the line that refuses it, asked for a signature of KEY.
REFUSED: dict[str, tuple[Callable[[Path], Content | str | bytes | None], str]] = {
    "none": (lambda _: None, "verdict.json: no such file, expected a verdict that says SHIP; judge it with"),
    "not JSON": (lambda _: "SHIP", "verdict.json: is no JSON that a verdict can be \\(Expecting value: line 1"),
    "not UTF-8": (lambda _: b"\xff\xfe\xff", "is no JSON that a verdict can be"),
    "no object": (lambda _: "[]", "verdict.json: is no verdict; judge"),
    "no candidate": (lambda folder: make(folder) | {"candidate": 3}, "verdict.json: is no verdict; judge"),
    "no number": (lambda folder: make(folder) | {"confidence": float("inf")}, "is no JSON that a verdict can be"),
    "deep": (lambda _: "[" * 1_000_000, "is no JSON that a verdict can be \\(maximum recursion depth"),
    "long number": (lambda _: "9" * 5_000, "is no JSON that a verdict can be \\(Exceeds the limit"),
    "long": (lambda _: " " * ((8 << 20) + 1), "verdict.json: has more than 8 MiB, which none has; remove it"),
    "another format": (
        lambda folder: make(folder, format=2),
        "got format 2, expected 1; judge .*, or take the Temper",
    ),
    "no format": (lambda folder: make(folder, format=True), "got format True, expected 1"),
    "model": (
        lambda folder: make(folder, candidate={"model": "digits\n_fp32"}),
        r"is the verdict on 'digits\\n_fp32' version 3, expected 'digits_int8' version 3; judge",
    ),
    "version": (
        lambda folder: make(folder, candidate={"version": 2}),
        "'digits_int8' version 2, expected 'digits_",
    ),
    "files": (
        lambda folder: make(folder, candidate={"sums_sha256": "ab" * 32}),
        "is of other files: it names 'ab.* as SHA-256 of SHA256SUMS, which is another one here; judge",
    ),
    "no digest": (
        lambda folder: make(folder, candidate={"sums_sha256": None}),
        "it names 'None' as SHA-256 of SHA256",
    ),
    "engine": (
        lambda folder: make(folder, candidate={"engine_sha256": "cd" * 32}),
        "as SHA-256 of the engine, which",
    ),
    "HOLD": (lambda folder: make(folder, answer="HOLD"), "says 'HOLD', expected SHIP; build a version that keeps"),
    "NOT ENOUGH DATA": (lambda folder: make(folder, answer="NOT ENOUGH DATA"), "says 'NOT ENOUGH DATA', expected"),
    "unsigned": (lambda folder: make(folder, None), "is not signed, expected the signature of a trusted key"),
    "unknown key": (
        lambda folder: make(folder, OTHER),
        f"is signed by the key {OTHER_PUBLIC[:16]}..., which is none of the 1 trusted ones",
    ),
    "edited": (
        lambda folder: make(folder) | {"findings": []},
        f"was changed after the key {PUBLIC[:16]}... signed it, so nothing in it counts",
    ),
    "a HOLD made a SHIP": (lambda folder: make(folder, answer="HOLD") | {"answer": "SHIP"}, "was changed after"),
    "another's signature": (
        lambda folder: make(folder) | {"signature": {**make(folder, OTHER)["signature"], "key": PUBLIC}},
        "was changed after the key",
    ),
    "no signature": (
        lambda folder: make(folder) | {"signature": {"key": PUBLIC}},
        "its signature is none, expected",
    ),
    "no key": (
        lambda folder: make(folder) | {"signature": {"key": "ff" * 31, "value": "00" * 64}},
        "its signature is none, expected a key of 64 digits and a value of 128",
    ),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_verdict_that_does_not_hold_is_refused_in_one_line(
    folder: Path, write: Callable[[Path], Content | str | bytes | None], message: str
) -> None:
    content = write(folder)
    if content is not None:
        text = json.dumps(content) if isinstance(content, dict) else content
        (folder / "verdict.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ArtifactError, match=message) as refused:
        check(folder, PUBLIC)
    assert str(folder / "verdict.json") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("changed", ["edited", "a HOLD made a SHIP", "no signature", "HOLD", "engine"])
def test_what_is_wrong_is_refused_though_nobody_asks_for_a_signature(folder: Path, changed: str) -> None:
    write, message = REFUSED[changed]
    (folder / "verdict.json").write_text(json.dumps(write(folder)))
    with pytest.raises(ArtifactError, match=message):
        check(folder)


def test_an_engine_that_changed_with_its_digest_is_not_the_judged_one(folder: Path) -> None:
    (folder / "verdict.json").write_text(json.dumps(make(folder)))
    (folder / "model.onnx").write_text("other")
    sums = folder / "SHA256SUMS"
    digest = hashlib.sha256(b"model.onnx").hexdigest()
    sums.write_text(sums.read_text().replace(digest, hashlib.sha256(b"other").hexdigest()))
    with pytest.raises(ArtifactError, match="is of other files: it names"):
        check(folder, PUBLIC)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "verdict.json")
    with pytest.raises(ArtifactError, match="verdict.json: is no file; remove it"):
        check(folder)


def test_without_the_package_that_checks_a_signature_one_line_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "verdict.json").write_text(json.dumps(make(folder)))
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ArtifactError, match="cannot be checked, as this Python lacks the package cryptography"):
        check(folder, PUBLIC)


PARAMETERS: list[tuple[dict[str, str], dict[str, str], bool | str]] = [
    ({}, {}, False),
    ({"require_verdict": "false"}, {"TEMPER_REQUIRE_VERDICT": ""}, False),
    ({"require_verdict": "true"}, {}, True),
    ({}, {"TEMPER_REQUIRE_VERDICT": "1"}, True),
    ({"require_verdict": "false"}, {"TEMPER_REQUIRE_VERDICT": "1"}, True),
    ({"require_verdict": "true"}, {"TEMPER_REQUIRE_VERDICT": "0"}, True),
    ({"require_verdict": "true"}, {"TEMPER_REQUIRE_VERDICT": "1", "TEMPER_STAGING": "1"}, False),
    ({"require_verdict": "true"}, {"TEMPER_STAGING": "0"}, True),
    ({"require_verdict": "yes"}, {}, "require_verdict: got 'yes' in config.pbtxt, expected 'true' or 'false'"),
    ({}, {"TEMPER_REQUIRE_VERDICT": "true"}, "TEMPER_REQUIRE_VERDICT: got 'true', expected 0 or 1"),
]


@pytest.mark.parametrize(("parameters", "environment", "expected"), PARAMETERS)
def test_who_asks_for_a_verdict(
    parameters: dict[str, str],
    environment: dict[str, str],
    expected: bool | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TEMPER_REQUIRE_VERDICT", "TEMPER_TRUSTED_KEYS", "TEMPER_STAGING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(ArtifactError, match=expected):
            verdict.is_required(parameters)
    else:
        assert verdict.is_required(parameters) is expected


def test_a_required_verdict_gives_the_engine_that_was_judged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make(folder)
    (folder / "verdict.json").write_text(json.dumps(content))
    asked = {"require_verdict": "true"}
    digests = artifact.verify_sums(folder)
    for name in ("TEMPER_REQUIRE_VERDICT", "TEMPER_TRUSTED_KEYS", "TEMPER_STAGING"):
        monkeypatch.delenv(name, raising=False)

    def judge(parameters: dict[str, str]) -> str | None:
        return verdict.check_required(folder, model="digits_int8", parameters=parameters, digests=digests)

    assert judge({}) is None
    with pytest.raises(ArtifactError, match="no key is trusted; set TEMPER_TRUSTED_KEYS to a file or folder"):
        judge(asked)
    (tmp_path / "release.pub").write_text(f"ed25519 {PUBLIC}\n")
    monkeypatch.setenv("TEMPER_TRUSTED_KEYS", str(tmp_path))
    assert judge(asked) == content["candidate"]["engine_sha256"]
    (tmp_path / "release.pub").write_text(f"ed25519 {OTHER_PUBLIC}\n")
    with pytest.raises(ArtifactError, match="which is none of the 1 trusted ones"):
        judge(asked)


def test_public_keys_are_read_from_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b.pub").write_text(f"# the release key\r\n\ned25519 {PUBLIC} release, 2026\r\n")
    (tmp_path / "a.pub").write_text(f"ed25519 {OTHER_PUBLIC}\ned25519 {PUBLIC}\n")
    (tmp_path / "private").write_text("-----BEGIN PRIVATE KEY-----\n")
    assert verdict.read_keys(tmp_path) == (OTHER_PUBLIC, PUBLIC)
    assert verdict.read_keys(tmp_path / "b.pub") == (PUBLIC,)


KEYS = {
    "absent": (None, "keys: no such file, expected a public key or a folder of them"),
    "empty": ("\n# none\n", "keys: holds no public key, expected `ed25519 <64 hexadecimal digits>`"),
    "private": ("-----BEGIN PRIVATE KEY-----\nsecret\n", "keys: line 1 is no public key, expected `ed25519 <64"),
    "short": (f"ed25519 {PUBLIC[1:]}", "keys: line 1 is no public key"),
    "another kind": (f"# x\nssh-rsa {PUBLIC}", "keys: line 2 is no public key"),
}


@pytest.mark.parametrize(("content", "message"), KEYS.values(), ids=list(KEYS))
def test_what_is_no_public_key_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtifactError, match=message) as refused:
        verdict.read_keys(path)
    assert "secret" not in str(refused.value)


def test_a_folder_without_public_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"holds no public key, expected files \*\.pub as `temper keys create`"
    ):
        verdict.read_keys(tmp_path)


def test_an_engine_for_another_gpu_is_not_what_was_judged(folder: Path) -> None:
    entry = artifact.Entry(
        file=folder / "model.onnx",
        engine="tensorrt",
        parameters={},
        digests=artifact.verify_sums(folder),
        file_of_capability={},
        card={},
        judged="ab" * 32,
    )
    with pytest.raises(ArtifactError, match="model.onnx: the verdict is on another engine of this version"):
        entry.read()
