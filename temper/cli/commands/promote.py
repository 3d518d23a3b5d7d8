"""`temper promote` and `temper rollback`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from temper.builder.publish.switch import Switched
from temper.serve.promote import promote, rollback
from temper.terminal import echo


def promote_command(
    model: str,
    *,
    version: int | None,
    override: bool,
    reason: str,
    repository: Path,
    url: str | None,
    as_json: bool,
) -> None:
    """Serves a candidate, and says what was served before.

    Raises:
        PromoteError: It may not be served.
        ServerError: The server at `url` does not load it.
        PublishError: The repository cannot be written.
    """
    _show(promote(repository, model, version, override=override, reason=reason, url=url), as_json=as_json)


def rollback_command(model: str, *, reason: str, repository: Path, url: str | None, as_json: bool) -> None:
    """Serves what was served before, and says so.

    Raises:
        PromoteError: There is nothing to go back to.
        ServerError: The server at `url` does not load it.
        PublishError: The repository cannot be written.
    """
    _show(rollback(repository, model, reason, url=url), as_json=as_json)


def _show(switched: Switched, *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(dataclasses.asdict(switched), indent=2))
        return
    for line in switched.describe():
        echo(line)
