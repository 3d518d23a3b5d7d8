"""Continuous batching: keep `concurrency` full requests in flight while images finish at different times."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

import numpy as np

from temper.client.accuracy import gather_or_cancel
from temper.client.robustness.balls import to_pixels
from temper.client.robustness.base import Attack, Slots
from temper.client.robustness.judge import Judge
from temper.client.scores import Answers, Int64Array, UInt8Array

# Images proposed ahead of need, at least: numpy's cost per call is shared among them when requests are small.
_MIN_AHEAD = 32
# grpc.aio hands a call to its core after a few turns of the loop; our own work must not come between.
_TURNS_TO_SEND = 3


class Scheduler:
    """Runs one attack over the images `todo` through the judge's endpoint.

    There are more slots than images in flight, so that requests lie prepared: when an answer comes, the next
    request leaves at once, and only when none is left are the answers settled and new requests prepared, all
    together, while the server computes. At the end, when no image waits, the rest is shared evenly.
    """

    def __init__(self, attack: Attack, judge: Judge, todo: Int64Array) -> None:
        """Take over the attack's slots."""
        self._attack, self._judge = attack, judge
        self._slots = attack.slots
        self._config = judge.config
        self._waiting: Iterator[int] = iter(todo.tolist())
        self._ready: deque[int] = deque()
        self._num_active = 0
        self._prepared: deque[tuple[Int64Array, UInt8Array]] = deque()
        self._answered: list[tuple[Int64Array, UInt8Array, Answers]] = []
        self._wanted, self._offered = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Attack all images; on an error the requests in flight are cancelled and the error goes on."""
        for slot in range(len(self._slots.label)):
            self._refill(slot)
        self._prepare()
        await gather_or_cancel(iter([self._supply(), *(self._ask() for _ in range(self._config.concurrency))]))

    async def _ask(self) -> None:
        """Keep one request in flight."""
        while self._num_active:
            if not self._prepared:
                self._offered.clear()
                await self._offered.wait()
                continue
            slots, sent = self._prepared.popleft()
            if not self._prepared:
                self._wanted.set()
            self._answered.append((slots, sent, await self._judge.send(self._slots.index[slots], sent)))
            if not self._prepared:
                self._wanted.set()

    async def _supply(self) -> None:
        """Settle answers and prepare requests whenever none is left."""
        while self._num_active:
            await self._wanted.wait()
            for _ in range(_TURNS_TO_SEND):
                await asyncio.sleep(0)
            self._wanted.clear()
            self._settle()
            self._prepare()
            if self._prepared or not self._num_active:
                self._offered.set()
            self._judge.report_progress()

    def _refill(self, slot: int) -> None:
        index = next(self._waiting, None)
        if index is None:
            return
        judge = self._judge
        self._slots.fill(slot, index, judge.images[index], int(judge.labels[index]))
        self._ready.append(slot)
        self._num_active += 1

    def _prepare(self) -> None:
        """Turn the slots that are ready into requests; a rest too small for one waits for more."""
        share = -(-self._num_active // self._config.concurrency)
        size = min(self._config.batch_size, share)
        num_requests = len(self._ready) // size if size else 0
        if not num_requests:
            return
        slots = np.array([self._ready.popleft() for _ in range(num_requests * size)], dtype=np.int64)
        state = self._slots
        bounds = ([rows[slot] for slot in slots.tolist()] for rows in (state.original, state.low, state.high))
        sent = to_pixels(state.ball, self._attack.propose(slots), *bounds)
        for start in range(0, len(slots), size):
            part = slice(start, start + size)
            self._prepared.append((slots[part], sent[part]))

    def _settle(self) -> None:
        """Judge the answers that have come, tell the attack, and give finished slots to waiting images."""
        if not self._answered:
            return
        slots = np.concatenate([slots for slots, _, _ in self._answered])
        answers = Answers.join([answer for _, _, answer in self._answered])
        images = [image for _, sent, _ in self._answered for image in sent]
        self._answered.clear()
        state = self._slots
        lost = self._judge.answer(state.index[slots], images, answers, self._judge.count(state.index[slots]))
        state.num_queries[slots] += 1
        over = lost | (state.num_queries[slots] >= self._config.max_queries)
        going_on = slots[~over]
        if going_on.size:
            if (shown := self._judge.shown(answers[~over])) is not None:
                self._attack.observe(going_on, shown)
            self._ready.extend(going_on.tolist())
        if over.any():
            self._judge.finish(state.index[slots[over]])
            for slot in slots[over].tolist():
                self._num_active -= 1
                self._refill(slot)


def build_slots(judge: Judge, num_images: int) -> Slots:
    """Return slots for the requests in flight and those prepared, no more than there are images."""
    config = judge.config
    ahead = -(-_MIN_AHEAD // config.batch_size) * config.batch_size
    num_slots = min(config.batch_size * config.concurrency + ahead, num_images)
    height, width, channels = judge.images.shape[1:]
    return Slots(num_slots, (height, width, channels), config, judge.ball)
