"""Whether a model repository still holds what was published, found out without a server.

The checks are the plugin's own (backends/temper/artifact.py), made for every entry: also for those that Triton's
TensorRT backend or its ensemble scheduler runs, and before a server reads a config.pbtxt that names any backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from temper.backends.temper import artifact, verdict
from temper.backends.temper.external_data import WEIGHTS_OUTSIDE, keeps_weights_outside
from temper.errors import TemperError
from temper.imaging.errors import show

_BACKENDS = ("temper", "temper_mean", "temper_defence", "temper_decode", "tensorrt", "ensemble")


class VerifyError(TemperError):
    """An entry of the repository is not what was published; the text names it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found of one model."""

    model: str
    version: int | None
    """The version that is served; None when config.pbtxt does not say."""
    backend: str | None
    """What runs it."""
    reason: str | None
    """What is wrong; None when it is what was published."""


def model_names(repository: Path) -> list[str]:
    """The models of a repository, by name: every folder that is not hidden.

    Raises:
        VerifyError: There is no such folder, or it cannot be read.
    """
    try:
        return sorted(path.name for path in repository.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise VerifyError(f"model repository {repository}: cannot be read: {error.strerror}") from error


def verify_repository(
    repository: Path,
    models: Sequence[str] | None = None,
    *,
    only_served: bool = False,
    versions: Mapping[str, Sequence[int]] | None = None,
) -> list[Verdict]:
    """Checks every version of every model, the served one with its config.pbtxt and all that this names.

    Args:
        repository: The model repository.
        models: Those to check, with the members of ensembles among them; all when not given.
        only_served: Leave out the versions that no server loads.
        versions: By model, those that take the place of the served one.

    Returns:
        One verdict per model, by name.

    Raises:
        VerifyError: There is no such folder, or it cannot be read.
    """
    found: dict[str, Verdict] = {}
    wanted = model_names(repository) if models is None else list(models)
    for model in wanted:
        if model not in found:
            found[model], members = _check(repository / model, only_served, (versions or {}).get(model, ()))
            wanted += members
    return [_with_members(found[model], repository, found) for model in sorted(found)]


def find_changed(
    repository: Path,
    models: Sequence[str] | None = None,
    versions: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, str]:
    """Says which models a server must not be given: the plugin never sees an entry that names another backend.

    Args:
        repository: The model repository.
        models: Those to be served; all when not given. What is not there is the server's to say.
        versions: By model, those to be loaded in the place of the served one.

    Returns:
        What is wrong, by the model's name.
    """
    if not repository.is_dir():
        return {}
    names = model_names(repository)
    present = names if models is None else sorted(set(names) & set(models))
    verdicts = verify_repository(repository, present, only_served=True, versions=versions)
    changed = {one.model: one.reason for one in verdicts if one.reason is not None}
    # Versions that are named are there to be measured, before there is a verdict.
    return changed | ({} if versions else _find_unjudged(repository, set(present) - changed.keys()))


def _find_unjudged(repository: Path, models: Iterable[str]) -> dict[str, str]:
    """What would be run before the plugin asks for its verdict, and has none."""
    found = {}
    for model in sorted(models):
        try:
            verdict.check_before(repository / model)
        except artifact.ArtifactError as error:
            found[model] = str(error)
        except OSError as error:
            found[model] = f"{error.filename}: cannot be read: {error.strerror}"
    return found


def _check(folder: Path, only_served: bool, wanted: Sequence[int]) -> tuple[Verdict, list[str]]:
    """Checks one model; returns its members as well."""
    version: int | None = None
    backend: str | None = None
    try:
        text = staged_config(folder, wanted) if wanted else None
        config = read_config(folder / str(max(wanted)) if wanted else folder)
        backend = config.get("backend") or config.get("platform")
        version = _served_version(folder, config)
        if backend not in _BACKENDS:
            raise VerifyError(
                f"{folder / artifact.CONFIG}: got the backend {backend!r}, which temper never publishes"
            )
        artifact.check_beside(folder)
        for each in wanted or [version]:
            _check_loaded(folder / str(each), config, text, has_engine=backend in ("temper", "tensorrt"))
        if not only_served:
            _check_unserved(folder, version)
        members = list(ensemble_members(config))
    except (artifact.ArtifactError, VerifyError) as error:
        return Verdict(model=folder.name, version=version, backend=backend, reason=str(error)), []
    except OSError as error:
        reason = f"{error.filename}: cannot be read: {error.strerror}"
        return Verdict(model=folder.name, version=version, backend=backend, reason=reason), []
    return Verdict(model=folder.name, version=version, backend=backend, reason=None), members


def _check_loaded(folder: Path, config: dict[str, Any], text: bytes | None, *, has_engine: bool) -> None:
    if not has_engine:
        artifact.verify_files(folder, config, text)
        return
    entry = artifact.verify(folder, config, text)
    if entry.file.suffix == ".onnx" and keeps_weights_outside(entry.read()):
        raise VerifyError(f"{entry.file}: {WEIGHTS_OUTSIDE}")


def staged_config(folder: Path, versions: Sequence[int]) -> bytes:
    """The config.pbtxt with which a server loads the named versions of a model, whichever one is served.

    Raises:
        VerifyError: A version is not there, or was published with settings that another one has not.
    """
    texts: dict[int, bytes] = {}
    for version in sorted(versions):
        path = folder / str(version) / artifact.CONFIG
        if not path.is_file():
            raise VerifyError(f"{path}: no such file, expected a version that `temper build` published")
        own = path.read_bytes()
        try:
            texts[version] = artifact.config_for(versions, own) if len(versions) > 1 else own
        except artifact.ArtifactError as error:
            raise VerifyError(f"{folder / str(version)}: {error}") from error
    newest = max(texts)
    for version, text in texts.items():
        if text != texts[newest]:
            pairs = zip_longest(text.splitlines(), texts[newest].splitlines(), fillvalue=b"nothing")
            here, there = next(
                (a.decode(errors="replace"), b.decode(errors="replace")) for a, b in pairs if a != b
            )
            raise VerifyError(
                f"{folder}: version {version} says {show(here.strip())} where version {newest} says "
                f"{show(there.strip())}, and Triton has one config.pbtxt for all versions that it loads at once; "
                "load one of them at a time"
            )
    return texts[newest]


def _check_unserved(folder: Path, served: int) -> None:
    """Checks the versions to which one may go back."""
    for version in sorted({int(path.name) for path in folder.iterdir() if path.name.isdecimal()} - {served}):
        artifact.verify_sums(folder / str(version))


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a model's config.pbtxt into the JSON that Triton makes of it.

    Raises:
        VerifyError: There is none, or it is no config.
    """
    from google.protobuf import json_format, text_format  # type: ignore[import-untyped]  # ships none
    from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships none

    path = folder / artifact.CONFIG
    if not path.is_file():
        raise VerifyError(f"{path}: no such file, expected one that `temper build` published")
    try:
        message = text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (UnicodeDecodeError, text_format.ParseError, RecursionError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise VerifyError(f"{path}: is no config that Triton reads ({first}); publish it again") from error
    config: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return config


def _served_version(folder: Path, config: dict[str, Any]) -> int:
    versions = config.get("version_policy", {}).get("specific", {}).get("versions", [])
    if config.get("name") != folder.name or len(versions) != 1:
        raise VerifyError(
            f"{folder / artifact.CONFIG}: got name {config.get('name')!r} and versions {versions}, expected "
            f"{folder.name!r} and one version; publish it again"
        )
    return int(versions[0])


def ensemble_members(config: dict[str, Any]) -> Iterator[str]:
    """The models that an ensemble is made of; none of any other model."""
    for step in config.get("ensemble_scheduling", {}).get("step", []):
        yield step["model_name"]


def _with_members(one: Verdict, repository: Path, found: dict[str, Verdict]) -> Verdict:
    """An ensemble is as good as its members."""
    if one.reason is not None or one.backend != "ensemble":
        return one
    for member in ensemble_members(read_config(repository / one.model)):
        if (reason := found[member].reason) is not None:
            return replace(one, reason=f"its step {member} is not what was published: {reason}")
    return one
