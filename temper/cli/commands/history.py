"""`temper history` and `temper prune-versions`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from temper.backends.temper.artifact import ArtifactError
from temper.backends.temper.verdict import FILE, check_signature, read_verdict
from temper.builder.publish.switch import prune_versions, read_history, versions_of
from temper.builder.publish.versions import served_version
from temper.imaging.errors import show
from temper.terminal import echo


def history_command(model: str, *, repository: Path, as_json: bool) -> None:
    """Prints what was served when, and the versions that are there with their verdicts.

    Raises:
        PublishError: There is no such model, or its history cannot be read.
    """
    events = read_history(repository, model)
    served = served_version(repository / model)
    versions = [_describe(repository / model, version, served) for version in versions_of(repository, model)]
    if as_json:
        found = {"model": model, "events": [event.to_json() for event in events], "versions": versions}
        echo(json.dumps(found, indent=2))
        return
    echo(f"{model}: " + (f"version {served} is served" if served is not None else "no version is served"))
    for event in events:
        words = [event.answer or "no verdict", *(["overridden"] if event.override else [])]
        change = f"{event.before or 'none'} -> {event.after}"
        echo(
            f"  {event.time}  {event.event:<11}  {change:<10}  {show(', '.join(words))}"
            + (f": {show(event.reason)}" if event.reason else "")
        )
    for one in versions:
        echo(f"  version {one['version']:<4} {one['role']:<10} {one['verdict'] or 'no verdict'}")


def prune_command(model: str, *, keep: int, repository: Path, as_json: bool) -> None:
    """Removes old versions of a model, and says which.

    Raises:
        PublishError: There is no such model, or the repository cannot be written.
    """
    pruned = prune_versions(repository, model, keep)
    if as_json:
        echo(json.dumps({"removed": pruned.gone, "stuck": pruned.stuck}, indent=2))
        return
    for name, versions in pruned.gone.items():
        left = ", ".join(map(str, versions_of(repository, name)))
        removed = ", ".join(map(str, versions)) or "none"
        echo(f"{name}: removed {removed}; left {left}")
    for line in pruned.stuck:
        echo(line, err=True)


def _describe(folder: Path, version: int, served: int | None) -> dict[str, Any]:
    """A version, what it is to the model, and what its verdict says."""
    role = "served" if version == served else "candidate" if served is None or version > served else ""
    try:
        found = read_verdict(folder / str(version))
        answer = None if found is None else show(str(found.get("answer")))
        if found is not None:
            check_signature(folder / str(version) / FILE, found)
    except ArtifactError:
        answer = "not what was written; see `temper verify`"
    return {"version": version, "role": role, "verdict": answer}
