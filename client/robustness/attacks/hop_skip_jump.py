"""HopSkipJump: follows the boundary between the classes towards the image, and is shown the answered class alone.

All images are worked on together: each has a walk of its own that asks for some images and goes on when they are
answered, and requests are filled with what all walks want to know.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
import numpy.typing as npt

from temper.client.accuracy import gather_or_cancel
from temper.client.robustness.balls import BALLS
from temper.client.robustness.base import AttackConfig, AttackKind, Harness
from temper.client.robustness.draws import image_keys
from temper.client.scores import Int64Array, UInt8Array

# Random images to begin with are noise in squares of so many pixels, in turn: plain noise is one class to a model.
_GRAINS = (1, 2, 4, 8, 16)
# Size of the random changes around a boundary image, as a share of its distance (L2, over the whole image).
_SPREAD = 0.05
# But no less than this per value, in units of 1/255: what is smaller mostly rounds to nothing.
_MIN_SPREAD = 1.0
# A direction of fewer changes than this is not worth the steps that follow it.
_MIN_CHANGES = 10
# Queries to keep for the step along a direction and the search for the boundary.
_AFTERWARDS = 12


@dataclass(frozen=True, kw_only=True)
class HopSkipJumpConfig(AttackConfig):
    """HopSkipJump."""

    name: Literal["hop-skip-jump"] = "hop-skip-jump"
    norm: Literal["linf", "l2"] = "linf"
    init_changes: int = 100
    """Random changes whose answers give the first direction; those for the t-th are sqrt(t) times as many."""
    init_tries: int = 100
    """Random images to begin with, at most; an image that none of them helps is not fooled."""

    def __post_init__(self) -> None:
        """Check the counts as well.

        Raises:
            ValueError: a field is out of its range.
        """
        super().__post_init__()
        for field in ("init_changes", "init_tries"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least 1")


@dataclass
class _Question:
    """Images that a walk wants to have judged together; each is made when it is sent."""

    num: int
    make: Callable[[], UInt8Array]
    """Called once for each of them, in order."""
    take: Callable[[UInt8Array, bool], None]
    """Told of each that was answered, in any order, and whether the answer was wrong."""
    num_sent: int = 0
    num_answered: int = 0


_Steps = Generator[_Question, None, None]


class _Spent(Exception):  # noqa: N818 - says what happened
    """There are no queries left for the next question."""


class Walk:
    """The attack on one image. Its outcome does not depend on other images, nor on the order of the answers."""

    def __init__(self, config: HopSkipJumpConfig, index: int, image: UInt8Array) -> None:
        """Begin.

        Args:
            config: the attack.
            index: the image's in the data set.
            image: uint8 [H, W, 3].
        """
        self.index = index
        self._config, self._image = config, image
        self._ball = BALLS[config.norm](255)
        self._key = int(image_keys(config.seed, np.array([index]))[0])
        self._num_asked = 0
        self._nearest: UInt8Array = image  # the boundary image, of the wrong class
        self._steps = self._walk()

    def next_question(self) -> _Question | None:
        """Return what to ask next, or None when the walk is over."""
        try:
            return next(self._steps)
        except (StopIteration, _Spent):
            return None

    def _walk(self) -> _Steps:
        yield from self._start()
        for number in count(1):
            yield from self._approach()
            num = min(int(self._config.init_changes * math.sqrt(number)), self._left - _AFTERWARDS)
            if num < _MIN_CHANGES:
                return
            direction = np.zeros(self._image.shape, dtype=np.float32)
            yield from self._estimate(num, direction)
            yield from self._leap(direction, self._distance() / math.sqrt(number))

    def _start(self) -> _Steps:
        """Find an image of another class."""
        height, width, channels = self._image.shape
        for number in range(self._config.init_tries):
            grain = _GRAINS[number % len(_GRAINS)]
            generator = np.random.Generator(self._stream())
            shape = (-(-height // grain), -(-width // grain), channels)
            noise = generator.integers(0, 256, shape, dtype=np.uint8).repeat(grain, axis=0).repeat(grain, axis=1)
            found = yield from self._is_wrong(noise[:height, :width])
            if found:
                return
        raise _Spent

    def _approach(self) -> _Steps:
        """Come as near to the boundary as the grid allows, on the way from the wrong image to the right one.

        In L2 that is the straight line, in L-inf the wrong image cut to smaller and smaller balls.
        """
        far = self._nearest.astype(np.float32)
        change = far - self._image
        largest = float(np.abs(change).max())
        low, high = 0.0, largest
        # Less than half a step of the value that changes most rounds to the same image, or nearly.
        while high - low > (1 if self._config.norm == "linf" else 0.5):
            middle = (low + high) / 2
            if self._config.norm == "linf":
                middle = math.floor(middle)
                towards = np.clip(change, -middle, middle)
            else:
                towards = change * np.float32(middle / largest)
            wrong = yield from self._is_wrong(np.rint(self._image + towards).astype(np.uint8))
            low, high = (low, middle) if wrong else (middle, high)

    def _estimate(self, num: int, direction: npt.NDArray[np.float32]) -> _Steps:
        """Write the direction into the wrong class, from the answers to random changes of the boundary image.

        The sums are whole numbers: their order does not matter.
        """
        centre = self._nearest
        size = centre.size
        spread = max(_SPREAD * self._distance_l2() / math.sqrt(size), _MIN_SPREAD)
        changes = np.zeros(centre.shape, dtype=np.int32)
        wrong_changes = np.zeros(centre.shape, dtype=np.int32)
        num_wrong = 0
        stream = self._stream()
        # Uniform, as the paper's in L-inf: a normal draw takes longer than all the rest, and helps no more. Random
        # bytes are looked up, as the changes of whole pixels that they stand for are few.
        steps = np.rint((np.arange(256) - 127.5) * (spread * math.sqrt(12) / 256)).astype(np.int16)
        whole = centre.astype(np.int16)

        def make() -> UInt8Array:
            drawn = stream.random_raw(-(-size // 8)).view(np.uint8)[:size].reshape(centre.shape)
            changed: npt.NDArray[np.int16] = steps.take(drawn)
            changed += whole
            return np.clip(changed, 0, 255, out=changed).astype(np.uint8)

        def take(sent: UInt8Array, wrong: bool) -> None:
            nonlocal num_wrong
            change = np.subtract(sent, centre, dtype=np.int16)
            np.add(changes, change, out=changes)
            if wrong:
                num_wrong += 1
                np.add(wrong_changes, change, out=wrong_changes)

        yield self._question(num, make, take)
        # The mean of the answers, +1 and -1, is taken off, unless they are all the same.
        direction[:] = 2 * wrong_changes - changes
        if 0 < num_wrong < num:
            direction -= np.float32(2 * num_wrong / num - 1) * changes
        if self._config.norm == "linf":
            np.sign(direction, out=direction)
        else:
            direction /= max(float(np.linalg.norm(direction)), 1e-10)

    def _leap(self, direction: npt.NDArray[np.float32], length: float) -> _Steps:
        """Step along a direction, half as far as long as that leads back to the right class."""
        centre = self._nearest
        wrong = False
        while not wrong:
            image = np.clip(np.rint(centre + np.float32(length) * direction), 0, 255).astype(np.uint8)
            if np.array_equal(image, centre):
                return
            wrong = yield from self._is_wrong(image)
            length /= 2

    def _is_wrong(self, image: UInt8Array) -> Generator[_Question, None, bool]:
        """Ask for one image; one of the wrong class becomes the nearest."""
        answer: list[bool] = []
        yield self._question(1, lambda: image, lambda _, wrong: answer.append(wrong))
        if answer[0]:
            self._nearest = image
        return answer[0]

    def _question(
        self, num: int, make: Callable[[], UInt8Array], take: Callable[[UInt8Array, bool], None]
    ) -> _Question:
        if num > self._left:
            raise _Spent
        self._num_asked += num
        return _Question(num, make, take)

    @property
    def _left(self) -> int:
        return self._config.max_queries - self._num_asked

    def _distance(self) -> float:
        return self._ball.distance(self._nearest, self._image)

    def _distance_l2(self) -> float:
        return BALLS["l2"](255).distance(self._nearest, self._image)

    def _stream(self) -> np.random.Philox:
        """Return the random bits of the next query and those after it in the same question."""
        return np.random.Philox(key=self._key, counter=self._num_asked << 64)


class _Crowd:
    """Keeps full requests in flight for the walks of many images, of which a fixed number are under way."""

    def __init__(self, harness: Harness, todo: Int64Array) -> None:
        """Take the images `todo` that are not finished."""
        assert isinstance(harness.config, HopSkipJumpConfig)
        self._harness, self._config = harness, harness.config
        self._waiting: Iterator[int] = iter(todo[~harness.finished[todo]].tolist())
        self._open: deque[tuple[Walk, _Question]] = deque()  # with images that were not sent
        self._num_unsent = self._num_unanswered = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Attack all images."""
        size, concurrency = self._config.batch_size, self._config.concurrency
        for _ in range(size * concurrency):
            self._begin()
        await gather_or_cancel(self._keep_asking() for _ in range(concurrency))

    async def _keep_asking(self) -> None:
        while self._num_unanswered:
            # A fair share of all that is open: requests that are sent as soon as one image waits become small.
            share = min(self._config.batch_size, -(-self._num_unanswered // self._config.concurrency))
            if self._num_unsent < share:
                self._changed.clear()
                await self._changed.wait()
                continue
            await self._ask(share)
            self._changed.set()

    async def _ask(self, size: int) -> None:
        """Send one request and hand out its answers."""
        sent: list[tuple[Walk, _Question, UInt8Array]] = []
        while len(sent) < size:
            walk, question = self._open[0]
            sent.append((walk, question, question.make()))
            question.num_sent += 1
            if question.num_sent == question.num:
                self._open.popleft()
        self._num_unsent -= size
        indices = np.array([walk.index for walk, _, _ in sent])
        labels = await self._harness.ask(indices, np.stack([image for _, _, image in sent]))
        assert labels is not None, "this attack sees labels"
        self._num_unanswered -= size
        wrong = labels != self._harness.labels[indices]
        for (walk, question, image), is_wrong in zip(sent, wrong.tolist(), strict=True):
            question.take(image, is_wrong)
            question.num_answered += 1
            if question.num_answered == question.num:
                self._go_on(walk)

    def _begin(self) -> None:
        index = next(self._waiting, None)
        if index is not None:
            self._go_on(Walk(self._config, index, np.array(self._harness.images[index])))

    def _go_on(self, walk: Walk) -> None:
        """Ask what a walk wants to know next; when it is over, begin another one."""
        question = None if self._harness.lost_at[walk.index] else walk.next_question()
        if question is None:
            self._harness.finish(np.array([walk.index]))
            self._begin()
            return
        self._open.append((walk, question))
        self._num_unsent += question.num
        self._num_unanswered += question.num


async def _attack(harness: Harness, todo: Int64Array) -> None:
    await _Crowd(harness, todo).run()


HOP_SKIP_JUMP = AttackKind(
    about="HopSkipJump: follows the boundary of the classes towards the image; needs no scores",
    config=HopSkipJumpConfig,
    sees="labels",
    minimises=True,
    run=_attack,
)
