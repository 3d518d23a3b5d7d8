"""`temper keys`."""

from __future__ import annotations

from pathlib import Path

from temper.backends.temper.verdict import SUFFIX
from temper.gate.keys import create_key, default_path, public_key, public_path, read_key, read_trusted
from temper.terminal import echo


def create_command(path: Path | None) -> None:
    """Makes a pair of keys and says where they lie.

    Raises:
        GateError: One of the files is there already, or cannot be written.
    """
    file = path or default_path()
    public = create_key(file)
    echo(f"private key: {file} (keep it secret, and out of the model repository)")
    echo(f"public key:  {public_path(file)} (for TEMPER_TRUSTED_KEYS of a server)")
    echo(f"ed25519 {public}")


def show_command(path: Path | None) -> None:
    """Prints public keys as their files hold them.

    Raises:
        GateError: There is none, or something else.
    """
    file = path or default_path()
    public = file.suffix == SUFFIX or file.is_dir()
    for key in read_trusted(file) if public else (public_key(read_key(file)),):
        echo(f"ed25519 {key}")
