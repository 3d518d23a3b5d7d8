"""The published artifact: where it lies, whether it is what was published, what the config says of it.

An engine is executable code, so its digest is checked before anything parses it. The digests guard against a
truncated copy and a tampered file; who may write the repository is the deployment's business.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
CARD = "card.json"
_DEFAULT_MAX_BATCH = 32
_CHUNK_BYTES = 1 << 20


class ArtifactError(Exception):
    """The artifact is missing, tampered with, or not one this plugin can run; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A verified artifact, and what config.pbtxt and its card say of running it."""

    file: Path
    """The engine; `for_capability` may choose another one."""
    engine: str
    """The engine's kind, which decides on the runner."""
    parameters: Mapping[str, str]
    """config.pbtxt's parameters."""
    digests: Mapping[str, str]
    """SHA-256 of every published file, each found to be right."""
    file_of_capability: Mapping[str, str]
    """Triton's `cc_model_filenames`: compute capability, as "9.0", to the file built for it."""
    card: Mapping[str, Any]
    """card.json."""

    @property
    def max_batch(self) -> int:
        """Largest batch when config.pbtxt does not say."""
        return int(self.parameters.get("max_batch", _DEFAULT_MAX_BATCH))

    @property
    def digest(self) -> str:
        """SHA-256 of the engine."""
        return self.digests[self.file.name]

    @property
    def figures(self) -> Mapping[str, Any]:
        """What the card says of the engine (runtime, batch sizes, compute_capability), if anything."""
        stages = self.card.get("stages")
        for stage in reversed(stages if isinstance(stages, list) else []):
            if stage.get("name") == "engine":
                figures: Mapping[str, Any] = stage.get("figures", {})
                return {**figures, **self._plan()}
        return {}

    def _plan(self) -> dict[str, Any]:
        """What the card says of this very file: a plan for another GPU may come from another library."""
        for plan in self.card.get("plans", []):
            if plan.get("name") == self.file.name:
                return {key: plan[key] for key in ("runtime", "compute_capability") if plan.get(key) is not None}
        return {}

    def for_capability(self, capability: str) -> Entry:
        """The entry with the engine for a GPU, as Triton's own TensorRT backend would choose it.

        Args:
            capability: The GPU's compute capability, as "9.0".

        Raises:
            ArtifactError: Engines are given per compute capability, and none for this one.
        """
        name = self.file_of_capability.get(capability)
        if name is None:
            name = self.file.name
            if name in self.file_of_capability.values() or name not in self.digests:
                raise ArtifactError(
                    f"{self.file.parent}: got a GPU of compute capability {capability}, expected one of "
                    f"{', '.join(sorted(self.file_of_capability))} (cc_model_filenames); "
                    "build the recipe on this GPU as well and publish again"
                )
        return replace(self, file=self.file.with_name(name))

    def read(self) -> bytes:
        """The engine's bytes, their digest checked once more: exactly these may be deserialised.

        Raises:
            ArtifactError: The file changed since it was verified, or cannot be read.
        """
        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{self.file} cannot be read ({error.strerror}); publish it again") from error
        _check_digest(self.file, hashlib.sha256(content).hexdigest(), self.digest)
        return content


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


def verify(folder: Path, config: Mapping[str, Any]) -> Entry:
    """Check every file named in SHA256SUMS and return the engine.

    Args:
        folder: `<repository>/<model>/<version>`.
        config: config.pbtxt, as Triton's JSON gives it.

    Raises:
        ArtifactError: No digests, a missing file, a digest that does not match, or an engine without a digest.
    """
    parameters = {key: str(value["string_value"]) for key, value in config["parameters"].items()}
    name = parameters.get("file", "model.onnx")
    digests = _read_sums(folder / SUMS)
    for published, digest in digests.items():
        path = folder / published
        if not path.is_file():
            raise ArtifactError(f"{path} is named in {SUMS} but missing; publish this version again")
        _check_digest(path, _sha256(path), digest)
    file_of_capability = dict(config.get("cc_model_filenames") or {})
    for engine in file_of_capability.values() or [name]:
        if engine not in digests:
            raise ArtifactError(f"{folder / SUMS} has no digest of {engine}; publish this version again")
    return Entry(
        file=folder / name,
        engine=parameters.get("engine", "openvino"),
        parameters=parameters,
        digests=digests,
        file_of_capability=file_of_capability,
        card=_read_card(folder / CARD) if CARD in digests else {},
    )


def _check_digest(path: Path, found: str, expected: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise ArtifactError(
            f"{path}: SHA-256 is {found[:12]}..., {SUMS} says {expected[:12]}...; the file was changed after it "
            "was published and is not loaded; publish this version again"
        )


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path}: got no JSON ({error}); publish this version again") from error
    return card if isinstance(card, dict) else {}


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
    return sums


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
