"""The judge: what is sent, what it costs and whether it fooled the endpoint is decided here, not by the attack."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.errors import ClientError
from temper.client.robustness.balls import to_pixels
from temper.client.robustness.base import AttackConfig, Sees, margin
from temper.client.robustness.checkpoint import Checkpoint, pack_image, unpack_image
from temper.client.robustness.draws import image_keys
from temper.client.robustness.result import Example
from temper.client.scores import (
    Float32Array,
    Infer,
    Int64Array,
    Progress,
    UInt8Array,
    check_scores,
    finite_rows,
)
from temper.client.stats import BoolArray


class Judge:
    """Counts queries and judges answers for the images of a data set; it is an attack's `Harness`.

    Attributes:
        infer: the endpoint.
        fooled_at: int64 [N], the query that fooled each image, counted from 1; 0 where none did.
        broken_at: int64 [N], the query whose answer was no score (NaN or an infinity); 0 where all were. Such an
            image is neither fooled nor robust.
        queries: int64 [N], queries spent on each image.
        stuck: int64 [N], how many of them left the attack nothing to follow: scores that were those of the image's
            query before, or a gradient that was zero.
        finished: bool [N], fooled, broken or out of queries.
        num_queries: queries judged in this run.
    """

    def __init__(
        self,
        config: AttackConfig,
        sees: Sees,
        infer: Infer,
        images: UInt8Array,
        labels: Int64Array,
        todo: Int64Array,
        *,
        gallery: int,
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
        surrogates: Mapping[str, Sequence[Path]] | None = None,
    ) -> None:
        """Prepare to judge the images `todo` (indices); outcomes found in the checkpoint are taken over."""
        self.config, self.infer, self.images, self.labels = config, infer, images, labels
        self.fooled_at: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.broken_at: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.queries: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.stuck: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.surrogates = surrogates or {}
        self.finished: BoolArray = np.zeros(len(images), dtype=np.bool_)
        self.num_queries = 0
        self._sees = sees
        # NaN is equal to nothing, itself included.
        self._margin: Float32Array = np.full(len(images), np.nan, dtype=np.float32)
        self._free = asyncio.Semaphore(config.concurrency)
        self._checkpoint, self._progress = checkpoint, progress
        self._spent, self._budget = 0, len(todo) * config.max_queries
        self._gallery_size = gallery
        # A heap of (minus rank, index): its first is the one to drop. Only these images are kept.
        self._gallery: list[tuple[int, int]] = []
        self._examples: dict[int, Example] = {}
        for entry in checkpoint.entries if checkpoint else []:
            self._restore(entry)

    async def ask(self, indices: Int64Array, proposals: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """Send proposals for these images, judge the answers and return what the attack sees of them."""
        if (self.queries[indices] >= self.config.max_queries).any():
            raise ClientError(
                f"{self.config.name} asked for an image more than max_queries ({self.config.max_queries}) times; "
                "mend the attack"
            )
        originals: UInt8Array = np.array(self.images[indices])
        low, high = np.empty_like(originals), np.empty_like(originals)
        ball = self.config.ball
        ball.write_bounds(originals, low, high)
        sent = to_pixels(ball, proposals, list(originals), list(low), list(high))
        size = self.config.batch_size
        parts = [slice(start, start + size) for start in range(0, len(indices), size)]
        scores = np.concatenate(
            await asyncio.gather(*(self._ask_once(indices[part], sent[part]) for part in parts))
        )
        self.report_progress()
        return self.shown(scores)

    async def _ask_once(self, indices: Int64Array, sent: UInt8Array) -> Float32Array:
        async with self._free:
            scores = check_scores(await self.infer(sent), self.labels[indices])
        self.answer(indices, sent, scores)
        return scores

    def shown(self, scores: Float32Array) -> npt.NDArray[Any] | None:
        """Return what the attack sees of these scores; see `Harness.ask`."""
        broken = ~finite_rows(scores)
        if self._sees == "scores":
            return np.where(broken[:, None], np.float32(np.nan), scores)
        return None if self._sees == "nothing" else np.where(broken, -1, scores.argmax(axis=1))

    async def count_classes(self) -> int:
        """Return the number of the model's classes, by a question that counts as no query."""
        return (await self.infer(np.array(self.images[:1]))).shape[1]

    def answer(self, indices: Int64Array, sent: UInt8Array | list[UInt8Array], scores: Float32Array) -> BoolArray:
        """Judge answers.

        Args:
            indices: int64 [n], each image at most once.
            sent: n images uint8 [H, W, 3], exactly what was sent.
            scores: float32 [n, classes], what came back.

        Returns:
            bool [n], True where the image is lost: the answer is another class, or is no score at all.
        """
        broken = ~finite_rows(scores)
        answered = scores.argmax(axis=1)
        lost: BoolArray = broken | (answered != self.labels[indices])
        self.queries[indices] += 1
        self.num_queries += len(indices)
        self._spent += len(indices)
        if self._sees == "scores":
            found = margin(np.where(broken[:, None], np.float32(np.nan), scores), self.labels[indices])
            self.note_stuck(indices[found == self._margin[indices]])
            self._margin[indices] = found
        new = lost & (self.fooled_at[indices] == 0) & (self.broken_at[indices] == 0)
        for row in np.flatnonzero(new).tolist():
            index = int(indices[row])
            if broken[row]:
                self.broken_at[index] = self.queries[index]
            else:
                self.fooled_at[index] = self.queries[index]
                self._show(index, sent[row], int(answered[row]))
        return lost

    def note_stuck(self, indices: Int64Array) -> None:
        """Note that a query on each of these images left the attack nothing to follow."""
        self.stuck[indices] += 1

    def finish(self, indices: Int64Array) -> None:
        """Note that the attack on these images is over."""
        for index in indices.tolist():
            self.finished[index] = True
            self._spent += max(0, self.config.max_queries - int(self.queries[index]))
            if self._checkpoint:
                self._checkpoint.append(self._entry(index))
        self.report_progress()

    def report_progress(self) -> None:
        """Tell how much of the query budget of all images is spent; a fooled image gives back its rest at once."""
        if self._progress:
            self._progress(min(self._spent, self._budget), self._budget)

    @property
    def gallery(self) -> list[Example]:
        """Examples kept so far, by index."""
        return [self._examples[index] for index in sorted(self._examples)]

    def _show(self, index: int, sent: UInt8Array, served_label: int) -> None:
        """Keep the example when its random rank is among the lowest, whatever the order of the answers."""
        rank = int(image_keys(self.config.seed + 1, np.array([index]))[0])
        if len(self._gallery) >= self._gallery_size and (not self._gallery or (-rank, index) < self._gallery[0]):
            return
        heapq.heappush(self._gallery, (-rank, index))
        self._examples[index] = Example(
            index=index,
            original=np.array(self.images[index]),
            adversarial=sent.copy(),
            label=int(self.labels[index]),
            served_label=served_label,
            num_queries=int(self.fooled_at[index]),
        )
        if len(self._gallery) > self._gallery_size:
            del self._examples[heapq.heappop(self._gallery)[1]]

    def _entry(self, index: int) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "index": index,
            "survived": not (self.fooled_at[index] or self.broken_at[index]),
            "queries": int(self.queries[index]),
            "fooled_at": int(self.fooled_at[index]),
            "broken_at": int(self.broken_at[index]),
            "stuck": int(self.stuck[index]),
        }
        if index in self._examples:
            example = self._examples[index]
            entry |= {"served_label": example.served_label, "adversarial": pack_image(example.adversarial)}
        return entry

    def _restore(self, entry: dict[str, Any]) -> None:
        index = int(entry["index"])
        self.finished[index] = True
        self.queries[index] = entry["queries"]
        self.fooled_at[index], self.broken_at[index] = entry["fooled_at"], entry["broken_at"]
        self.stuck[index] = entry["stuck"]
        self._spent += self.config.max_queries
        if "adversarial" in entry:
            sent = unpack_image(entry["adversarial"], self.images.shape[1:])
            self._show(index, sent, int(entry["served_label"]))
