"""`temper keys`: pairs of keys that are never overwritten, and one line for every file that is none."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from temper.cli.main import cli
from temper.errors import GateError
from temper.gate.keys import PASSPHRASE, create_key, default_path, public_key, read_key, read_trusted


def run(*arguments: object, passphrase: str = "") -> Result:
    return CliRunner().invoke(cli, ["keys", *map(str, arguments)], env={PASSPHRASE: passphrase})


@pytest.mark.parametrize("passphrase", ["", "correct horse"])
def test_a_pair_is_made_and_shown(tmp_path: Path, passphrase: str) -> None:
    private = tmp_path / "new" / "release"
    made = run("create", "--out", private, passphrase=passphrase)
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert (b"ENCRYPTED" in private.read_bytes()) is bool(passphrase)
    (public,) = read_trusted(private.with_name("release.pub"))
    assert made.output.splitlines()[-1] == f"ed25519 {public}"
    for file in (private, private.with_name("release.pub"), private.parent):
        shown = run("show", file, passphrase=passphrase)
        assert (shown.exit_code, shown.output) == (0, f"ed25519 {public}\n")


def test_without_a_file_the_key_lies_with_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run("create").exit_code == 0
    assert default_path() == tmp_path / "temper" / "verdicts.pem"
    assert run("show").output == f"ed25519 {public_key(read_key(default_path()))}\n"


@pytest.mark.parametrize("there", ["release", "release.pub"])
def test_no_file_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    result = run("create", "--out", tmp_path / "release")
    assert result.exit_code == 1
    assert f"{there}: is there already, and a key is never overwritten" in result.output
    assert (tmp_path / there).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("create", "--out", tmp_path / "file" / "new" / "release")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "release: cannot be written: Not a directory" in result.output


def _of_another_kind(path: Path) -> None:
    key = generate_private_key(SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _encrypted(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PASSPHRASE, "right")
        create_key(path)


WRONG: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "absent": (lambda _: None, "", "key: no such file, expected a private key; `temper keys create` makes one"),
    "folder": (Path.mkdir, "", "key: cannot be read: Is a directory"),
    "text": (
        lambda path: path.write_text("secret"),
        "",
        r"key: is no private key \(PEM, PKCS8\), expected one of",
    ),
    "bytes": (lambda path: path.write_bytes(b"\xff\0" * 9), "", "key: is no private key"),
    "another kind": (_of_another_kind, "", "key: is no ed25519 key, expected one of `temper keys create`"),
    "no passphrase": (_encrypted, "", "key: is encrypted; set its passphrase in TEMPER_KEY_PASSPHRASE"),
    "wrong passphrase": (
        _encrypted,
        "wrong",
        "is no private key .*, or TEMPER_KEY_PASSPHRASE is not its passphrase",
    ),
}


@pytest.mark.parametrize(("write", "passphrase", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_no_private_key_is_refused_in_one_line(
    tmp_path: Path,
    write: Callable[[Path], object],
    passphrase: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "key"
    write(path)
    monkeypatch.setenv(PASSPHRASE, passphrase)
    with pytest.raises(GateError, match=message) as refused:
        read_key(path)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_holds_no_public_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("hello")
    result = run("show", tmp_path / "key.pub")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "key.pub: line 1 is no public key" in result.output
