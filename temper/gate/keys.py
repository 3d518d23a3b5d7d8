"""Keys that vouch for verdicts, ed25519 by `cryptography`: made and read.

The private key is a PEM file (PKCS8), readable by its owner alone and, where a passphrase is given, encrypted. The
public one is a line of text beside it, which a server is given to trust. Neither belongs into a model repository:
who may write there must not be able to say what is trusted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from temper.backends.temper.artifact import ArtifactError
from temper.backends.temper.verdict import SUFFIX, read_keys
from temper.errors import GateError
from temper.imaging.errors import show

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PASSPHRASE = "TEMPER_KEY_PASSPHRASE"
"""Environment variable of the passphrase that a private key is encrypted with."""
_MAX_BYTES = 1 << 16


def default_path() -> Path:
    """Where a private key is looked for when no file is named."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "temper" / "verdicts.pem"


def public_path(path: Path) -> Path:
    """The file of the public key, beside that of the private one."""
    return path.with_name(path.name + SUFFIX)


def create_key(path: Path) -> str:
    """Makes a pair of keys; neither file is ever overwritten.

    Args:
        path: The private key's file, of mode 0600; the public key's gets `.pub` behind it.

    Returns:
        The public key, 64 hexadecimal digits.

    Raises:
        GateError: One of the files is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = Ed25519PrivateKey.generate()
    passphrase = os.environ.get(PASSPHRASE, "").encode()
    cipher = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher)
    public = public_key(key)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, mode=0o700)
        _write_new(path, private, 0o600)
        try:
            _write_new(public_path(path), f"ed25519 {public}\n".encode(), 0o644)
        except OSError:
            path.unlink()
            raise
    except FileExistsError as error:
        raise GateError(
            f"{show(error.filename)}: is there already, and a key is never overwritten, as what it signed would "
            "be trusted no more; name another file with --out"
        ) from None
    except OSError as error:
        raise GateError(f"{show(path)}: cannot be written: {error.strerror}") from error
    return public


def read_key(path: Path) -> Ed25519PrivateKey:
    """Reads a private key; the passphrase of one that is encrypted stands in TEMPER_KEY_PASSPHRASE.

    Raises:
        GateError: There is none, or the file holds something else, or the passphrase is missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise GateError(
            f"{show(path)}: no such file, expected a private key; `temper keys create` makes one"
        ) from None
    except OSError as error:
        raise GateError(f"{show(path)}: cannot be read: {error.strerror}") from error
    encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in content
    passphrase = os.environ.get(PASSPHRASE, "").encode()
    if encrypted and not passphrase:
        raise GateError(f"{show(path)}: is encrypted; set its passphrase in {PASSPHRASE}")
    try:
        key = load_pem_private_key(content, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        wrong = f"or {PASSPHRASE} is not its passphrase" if encrypted else "expected one of `temper keys create`"
        raise GateError(f"{show(path)}: is no private key (PEM, PKCS8), {wrong}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise GateError(f"{show(path)}: is no ed25519 key, expected one of `temper keys create`")
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """Returns the public key of a private one, 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def read_trusted(path: Path) -> tuple[str, ...]:
    """Reads the public keys of a file, or of every `*.pub` in a folder.

    Raises:
        GateError: There is none, or something else.
    """
    try:
        return read_keys(path)
    except ArtifactError as error:
        raise GateError(str(error)) from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
