"""Two versions of a served model answer the same images: how often they disagree, and on which most."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from temper.client.accuracy import gather_or_cancel
from temper.client.errors import InvalidRequest, ServerError
from temper.client.images import softmax
from temper.client.retry import RetryPolicy, open_model
from temper.client.scores import Answers, Float32Array, Infer, Int64Array, Progress, UInt8Array, ask, finite_rows
from temper.client.stats import BoolArray, PairedComparison, Proportion, compare_paired, proportion

Read = Callable[[int, int], tuple[UInt8Array, Int64Array]]
"""Called with (first, last + 1) in another thread: uint8 [k, H, W, 3] and which images these are, int64 [k]; fewer
than were asked for where some cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One image that the two versions give other classes; every pair is (first version, second version)."""

    index: int
    """of the image, in the order that they came"""
    classes: tuple[int, int]
    """the classes answered; -1 where the answer was no score"""
    confidences: tuple[float | None, float | None]
    """the probability of the class answered, 0 to 1; None where there is none"""
    difference: float
    """total variation between the two answers' probabilities, 0 to 1; 1 where one of them has none"""


@dataclass(frozen=True, kw_only=True)
class ShadowResult:
    """What two versions answered to the same images; every pair is (first version, second version)."""

    disagreement: Proportion
    """share of the images that the two give other classes"""
    accuracy: tuple[Proportion, Proportion] | None
    """of each; None without labels"""
    difference: PairedComparison | None
    """of the accuracies, second minus first; None without labels"""
    errors: tuple[dict[str, int], dict[str, int]]
    """images whose answer was no score, by kind; each counts as wrong"""
    kept: tuple[Disagreement, ...]
    """the disagreements with the largest difference, largest first, at most as many as were asked for"""
    retries: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))
    """requests that were sent again, by the kind of error that made it necessary"""


def compare_versions(
    urls: tuple[str, str],
    model: str,
    versions: tuple[str, str],
    read: Read,
    num_images: int,
    *,
    labels: Int64Array | None = None,
    keep: int = 200,
    batch_size: int = 32,
    concurrency: int = 4,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
    retry: RetryPolicy | None = None,
) -> ShadowResult:
    """Send the same images to two versions of a model. Not for use inside a running event loop.

    Memory stays flat: only the batches in flight are read, and of the answers the classes are kept.

    Args:
        urls: host and port of the gRPC endpoint of each version; the same twice, of a server with both.
        model: name of the served model.
        versions: the two.
        read: gives the images.
        num_images: how many there are, at least one that can be read.
        labels: integers [num_images], the class of each image.
        keep: disagreements to keep, at most.
        batch_size: images per request.
        concurrency: batches in flight.
        progress: called with (images answered by both, images in all).
        timeout_s: deadline of one request in seconds.
        retry: how requests that failed are sent again; `RetryPolicy()` when not given.

    Raises:
        InvalidRequest: the two have other numbers of classes.
        ValueError: no image can be read, or a label is no class.
        ClientError: the server failed, or not one answer of a version was a score.
    """

    async def run() -> ShadowResult:
        one, two = (
            open_model(url, model, version=each, timeout_s=timeout_s, retry=retry)
            for url, each in zip(urls, versions, strict=True)
        )
        async with one as (_, first), two as (_, second):
            result = await compare(
                (first, second),
                read,
                num_images,
                names=(f"model {model} version {versions[0]}", f"model {model} version {versions[1]}"),
                labels=labels,
                keep=keep,
                batch_size=batch_size,
                concurrency=concurrency,
                progress=progress,
            )
            return replace(result, retries=(dict(first.retries), dict(second.retries)))

    return asyncio.run(run())


async def compare(
    infers: tuple[Infer, Infer],
    read: Read,
    num_images: int,
    *,
    names: tuple[str, str] = ("the first", "the second"),
    labels: Int64Array | None = None,
    keep: int = 200,
    batch_size: int = 32,
    concurrency: int = 4,
    progress: Progress | None = None,
) -> ShadowResult:
    """Compare any two endpoints behind the `Infer` seam; see `compare_versions`.

    Args:
        infers: the endpoints.
        read: gives the images.
        num_images: how many there are.
        names: what errors call the endpoints.
        labels: integers [num_images], the class of each image.
        keep: disagreements to keep, at most.
        batch_size: images per request.
        concurrency: batches in flight.
        progress: called with (images answered by both, images in all).
    """
    both = _Comparison(infers, names, read, num_images, labels, keep)
    starts = iter(range(0, num_images, batch_size))
    await gather_or_cancel(both.work(starts, batch_size, progress) for _ in range(concurrency))
    return both.result()


