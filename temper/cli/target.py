"""What the commands that judge a served model's answers share: the run itself, and their words."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from temper.cli.commands.main_job import resumable
from temper.cli.inputs import Tree, load_tree, open_images, open_labels
from temper.client.client import Client
from temper.client.errors import ClientError
from temper.client.model import ModelInfo
from temper.errors import TemperError
from temper.imaging.errors import show
from temper.imaging.folder import say_left_out
from temper.progress import Display, Stage
from temper.report.text import interval, percent
from temper.run.measure import subject
from temper.serve.endpoint import Endpoint

Result = TypeVar("Result")


class JudgeError(TemperError):
    """What is asked does not fit the images, or could not be finished."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A served model and the labelled images that it is asked about."""

    info: ModelInfo
    """What the server says of the model."""
    tree: Tree
    """The images."""
    identity: str
    """Tells the model from one that was published in its place."""
    say: Callable[[str], None]
    """Prints one line above the bars."""


def judge(
    run: Callable[[str, Target, Stage], Result],
    images: Path,
    labels: Path | None,
    *,
    label: str,
    model: str,
    url: str | None,
    repository: Path,
    others: Sequence[str] = (),
) -> tuple[Result, Target]:
    """Runs a measurement on a served model, and once again when the embedded server died meanwhile.

    Args:
        run: Called with the server's address, the model with its images, and what shows the progress.
        images: A folder with one folder per class, or a .npy file.
        labels: The .npy file of labels beside a .npy file of images.
        label: Names the measurement.
        model: The served model.
        url: A running server's address; None starts the embedded one.
        repository: The embedded server's model repository.
        others: Further models that the embedded server shall serve.

    Raises:
        JudgeError: The settings do not fit the images, or the server failed.
        InputError: The images cannot be used.
    """
    models = [model, *(other for other in others if other != model)]
    with resumable(), Display() as display, Endpoint(url, repository, models=models, display=display) as endpoint:
        try:
            info = endpoint.retrying(model, lambda url: describe(url, model))
            with _labelled(images, labels, info, display) as tree:
                target = Target(info=info, tree=tree, identity=url or digest(repository, info), say=display.say)

                def staged(url: str) -> Result:
                    with display.stage(label) as stage:
                        try:
                            return run(url, target, stage)
                        except ValueError as error:
                            raise JudgeError(str(error)) from error

                return endpoint.retrying(label, staged), target
        except ClientError as error:
            raise JudgeError(endpoint.why(error)) from error


def describe(url: str, model: str) -> ModelInfo:
    """What a server says of a model.

    Raises:
        ClientError: The server does not answer, or has no such model.
    """
    with Client(url) as client:
        return client.model_info(model)


def digest(repository: Path, info: ModelInfo) -> str:
    """What tells a model from one that was published in its place, under the same name and version."""
    place = repository / info.name / info.version
    try:
        return subject(info.name, info.name, int(info.version), place).artifact.digest
    except OSError:  # no entry that `temper build` wrote
        return str(place.resolve())


@contextmanager
def _labelled(images: Path, labels: Path | None, info: ModelInfo, display: Display) -> Iterator[Tree]:
    if labels is not None:
        pixels = open_images(images, info)
        yield Tree(images=pixels, labels=open_labels(labels, len(pixels), info), left_out=None)
        return
    with tempfile.TemporaryDirectory(prefix="temper-images-") as work:
        with display.stage(f"decode {images}") as stage:
            decoded = load_tree(images, info, Path(work), stage)
        if left_out := say_left_out(decoded.left_out):
            display.say(f"{show(images)}: {left_out}")
        yield decoded


def say_kinds(counts: Mapping[str, int]) -> str:
    """Counts by kind of error, in words."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def say_share(found: Mapping[str, Any]) -> str:
    """A share with its interval, in columns."""
    return f"{percent(found['value']):>7} [{interval(found['low'], found['high'])}]"
