"""The reference: adversarial-robustness-toolbox's Square Attack, its queries going through our judge.

ART attacks a block of images together, draws one square for all of them, and asks again for what it already knows.
Every image it sends is counted. Its blocks are of one size whatever the batch size, so its results are too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.errors import ClientError
from temper.client.robustness.base import ART_QUERIES_PER_STEP, AttackConfig, write_bounds
from temper.client.robustness.judge import Judge, to_pixels
from temper.client.scores import Float32Array, Infer, Int64Array, UInt8Array, check_scores, finite_rows

_BLOCK_SIZE = 128


async def attack_with_art(infer: Infer, judge: Judge, todo: Int64Array) -> None:
    """Run ART's SquareAttack over the images `todo`; blocks that a checkpoint has finished are left out.

    ART draws from numpy's global generator: it is seeded for each block and put back afterwards, so nothing else
    should draw from it meanwhile.

    Raises:
        ClientError: ART is not installed.
    """
    num_steps = judge.config.max_queries // ART_QUERIES_PER_STEP - 1
    build = _load_art(judge.config, num_steps)
    num_classes = 0
    if todo.size:
        first = await infer(np.array(judge.images[todo[:1]]))
        num_classes = first.shape[1]
    for start in range(0, len(todo), _BLOCK_SIZE):
        rows = todo[start : start + _BLOCK_SIZE]
        if judge.finished[rows].all():
            continue
        block = _Block(infer, judge, rows, asyncio.get_running_loop())
        try:
            await asyncio.to_thread(block.generate, build, num_classes, start)
        finally:
            block.stopped.set()
        judge.finish(rows)
        judge.report_progress()


class _Block:
    """One block of images: ART's blocking calls on one side, the event loop on the other."""

    def __init__(self, infer: Infer, judge: Judge, rows: Int64Array, loop: asyncio.AbstractEventLoop) -> None:
        self._infer, self._judge, self._rows, self._loop = infer, judge, rows, loop
        self._originals: UInt8Array = np.array(judge.images[rows])
        self._low, self._high = np.empty_like(self._originals), np.empty_like(self._originals)
        write_bounds(self._originals, judge.config.budget, self._low, self._high)
        # Which images of the block ART's next batch holds: its batches carry no names.
        self._asked: Int64Array = np.arange(len(rows))
        self._free = asyncio.Semaphore(judge.config.concurrency)
        self.stopped = threading.Event()

    def generate(self, build: Callable[..., Any], num_classes: int, number: int) -> None:
        """Run ART on the block; called in a thread."""
        attack = build(self._predict, self._originals.shape[1:], num_classes)
        # ART asks for the whole block when it wants to know which images still hold, and for the losses of those
        # that do. Both go through these two hooks, which note the images before ART's own code asks.
        theirs_holds, theirs_loss = attack.adv_criterion, attack.loss
        holding: Int64Array = np.arange(len(self._rows))
        everyone = holding

        def adv_criterion(predicted: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
            nonlocal holding
            fooled: npt.NDArray[np.bool_] = theirs_holds(predicted, truth)
            holding = np.flatnonzero(~fooled)
            return fooled

        def loss(images: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[Any]:
            self._asked = holding
            try:
                found: npt.NDArray[Any] = theirs_loss(images, truth)
            finally:
                self._asked = everyone
            return found

        attack.adv_criterion, attack.loss = adv_criterion, loss
        with _seeded_numpy([self._judge.config.seed, number]):
            attack.generate(self._originals.astype(np.float32), self._judge.labels[self._rows])

    def _predict(self, images: npt.NDArray[np.float32]) -> Float32Array:
        if self.stopped.is_set():
            raise RuntimeError("the attack was stopped")
        return asyncio.run_coroutine_threadsafe(self._query(images), self._loop).result()

    async def _query(self, images: npt.NDArray[np.float32]) -> Float32Array:
        asked = self._asked
        if len(asked) != len(images):
            raise ClientError(
                f"art-square: ART asked for {len(images)} images where {len(asked)} were expected; "
                "use adversarial-robustness-toolbox 1.20"
            )
        sent = to_pixels(images, list(self._low[asked]), list(self._high[asked]))
        size = self._judge.config.batch_size
        parts = [slice(start, start + size) for start in range(0, len(asked), size)]
        answers = await asyncio.gather(*(self._ask(sent[part], self._rows[asked[part]]) for part in parts))
        self._judge.report_progress()
        return np.concatenate(answers)

    async def _ask(self, sent: UInt8Array, indices: Int64Array) -> Float32Array:
        async with self._free:
            scores = check_scores(await self._infer(sent), self._judge.labels[indices])
        self._judge.answer(indices, sent, scores)
        broken = ~finite_rows(scores)
        if not broken.any():
            return scores
        # ART is shown a wrong class where there is no score, so that it leaves the image alone.
        shown = np.where(broken[:, None], np.float32(0), scores)
        shown[broken, self._judge.labels[indices][broken]] = -1
        return shown


def _load_art(config: AttackConfig, num_steps: int) -> Callable[..., Any]:
    """Return what makes ART's attack for an endpoint; the only place that imports ART."""
    try:
        from art.attacks.evasion import SquareAttack  # type: ignore[import-untyped]  # ART ships no types
        from art.estimators.classification import (  # type: ignore[import-untyped]
            BlackBoxClassifierNeuralNetwork,
        )
    except ImportError as error:
        raise ClientError(
            f"art-square: adversarial-robustness-toolbox cannot be imported ({error}); "
            "install it with: pip install 'temper[art]'"
        ) from error

    def build(
        predict: Callable[[npt.NDArray[np.float32]], Float32Array],
        input_shape: tuple[int, ...],
        num_classes: int,
    ) -> Any:
        classifier = BlackBoxClassifierNeuralNetwork(
            predict, input_shape, num_classes, channels_first=False, clip_values=(0, 255)
        )
        return SquareAttack(
            classifier,
            norm=np.inf,
            eps=config.budget,
            max_iter=num_steps,
            p_init=config.p_init,
            batch_size=_BLOCK_SIZE,
            verbose=False,
        )

    return build


@contextmanager
def _seeded_numpy(seed: list[int]) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
