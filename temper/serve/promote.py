"""Promotes a candidate, or goes back to what was served before: what is asked of a version first.

Whether it may be served says its verdict (`backends/temper/verdict.py`); how it is switched to, and the history,
`builder/publish/switch.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temper.backends.temper import verdict
from temper.backends.temper.artifact import ArtifactError, verify_sums
from temper.builder.publish.ensemble import unfit_ensembles
from temper.builder.publish.history import Change, served_before
from temper.builder.publish.switch import (
    Switched,
    companions_of,
    read_history,
    settle,
    steps_of,
    switch,
    versions_of,
)
from temper.builder.publish.versions import newest_in, served_version
from temper.errors import TemperError
from temper.imaging.errors import show
from temper.serve import live, reload
from temper.serve.verify import read_config


class PromoteError(TemperError):
    """A version is not switched to; the text names it and says why."""


class HeldError(PromoteError):
    """Its verdict does not let a version be served; an override does."""


def promote(
    repository: Path,
    model: str,
    version: int | None = None,
    *,
    override: bool = False,
    reason: str = "",
    url: str | None = None,
) -> Switched:
    """Serves a candidate that may be shipped.

    Args:
        repository: The model repository.
        model: The model; what belongs to it is switched with it.
        version: The version; the newest when not given.
        override: Also one whose verdict is not SHIP, is of another engine, or is missing.
        reason: Why, which the history keeps; an override needs one.
        url: host:port of a running server that reads the repository and is to load the version without a lost
            request; `temper serve` does so without being told.

    Returns:
        What was served and what is; the same version twice when it was served already.

    Raises:
        PromoteError: There is no such version, it is not whole, its verdict does not say SHIP, or an ensemble
            would answer with what was not measured together.
        ServerError: The server cannot be asked, or does not load it; what was served before is served again.
        PublishError: The repository cannot be written.
    """
    if override and not reason.strip():
        raise PromoteError("override: got no reason, expected one that the history keeps; give it with --reason")
    settle(repository)  # a promotion that was killed may have served it already, and not all that belongs to it
    folder = repository / model
    version = _existing(repository, model, version)
    if url is not None:
        # Before anything is switched: whether there is a server at all.
        reload.served_version(url, model)
    served = served_version(folder)
    if served == version:
        companions = companions_of(repository, model, version).items()
        parts = tuple(Change(model=name, before=one, after=one) for name, one in companions)
        return _live(repository, url, Switched(model=model, before=version, after=version, companions=parts))
    against = False
    try:
        found: Mapping[str, Any] | None = check_candidate(repository, model, version)
    except HeldError:
        if not override:
            raise
        found, against = live.verdict_on(folder / str(version)), True
    switched = switch(
        repository,
        model,
        version,
        event="promoted",
        reason=reason,
        verdict=found,
        override=against,
        instead_of=served,
    )
    return _live(repository, url, switched)


def check_candidate(repository: Path, model: str, version: int) -> Mapping[str, Any]:
    """Looks whether a version may take the place of what is served.

    Returns:
        Its verdict.

    Raises:
        PromoteError: It is not whole, or no server would load it.
        HeldError: Its verdict does not let it, or there is none.
    """
    folder = repository / model
    digests = _check_whole(repository, model, version)
    _check_required(repository, model, version, digests)
    try:
        found = verdict.check_verdict(folder / str(version), model=model, digests=digests)
        _check_reference(found, model, served_version(folder))
        _check_ensembles(repository, model, version)
    except (ArtifactError, PromoteError) as error:
        raise HeldError(f"{error}; --override --reason TEXT promotes it all the same") from error
    return found


def rollback(
    repository: Path, model: str, reason: str = "", *, url: str | None = None, version: int | None = None
) -> Switched:
    """Serves what was served before, as the history says; a second time what was served before that.

    Args:
        repository: The model repository.
        model: The model; what belongs to it is switched with it.
        reason: Why, which the history keeps.
        url: host:port of a running server that reads the repository, as `promote` has it.
        version: The one to go back from; when not given, whichever is served.

    Raises:
        PromoteError: Nothing was served before, or it is gone or not whole.
        ServerError: The server cannot be asked, or does not load it; nothing changes.
        PublishError: There is no such model, another version than expected is served by now, or the repository
            cannot be written.
    """
    settle(repository)
    version = version or served_version(repository / model)
    before = served_before(read_history(repository, model))
    if before is None:
        raise PromoteError(
            f"model {model}: nothing was served before version {served_version(repository / model)}, as its "
            "history says; `temper promote` switches to a version by its number"
        )
    if before not in versions_of(repository, model):
        raise PromoteError(
            f"model {model}: version {before} was served before and is gone; it has {_say(repository, model)}, of "
            "which `temper promote` takes one by its number"
        )
    if url is not None:
        reload.served_version(url, model)
    _check_required(repository, model, before, _check_whole(repository, model, before))
    answer = live.verdict_on(repository / model / str(before))
    switched = switch(
        repository, model, before, event="rolled back", reason=reason, verdict=answer, instead_of=version
    )
    return _live(repository, url, switched)


def _live(repository: Path, url: str | None, switched: Switched) -> Switched:
    if url is not None:
        live.bring_live(repository, url, switched)
    return switched


def _existing(repository: Path, model: str, version: int | None) -> int:
    versions = versions_of(repository, model)
    if not versions:
        raise PromoteError(f"model {show(model)}: is not in {repository}; publish it with `temper build`")
    if version is not None and version not in versions:
        raise PromoteError(f"model {model}: got version {version}, expected one of {_say(repository, model)}")
    return version or versions[-1]


def _say(repository: Path, model: str) -> str:
    return ", ".join(map(str, versions_of(repository, model))) or "none"


def _check_whole(repository: Path, model: str, version: int) -> dict[str, str]:
    """Checks a version's files, and of what is served with it.

    Returns:
        SHA-256 of its own files.
    """
    try:
        for name, other in companions_of(repository, model, version).items():
            verify_sums(repository / name / str(other))
        return verify_sums(repository / model / str(version))
    except ArtifactError as error:
        raise PromoteError(str(error)) from error
    except OSError as error:
        raise PromoteError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _check_required(repository: Path, model: str, version: int, digests: Mapping[str, str]) -> None:
    """Refuses, whoever overrides, what asks for a signed verdict and has none: no plugin would load it."""
    folder = repository / model / str(version)
    asked = read_config(folder).get("parameters", {}).get("require_verdict", {}).get("string_value")
    if asked != "true":
        return
    try:
        trusted = os.environ.get(verdict.TRUSTED)
        keys = verdict.read_keys(Path(trusted)) if trusted else None
        found = verdict.check_verdict(folder, model=model, digests=digests, trusted=keys)
        if found.get("signature") is None:
            raise ArtifactError(f"{folder / verdict.FILE}: is not signed; sign it with `temper gate --sign`")
    except ArtifactError as error:
        raise PromoteError(
            f"{error}; version {version} says require_verdict, so no server would load it"
        ) from error


def _check_reference(found: Mapping[str, Any], model: str, served: int | None) -> None:
    """Refuses a verdict that holds a version against another one than it would take the place of."""
    reference = found.get("reference")
    if not isinstance(reference, dict) or reference.get("model") != model or served is None:
        return
    if reference.get("version") != served:
        raise PromoteError(
            f"model {model}: was held against version {show(str(reference.get('version')))}, and by now "
            f"version {served} is served; judge it again with `temper gate`"
        )


def _check_ensembles(repository: Path, model: str, version: int) -> None:
    """Refuses what makes an ensemble answer otherwise than it was measured, or not at all."""
    if unfit := unfit_ensembles(repository, model, version):
        raise PromoteError("; ".join(unfit))
    own = companions_of(repository, model, version)
    for member in steps_of(repository / model):
        served, newest = served_version(repository / member), newest_in(repository / member)
        if member not in own and served != newest:
            raise PromoteError(
                f"ensemble {model}: was measured with version {newest} of its member {member}, of which version "
                f"{served} is served; promote {member} first"
            )
