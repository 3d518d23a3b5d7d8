"""Measure a served model on corrupted images: corrupt in processes beside this one, send, keep what was right."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.accuracy import evaluate, gather_or_cancel
from temper.client.corruptions.config import CorruptionsConfig
from temper.client.corruptions.library import MIN_SIZE, library_versions, load_library
from temper.client.corruptions.result import CorruptionResult, Vectors
from temper.client.corruptions.worker import Batch, Corrupters
from temper.client.errors import ClientError, NonFiniteOutput
from temper.client.retry import RetryPolicy, open_model
from temper.client.robustness.checkpoint import Checkpoint, Say, describe_target, open_checkpoint
from temper.client.robustness.draws import draw_images
from temper.client.scores import (
    Answers,
    Infer,
    Int64Array,
    Progress,
    UInt8Array,
    ask,
    check_labels,
)

FORMAT = 1
"""Raised when the lines of a checkpoint change, or what they mean."""


def evaluate_corruptions(
    url: str,
    model: str,
    images: UInt8Array,
    labels: npt.ArrayLike,
    config: CorruptionsConfig,
    progress: Progress | None = None,
    *,
    checkpoint: Path | None = None,
    checkpoints: Path | None = None,
    identity: str = "",
    say: Say | None = None,
    version: str = "",
    timeout_s: float = 30.0,
    retry: RetryPolicy | None = None,
) -> CorruptionResult:
    """Measure the accuracy of a model on corrupted images through its endpoint.

    The same image, kind, severity and seed give the same pixels for every model, so variants compare in pairs.
    Memory stays flat: pass a memory map; only the batches in flight and one bool per answer are held. Not for use
    inside a running event loop; `evaluate_corrupted` is.

    Args:
        url: host and port of the gRPC endpoint.
        model: name of the served model.
        images: uint8 [N, H, W, 3], at least 32 pixels on each side.
        labels: integer [N], the class of each image.
        config: kinds, severities, and how many images.
        progress: called with (corrupted images answered, in all).
        checkpoint: file of what is finished, by kind and severity; an interrupted measurement goes on from it.
        checkpoints: folder of such files, when `checkpoint` is not given: the measurement finds its own, and
            deletes it when it is done.
        identity: tells the model from others of its name and version, such as a digest of its files.
        say: called with one line when the measurement goes on from a checkpoint, or can keep none.
        version: version of the model; "" is the newest one, and the measurement stays with it.
        timeout_s: deadline of one request in seconds.
        retry: how requests that failed are sent again; `RetryPolicy()` when not given.

    Raises:
        ValueError: images or labels are not as described, or the checkpoint belongs to another measurement.
        ClientError: the server failed, or the extra `corruptions` is not installed.
    """
    load_library()

    async def run() -> CorruptionResult:
        async with open_model(url, model, version=version, timeout_s=timeout_s, retry=retry) as (info, infer):
            result = await evaluate_corrupted(
                infer,
                images,
                labels,
                config,
                progress=progress,
                checkpoint=checkpoint,
                checkpoints=checkpoints,
                endpoint=f"{model}:{info.version}:{identity}",
                say=say,
            )
            return replace(result, retries=dict(infer.retries))

    return asyncio.run(run())


async def evaluate_corrupted(
    infer: Infer,
    images: UInt8Array,
    labels: npt.ArrayLike,
    config: CorruptionsConfig,
    *,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    checkpoints: Path | None = None,
    endpoint: str = "",
    say: Say | None = None,
) -> CorruptionResult:
    """Measure any endpoint behind the `Infer` seam on corrupted images; see `evaluate_corruptions`.

    Args:
        infer: the endpoint: uint8 [n, H, W, 3] in, scores [n, classes] out.
        images: uint8 [N, H, W, 3].
        labels: integer [N].
        config: kinds, severities, and how many images.
        progress: called with (corrupted images answered, in all).
        checkpoint: file of what is finished.
        checkpoints: folder of such files.
        endpoint: name of what is measured.
        say: called with one line when the measurement goes on from a checkpoint, or can keep none.
    """
    truth = check_labels(images, labels)
    height, width = images.shape[1:3]
    if min(height, width) < MIN_SIZE:
        raise ValueError(
            f"images: got {height}x{width} pixels, expected at least {MIN_SIZE} on each side to corrupt them"
        )
    indices = draw_images(len(images), config.num_images, config.seed)
    clean = await evaluate(
        infer, images, truth, indices=indices, batch_size=config.batch_size, concurrency=config.concurrency
    )
    target = describe_target(images, truth, indices, clean.answers, endpoint)
    draws = {"seed": config.seed, "libraries": library_versions()}
    with ExitStack() as stack:
        log = None
        if checkpoint or checkpoints:
            # Neither kinds nor severities are in it: what is finished of other ones stays good.
            header = {"format": FORMAT, **draws, **target}
            log = open_checkpoint(checkpoint, checkpoints, header, say, "evaluation", "kinds and severities")
            stack.enter_context(log or nullcontext())
        run = _Run(config, infer, images, truth, indices, log, progress)
        start = time.perf_counter()
        try:
            await run.measure()
        except ClientError as error:
            finished, of = run.num_finished, len(config.kinds) * len(config.severities)
            raise type(error)(
                f"{error} (corruptions: {finished} of {of} kinds and severities were finished"
                f"{f'; run it again to go on from {log.path}' if log else ''})",
                code=error.code,
            ) from error
        if log and not checkpoint:
            log.remove()
    duration_s = time.perf_counter() - start
    inputs = {**draws, "digest": target["digest"]}
    errors = Counter(clean.errors)
    errors[NonFiniteOutput.kind] += run.num_broken
    return CorruptionResult(
        vectors=Vectors(
            kinds=config.kinds,
            severities=config.severities,
            correct=run.correct,
            clean=clean.correct,
            inputs=hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest(),
        ),
        seed=config.seed,
        indices=indices,
        errors={kind: count for kind, count in errors.items() if count},
        retries={},
        images_per_s=run.num_answered / duration_s if run.num_answered else 0.0,
        duration_s=duration_s,
    )


class _Run:
    """One pass over kinds, severities and images.

    Attributes:
        correct: bool [kinds, severities, n].
        num_broken: answers that were no score.
        num_answered: corrupted images answered in this run.
        num_finished: pairs of kind and severity whose images are all answered.
    """

    def __init__(
        self,
        config: CorruptionsConfig,
        infer: Infer,
        images: UInt8Array,
        labels: Int64Array,
        indices: Int64Array,
        log: Checkpoint | None,
        progress: Progress | None,
    ) -> None:
        self._config, self._infer, self._log = config, infer, log
        self._images, self._labels, self._indices = images, labels, indices
        self._progress = progress
        shape = (len(config.kinds), len(config.severities))
        self.correct = np.zeros((*shape, len(indices)), dtype=np.bool_)
        # Images still to be answered of each kind and severity, and answers of it that were no score.
        self._left: Int64Array = np.full(shape, len(indices), dtype=np.int64)
        self._broken: Int64Array = np.zeros(shape, dtype=np.int64)
        self.num_answered = 0
        for entry in log.entries if log else []:
            self._take(entry)

    @property
    def num_broken(self) -> int:
        return int(self._broken.sum())

    @property
    def num_finished(self) -> int:
        return int((self._left == 0).sum())

    async def measure(self) -> None:
        """Ask for all that is not finished, several batches at once, across kinds and severities."""
        self._report()
        todo = list(self._batches())
        if not todo:
            return
        with Corrupters(self._config.num_processes) as corrupters:
            batches, in_flight = iter(todo), asyncio.Semaphore(self._config.concurrency)
            num_workers = self._config.concurrency + corrupters.num_processes
            await gather_or_cancel(self._work(batches, corrupters, in_flight) for _ in range(num_workers))

    def _batches(self) -> Iterator[tuple[int, int, slice]]:
        size = self._config.batch_size
        for row, column in np.argwhere(self._left > 0).tolist():
            for start in range(0, len(self._indices), size):
                yield row, column, slice(start, start + size)

    async def _work(
        self, batches: Iterator[tuple[int, int, slice]], corrupters: Corrupters, in_flight: asyncio.Semaphore
    ) -> None:
        for row, column, part in batches:
            indices = self._indices[part]
            batch = Batch(
                images=np.array(self._images[indices]),
                indices=indices,
                kind=self._config.kinds[row],
                severity=self._config.severities[column],
                seed=self._config.seed,
            )
            corrupted = await corrupters.corrupt(batch)
            async with in_flight:
                answers = await ask(self._infer, corrupted, self._labels[indices])
            self._judge(row, column, part, answers)

    def _judge(self, row: int, column: int, part: slice, answers: Answers) -> None:
        self.correct[row, column, part] = answers.classes == self._labels[self._indices[part]]
        self._broken[row, column] += np.count_nonzero(answers.kinds != "")
        self._left[row, column] -= len(answers.classes)
        self.num_answered += len(answers.classes)
        if self._log and self._left[row, column] == 0:
            self._log.append(
                {
                    "kind": self._config.kinds[row],
                    "severity": self._config.severities[column],
                    "wrong": np.flatnonzero(~self.correct[row, column]).tolist(),
                    "broken": int(self._broken[row, column]),
                }
            )
        self._report()

    def _take(self, entry: dict[str, Any]) -> None:
        """Takes over what an earlier run has finished, if it is of this one's kinds and severities."""
        kinds, severities = self._config.kinds, self._config.severities
        if entry["kind"] in kinds and entry["severity"] in severities:
            place = kinds.index(entry["kind"]), severities.index(entry["severity"])
            self.correct[place] = True
            self.correct[place][entry["wrong"]] = False
            self._broken[place], self._left[place] = entry["broken"], 0

    def _report(self) -> None:
        if self._progress:
            self._progress(self.correct.size - int(self._left.sum()), self.correct.size)
