"""`temper query`."""

from __future__ import annotations

import json
import os
import queue
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.builder.engines.isa import UNKNOWN, instruction_set, why_inexact
from temper.cli.inputs import Images, contract, find_images, preprocessing
from temper.client.client import MAX_IN_FLIGHT, Client
from temper.client.errors import ClientError, ImageError, InvalidRequest, NonFiniteOutput
from temper.client.images import Prediction, load_image, top_k
from temper.client.model import ModelInfo
from temper.errors import TemperError
from temper.imaging import errors as imaging_errors
from temper.imaging.errors import show
from temper.imaging.folder import NUM_NAMED
from temper.imaging.read import read_encoded
from temper.serve.endpoint import Endpoint
from temper.terminal import echo, escape_line

_BATCH = 8
Logits = npt.NDArray[np.float32]


class QueryError(TemperError):
    """Some of the images could not be read; the others were answered."""


def query_command(
    images: Sequence[Path], *, model: str, url: str | None, repository: Path, top: int, as_json: bool
) -> None:
    """Streams the images to the server and prints the labels with their probabilities.

    Raises:
        QueryError: Files that cannot be decoded, one line each, after the answers to the others; the server
            failed or died, after the answers until then; or the model is no classifier.
    """
    files = find_images(images, lambda line: echo(line, err=True))
    failed: list[str] = []
    with Endpoint(url, repository, models=[model]) as endpoint:
        try:
            with Client(endpoint.url()) as client:
                info = client.model_info(model)
                if len(info.output_shape) != 1:
                    shape = list(info.output_shape)
                    raise QueryError(f"model {model}: {info.output_name} is {shape}, expected one score per class")
                warning = why_inexact(UNKNOWN if url else instruction_set(), info.int8_weight_bits)
                if warning is not None:
                    echo(f"warning: {model}: {warning}", err=True)
                ask = _ask_encoded if info.takes_encoded else _ask
                rows = (
                    row
                    for paths, logits in ask(client, info, files, failed)
                    for row in zip(paths, top_k(logits, info.labels, top), strict=True)
                )
                _print(rows, warning, as_json=as_json)
        except ClientError as error:
            raise QueryError(endpoint.why(error)) from error
    if failed:
        more = len(failed) - NUM_NAMED
        rest = [f"{more:,} more of the {len(files):,} images cannot be used"] if more > 0 else []
        raise QueryError("\n".join(failed[:NUM_NAMED] + rest))


def _print(rows: Iterable[tuple[Path, list[Prediction]]], warning: str | None, *, as_json: bool) -> None:
    """Prints the answers; as JSON all at once, also when something ends them."""
    answers: list[dict[str, Any]] = []
    try:
        for path, best in rows:
            answer: dict[str, Any] = {
                "image": os.fsencode(path).decode(errors="backslashreplace"),
                "predictions": [vars(one) for one in best],
            }
            answers.append({**answer, "warning": warning} if warning else answer)
            if not as_json:
                echo(_text(path, best))
    finally:
        if as_json:
            echo(json.dumps(answers, indent=2, ensure_ascii=False, allow_nan=False))


def _ask(
    client: Client, info: ModelInfo, files: Sequence[Path], failed: list[str]
) -> Iterator[tuple[list[Path], Logits]]:
    """Sends what the files show; yields the answers with those that they are of."""
    sent: queue.SimpleQueue[list[Path]] = queue.SimpleQueue()
    preprocessing(info)  # refuses what takes no images
    for logits in _answers(client.stream(info.name, _batches(files, info, sent, failed)), sent):
        yield sent.get(), logits


def _ask_encoded(
    client: Client, info: ModelInfo, files: Sequence[Path], failed: list[str]
) -> Iterator[tuple[list[Path], Logits]]:
    """Sends the files as they are, each in a request of its own, so that one that is no image costs no other."""

    def one(path: Path) -> Logits | str:
        try:
            return client.infer_encoded(info.name, [read_encoded(path, contract(info))])
        except imaging_errors.ImageError as error:
            return str(error)
        except (InvalidRequest, NonFiniteOutput) as error:
            return f"{show(path)}: {error}"

    pool = ThreadPoolExecutor(MAX_IN_FLIGHT)
    try:
        for path, answer in zip(files, pool.map(one, files), strict=True):
            if isinstance(answer, str):
                failed.append(answer)
            else:
                yield [path], answer
    finally:
        pool.shutdown(cancel_futures=True)


def _answers(answers: Iterator[Logits], sent: queue.SimpleQueue[list[Path]]) -> Iterator[Logits]:
    """Passes the answers on; an image whose answer is no number is named."""
    try:
        yield from answers
    except NonFiniteOutput as error:
        assert error.scores is not None
        paths = np.array([show(path) for path in sent.get()])[~np.isfinite(error.scores).all(axis=1)]
        raise QueryError("\n".join(f"{path}: {error}" for path in paths.tolist())) from error


def _batches(
    files: Sequence[Path], info: ModelInfo, sent: queue.SimpleQueue[list[Path]], failed: list[str]
) -> Iterator[Images]:
    """Decodes the files, a few at a time, while the server works; notes which went into each batch."""
    batch: list[tuple[Path, Images]] = []
    for number, path in enumerate(files, start=1):
        try:
            batch.append((path, load_image(path, info)))
        except ImageError as error:
            failed.append(str(error))
        if batch and (len(batch) == _BATCH or number == len(files)):
            sent.put([path for path, _ in batch])
            yield np.stack([image for _, image in batch])
            batch = []


def _text(path: Path, best: Sequence[Prediction]) -> str:
    labels = [escape_line(one.label) for one in best]
    width = max(map(len, labels))
    lines = (
        f"  {label:<{width}}  {100 * one.probability:5.1f} %" for label, one in zip(labels, best, strict=True)
    )
    return "\n".join([show(path), *lines])
