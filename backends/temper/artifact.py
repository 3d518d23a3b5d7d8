"""The published artifact: where it lies, whether it is what was published, what the config says of it.

An engine is executable code, so its digest is checked before anything parses it, and with it that of everything
else which was published: the card, the class names, config.pbtxt. The digests guard against a truncated copy and a
tampered file; who may write the repository is the deployment's business.

Standard library only: `temper verify` runs the same checks where there is no Triton.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
CARD = "card.json"
CONFIG = "config.pbtxt"
VERDICT = "verdict.json"
_DEFAULT_MAX_BATCH = 32
_CHUNK_BYTES = 1 << 20
_VERSION = re.compile(rb"specific\s*\{\s*versions:\s*(\d{1,18})\s*\}")
_POLICY = re.compile(rb"version_policy\s*\{\s*specific\s*\{\s*((?:versions:\s*\d{1,18}\s*)+)\}\s*\}")
_LABELS = re.compile(rb'label_filename: "\d{1,18}/')
# Beside the versions; an older temper kept the class names there. Nothing is served by the history.
_BESIDE = re.compile(r"config\.pbtxt|history\.jsonl|[1-9][0-9]*|labels(\.[0-9]+)?\.txt")
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")


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
    judged: str | None = None
    """SHA-256 of the only engine that may be loaded, as a verdict names it; None when any may."""

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
        for stage in reversed(_objects(self.card.get("stages"))):
            if stage.get("name") == "engine":
                figures = stage.get("figures")
                return {**(figures if isinstance(figures, dict) else {}), **self._plan()}
        return {}

    def _plan(self) -> dict[str, Any]:
        """What the card says of this very file: a plan for another GPU may come from another library."""
        for plan in _objects(self.card.get("plans")):
            if plan.get("name") == self.file.name:
                return {key: plan[key] for key in ("runtime", "compute_capability") if plan.get(key) is not None}
        return {}

    @property
    def bound_to(self) -> str | None:
        """The only type of GPU that the engine is promised to, by its name; None when the card names none."""
        plans = [plan for plan in _objects(self.card.get("plans")) if plan.get("name") == self.file.name]
        return next((str(plan["gpu"]) for plan in plans if plan.get("gpu")), None)

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
            ArtifactError: The file changed since it was verified, cannot be read, or is not what was judged.
        """
        if self.judged not in (None, self.digest):
            raise ArtifactError(
                f"{self.file}: the verdict is on another engine of this version, for another GPU; judge this one "
                "on a GPU that runs it"
            )
        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{self.file} cannot be read ({error.strerror}); publish it again") from error
        _check_digest(self.file, hashlib.sha256(content).hexdigest(), self.digest)
        return content


