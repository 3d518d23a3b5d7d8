"""A switch in the repository and the server that reads it: both serve the new version, or both the old one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temper.builder.publish.switch import Switched, steps_of, switch
from temper.errors import ServerError
from temper.serve.reload import reload_model, served_version


def bring_live(repository: Path, url: str, switched: Switched, verdict: Mapping[str, Any] | None) -> None:
    """Lets a running server load what was switched; when it cannot, the old version is switched back to.

    Args:
        repository: The model repository, which the server reads.
        url: host:port of the server's gRPC endpoint.
        switched: What was switched in the repository.
        verdict: That of the version that was served before, for the history.

    Raises:
        ServerError: The server does not serve the new version; the line says what is served instead.
        PublishError: The repository cannot be written.
    """
    try:
        for model, version in _loads(repository, url, switched).items():
            reload_model(url, model, version)
    except ServerError as error:
        if switched.before is None or switched.before == switched.after:
            raise
        back = switch(
            repository, switched.model, switched.before, event="taken back", reason=str(error), verdict=verdict
        )
        with contextlib.suppress(ServerError):
            # What was loaded of it before the failure.
            for model, version in _loads(repository, url, back).items():
                if served_version(url, model) != version:
                    reload_model(url, model, version)
        raise ServerError(f"{error}; version {switched.before} of {switched.model} is served again") from error


def _loads(repository: Path, url: str, switched: Switched) -> dict[str, int]:
    """The versions to load, by model, ensembles last; of what belongs to the model only what the server has."""
    loads = {switched.model: switched.after}
    for one in switched.companions:
        if one.before != one.after and one.after is not None and served_version(url, one.model) is not None:
            loads[one.model] = one.after
    return dict(sorted(loads.items(), key=lambda load: bool(steps_of(repository / load[0]))))
