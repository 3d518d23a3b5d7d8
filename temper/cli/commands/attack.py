"""`temper attack`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from temper.cli.commands.main_job import resumable
from temper.cli.inputs import Tree, load_tree, open_images, open_labels
from temper.client.client import Client
from temper.client.errors import ClientError
from temper.client.model import ModelInfo
from temper.client.robustness import AttackResult, attack
from temper.client.robustness.base import ATTACKS
from temper.client.robustness.checkpoint import FILE_NAME
from temper.errors import TemperError
from temper.imaging.errors import show
from temper.imaging.folder import say_left_out
from temper.progress import Display
from temper.report.text import budget, interval, percent
from temper.run.measure import subject
from temper.serve.endpoint import Endpoint
from temper.terminal import echo


class AttackError(TemperError):
    """The attack does not fit the images, or could not be finished."""


def attack_command(
    images: Path,
    labels: Path | None,
    *,
    settings: Mapping[str, Any],
    model: str,
    url: str | None,
    repository: Path,
    runs: Path,
    save: Path | None,
    as_json: bool,
) -> None:
    """Attacks a served model and prints the accuracy that is left.

    What was finished of an attack that ends early is kept in `save`, or else under `runs`, and the same command
    goes on from it.

    Raises:
        AttackError: More images are asked for than there are, `save` belongs to another attack, or the server
            failed.
    """
    try:
        kind = ATTACKS.get(settings["name"])
        config = kind.config(**{name: value for name, value in settings.items() if value is not None})
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    label = f"{config.name} {budget(config.norm, config.epsilon)} on {model}"
    with resumable(), Display() as display, Endpoint(url, repository, models=[model], display=display) as endpoint:
        try:
            info = endpoint.retrying(model, lambda url: _describe(url, model))
            with _labelled(images, labels, info, display) as tree:
                run = partial(
                    attack,
                    model=model,
                    images=tree.images,
                    labels=tree.labels,
                    config=config,
                    checkpoint=save / FILE_NAME if save else None,
                    checkpoints=runs / "attacks",
                    identity=url or _digest(repository, info),
                    say=display.say,
                    version=info.version,
                )
                result = endpoint.retrying(label, lambda url: _run(url, label, run, display))
        except ClientError as error:
            raise AttackError(endpoint.why(error)) from error
    if save is not None:
        result.save(save)
    found = {**result.to_json(), "left_out": tree.left_out}
    echo(json.dumps(found, indent=2, allow_nan=False) if as_json else _text(result, info))


def _run(url: str, label: str, run: Callable[..., AttackResult], display: Display) -> AttackResult:
    with display.stage(label) as stage:
        try:
            return run(url, progress=stage)
        except ValueError as error:
            raise AttackError(str(error)) from error


def _describe(url: str, model: str) -> ModelInfo:
    with Client(url) as client:
        return client.model_info(model)


def _digest(repository: Path, info: ModelInfo) -> str:
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


def _text(result: AttackResult, info: ModelInfo) -> str:
    lines = [
        f"{result.attack} {budget(result.norm, result.epsilon)}, "
        f"at most {result.max_queries:,} queries per image, on {info.name} version {info.version}",
        f"accuracy without attack  {_share(result.clean_accuracy)}",
        f"accuracy under attack    {_share(result.accuracy)}  of {result.accuracy['num_images']} images",
        f"queries                  {result.num_queries:,} in all, {result.queries_per_s:,.0f} per second",
    ]
    if result.queries_to_success:
        lines.append(f"queries to success       {result.queries_to_success['median']:g} in the median")
    if result.distance:
        distance = budget(result.norm, round(result.distance["median"], 1))
        lines.append(
            f"nearest wrong image      {distance} in the median of {result.distance['num_images']:,} images"
        )
    lines += [f"no score                 {_kinds(result.errors)} images, not robust"] if result.errors else []
    lines += [f"sent again               {_kinds(result.retries)} requests"] if result.retries else []
    lines += ["", "class, accuracy under attack"]
    width = max(len(info.label(index)) for index in result.per_class)
    lines += [
        f"  {info.label(index):<{width}}  {_share(share)}  of {share['num_images']}"
        for index, share in result.per_class.items()
    ]
    return "\n".join(lines)


def _kinds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def _share(share: Mapping[str, Any]) -> str:
    return f"{percent(share['value']):>7} [{interval(share['low'], share['high'])}]"