class _Comparison:
    """What is known so far of two endpoints."""

    def __init__(
        self,
        infers: tuple[Infer, Infer],
        names: tuple[str, str],
        read: Read,
        num_images: int,
        labels: Int64Array | None,
        keep: int,
    ) -> None:
        self.infers, self.names, self.read, self.labels, self.keep = infers, names, read, labels, keep
        self.classes: npt.NDArray[np.int32] = np.full((2, num_images), -1, dtype=np.int32)
        self.is_read: BoolArray = np.zeros(num_images, dtype=np.bool_)
        self.errors: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        self.heap: list[tuple[float, int, Disagreement]] = []
        self.num_done = 0

    async def work(self, starts: Iterator[int], batch_size: int, progress: Progress | None) -> None:
        """Asks both about batches until there is none left."""
        for start in starts:
            end = min(start + batch_size, len(self.is_read))
            images, rows = await asyncio.to_thread(self.read, start, end)
            if len(rows):
                labels = np.zeros_like(rows) if self.labels is None else self.labels[rows]
                first, second = [await ask(infer, images, labels) for infer in self.infers]
                self.add(rows, (first, second))
            self.num_done += end - start
            if progress:
                progress(self.num_done, len(self.is_read))

    def add(self, rows: Int64Array, answers: tuple[Answers, Answers]) -> None:
        """Takes what both answered to some images."""
        first, second = answers
        difference = self._difference(first.scores, second.scores, len(rows))
        sure = _confidences(first), _confidences(second)
        self.is_read[rows] = True
        for side, answer in enumerate(answers):
            self.classes[side, rows] = answer.classes
            self.errors[side].update(answer.kinds[answer.kinds != ""].tolist())
        for at in np.flatnonzero(first.classes != second.classes).tolist():
            index = int(rows[at])
            found = Disagreement(
                index=index,
                classes=(int(first.classes[at]), int(second.classes[at])),
                confidences=(sure[0][at], sure[1][at]),
                difference=difference[at],
            )
            heapq.heappush(self.heap, (found.difference, -index, found))
            if len(self.heap) > self.keep:
                heapq.heappop(self.heap)

    def _difference(self, first: Float32Array | None, second: Float32Array | None, num: int) -> list[float]:
        if first is None or second is None:
            return [1.0] * num
        if first.shape != second.shape:
            counts = [
                f"{name} answers {scores.shape[1]} classes"
                for name, scores in zip(self.names, (first, second), strict=True)
            ]
            raise InvalidRequest(f"{', '.join(counts)}, expected as many; they cannot be compared")
        apart = np.abs(_probabilities(first) - _probabilities(second)).sum(axis=1) / 2
        return [float(value) for value in np.where(np.isfinite(apart), apart, 1.0).clip(0, 1)]

    def result(self) -> ShadowResult:
        """Returns the figures.

        Raises:
            ValueError: No image could be read.
            ServerError: Not one answer of a version was a score.
        """
        num = int(self.is_read.sum())
        if num == 0:
            raise ValueError("not one of the images can be read")
        for name, errors in zip(self.names, self.errors, strict=True):
            if errors.total() == num:
                kinds = ", ".join(f"{count} {kind}" for kind, count in errors.items())
                raise ServerError(f"{name}: not one answer to {num} images is a score ({kinds}); check it")
        first, second = self.classes[:, self.is_read]
        right = None if self.labels is None else self.classes[:, self.is_read] == self.labels[self.is_read]
        return ShadowResult(
            disagreement=proportion(first != second),
            accuracy=None if right is None else (proportion(right[0]), proportion(right[1])),
            difference=None if right is None else compare_paired(right[0], right[1]),
            errors=(dict(self.errors[0]), dict(self.errors[1])),
            kept=tuple(found for *_, found in sorted(self.heap, reverse=True)),
        )


def _confidences(answers: Answers) -> list[float | None]:
    """The probability of each answer's class."""
    if answers.scores is None:
        return [None] * len(answers.classes)
    best = _probabilities(answers.scores).max(axis=1)
    return [float(value) if known else None for value, known in zip(best, answers.classes >= 0, strict=True)]


def _probabilities(scores: Float32Array) -> npt.NDArray[np.float64]:
    """Scores as probabilities, which those of an endpoint with softmax inside are already; NaN rows stay so."""
    known = finite_rows(scores)
    some = scores[known].astype(np.float64)
    are_shares = bool((some >= 0).all() and (np.abs(some.sum(axis=1) - 1) < 1e-3).all())
    made = np.full(scores.shape, np.nan)
    made[known] = some if are_shares else softmax(some)
    return made
