"""Asks a served model at a low, steady rate from a thread of its own, without a version, as other clients do."""

from __future__ import annotations

import asyncio
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client import AsyncClient
from temper.client.errors import ClientError
from temper.serve.signs import RATE_RPS, Probe

# A server that hangs is one whose probes fail.
_TIMEOUT_S = 5.0


class Prober:
    """Asks while the context is open: an open loop, which waits for no answer, image after image.

    Args:
        url: host:port of the server's gRPC endpoint.
        model: The model.
        images: uint8 [N, H, W, 3].
    """

    def __init__(self, url: str, model: str, images: npt.NDArray[np.uint8]) -> None:
        """Asks nothing yet."""
        self._url, self._model, self._images = url, model, images
        self._probes: list[tuple[int, float, float | None, int | None, str | None]] = []
        self._ended = threading.Event()
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Prober:
        """Begins."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; what is on the way is let go."""
        self._ended.set()
        self._thread.join()

    def since(self, begin_s: float) -> list[Probe]:
        """The probes that were due from a time on, on `time.monotonic`, in that order."""
        if self._trouble is not None:
            raise self._trouble
        now = time.monotonic()
        return [
            Probe(
                image=image,
                due_s=due,
                latency_s=(now if end is None else end) - due,
                answer=answer,
                error=error,
            )
            for image, due, end, answer, error in list(self._probes)
            if due >= begin_s
        ]

    def _work(self) -> None:
        try:
            asyncio.run(self._ask())
        except BaseException as error:
            self._trouble = error

    async def _ask(self) -> None:
        async with AsyncClient(self._url, timeout_s=_TIMEOUT_S) as client:
            tasks, due, number = set[asyncio.Task[None]](), time.monotonic(), 0
            while not self._ended.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                self._probes.append((number % len(self._images), due, None, None, None))
                task = asyncio.create_task(self._one(client, number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due, number = due + 1 / RATE_RPS, number + 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, client: Any, number: int) -> None:
        image, due, *_ = self._probes[number]
        answer = error = None
        try:
            answer = int((await client.infer(self._model, self._images[image : image + 1]))[0].argmax())
        except ClientError as failure:
            error = str(failure)
        self._probes[number] = (image, due, time.monotonic(), answer, error)
