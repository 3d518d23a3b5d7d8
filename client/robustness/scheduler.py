"""Continuous batching: keep `concurrency` full requests in flight while images finish at different times."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

import numpy as np

from client.robustness.base import Attack, Slots
from client.robustness.judge import Judge, to_pixels
from client.scores import Float32Array, Infer, Int64Array, UInt8Array, check_scores

# What one request needs until it is settled: its slots and the images sent.
_Batch = tuple[Int64Array, UInt8Array]


class Scheduler:
    """Runs one attack over the images `todo` through an endpoint.

    There is one batch of slots more than requests in flight, and one request is always prepared: when an answer
    comes, the next request leaves first and our own work follows while the server computes. At the end, when no
    image waits, the rest is shared evenly among the requests.
    """

    def __init__(self, infer: Infer, attack: Attack, judge: Judge, todo: Int64Array) -> None:
        """Take over the attack's slots."""
        self._infer, self._attack, self._judge = infer, attack, judge
        self._slots = attack.slots
        self._config = judge.config
        self._waiting: Iterator[int] = iter(todo.tolist())
        self._ready: deque[int] = deque()
        self._num_active = 0
        self._in_flight: dict[asyncio.Task[Float32Array], _Batch] = {}

    async def run(self) -> None:
        """Attack all images; on an error the requests in flight are cancelled and the error goes on."""
        for slot in range(len(self._slots.label)):
            self._refill(slot)
        prepared = self._prepare()
        try:
            while prepared or self._in_flight:
                if prepared and len(self._in_flight) < self._config.concurrency:
                    await self._send(prepared)
                    prepared = self._prepare()
                    continue
                done, _ = await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    batch = self._in_flight.pop(task)
                    if prepared:
                        await self._send(prepared)
                        prepared = None
                    self._settle(batch, task.result())
                    prepared = prepared or self._prepare()
                self._judge.report_progress()
        finally:
            await self._cancel()

    def _refill(self, slot: int) -> None:
        index = next(self._waiting, None)
        if index is None:
            return
        judge = self._judge
        self._slots.fill(slot, index, judge.images[index], int(judge.labels[index]))
        self._ready.append(slot)
        self._num_active += 1

    def _prepare(self) -> _Batch | None:
        """Make the next request when enough slots are ready for it."""
        share = -(-self._num_active // self._config.concurrency)
        size = min(self._config.batch_size, share)
        if not size or len(self._ready) < size:
            return None
        slots = np.array([self._ready.popleft() for _ in range(size)], dtype=np.int64)
        lows = [self._slots.low[slot] for slot in slots.tolist()]
        highs = [self._slots.high[slot] for slot in slots.tolist()]
        return slots, to_pixels(self._attack.propose(slots), lows, highs)

    async def _send(self, batch: _Batch) -> None:
        task: asyncio.Task[Float32Array] = asyncio.ensure_future(self._ask(batch[1]))
        self._in_flight[task] = batch
        # grpc.aio hands a call to its core after a few turns of the loop; our work must not come between.
        for _ in range(3):
            await asyncio.sleep(0)

    async def _ask(self, sent: UInt8Array) -> Float32Array:
        return await self._infer(sent)

    def _settle(self, batch: _Batch, answer: Float32Array) -> None:
        slots, sent = batch
        state = self._slots
        scores = check_scores(answer, state.label[slots])
        fooled = self._judge.answer(state.index[slots], sent, scores)
        state.num_queries[slots] += 1
        over = fooled | (state.num_queries[slots] >= self._config.max_queries)
        going_on = slots[~over]
        if going_on.size:
            self._attack.observe(going_on, scores[~over])
            self._ready.extend(going_on.tolist())
        if over.any():
            self._judge.finish(state.index[slots[over]])
            for slot in slots[over].tolist():
                self._num_active -= 1
                self._refill(slot)

    async def _cancel(self) -> None:
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)


def build_slots(judge: Judge, num_images: int) -> Slots:
    """Return slots for the requests in flight and the one being prepared, no more than there are images."""
    config = judge.config
    num_slots = min(config.batch_size * (config.concurrency + 1), num_images)
    height, width, channels = judge.images.shape[1:]
    return Slots(num_slots, (height, width, channels), config)
