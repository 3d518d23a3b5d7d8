"""What is asked again, how often, and that a server that refuses load is not asked more for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.accuracy import evaluate
from temper.client.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NonFiniteOutput,
    Overloaded,
    ServerError,
    ServerUnavailable,
    ShortOutput,
)
from temper.client.retry import RetryingInfer, RetryPolicy
from temper.client.robustness import attack_endpoint
from temper.client.robustness.base import ATTACKS

Digits = Any  # the fixture's class in conftest.py
IMAGES = np.zeros((2, 16, 16, 3), np.uint8)
SWIFT = RetryPolicy(first_wait_s=0.0001, max_wait_s=0.001)


class Failing:
    """Fails the requests whose number is in `failures`, with a new error of `make`."""

    def __init__(self, make: Callable[[], ClientError], failures: range, infer: Any = None) -> None:
        """Count from 0."""
        self.make, self.failures, self.infer = make, failures, infer
        self.num_asked = self.in_flight = self.most_failing = 0
        self.watch_from = 0

    async def __call__(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        number = self.num_asked
        self.num_asked += 1
        if number in self.failures:
            self.in_flight += 1
            if number >= self.watch_from:
                self.most_failing = max(self.most_failing, self.in_flight)
            await asyncio.sleep(0)
            self.in_flight -= 1
            raise self.make()
        answer: npt.NDArray[Any] = (
            await self.infer(images) if self.infer else np.zeros((len(images), 3), np.float32)
        )
        return answer


PASSES = {
    "lost connection": lambda: ServerUnavailable("gone", code="UNAVAILABLE"),
    "deadline": lambda: DeadlineExceeded("late", code="DEADLINE_EXCEEDED"),
    "full queue": lambda: Overloaded("full", code="UNAVAILABLE"),
    "model being loaded": lambda: ModelNotFound("not ready", code="UNAVAILABLE"),
}
STAYS = {
    "no such model": lambda: ModelNotFound("none", code="NOT_FOUND"),
    "wrong request": lambda: InvalidRequest("shape", code="INVALID_ARGUMENT"),
    "server's own failure": lambda: ServerError("broken", code="INTERNAL"),
    "short output": lambda: ShortOutput("short"),
    "nothing to judge": lambda: NonFiniteOutput("no answer"),
}


@pytest.mark.parametrize("make", PASSES.values(), ids=PASSES.keys())
async def test_fault_that_passes_is_asked_again_and_counted(make: Callable[[], ClientError]) -> None:
    infer = RetryingInfer(Failing(make, range(3)), SWIFT)
    assert (await infer(IMAGES)).shape == (2, 3)
    assert infer.retries == {make().kind: 3}


@pytest.mark.parametrize("make", STAYS.values(), ids=STAYS.keys())
async def test_fault_that_stays_is_not_asked_again(make: Callable[[], ClientError]) -> None:
    endpoint = Failing(make, range(1))
    infer = RetryingInfer(endpoint, SWIFT)
    with pytest.raises(type(make())):
        await infer(IMAGES)
    assert endpoint.num_asked == 1 and not infer.retries


async def test_server_that_stays_away_ends_the_measurement() -> None:
    endpoint = Failing(PASSES["lost connection"], range(1000))
    with pytest.raises(ServerUnavailable, match="gone"):
        await RetryingInfer(endpoint, SWIFT)(IMAGES)
    assert endpoint.num_asked == SWIFT.max_attempts


async def test_tries_are_made_one_at_a_time_and_are_bounded_together() -> None:
    """Sixteen requests meet a full queue: what is added to its load is one request at a time, and not many."""
    endpoint = Failing(PASSES["full queue"], range(16, 100_000))
    infer = RetryingInfer(endpoint, SWIFT)
    await asyncio.gather(*(infer(IMAGES) for _ in range(16)))
    endpoint.watch_from = 32  # after the first tries
    results = await asyncio.gather(*(infer(IMAGES) for _ in range(16)), return_exceptions=True)
    assert all(isinstance(result, Overloaded) for result in results)
    assert endpoint.most_failing == 1
    assert infer.retries.total() == endpoint.num_asked - 32 <= 4 * 16 + 0.1 * 16 + 1


async def test_answers_beside_a_broken_row_are_kept() -> None:
    scores = np.array([[1, 2, 3], [np.inf, 0, 0]], np.float32)

    async def infer(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        raise NonFiniteOutput("one row", scores=scores)

    assert await RetryingInfer(infer, SWIFT)(IMAGES) is scores


class Narrow:
    """Answers one request at a time, of at most eight images, and sheds what comes meanwhile."""

    def __init__(self, infer: Any) -> None:
        """Wrap an endpoint."""
        self.infer, self.busy, self.num_shed = infer, False, 0

    async def __call__(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        assert len(images) <= 8
        if self.busy:
            self.num_shed += 1
            raise Overloaded("full", code="UNAVAILABLE")
        self.busy = True
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            answer: npt.NDArray[Any] = await self.infer(images)
            return answer
        finally:
            self.busy = False


@pytest.mark.slow
async def test_server_that_sheds_load_is_asked_one_thing_at_a_time_and_the_budget_lasts(digits: Digits) -> None:
    endpoint = Narrow(digits.endpoint().infer)
    infer = RetryingInfer(endpoint, SWIFT, max_batch=8)
    data = (np.concatenate([digits.images] * 4), np.concatenate([digits.labels] * 4))
    result = await evaluate(infer, *data, batch_size=11, concurrency=8)
    assert np.array_equal(result.correct, np.concatenate([digits.correct] * 4))
    assert infer.retries == {"overloaded": endpoint.num_shed} and 0 < endpoint.num_shed < 32


@pytest.mark.parametrize("name", ["square", "noise", "art-square"])
async def test_attack_through_faults_equals_one_without(digits: Digits, name: str) -> None:
    data = (digits.images[:40], digits.labels[:40])
    config = ATTACKS.get(name).config(epsilon=40, max_queries=30, batch_size=8)
    whole = await attack_endpoint(digits.endpoint().infer, *data, config)
    endpoint = Failing(PASSES["lost connection"], range(20, 26), digits.endpoint().infer)
    infer = RetryingInfer(endpoint, SWIFT)
    result = await attack_endpoint(infer, *data, config)
    assert infer.retries == {"unavailable": 6}
    assert np.array_equal(result.survived, whole.survived) and np.array_equal(result.queries, whole.queries)
    assert result.num_queries == whole.num_queries


async def test_accuracy_through_faults_equals_one_without(digits: Digits) -> None:
    infer = RetryingInfer(Failing(PASSES["deadline"], range(2, 5), digits.endpoint().infer), SWIFT)
    result = await evaluate(infer, digits.images, digits.labels, batch_size=8)
    assert np.array_equal(result.correct, digits.correct)


def test_policy_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="max_attempts: got 0, expected at least 1"):
        RetryPolicy(max_attempts=0)
