"""The judge: what is sent, what it costs and whether it fooled the endpoint is decided here, not by the attack."""

from __future__ import annotations

import asyncio
import heapq
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.errors import ClientError
from temper.client.robustness.balls import Float64Array, to_pixels
from temper.client.robustness.base import AttackConfig, AttackKind, Network, margin
from temper.client.robustness.checkpoint import Checkpoint, pack_image, unpack_image
from temper.client.robustness.draws import image_keys
from temper.client.robustness.result import Example
from temper.client.scores import Answers, Infer, Int64Array, Progress, UInt8Array, ask
from temper.client.stats import BoolArray


class Judge:
    """Counts queries and judges answers for the images of a data set; it is an attack's `Harness`.

    Attributes:
        ball: what proposals are pulled into.
        lost_at: int64 [N], the query that each image was lost at, counted from 1; 0 where there is none.
        broken: [N], why the answer to that query was none, by the kind of error; "" where it was one. Such an
            image is neither fooled nor robust.
        taken_for: int64 [N], the class that a fooled image was taken for; -1 where it was not fooled.
        reference_queries: int64 [N], how often the reference was asked for each image, where there is one.
        distances: float64 [N], how near the nearest image was that was sent and misclassified, in the norm of the
            budget and units of 1/255; infinite where there is none.
        queries: int64 [N], queries spent on each image.
        stuck: int64 [N], how many of them left the attack nothing to follow: scores that were those of the image's
            query before, or a gradient that was zero.
        finished: bool [N], lost or out of queries.
        num_queries: queries judged in this run.
    """

    def __init__(
        self,
        config: AttackConfig,
        kind: AttackKind,
        infer: Infer,
        images: UInt8Array,
        labels: Int64Array,
        todo: Int64Array,
        *,
        gallery: int,
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
        surrogates: Mapping[str, Sequence[Network]] | None = None,
        reference: Infer | None = None,
        expectation: int = 1,
    ) -> None:
        """Prepare to judge the images `todo` (indices); outcomes found in the checkpoint are taken over.

        With a `reference` only what it gets right can fool.
        Every answer of `infer` is one query here, also where it is the mean of `expectation` of them.
        """
        self.config, self.images, self.labels = config, images, labels
        self.ball = kind.pull_into(config)
        self.lost_at: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.broken: npt.NDArray[np.str_] = np.full(len(images), "", dtype="U32")
        self.taken_for: Int64Array = np.full(len(images), -1, dtype=np.int64)
        self.distances: Float64Array = np.full(len(images), np.inf)
        self.queries: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.stuck: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.surrogates = surrogates or {}
        self.reference_queries: Int64Array = np.zeros(len(images), dtype=np.int64)
        self._reference = reference
        self.expectation = expectation
        self.finished: BoolArray = np.zeros(len(images), dtype=np.bool_)
        self.num_queries = 0
        self._kind, self._infer, self._budget_ball = kind, infer, config.ball
        # Of each image's query before: NaN is equal to nothing, itself included.
        self._margin: npt.NDArray[np.float32] = np.full(len(images), np.nan, dtype=np.float32)
        self._print: npt.NDArray[np.uint32] = np.zeros(len(images), dtype=np.uint32)
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
        numbers = self.count(indices)
        if (numbers > self.config.max_queries).any():
            raise ClientError(
                f"{self.config.name} asked for an image more than max_queries ({self.config.max_queries}) times; "
                "mend the attack"
            )
        originals: UInt8Array = np.array(self.images[indices])
        low, high = np.empty_like(originals), np.empty_like(originals)
        self.ball.write_bounds(originals, low, high)
        sent = to_pixels(self.ball, proposals, list(originals), list(low), list(high))
        size = self.config.batch_size
        parts = [slice(start, start + size) for start in range(0, len(indices), size)]
        found = await asyncio.gather(*(self._ask_once(indices[part], sent[part], numbers[part]) for part in parts))
        self.report_progress()
        return self.shown(Answers.join(found))

    async def _ask_once(self, indices: Int64Array, sent: UInt8Array, numbers: Int64Array) -> Answers:
        async with self._free:
            answers = await self.send(indices, sent)
        self.answer(indices, sent, answers, numbers)
        return answers

    async def send(self, indices: Int64Array, sent: UInt8Array) -> Answers:
        """Send uint8 [n, H, W, 3] as they are, for these images."""
        answers = await ask(self._infer, sent, self.labels[indices])
        return answers if self._reference is None else await self._compare(self._reference, indices, sent, answers)

    async def _compare(self, reference: Infer, indices: Int64Array, sent: UInt8Array, answers: Answers) -> Answers:
        """Ask the reference for what was misjudged; an answer of it that is none is not right either."""
        shared: BoolArray = np.zeros(len(indices), dtype=np.bool_)
        wrong = np.flatnonzero((answers.classes != self.labels[indices]) & (answers.kinds == ""))
        if wrong.size:
            np.add.at(self.reference_queries, indices[wrong], 1)  # an image may be among them twice
            theirs = await ask(reference, sent[wrong], self.labels[indices[wrong]])
            shared[wrong] = theirs.classes != self.labels[indices[wrong]]
        return replace(answers, shared=shared)

    def shown(self, answers: Answers) -> npt.NDArray[Any] | None:
        """Return what the attack sees of these answers; see `Harness.ask`."""
        if self._kind.sees == "scores":
            return answers.scores
        return None if self._kind.sees == "nothing" else answers.classes

    async def count_classes(self) -> int | None:
        """Return the number of the model's classes, by a question that counts as no query; see `Harness`."""
        answer = await self._infer(np.array(self.images[:1]))
        return int(answer.shape[1]) if answer.ndim == 2 else None

    def count(self, indices: Int64Array) -> Int64Array:
        """Count one query for each of int64 [n], and return which of its image it is, from 1."""
        numbers = np.empty_like(indices)
        for row, index in enumerate(indices.tolist()):
            self.queries[index] += 1
            numbers[row] = self.queries[index]
        return numbers

    def answer(
        self, indices: Int64Array, sent: UInt8Array | list[UInt8Array], answers: Answers, numbers: Int64Array
    ) -> BoolArray:
        """Judge answers.

        Args:
            indices: int64 [n], the images.
            sent: n images uint8 [H, W, 3], exactly what was sent.
            answers: what came back.
            numbers: int64 [n], which query of its image each was, from 1. In whatever order they come, an
                image is lost at the first that loses it.

        Returns:
            bool [n], True where the image is lost: what is in the budget is misclassified, and not by the
            reference too, or the answer is none.
        """
        self.num_queries += len(indices)
        self._spent += len(indices)
        if self._kind.sees == "scores" and answers.scores is not None:
            found = margin(answers.scores, self.labels[indices])
            prints = np.array([zlib.crc32(image.tobytes()) for image in sent], dtype=np.uint32)
            # The same image again has the same scores, as it must.
            same = (found == self._margin[indices]) & (prints != self._print[indices])
            self.note_stuck(indices[same])
            self._margin[indices], self._print[indices] = found, prints
        lost: BoolArray = answers.classes != self.labels[indices]
        if answers.shared is not None:
            lost &= ~answers.shared
        for row in np.flatnonzero(lost).tolist():
            index, kind = int(indices[row]), str(answers.kinds[row])
            original = self.images[index]
            if kind:  # whatever is answered to what lies outside the budget
                lost[row] = not self._kind.minimises or self._budget_ball.holds(sent[row], original)
            else:
                distance, ball = self._budget_ball.distance(sent[row], original), self._budget_ball
                self.distances[index] = min(self.distances[index], distance)
                # Exactly only where it is near: most of what an attack that `minimises` sends is far away.
                lost[row] = distance < ball.epsilon + 1 and ball.holds(sent[row], original)
            if lost[row] and not 0 < self.lost_at[index] < numbers[row]:
                self.lost_at[index], self.broken[index] = numbers[row], kind
                self.taken_for[index] = answers.classes[row]
                self._show(index, sent[row], int(answers.classes[row]))
        return lost

    def note_stuck(self, indices: Int64Array) -> None:
        """Note that a query on each of these images left the attack nothing to follow."""
        np.add.at(self.stuck, indices, 1)  # an image may be among them twice

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
        """Keep the example when its random rank is among the lowest, whatever the order of the answers.

        What is lost to an answer that is none is no example; that of an earlier query replaces one of a later.
        """
        self._examples.pop(index, None)
        self._gallery = [entry for entry in self._gallery if entry[1] != index]
        heapq.heapify(self._gallery)
        if self.broken[index]:
            return
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
            num_queries=int(self.lost_at[index]),
        )
        if len(self._gallery) > self._gallery_size:
            del self._examples[heapq.heappop(self._gallery)[1]]

    def _entry(self, index: int) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "index": index,
            "survived": not self.lost_at[index],
            "queries": int(self.queries[index]),
            "lost_at": int(self.lost_at[index]),
            "broken": str(self.broken[index]),
            "taken_for": int(self.taken_for[index]),
            "reference_queries": int(self.reference_queries[index]),
            "distance": float(self.distances[index]) if np.isfinite(self.distances[index]) else None,
            "stuck": int(self.stuck[index]),
        }
        if index in self._examples:
            example = self._examples[index]
            entry["adversarial"] = pack_image(example.adversarial)
        return entry

    def _restore(self, entry: dict[str, Any]) -> None:
        index = int(entry["index"])
        self.finished[index] = True
        self.queries[index] = entry["queries"]
        self.lost_at[index], self.broken[index] = entry["lost_at"], entry["broken"]
        self.taken_for[index], self.reference_queries[index] = entry["taken_for"], entry["reference_queries"]
        if entry["distance"] is not None:
            self.distances[index] = entry["distance"]
        self.stuck[index] = entry["stuck"]
        self._spent += self.config.max_queries
        if "adversarial" in entry:
            sent = unpack_image(entry["adversarial"], self.images.shape[1:])
            self._show(index, sent, int(self.taken_for[index]))
