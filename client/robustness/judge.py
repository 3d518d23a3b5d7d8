"""The judge: what is sent, what it costs and whether it fooled the endpoint is decided here, not by the attack."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.robustness.base import AttackConfig
from temper.client.robustness.checkpoint import Checkpoint, pack_image, unpack_image
from temper.client.robustness.draws import image_keys
from temper.client.robustness.result import Example
from temper.client.scores import Float32Array, Int64Array, Progress, UInt8Array, finite_rows
from temper.client.stats import BoolArray


class Judge:
    """Counts queries and judges answers for the images of a data set.

    Attributes:
        fooled_at: int64 [N], the query that fooled each image, counted from 1; 0 where none did.
        broken_at: int64 [N], the query whose answer was no score (NaN or an infinity); 0 where all were. Such an
            image is neither fooled nor robust.
        queries: int64 [N], queries spent on each image.
        finished: bool [N], fooled, broken or out of queries.
        num_queries: queries judged in this run.
    """

    def __init__(
        self,
        config: AttackConfig,
        images: UInt8Array,
        labels: Int64Array,
        todo: Int64Array,
        *,
        gallery: int,
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Prepare to judge the images `todo` (indices); outcomes found in the checkpoint are taken over."""
        self.config, self.images, self.labels = config, images, labels
        self.fooled_at: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.broken_at: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.queries: Int64Array = np.zeros(len(images), dtype=np.int64)
        self.finished: BoolArray = np.zeros(len(images), dtype=np.bool_)
        self.num_queries = 0
        self._checkpoint, self._progress = checkpoint, progress
        self._spent, self._budget = 0, len(todo) * config.max_queries
        self._gallery_size = gallery
        # A heap of (minus rank, index): its first is the one to drop. Only these images are kept.
        self._gallery: list[tuple[int, int]] = []
        self._examples: dict[int, Example] = {}
        for entry in checkpoint.entries if checkpoint else []:
            self._restore(entry)

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
        new = lost & (self.fooled_at[indices] == 0) & (self.broken_at[indices] == 0)
        for row in np.flatnonzero(new).tolist():
            index = int(indices[row])
            if broken[row]:
                self.broken_at[index] = self.queries[index]
            else:
                self.fooled_at[index] = self.queries[index]
                self._show(index, sent[row], int(answered[row]))
        return lost

    def finish(self, indices: Int64Array) -> None:
        """Note that the attack on these images is over."""
        for index in indices.tolist():
            self.finished[index] = True
            self._spent += max(0, self.config.max_queries - int(self.queries[index]))
            if self._checkpoint:
                self._checkpoint.append(self._entry(index))

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
        self._spent += self.config.max_queries
        if "adversarial" in entry:
            sent = unpack_image(entry["adversarial"], self.images.shape[1:])
            self._show(index, sent, int(entry["served_label"]))


def to_pixels(proposals: npt.NDArray[Any], lows: list[UInt8Array], highs: list[UInt8Array]) -> UInt8Array:
    """Round proposals to the grid and clip them into their budgets.

    Args:
        proposals: [n, H, W, 3] of any number type, in units of uint8; overwritten when it is uint8.
        lows: n arrays uint8 [H, W, 3], the least value of each pixel.
        highs: the greatest.

    Returns:
        uint8 [n, H, W, 3], what may be sent.
    """
    if proposals.dtype == np.uint8:
        pixels: UInt8Array = proposals
        # Image by image, because one image fits the cache and a whole batch does not.
        for image, low, high in zip(pixels, lows, highs, strict=True):
            np.maximum(image, low, out=image)
            np.minimum(image, high, out=image)
        return pixels
    pixels = np.empty(proposals.shape, dtype=np.uint8)
    whole = np.issubdtype(proposals.dtype, np.integer)
    for image, proposal, low, high in zip(pixels, proposals, lows, highs, strict=True):
        image[:] = np.clip(proposal if whole else np.rint(proposal), low, high)
    return pixels
