"""A switch in the repository and the server that reads it: both serve the new version, or both the old one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from temper.backends.temper.artifact import ArtifactError
from temper.backends.temper.verdict import FILE, check_signature, read_verdict
from temper.builder.errors import PublishError
from temper.builder.publish.history import read_events
from temper.builder.publish.switch import Switched, steps_of, switch
from temper.builder.publish.versions import named_version
from temper.errors import ServerError
from temper.serve.reload import reload_model, served_version


def bring_live(repository: Path, url: str, switched: Switched) -> None:
    """Lets a running server load what was switched; when it cannot, the old version is switched back to.

    Args:
        repository: The model repository, which the server reads.
        url: host:port of the server's gRPC endpoint.
        switched: What was switched in the repository.

    Raises:
        ServerError: The server does not serve the new version; the line says what is served instead.
        PublishError: The repository cannot be read.
    """
    try:
        _load(repository, url, switched)
    except ServerError as error:
        if switched.before is None or switched.before == switched.after:
            raise
        reason = str(error)
        back = take_back(repository, switched.model, switched.after, reason)
        if back is None:
            # A `temper serve` on this repository has done so, and knows why; or somebody promoted another one.
            last = read_events(repository / switched.model)[-1]
            reason = last.reason if last.event == "taken back" else reason
        else:
            with contextlib.suppress(ServerError):
                # What was loaded of it before the failure.
                _load(repository, url, back)
        served = named_version(repository / switched.model)
        raise ServerError(f"{reason}; version {served} of {switched.model} is served again") from error


def take_back(repository: Path, model: str, version: int, reason: str) -> Switched | None:
    """Switches back from a version that a server does not load to the one before it.

    Args:
        repository: The model repository.
        model: The model.
        version: The version.
        reason: Why, for the history.

    Returns:
        What was switched; None when it was not the last switch to this version that brought it, nothing was
        served before, or the repository cannot be written.
    """
    try:
        last = next(reversed(read_events(repository / model)), None)
        if last is None or last.event == "taken back" or last.after != version or last.before is None:
            return None
        answer = verdict_on(repository / model / str(last.before))
        return switch(
            repository, model, last.before, event="taken back", reason=reason, verdict=answer, instead_of=version
        )
    except PublishError:
        return None


def switch_of(repository: Path, entry: str, version: int | None, models: Iterable[str]) -> tuple[str, int | None]:
    """Finds the model whose last switch brought a version of an entry, which may be a companion of it.

    Returns:
        The model, and its version; the entry itself when it belongs to no other.
    """
    for model in models:
        try:
            last = next(reversed(read_events(repository / model)), None)
        except PublishError:
            continue
        if last is not None and any((one.model, one.after) == (entry, version) for one in last.companions):
            return model, last.after
    return entry, version


def verdict_on(folder: Path) -> Mapping[str, Any] | None:
    """The verdict on a version, for the history alone; None when there is none, or it was changed since."""
    try:
        if (found := read_verdict(folder)) is not None:
            check_signature(folder / FILE, found)
        return found
    except ArtifactError:
        return None


def _load(repository: Path, url: str, switched: Switched) -> None:
    """Lets a server load what it does not serve yet; of what belongs to the model only what it has."""
    loads = {switched.model: switched.after} | {one.model: one.after for one in switched.companions}
    # Ensembles first: Triton loads their steps with them, and would end them meanwhile where they fit one no more.
    for model, version in sorted(loads.items(), key=lambda load: not steps_of(repository / load[0])):
        served = served_version(url, model)
        if served != version and (served is not None or model == switched.model):
            reload_model(url, model, version, is_wanted=partial(_names, repository / model, version))


def _names(model: Path, version: int) -> bool:
    return named_version(model) == version
