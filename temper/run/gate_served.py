"""Gathers a gate's evidence from two served models and labelled images, without a recipe.

Any image classifier of a KServe v2 server will do: pixels as bytes or as floats, in either layout, scores or
probabilities.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.client.accuracy import AccuracyResult, evaluate
from temper.client.client import Client
from temper.client.load import race
from temper.client.model import ModelInfo
from temper.client.retry import open_model
from temper.errors import WorkflowError
from temper.gate.config import GateConfig
from temper.gate.evidence import Answers, Evidence
from temper.imaging.errors import ImageError, show
from temper.imaging.folder import name_few
from temper.imaging.store import create_images
from temper.run.diagnose.how import fields_of_server, make_pipeline
from temper.run.diagnose.pipeline import Pipeline, fit, open_picture
from temper.run.diagnose.served import Wire, encode, read_wire
from temper.run.gate import race_of, raced

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]
    Labels = NDArray[np.int64]
    Progress = Callable[[int, int], None]

_POOL = 64
"""Images that a load test sends in turn."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One of the two models, and how images are made into what it takes."""

    url: str
    """host:port of the gRPC endpoint."""
    info: ModelInfo
    """What the server says of it."""
    wire: Wire
    """Its image input."""
    sent: Pipeline
    """How images are prepared."""

    def encode(self, images: Images) -> NDArray[Any]:
        """Fitted images, uint8 [N, H, W, 3], as they go over the wire."""
        return encode(self.info, self.wire, np.asarray(images), self.sent)


def open_served(url: str, model: str, version: str, stated: dict[str, Any]) -> Served:
    """Learns a served model.

    Args:
        url: host:port of the gRPC endpoint.
        model: Its name.
        version: Its version; empty is the newest that is served.
        stated: How images are prepared, keys of `[data]`; empty takes what the server says.

    Raises:
        ClientError: The server does not answer, or has no such model.
        WorkflowError: It takes floats, and nothing says how they are made.
        DiagnoseError: It takes no images, or others than was stated.
    """
    with Client(url) as client:
        info = client.model_info(model, version)
    wire = read_wire(info)
    if wire.block:
        raise WorkflowError(
            f"model {model}: takes {list(info.image_shape)}, whose first size is a batch, expected one image each"
        )
    if not stated and info.preprocessing is None and info.input_dtype != "UINT8":
        raise WorkflowError(
            f"model {model}: takes {info.input_dtype} and does not say how images are made into it; say it with "
            "--sent, as --sent torchvision"
        )
    sent = make_pipeline(stated or fields_of_server(info), wire.size)
    return Served(url=url, info=info, wire=wire, sent=sent)


def decode(files: Sequence[Path], sent: Pipeline, path: Path, progress: Progress) -> Images:
    """Fits image files to a model into a memory-mapped .npy file, uint8 [N, H, W, 3].

    Raises:
        WorkflowError: Some cannot be decoded; it names them.
        OSError: There is no room for the file.
    """
    images = create_images(path, len(files), sent.height, sent.width)
    failed = []
    for index, file in enumerate(files):
        try:
            images[index] = fit(open_picture(file, sent), sent)
        except ImageError as error:
            failed.append(f"{show(file)} {error.reason}")
        progress(index + 1, len(files))
    if failed:
        raise WorkflowError(
            f"{len(failed):,} of {len(files):,} images cannot be used: {name_few(failed)}; repair or remove them"
        )
    return images


def ask(served: Served, images: Images, labels: Labels, progress: Progress) -> AccuracyResult:
    """Asks a model about all images.

    Args:
        served: The model.
        images: uint8 [N, H, W, 3], fitted.
        labels: int64 [N], in the order of its own classes.
        progress: Called with (images answered, images in all).

    Raises:
        ClientError: The server failed, or not one of its answers was a score.
    """
    info = served.info

    async def run() -> AccuracyResult:
        async with open_model(
            served.url, info.name, version=info.version, timeout_s=30.0, retry=None, encode=served.encode
        ) as (_, infer):
            result = await evaluate(infer, images, labels, progress=progress)
            return replace(result, retries=dict(infer.retries))

    return asyncio.run(run())


def same_order(labels: Labels, candidate: ModelInfo, reference: ModelInfo) -> NDArray[np.int64]:
    """Returns, int64 [classes], the candidate's index of each class of the reference, by the classes' names.

    Raises:
        WorkflowError: They have other classes.
    """
    ours, theirs = candidate.labels, reference.labels
    if not ours or not theirs:
        if candidate.num_classes != reference.num_classes:
            raise WorkflowError(
                f"{candidate.name} answers {candidate.num_classes} classes and {reference.name} "
                f"{reference.num_classes}, expected the same ones"
            )
        return np.arange(max(candidate.num_classes, int(labels.max()) + 1))
    if ours == theirs:
        return np.arange(len(ours))
    for name in dict.fromkeys((*theirs, *ours)):
        if ours.count(name) != 1 or theirs.count(name) != 1:
            raise WorkflowError(
                f"{candidate.name} and {reference.name}: name the class {show(name)} {ours.count(name)} and "
                f"{theirs.count(name)} times, expected the same classes, or each once in both"
            )
    return np.array([ours.index(name) for name in theirs])


def gather(
    config: GateConfig,
    candidate: Served,
    reference: Served,
    images: tuple[Images, Images],
    labels: Labels,
    stage: Callable[[str], Any],
) -> Evidence:
    """Asks both models about the same images, and loads them in turns where a rule is on speed.

    Args:
        config: The rules.
        candidate: Who is judged.
        reference: Who it is held against.
        images: The images as the candidate takes them, and as the reference does: uint8 [N, H, W, 3].
        labels: int64 [N], in the order of the candidate's classes.
        stage: Shows one stage: a context manager for its label, which is called with (done, total).

    Raises:
        ClientError: The server failed.
        WorkflowError: The two have other classes.
    """
    order = same_order(labels, candidate.info, reference.info)
    inverse = np.argsort(order)
    found: dict[str, Any] = {}
    answers = []
    for served, own, wanted in ((candidate, images[0], labels), (reference, images[1], inverse[labels])):
        with stage(f"ask {served.info.name} version {served.info.version}") as progress:
            answers.append(ask(served, own, wanted, progress))
    if (settings := race_of(config)) is not None:
        with stage("both in turns") as progress:
            result = race(
                candidate.url,
                (reference.info.name, reference.info.version),
                (candidate.info.name, candidate.info.version),
                candidate.encode(images[0][:_POOL]),
                settings,
                progress,
                url_of_first=reference.url,
                images_of_first=reference.encode(images[1][:_POOL]),
            )
        found = raced(result.to_json())
    mine, theirs = answers
    most = int(max(mine.answers.max(), theirs.answers.max(), len(order) - 1)) + 1  # a class that has no name
    named = np.concatenate([order, np.arange(len(order), most), [-1]])  # the last for what is no score
    return Evidence(
        class_names=[candidate.info.label(index) for index in range(most)],
        labels=labels,
        candidate=Answers(classes=mine.answers, confidence=mine.confidence),
        reference=Answers(classes=named[theirs.answers], confidence=theirs.confidence),
        **found,
    )
