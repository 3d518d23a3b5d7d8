"""`temper attack`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from temper.builder.contract import CARD_FILE, GRAPH_FILE
from temper.cli.target import Target, describe, digest, judge, say_kinds, say_share
from temper.client.model import ModelInfo
from temper.client.robustness import AttackResult, attack
from temper.client.robustness.base import ATTACKS, OWN, REFERENCE, Network
from temper.client.robustness.checkpoint import FILE_NAME
from temper.client.robustness.harness import split_files
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
        if name == "reference" and not kind.compares:
            others = ", ".join(name for name, other in ATTACKS.all().items() if other.compares)
            raise click.UsageError(
                f"--reference: the attack {kind.name} compares with no other model, expected {others}"
            )
        if name not in kind.config.__dataclass_fields__:
            raise click.UsageError(
                f"--{name.removesuffix('s') if name == 'surrogates' else name}: the attack "
                f"{kind.name} has none, expected one that follows gradients, such as pgd"
            )
    try:
        config = kind.config(**given)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    reference = settings["reference"] or ""
    if kind.compares and not reference:
        raise click.UsageError(f"--reference: the attack {kind.name} needs one, expected a second served model")

    def run(address: str, target: Target, progress: Stage) -> AttackResult:
        other = describe(address, reference) if reference else None
        return attack(
            address,
            model,
            target.tree.images,
            target.tree.labels,
            config,
            progress,
            checkpoint=save / FILE_NAME if save else None,
            checkpoints=runs / "attacks",
            identity="+".join([target.identity, *([digest(repository, other)] if other and url is None else [])]),
            surrogates=_surrogates(config, target, repository, address, other, is_elsewhere=url is not None),
            reference=reference,
            reference_version=other.version if other else "",
            say=target.say,
            version=target.info.version,
        )

    label = f"{config.name} {budget(config.norm, config.epsilon)} on {model}"
    result, target = judge(
        run,
        images,
        labels,
        label=label,
        model=model,
        url=url,
        repository=repository,
        others=[reference] if reference else [],
    )
    if save is not None:
        result.save(save)
    about = {"model": model, "version": target.info.version, "settings": dataclasses.asdict(config)}
    found = {**about, **result.to_json(), "left_out": target.tree.left_out}
    echo(json.dumps(found, indent=2, allow_nan=False) if as_json else _text(result, target.info, reference))


def _surrogates(
    config: Any, target: Target, repository: Path, address: str, other: ModelInfo | None, *, is_elsewhere: bool
) -> dict[str, list[Network]]:
    """The networks that the config names, as far as the repository tells; `other` is the reference, if any."""
    model, named = target.info.name, getattr(config, "surrogates", ())
    graphs = _graphs(OWN, repository, address, target.info)
    graphs |= _graphs(REFERENCE, repository, address, other) if other else {}
    if is_elsewhere and {*graphs} & {*named}:
        target.say(f"{config.name}: its gradients are those of {model} in {repository}, as if that was served")
    files = [name for name in named if name not in (*graphs, OWN, REFERENCE)]
    if (defend := _defence(repository, target.info)) and files:
        # Who attacks knows of it: a file without it would be another model's.
        target.say(f"{config.name}: gradients of {', '.join(files)} go through what {model} has: {defend}")
        graphs |= {name: [Network(path, defend) for path in split_files(name)] for name in files}
    return graphs


def _graphs(name: str, repository: Path, address: str, info: ModelInfo) -> dict[str, list[Network]]:
    """The graphs of a model whose engines are its graphs, as OpenVINO's are, behind its defence if it has one."""
    members = [describe(address, member) for member in _read_card(repository, info).get("members", ())] or [info]
    defend = _defence(repository, info)
    found = [Network(repository / one.name / one.version / GRAPH_FILE, defend) for one in members]
    return {name: found} if all(network.path.is_file() for network in found) else {}


def _defence(repository: Path, info: ModelInfo) -> str:
    """What the model stands behind, as config.pbtxt's parameter `defend` says it; empty for nothing."""
    defend = _read_card(repository, info).get("defend")
    return json.dumps(defend) if defend else ""


def _read_card(repository: Path, info: ModelInfo) -> dict[str, Any]:
    try:
        card = json.loads((repository / info.name / info.version / CARD_FILE).read_text())
    except (OSError, ValueError):  # no entry that `temper build` wrote
        return {}
    return card if isinstance(card, dict) else {}


def _robustness(result: AttackResult) -> list[str]:
    return [
        f"accuracy without attack  {say_share(result.clean_accuracy)}",
        f"accuracy under attack    {say_share(result.accuracy)}  of {result.accuracy['num_images']} images",
    ]


def _differential(result: AttackResult, success: Mapping[str, Any], reference: str) -> list[str]:
    clean = result.clean_accuracy
    return [
        f"right for both           {say_share(clean)}  of {clean['num_images']} images without attack",
        f"made wrong here alone    {say_share(success)}  of {success['num_images']} images that both get right",
        f"asked of {f'{reference}:':<15} {result.reference_queries:,} images, those that were wrong here",
    ]


def _text(result: AttackResult, info: ModelInfo, reference: str) -> str:
    rate = f", {result.queries_per_s:,.0f} per second" if result.queries_per_s else ""
    lines = [
        f"{result.attack} {budget(result.norm, result.epsilon)}, "
        f"at most {result.max_queries:,} queries per image, on {info.name} version {info.version}",
        *(_differential(result, result.success, reference) if result.success else _robustness(result)),
        f"queries                  {result.num_queries:,} in all{rate}",
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
    what = "right for both and not made wrong here alone" if result.success else "accuracy under attack"
    lines += ["", f"class, {what}"]
    classes = {*result.per_class, *(pair["answer"] for pair in result.pairs)}
    width = max(len(info.label(index)) for index in classes)
    lines += [
        f"  {info.label(index):<{width}}  {say_share(share)}  of {share['num_images']}"
        for index, share in result.per_class.items()
    ]
    if result.pairs:
        lines += ["", "class, taken for"]
        lines += [
            f"  {label:<{width}}  {answer:<{width}}  {pair['num_images']:,}"
            for pair in result.pairs
            for label, answer in [(info.label(pair["label"]), info.label(pair["answer"]))]
        ]
    return "\n".join(lines)
