"""Asks an endpoint again where a fault may pass: inference changes nothing on the server, so it may be repeated.

A measurement of hours must not end with one broken connection, and must not keep a server down by asking: one
request at a time is tried again, after waits that double, and all tries together are a small share of the answers.
A server that sheds load is asked one thing at a time for a while.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.client.errors import (
    ClientError,
    DeadlineExceeded,
    ModelNotFound,
    NonFiniteOutput,
    Overloaded,
    ServerUnavailable,
)
from temper.client.model import ModelInfo
from temper.client.scores import Infer, UInt8Array

_TRANSIENT = (ServerUnavailable, DeadlineExceeded, Overloaded)
# Answers before a server that shed a request is asked several things at once again; a few more are shed then.
_ALONE = 100


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long a measurement waits for a server that fails."""

    max_attempts: int = 8
    """times that one request is sent at most; 1 asks never again"""
    first_wait_s: float = 0.1
    """wait before the second time; each further one is twice as long, and each is cut by up to a half at random"""
    max_wait_s: float = 5.0
    """longest wait"""
    patience_s: float = 60.0
    """after this long no request is sent again"""
    budget_share: float = 0.1
    """requests sent again at most, as a share of those answered (beside four for each in flight at once)"""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: got {self.max_attempts}, expected at least 1")


class RetryingInfer:
    """An `Infer` around another one; use it inside one event loop.

    An answer with NaN or an infinity is returned as it is, for the caller to judge row by row.

    Args:
        infer: The endpoint.
        policy: How requests that failed are sent again.
        max_batch: Images of one request; more are asked for one request after the other. None sends all at once.

    Attributes:
        retries: Requests that were sent again, by the kind of error that made it necessary.
    """

    def __init__(self, infer: Infer, policy: RetryPolicy | None = None, *, max_batch: int | None = None) -> None:
        """Wrap an endpoint."""
        self.retries: Counter[str] = Counter()
        self._infer = infer
        self._policy = policy or RetryPolicy()
        self._max_batch = max_batch
        self._turn = asyncio.Lock()
        self._num_answered = 0
        self._in_flight = 0
        self._most_in_flight = 0
        self._last_answer = 0.0
        self._alone_until = 0  # of `_num_answered`

    async def __call__(self, images: UInt8Array) -> npt.NDArray[Any]:
        """Return the endpoint's answer to uint8 [N, H, W, 3]; see `Infer`.

        Raises:
            ClientError: The fault is none that passes, or it did not pass.
        """
        step = self._max_batch or len(images)
        if len(images) <= step:
            return await self._answer(images)
        return np.concatenate([await self._answer(images[at : at + step]) for at in range(0, len(images), step)])

    async def _answer(self, images: UInt8Array) -> npt.NDArray[Any]:
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        try:
            if self._num_answered < self._alone_until:
                async with self._turn:
                    return await self._ask(images)
            return await self._ask(images)
        except ClientError as error:
            return await self._ask_again(images, error)
        finally:
            self._in_flight -= 1

    async def _ask(self, images: UInt8Array) -> npt.NDArray[Any]:
        try:
            answer = await self._infer(images)
        except NonFiniteOutput as error:
            if error.scores is None:
                raise
            answer = error.scores
        except Overloaded:
            self._alone_until = self._num_answered + _ALONE
            raise
        self._num_answered += 1
        self._last_answer = time.monotonic()
        return answer

    async def _ask_again(self, images: UInt8Array, error: ClientError) -> npt.NDArray[Any]:
        policy, begun, wait_s = self._policy, time.monotonic(), self._policy.first_wait_s
        for _ in range(policy.max_attempts - 1):
            if not _passes(error):
                break
            failed = time.monotonic()
            async with self._turn:
                if self.retries.total() >= self._budget() or time.monotonic() - begun > policy.patience_s:
                    break
                self.retries[error.kind] += 1
                # Those that failed together need not all wait once one of them was answered.
                if self._last_answer < failed or isinstance(error, Overloaded):
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
                    wait_s = min(policy.max_wait_s, 2 * wait_s)
                try:
                    return await self._ask(images)
                except ClientError as again:
                    error = again
        raise error

    def _budget(self) -> float:
        return 4 * max(8, self._most_in_flight) + self._policy.budget_share * self._num_answered


@asynccontextmanager
async def open_model(
    url: str,
    model: str,
    *,
    version: str,
    timeout_s: float,
    retry: RetryPolicy | None,
    encode: Callable[[UInt8Array], npt.NDArray[Any]] | None = None,
) -> AsyncIterator[tuple[ModelInfo, RetryingInfer]]:
    """Connect to one version of a model, which alone answers whatever is promoted meanwhile.

    Args:
        url: host and port of the gRPC endpoint.
        model: name of the served model.
        version: version of the model; "" is the newest one.
        timeout_s: deadline of one request in seconds.
        retry: how requests that failed are sent again; `RetryPolicy()` when not given.
        encode: makes of uint8 [N, H, W, 3] what the model takes, where that is something else.

    Yields:
        What the server says of the model, and the model.
    """
    # Here, because the seam itself needs no gRPC.
    from temper.client.aio import AsyncClient

    async with AsyncClient(url, timeout_s=timeout_s) as client:
        info = await client.model_info(model, version)

        async def ask(images: UInt8Array) -> npt.NDArray[Any]:
            sent = images if encode is None else encode(images)
            output = await client.infer(model, sent, version=info.version)
            return output.astype(np.int64).reshape(len(output)) if info.answers_classes else output

        yield info, RetryingInfer(ask, retry, max_batch=max(1, info.max_batch_size))


def _passes(error: ClientError) -> bool:
    # A model that is just being loaded is "not ready"; one that does not exist is NOT_FOUND.
    loading = isinstance(error, ModelNotFound) and error.code == "UNAVAILABLE"
    return loading or isinstance(error, _TRANSIENT)
