"""`temper attack`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from temper.builder.contract import GRAPH_FILE
from temper.cli.target import Target, judge, say_kinds, say_share
from temper.client.model import ModelInfo
from temper.client.robustness import AttackResult, attack
from temper.client.robustness.base import ATTACKS, OWN
from temper.client.robustness.checkpoint import FILE_NAME
from temper.progress import Stage
from temper.report.text import budget, percent
from temper.terminal import echo


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
        JudgeError: More images are asked for than there are, `save` belongs to another attack, or the server
            failed.
    """
    kind = ATTACKS.get(settings["name"])
    given = {name: value for name, value in settings.items() if value not in (None, ())}
    for name in given:
        if name not in kind.config.__dataclass_fields__:
            raise click.UsageError(
                f"--{name.removesuffix('s') if name == 'surrogates' else name}: the attack "
                f"{kind.name} has none, expected one that follows gradients, such as pgd"
            )
    try:
        config = kind.config(**given)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    def run(address: str, target: Target, progress: Stage) -> AttackResult:
        return attack(
            address,
            model,
            target.tree.images,
            target.tree.labels,
            config,
            progress,
            checkpoint=save / FILE_NAME if save else None,
            checkpoints=runs / "attacks",
            identity=target.identity,
            surrogates=_own_graph(repository, target.info) if url is None else {},
            say=target.say,
            version=target.info.version,
        )

    label = f"{config.name} {budget(config.norm, config.epsilon)} on {model}"
    result, target = judge(run, images, labels, label=label, model=model, url=url, repository=repository)
    if save is not None:
        result.save(save)
    found = {**result.to_json(), "left_out": target.tree.left_out}
    echo(json.dumps(found, indent=2, allow_nan=False) if as_json else _text(result, target.info))


def _own_graph(repository: Path, info: ModelInfo) -> dict[str, list[Path]]:
    """The graph of a model whose engine is its graph, as OpenVINO's is."""
    graph = repository / info.name / info.version / GRAPH_FILE
    return {OWN: [graph]} if graph.is_file() else {}


def _text(result: AttackResult, info: ModelInfo) -> str:
    lines = [
        f"{result.attack} {budget(result.norm, result.epsilon)}, "
        f"at most {result.max_queries:,} queries per image, on {info.name} version {info.version}",
        f"accuracy without attack  {say_share(result.clean_accuracy)}",
        f"accuracy under attack    {say_share(result.accuracy)}  of {result.accuracy['num_images']} images",
        f"queries                  {result.num_queries:,} in all, {result.queries_per_s:,.0f} per second",
    ]
    if result.stuck:
        lines.append(f"nothing to follow        {percent(result.stuck)} of the queries")
    if result.queries_to_success:
        lines.append(f"queries to success       {result.queries_to_success['median']:g} in the median")
    if result.distance:
        distance = budget(result.norm, round(result.distance["median"], 1))
        lines.append(
            f"nearest wrong image      {distance} in the median of {result.distance['num_images']:,} images"
        )
    lines += [f"no score                 {say_kinds(result.errors)} images, not robust"] if result.errors else []
    lines += [f"sent again               {say_kinds(result.retries)} requests"] if result.retries else []
    lines += ["", "class, accuracy under attack"]
    width = max(len(info.label(index)) for index in result.per_class)
    lines += [
        f"  {info.label(index):<{width}}  {say_share(share)}  of {share['num_images']}"
        for index, share in result.per_class.items()
    ]
    return "\n".join(lines)