def _objects(value: object) -> list[dict[str, Any]]:
    """The objects of a JSON array; the card is only provenance, so what else is in it does no harm."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


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


def verify(folder: Path, config: Mapping[str, Any], text: bytes | None = None) -> Entry:
    """Check all files of a version, as `verify_files` does, and return the engine.

    Args:
        folder: `<repository>/<model>/<version>`.
        config: config.pbtxt, as Triton's JSON gives it.
        text: config.pbtxt itself, where it is not the one of the model's folder.

    Raises:
        ArtifactError: A file is not what was published, or the engine has no digest.
    """
    # A reader of the text form leaves out what is empty, as the batch sizes of "no CUDA graph" are.
    parameters = {key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items()}
    name = parameters.get("file", "model.onnx")
    digests = verify_files(folder, config, text)
    file_of_capability = dict(config.get("cc_model_filenames") or {})
    for file in file_of_capability.values() or [name]:
        if file not in digests:
            raise ArtifactError(f"{folder / SUMS} has no digest of {file}; publish this version again")
    return Entry(
        file=folder / name,
        engine=parameters.get("engine", "openvino"),
        parameters=parameters,
        digests=digests,
        file_of_capability=file_of_capability,
        card=_read_card(folder / CARD) if CARD in digests else {},
    )


def verify_entry(model: Path) -> None:
    """Check the version that a model's config.pbtxt names, whatever runs it, before a server reads that.

    Args:
        model: `<repository>/<model>`.

    Raises:
        ArtifactError: As from `verify_files`; or config.pbtxt names no version; or there is a file of nobody's.
    """
    check_beside(model)
    path = model / CONFIG
    try:
        version = served_version(_read_file(path))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); publish this model again") from error
    if version is None:
        raise ArtifactError(f"{path}: names no version, so `temper build` did not publish it; publish it again")
    # A published config.pbtxt names its own class names, and that it is a published one is found by its digest.
    verify_files(model / str(version), {})


def check_beside(model: Path) -> None:
    """Refuse what lies beside a model's versions and was not published.

    Raises:
        ArtifactError: It names the first such file.
    """
    unknown = sorted(path.name for path in model.iterdir() if not _BESIDE.fullmatch(path.name))
    if unknown:
        raise ArtifactError(f"{model / unknown[0]}: nobody published it; remove it")


def verify_files(folder: Path, config: Mapping[str, Any], text: bytes | None = None) -> dict[str, str]:
    """Check a version's files, as `verify_sums` does, and that config.pbtxt is its own.

    Args:
        folder: `<repository>/<model>/<version>`.
        config: config.pbtxt, as Triton's JSON gives it: its class names must be a file of a version that it names.
        text: config.pbtxt itself, where it is not the one of the model's folder.

    Returns:
        SHA-256 of every file.

    Raises:
        ArtifactError: As from `verify_sums`, or config.pbtxt is another one.
    """
    digests = verify_sums(folder)
    _check_config(folder, digests, text)
    named = config.get("version_policy", {}).get("specific", {}).get("versions", [])
    own = {f"{version}/{name}" for version in named or [folder.name] for name in digests}
    for tensor in config.get("output", ()):
        labels = tensor.get("label_filename") or ""
        if labels and labels not in own:
            raise ArtifactError(
                f"{folder.parent / CONFIG}: takes its class names from {labels}, expected a file of {folder}; "
                "publish this version again"
            )
    return digests


def verify_sums(folder: Path) -> dict[str, str]:
    """Check that a version holds the files that SHA256SUMS names, as it names them, and no others.

    A verdict may lie there as well, as it is given after the publication; `verdict.check_verdict` says what it is
    worth.

    Returns:
        SHA-256 of every file.

    Raises:
        ArtifactError: No digests, a file that is missing, that nobody published, or whose digest does not match.
    """
    digests = _read_sums(folder / SUMS)
    for published, digest in digests.items():
        path = folder / published
        if not path.is_file():
            raise ArtifactError(f"{path} is named in {SUMS} but missing; publish this version again")
        _check_digest(path, _sha256(path), digest)
    unknown = sorted({path.name for path in folder.iterdir()} - {*digests, SUMS, VERDICT})
    if unknown:
        raise ArtifactError(f"{folder / unknown[0]}: is not named in {SUMS}, so nobody published it; remove it")
    return digests


def _check_config(folder: Path, digests: Mapping[str, str], content: bytes | None) -> None:
    """Compare the config.pbtxt that Triton read with the one that was published with this version.

    A publisher may have put that of another version into its place since Triton read it; that one names its
    version, and is just as much what was published. A server that measures loads several versions by one.
    """
    path = folder.parent / CONFIG
    if CONFIG not in digests:
        raise ArtifactError(
            f"{folder / SUMS} has no digest of {CONFIG}, as an older temper wrote it; publish this version again"
        )
    try:
        content = _read_file(path) if content is None else content
        own = _read_file(folder / CONFIG)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); publish this version again") from error
    found = hashlib.sha256(content).hexdigest()
    if not (
        hmac.compare_digest(found, digests[CONFIG])
        or _belongs_to_a_neighbour(path, content, found)
        or _names_several(content, own)
    ):
        raise ArtifactError(
            f"{path}: is not the one that was published with version {folder.name}; set what it shall say in the "
            f"recipe and publish again, or put the published one back: cp {folder / CONFIG} {path}"
        )


def _belongs_to_a_neighbour(path: Path, content: bytes, digest: str) -> bool:
    """Whether the config was published with the version that it names."""
    version = served_version(content)
    if version is None:
        return False
    folder = path.parent / str(version)
    try:
        return _read_sums(folder / SUMS).get(CONFIG) == digest == _sha256(folder / CONFIG)
    except (ArtifactError, OSError):
        return False


def _names_several(content: bytes, own: bytes) -> bool:
    """Whether a config is a version's own but for the versions that it names, this one and others."""
    found = _POLICY.search(content)
    versions = [int(number) for number in re.findall(rb"\d+", found[1])] if found else []
    return len(versions) > 1 and content == config_for(versions, own)


def config_for(versions: Sequence[int], own: bytes) -> bytes:
    """The config.pbtxt of a server that loads several versions of a model, each as it is served alone.

    Triton has one config for all versions of a model, so it is the same made of the own one of each; the class
    names, which only Triton's classification extension answers with, are the highest version's.

    Args:
        versions: Those to load.
        own: What was published with one of them.

    Raises:
        ArtifactError: It names no version.
    """
    named = b"".join(b"    versions: %d\n" % version for version in sorted(versions))
    text, count = _POLICY.subn(b"version_policy {\n  specific {\n" + named + b"  }\n}", own)
    if count != 1:
        raise ArtifactError(f"{CONFIG} names no version, so `temper build` did not publish it; publish it again")
    return _LABELS.sub(b'label_filename: "%d/' % max(versions), text)


def served_version(config: bytes) -> int | None:
    """The version that a config.pbtxt names as the published ones do; None when it names none."""
    found = _VERSION.search(config)
    return int(found[1]) if found else None


def _check_digest(path: Path, found: str, expected: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise ArtifactError(
            f"{path}: SHA-256 is {found[:12]}..., {SUMS} says {expected[:12]}...; the file was changed after it "
            "was published and is not loaded; publish this version again"
        )


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: got no JSON ({error}); publish this version again") from error
    if not isinstance(card, dict):
        raise ArtifactError(f"{path}: got {type(card).__name__}, expected an object; publish this version again")
    return card


def _read_sums(path: Path) -> dict[str, str]:
    try:
        # Not `splitlines`: it would end a line at characters that a file's name may hold.
        lines = _read_file(path).decode().removesuffix("\n").split("\n")
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); only what `temper build` published is loaded"
        ) from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: got no UTF-8 text (byte {error.start}); publish again") from error
    sums: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        # A name with a folder in it could reach outside of the version.
        if match is None or match[2] in (".", ".."):
            raise ArtifactError(f"{path}: got the line {line[:80]!r}, expected `<sha256>  <file>`; publish again")
        sums[match[2]] = match[1]
    return sums


def _read_file(path: Path) -> bytes:
    """A file's content. Whoever put a pipe or a device there is not waited for.

    Raises:
        OSError: It is no file, or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.read_bytes()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
