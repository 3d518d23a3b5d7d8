"""The published artifact: where it lies, whether it is what was published, what the config says of it.

An engine is executable code, so its digest is checked before anything parses it. The digests guard against a
truncated copy and a tampered file; who may write the repository is the deployment's business.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
_DEFAULT_MAX_BATCH = 32
_CHUNK_BYTES = 1 << 20


class ArtifactError(Exception):
    """The artifact is missing, tampered with, or not one this plugin can run; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A verified artifact and the config parameters that say how to run it."""

    file: Path
    engine: str
    parameters: dict[str, str]

    @property
    def max_batch(self) -> int:
        """Largest batch when config.pbtxt does not say."""
        return int(self.parameters.get("max_batch", _DEFAULT_MAX_BATCH))


def folder_of_this_process(model: str) -> Path:
    """The version folder of the model for which Triton started this process.

    `auto_complete_config` is not told where the model lies, but the stub's own command line is: its first
    argument is `<repository>/<model>/<version>/model.py` (python_backend, src/pb_stub.cc).
    """
    arguments = Path("/proc/self/cmdline").read_bytes().decode().split("\0")
    folder = Path(arguments[1]).parent if len(arguments) > 1 else Path()
    if not folder.name.isdigit():
        raise ArtifactError(
            f"{model}: Triton did not say where the model lies; state inputs and outputs in its config.pbtxt "
            "and start tritonserver with --disable-auto-complete-config"
        )
    return folder


def verify(folder: Path, parameters: dict[str, Any]) -> Entry:
    """Check every file named in SHA256SUMS and return the engine.

    Args:
        folder: `<repository>/<model>/<version>`.
        parameters: The `parameters` of config.pbtxt, as Triton's JSON gives them.

    Raises:
        ArtifactError: No digests, a missing file, a digest that does not match, or an engine without a digest.
    """
    values = {key: str(value["string_value"]) for key, value in parameters.items()}
    name = values.get("file", "model.onnx")
    for published, digest in _read_sums(folder / SUMS).items():
        path = folder / published
        if not path.is_file():
            raise ArtifactError(f"{path} is named in {SUMS} but missing; publish this version again")
        found = _sha256(path)
        if not hmac.compare_digest(found, digest):
            raise ArtifactError(
                f"{path}: SHA-256 is {found[:12]}..., {SUMS} says {digest[:12]}...; the file was changed after it "
                "was published and is not loaded; publish this version again"
            )
        if published == name:
            return Entry(file=path, engine=values.get("engine", "openvino"), parameters=values)
    raise ArtifactError(f"{folder / SUMS} has no digest of {name}; publish this version again")


def _read_sums(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); only what `temper build` published is loaded"
        ) from error
    sums: dict[str, str] = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        # A name with a folder in it could reach outside of the version.
        if len(digest) != 64 or not name or "/" in name:
            raise ArtifactError(f"{path}: got the line {line[:80]!r}, expected `<sha256>  <file>`; publish again")
        sums[name] = digest
    # The engine comes last, so that `verify` has checked every other file when it returns.
    return dict(sorted(sums.items(), key=lambda item: item[0].startswith("model.")))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
