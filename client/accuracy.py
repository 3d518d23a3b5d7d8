"""Accuracy of a served model: its answers to uint8 images against their labels."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.errors import NonFiniteOutput, ServerError
from temper.client.retry import RetryPolicy, open_model
from temper.client.scores import (
    Float32Array,
    Infer,
    Int64Array,
    Progress,
    UInt8Array,
    ask,
    check_labels,
    top_probability,
)
from temper.client.stats import BoolArray, Proportion, proportion, proportion_per_class


@dataclass(frozen=True, kw_only=True)
class AccuracyResult:
    """Share of images that the endpoint classifies right, with its Wilson 95 % interval."""

    value: float
    """share of images answered right, 0 to 1"""
    low: float
    """lower end of the 95 % interval"""
    high: float
    """upper end of the 95 % interval"""
    num_images: int
    """images evaluated"""
    per_class: dict[int, Proportion]
    """the same figures by class index, for the classes that occur"""
    correct: BoolArray
    """bool [num_images], in the order of the images; compare two variants with `stats.compare_paired`"""
    answers: Int64Array
    """int64 [num_images], the class answered; -1 where the answer was no score"""
    confidence: Float32Array | None = None
    """float32 [num_images], the probability of that class, NaN where the answer was no score; None of an endpoint
    that answers the class alone"""

    errors: dict[str, int] = field(default_factory=dict)
    """images whose answer was no score, by kind ("nonfinite_output", "short_output", "server_error"); each counts
    as wrong"""
    retries: dict[str, int] = field(default_factory=dict)
    """requests that were sent again, by the kind of error that made it necessary"""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object, without the vectors."""
        return {
            "errors": self.errors,
            "retries": self.retries,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "num_images": self.num_images,
            "per_class": {str(label): dict(figures) for label, figures in self.per_class.items()},
        }


def evaluate_accuracy(
    url: str,
    model: str,
    images: UInt8Array,
    labels: npt.ArrayLike,
    batch_size: int = 32,
    progress: Progress | None = None,
    *,
    concurrency: int = 4,
    version: str = "",
    timeout_s: float = 30.0,
    retry: RetryPolicy | None = None,
) -> AccuracyResult:
    """Measure the accuracy of a model through its endpoint.

    Memory stays flat: pass a memory map and only the batches in flight are read. Not for use inside a running
    event loop; `evaluate` is.

    Args:
        url: host and port of the gRPC endpoint.
        model: name of the served model.
        images: uint8 [N, H, W, 3].
        labels: integer [N], the class of each image.
        batch_size: images per request.
        progress: called with (images answered, images in all).
        concurrency: requests in flight.
        version: version of the model; "" is the newest one, and all answers are its.
        timeout_s: deadline of one request in seconds.
        retry: how requests that failed are sent again; `RetryPolicy()` when not given.

    Raises:
        ValueError: images, labels, batch_size or concurrency are not as described.
        ClientError: the server failed, or not one of its answers was a score.
    """
    checked = check_labels(images, labels)

    async def run() -> AccuracyResult:
        async with open_model(url, model, version=version, timeout_s=timeout_s, retry=retry) as (_, infer):
            result = await evaluate(
                infer,
                images,
                checked,
                batch_size=batch_size,
                concurrency=concurrency,
                progress=progress,
            )
            return replace(result, retries=dict(infer.retries))

    return asyncio.run(run())


def read_scores(
    url: str, model: str, images: UInt8Array, *, version: str = "", timeout_s: float = 30.0
) -> tuple[Float32Array, dict[str, int]]:
    """Ask a model for its scores, one request at a time. Not for use inside a running event loop.

    Args:
        url: host and port of the gRPC endpoint.
        model: name of the served model.
        images: uint8 [N, H, W, 3].
        version: version of the model; "" is the newest one, and all answers are its.
        timeout_s: deadline of one request in seconds.

    Returns:
        float32 [N, classes], with NaN and infinities where those were answered, and how many requests were sent
        again, by the kind of error that made it necessary.

    Raises:
        ClientError: the server failed.
    """

    async def run() -> tuple[Float32Array, dict[str, int]]:
        async with open_model(url, model, version=version, timeout_s=timeout_s, retry=None) as (_, infer):
            return await infer(images), dict(infer.retries)

    return asyncio.run(run())


async def evaluate(
    infer: Infer,
    images: UInt8Array,
    labels: npt.ArrayLike,
    *,
    indices: Int64Array | None = None,
    batch_size: int = 32,
    concurrency: int = 4,
    progress: Progress | None = None,
) -> AccuracyResult:
    """Measure the accuracy of any endpoint behind the `Infer` seam; see `evaluate_accuracy`.

    Args:
        infer: the endpoint.
        images: uint8 [N, H, W, 3].
        labels: integer [N], the class of each image.
        indices: which images to evaluate, ascending; all when not given.
        batch_size: images per request.
        concurrency: requests in flight.
        progress: called with (images answered, images in all).
    """
    all_labels = check_labels(images, labels)
    chosen = np.arange(len(images)) if indices is None else indices
    if batch_size < 1 or concurrency < 1:
        raise ValueError(f"batch_size, concurrency: got {batch_size}, {concurrency}, expected at least 1")
    wanted = all_labels[chosen]
    answers: Int64Array = np.full(len(chosen), -1, dtype=np.int64)
    confidence: Float32Array | None = np.full(len(chosen), np.nan, dtype=np.float32)
    errors: Counter[str] = Counter()
    starts = iter(range(0, len(chosen), batch_size))
    num_done = 0

    async def worker(todo: Iterator[int]) -> None:
        nonlocal num_done, confidence
        for start in todo:
            part = slice(start, start + batch_size)
            found = await ask(infer, np.array(images[chosen[part]]), wanted[part])
            answers[part] = found.classes
            if found.scores is None:
                confidence = None
            elif confidence is not None:
                confidence[part] = top_probability(found.scores)
            errors.update(found.kinds[found.kinds != ""].tolist())
            num_done += len(found.classes)
            if progress:
                progress(num_done, len(chosen))

    await gather_or_cancel(worker(starts) for _ in range(concurrency))
    correct = answers == wanted
    if errors[NonFiniteOutput.kind] == len(chosen):
        raise NonFiniteOutput(
            f"not one answer to {len(chosen)} images is free of NaN and infinities; check the engine of this model"
        )
    if errors.total() == len(chosen):
        kinds = ", ".join(f"{count} {kind}" for kind, count in errors.items())
        raise ServerError(f"not one answer to {len(chosen)} images is a score ({kinds}); check this model")
    return AccuracyResult(
        **proportion(correct),
        per_class=proportion_per_class(correct, wanted),
        correct=correct,
        answers=answers,
        confidence=confidence,
        errors=dict(errors),
    )


async def gather_or_cancel(coroutines: Iterator[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines together; when one fails, end the others before its error goes on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
