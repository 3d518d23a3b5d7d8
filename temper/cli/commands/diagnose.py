"""`temper diagnose`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from temper.cli.inputs import find_images, read_integers
from temper.cli.target import describe, say_share
from temper.client.client import Client
from temper.client.errors import ClientError
from temper.errors import TemperError
from temper.imaging.errors import show
from temper.progress import Display
from temper.report.text import bounds, fine_percent, interval, percent, plain, whole_percent
from temper.run.diagnose.errors import DiagnoseError
from temper.serve.endpoint import Endpoint
from temper.terminal import echo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from temper.run.diagnose.decide import Cause
    from temper.run.diagnose.diagnose import Diagnosis, Question
    from temper.run.diagnose.pipeline import Picture, Pipeline

EXIT_DIFFERS = 3
_PRECISIONS = {"int8-7bit": "int8 of 7 bits"}


def diagnose_command(
    model: str | None,
    *,
    images: Path,
    weights: Sequence[Path],
    url: str | None,
    repository: Path,
    answers: Path | None,
    labels: Path | None,
    precision: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compares a served model with its checkpoint and prints the causes of a difference; then exits 3.

    Raises:
        DiagnoseError: Images, checkpoint and answers do not fit together, or the server failed.
        InputError: The images cannot be used.
        ModelError: A checkpoint cannot be read.
    """
    from temper.run.diagnose.diagnose import Question

    with Display() as display:
        files = find_images([images], display.say)
        question = Question(
            model=model or show(answers or ""),
            files=files,
            root=images,
            weights=weights,
            labels=read_integers(labels, len(files)) if labels else None,
            precision=_PRECISIONS.get(precision or "", precision),  # type: ignore[arg-type]  # click's choice
            **settings,
        )
        if answers is not None:
            found = _of_answers(question, answers, display)
        else:
            found = _of_server(question, url, repository, display)
    echo(json.dumps(found.to_json(), indent=2, allow_nan=False) if as_json else _text(found))
    sys.stdout.flush()
    if not found.verdict.agrees:
        click.get_current_context().exit(EXIT_DIFFERS)


def _of_answers(question: Question, answers: Path, display: Display) -> Diagnosis:
    from temper.run.diagnose.diagnose import diagnose
    from temper.run.diagnose.served import read_answers

    scores = read_answers(answers, question.files, question.root)
    with display.stage("compare with PyTorch") as stage:
        return diagnose(question, stage, answers=scores)


def _of_server(question: Question, url: str | None, repository: Path, display: Display) -> Diagnosis:
    from temper.run.diagnose.diagnose import diagnose
    from temper.run.diagnose.served import ask, read_wire

    model = question.model
    with Endpoint(url, repository, models=[model], display=display) as endpoint:
        try:
            info = endpoint.retrying(model, lambda url: describe(url, model))
            wire = read_wire(info)

            def send(pictures: Sequence[Picture], sent: Pipeline) -> npt.NDArray[np.float32]:
                def once(url: str) -> npt.NDArray[np.float32]:
                    with (
                        Client(url) as client,
                        display.stage(f"ask {model} about {len(pictures)} images") as stage,
                    ):
                        return ask(client, info, wire, pictures, sent, stage)

                return endpoint.retrying(model, once)

            with display.stage("compare with PyTorch") as stage:
                return diagnose(question, stage, ask=send, info=info, size=wire.size, batch=wire.batch)
        except ClientError as error:
            raise DiagnoseError(endpoint.why(error)) from error
        except MemoryError as error:
            raise TemperError("the memory is full; give fewer --num-images") from error


def _text(found: Diagnosis) -> str:
    verdict = found.verdict
    lines = [
        f"{show(found.model)}, {found.num_images} images",
        f"trained      {found.trained}",
        f"sent         {found.sent}",
        f"same answer  {say_share(found.agreement)}",
        f"difference   {fine_percent(verdict.before)} of the scores' spread (root mean square); they agree up to "
        f"{fine_percent(verdict.level)}",
    ]
    if found.accuracy is not None:
        change = found.accuracy["difference"]
        lines += [
            f"accuracy     {say_share(found.accuracy['served'])} served, {say_share(found.accuracy['reference'])} "
            f"in PyTorch; served less PyTorch {plain(100 * change['difference'], 1)} points "
            f"(95 % interval {bounds(change['low'], change['high'])})",
        ]
    lines += [*found.notes, ""]
    if verdict.agrees:
        return "\n".join([*lines, "agrees: what is served is the network's"])
    if not verdict.causes:
        lines += [f"differs: {verdict.note or 'nothing explains it'}", *_candidates(found)]
        return "\n".join(lines)
    for index, cause in enumerate(verdict.causes):
        lines += _cause(cause, found.mend(index), first=index == 0)
    lines.append(f"  left     {fine_percent(verdict.left)} of the scores' spread")
    if verdict.note:
        lines.append(f"  beside   {verdict.note}")
    return "\n".join([*lines, *_candidates(found)])


def _cause(cause: Cause, mend: str, *, first: bool) -> list[str]:
    share = cause.share
    explained = f"{percent(share['value'])} of the difference [{interval(share['low'], share['high'])}]"
    return [
        f"{'differs: served' if first else 'and'} with {cause.hypothesis.words}",
        *([f"  explains {explained}"] if share["value"] > 0 else []),
        *([f"  note     {cause.note}"] if cause.note else []),
        f"  mend     {mend}",
    ]


def _candidates(found: Diagnosis) -> list[str]:
    rows = [(one.words, share) for one, share in found.verdict.candidates]
    if not rows:
        return []
    shown = [f"  {whole_percent(max(share['value'], 0)):>6}  {words}" for words, share in rows]
    return ["", "would explain of the difference:", *shown]
