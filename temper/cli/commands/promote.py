"""`temper promote`, watched or not, and `temper rollback`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
import numpy as np

from temper.builder.publish.switch import Switched
from temper.cli.inputs import Images, random_images
from temper.cli.pictures import Pictures
from temper.client import Client
from temper.client.model import ModelInfo
from temper.imaging.errors import show
from temper.progress import Display
from temper.serve.promote import promote, rollback
from temper.serve.watch import NUM_IMAGES, watch
from temper.terminal import echo

EXIT_WENT_BACK = 3


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


def watch_command(
    model: str,
    *,
    version: int | None,
    override: bool,
    reason: str,
    repository: Path,
    url: str,
    seconds: float,
    images: Path | None,
    max_changed: float | None,
    rehearsal: bool,
    as_json: bool,
) -> None:
    """Serves a candidate and watches it; exits 3 when what was served before is served again, or still.

    Raises:
        WatchError: It cannot be watched; nothing was switched.
        PromoteError: It may not be served.
        ServerError: The server at `url` does not load it, or does not answer.
        PublishError: The repository cannot be written.
        InputError: The images cannot be used.
    """
    with Display() as display:
        with Client(url) as client:
            info = client.model_info(model)
        if images is None:
            display.say(f"{model}: watched by errors and latency alone, as there are no --images to compare")
            shown = random_images(info, NUM_IMAGES)
        else:
            shown = _spread(images, info, display)
        watched = watch(
            repository,
            model,
            version,
            url=url,
            images=shown,
            seconds=seconds,
            real=images is not None,
            max_changed=max_changed,
            rehearsal=rehearsal,
            override=override,
            reason=reason,
            display=display,
        )
    if as_json:
        echo(json.dumps(dataclasses.asdict(watched), indent=2))
    else:
        if watched.switched is not None:
            _show(watched.switched, as_json=False)
        echo(watched.line)
    if watched.reason is not None:
        click.get_current_context().exit(EXIT_WENT_BACK)


def _spread(path: Path, info: ModelInfo, display: Display) -> Images:
    """As many images as are of use, from all over the folder, in which those of one class lie together."""
    pictures = Pictures(path, info, display.say)
    rows = sorted({round(row) for row in np.linspace(0, len(pictures) - 1, NUM_IMAGES)})
    found = np.concatenate([pictures.read(row, row + 1)[0] for row in rows])
    if pictures.failed:
        display.say(f"{show(path)}: {len(pictures.failed)} of {len(rows)} images cannot be used, and are left out")
    return found


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
