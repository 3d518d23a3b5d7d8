"""`temper gate`."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from temper.builder.publish.versions import newest_in, served_version
from temper.cli.commands.main_job import log_to_file, resumable
from temper.cli.inputs import list_tree, open_images, open_labels
from temper.client.errors import ClientError
from temper.errors import GateError, WorkflowError
from temper.gate.config import SERVED, GateConfig
from temper.imaging.errors import show
from temper.imaging.folder import say_left_out
from temper.progress import Display
from temper.report.verdict import Side, Verdict
from temper.report.verdict_text import render_junit, render_markdown, render_text
from temper.serve.endpoint import Endpoint
from temper.terminal import echo

if TYPE_CHECKING:
    from temper.gate.evidence import Evidence
    from temper.run.gate_served import Served

Asked = tuple[str, int | None]
"""A model and its version; None leaves it to the server."""
EXITS = {"SHIP": 0, "HOLD": 3, "NOT ENOUGH DATA": 4}
"""By the answer; of several verdicts HOLD comes before NOT ENOUGH DATA."""
_OF_A_RECIPE = {
    "robustness": "attacks, which only a recipe describes",
    "engine": "the network before compression, which only a recipe names",
}


def gate_recipe_command(
    recipe_file: Path, *, url: str | None, repository: Path, runs: Path, sign: Path | None, **shown: Any
) -> None:
    """Runs a recipe, or what of it is not done, and shows the verdicts on its variants.

    Raises:
        GateError: The recipe has no rules, or there is no verdict.
        WorkflowError: The measurements stopped early.
    """
    from temper.run.recipe import load_recipe

    recipe = load_recipe(recipe_file)
    if recipe.gate is None:
        raise GateError(
            f"{show(recipe_file)}: has no rules, expected a table such as [gate] with "
            "accuracy = { max_drop = 0.5 }; docs/gate.md has them all"
        )
    log_to_file(recipe, runs)
    from temper.run.workflow import run_recipe

    with resumable(), Display() as display:
        report = run_recipe(recipe, repository=repository, runs=runs, display=display, url=url, sign=sign)
    if report.stopped is not None:
        if report.verdicts:
            _write(report.verdicts, **shown)
        raise WorkflowError(f"{report.stopped}; what was measured is in {runs / recipe.name / 'report.html'}")
    if not report.verdicts:
        raise GateError("no verdict: every variant is what is served already; change the recipe, or gate.against")
    _show(report.verdicts, **shown)


def gate_served_command(
    model: str,
    against: str,
    *,
    versions: tuple[int | None, int | None],
    url: str | None,
    repository: Path | None,
    images: Path,
    labels: Path | None,
    sent: Sequence[str],
    rules: Sequence[str],
    rules_file: Path | None,
    sign: Path | None,
    **shown: Any,
) -> None:
    """Asks two served models about the same images and shows the verdict on the first.

    Args:
        model: Who is judged.
        against: Who it is held against; "served" is what `model` answers with today.
        versions: Of both; None is the newest one of the first, and what is served of the second.
        url: A running server's address; None starts the embedded one.
        repository: The model repository, into which verdict.json goes; None with a server elsewhere.
        images: A folder with one folder per class, or a .npy file.
        labels: The .npy file of labels beside a .npy file of images.
        sent: How images are prepared, where the server does not say so.
        rules: As "accuracy.max_drop=0.5".
        rules_file: A TOML file with a table `[gate]`.
        sign: The private key's file.
        shown: As of `_show`.

    Raises:
        GateError: The rules or the models do not fit.
        InputError: The images cannot be used.
        ClientError: The server failed.
    """
    from temper.gate.keys import read_key
    from temper.gate.seal import write_verdict
    from temper.run.gate import give_verdict, read_gate, side_in, size_in

    config = read_gate(rules, rules_file)
    _check(config, repository, sign)
    key = None if sign is None else read_key(sign)
    asked = _versions(model, model if against == SERVED else against, versions, url, repository)
    with resumable(), Display() as display, ExitStack() as stack:
        ends = _endpoints(asked, url, repository, display)
        for endpoint in dict.fromkeys(ends):
            stack.enter_context(endpoint)
        try:
            pair = _open(ends, asked, sent)
            with tempfile.TemporaryDirectory(prefix="temper-gate-") as work:
                evidence, data = _gather(config, pair, ends, images, labels, Path(work), display)
        except ClientError as error:
            raise GateError(ends[0].why(ends[1].why(error))) from error
    if repository is None:
        sides = [Side(model=one.info.name, version=_number(one.info.version), sums_sha256=None) for one in pair]
    else:
        folders = [repository / one.info.name / one.info.version for one in pair]
        sides = [side_in(folder) for folder in folders]
        reference, candidate = (size_in(folder) for folder in reversed(folders))
        if reference and candidate:
            evidence = dataclasses.replace(evidence, size_bytes=(reference, candidate))
    verdict = give_verdict(
        config,
        evidence,
        candidate=sides[0],
        reference=sides[1],
        data_sha256=data,
        server=ends[0].description,
    )
    if repository is not None:
        before = _verdict_before(folders[0])
        verdict = write_verdict(folders[0], verdict, key)
        if before is not None and (before.answer, bool(before.signature)) != (verdict.answer, bool(key)):
            signed = "signed" if before.signature else "not signed"
            echo(f"takes the place of the verdict of {before.created}: {before.answer}, {signed}", err=True)
    _show([verdict], **shown)


def _verdict_before(folder: Path) -> Verdict | None:
    from temper.gate.seal import read_verdict

    try:
        return read_verdict(folder)
    except GateError:
        return None  # whatever it was, it held for nobody


def _check(config: GateConfig, repository: Path | None, sign: Path | None) -> None:
    for rule, what in _OF_A_RECIPE.items():
        if getattr(config, rule) is not None:
            raise GateError(f"{rule}: needs {what}; run `temper gate RECIPE`, or leave the rule out")
    for key in ("against", "promote"):
        if getattr(config, key) != getattr(GateConfig, key):
            raise GateError(f"{key}: got {show(getattr(config, key))}, expected none with --model; see --against")
    if repository is None:
        wanting = {"size": config.size is not None, "--sign": sign is not None}
        for what in (name for name, wanted in wanting.items() if wanted):
            raise GateError(f"{what}: is about the engine's file; name the model's --repository, or leave it out")


def _versions(
    model: str, other: str, versions: tuple[int | None, int | None], url: str | None, repository: Path | None
) -> tuple[Asked, Asked]:
    """Who is asked, as the repository tells: the newest of who is judged, and what is served of the other."""
    mine, theirs = versions
    if url is None and repository is not None:
        mine = mine or newest_in(repository / model) or None
        theirs = theirs or served_version(repository / other)
    if model == other and mine == theirs and mine is not None:
        raise GateError(
            f"model {model}: version {mine} would be held against itself; publish a newer one, name --version, or "
            "another model with --against"
        )
    return (model, mine), (other, theirs)


def _endpoints(
    asked: Sequence[Asked], url: str | None, repository: Path | None, display: Display
) -> tuple[Endpoint, Endpoint]:
    """Where each is served: a server elsewhere, or one started here; two for two versions of one model.

    A server has one config.pbtxt for all versions of a model, and an ensemble one version of its members.
    """

    def start(*some: Asked) -> Endpoint:
        versions = {name: (version,) for name, version in some if version is not None} if url is None else {}
        names = list(dict.fromkeys(name for name, _ in some))
        return Endpoint(url, repository or Path(), models=names, versions=versions, display=display)

    if url is None and asked[0][0] == asked[1][0]:
        return start(asked[0]), start(asked[1])
    return (both := start(*asked)), both


def _number(version: str) -> int | None:
    return int(version) if version.isdecimal() else None


def _open(
    ends: tuple[Endpoint, Endpoint], asked: tuple[Asked, Asked], sent: Sequence[str]
) -> tuple[Served, Served]:
    from temper.run.diagnose.how import read_fields
    from temper.run.gate_served import open_served

    stated = read_fields(sent)

    def learn(endpoint: Endpoint, name: str, version: int | None) -> Served:
        return endpoint.retrying(name, lambda url: open_served(url, name, str(version or ""), stated))

    pair = learn(ends[0], *asked[0]), learn(ends[1], *asked[1])
    names = [(one.info.name, one.info.version) for one in pair]
    if names[0] == names[1]:
        raise GateError(
            f"model {names[0][0]}: version {names[0][1] or '?'} would be held against itself; name --version and "
            "--against-version, or another model with --against"
        )
    return pair


def _gather(
    config: GateConfig,
    pair: tuple[Served, Served],
    ends: tuple[Endpoint, Endpoint],
    images: Path,
    labels: Path | None,
    work: Path,
    display: Display,
) -> tuple[Evidence, str]:
    """The evidence, and the digest of what was asked about."""
    from temper.run.gate import digest_of
    from temper.run.gate_served import decode, gather

    if labels is not None:
        pixels = open_images(images, pair[0].info)
        wanted, both, files = open_labels(labels, len(pixels), pair[0].info), (pixels, pixels), [images, labels]
    else:
        tree = list_tree(images, pair[0].info)
        if left_out := say_left_out(tree.left_out):
            display.say(f"{show(images)}: {left_out}")
        wanted, files = tree.labels, [work / "candidate.npy", work / "labels.npy"]
        with display.stage(f"decode {show(images)}") as stage:
            mine = theirs = decode(tree.files, pair[0].sent, files[0], stage)
            if pair[1].sent.geometry != pair[0].sent.geometry:
                theirs = decode(tree.files, pair[1].sent, work / "reference.npy", stage)
        both = mine, theirs
        np.save(files[1], wanted)

    def ask(_: str) -> Evidence:  # a server that died is started again at the same address
        return gather(config, *pair, both, wanted, display.stage)

    evidence = ends[0].retrying("gate", lambda _: ends[1].retrying("gate", ask))
    return evidence, digest_of(*files)


def _show(verdicts: Sequence[Verdict], **shown: Any) -> None:
    """Writes verdicts as `_write`, and exits as the answers say."""
    _write(verdicts, **shown)
    answers = {one.answer for one in verdicts}
    worst = next((one for one in ("HOLD", "NOT ENOUGH DATA") if one in answers), "SHIP")
    click.get_current_context().exit(EXITS[worst])


def _write(verdicts: Sequence[Verdict], *, markdown: Path | None, junit: Path | None, as_json: bool) -> None:
    """Prints verdicts, and writes the files that are wished for.

    Args:
        verdicts: At least one.
        markdown: A file for a pull request's comment or a step's summary.
        junit: A file for what shows tests.
        as_json: Print JSON in place of text.

    Raises:
        GateError: A file cannot be written.
    """
    if as_json:
        echo(json.dumps([one.to_json() for one in verdicts], indent=2, ensure_ascii=False, allow_nan=False))
    else:
        echo(render_text(verdicts))
    for path, render in ((markdown, render_markdown), (junit, render_junit)):
        if path is not None:
            try:
                path.write_text(render(verdicts), encoding="utf-8")
            except OSError as error:
                raise GateError(f"{show(path)}: cannot be written: {error.strerror}") from error
