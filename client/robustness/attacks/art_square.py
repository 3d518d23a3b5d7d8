"""The reference: adversarial-robustness-toolbox's Square Attack, its queries going through our harness.

ART attacks a block of images together, draws one square for all of them, and asks again for what it already knows.
Every image it sends is counted. Its blocks are of one size whatever the batch size, so its results are too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from temper.client.errors import ClientError
from temper.client.robustness.base import AttackConfig, AttackKind, Harness
from temper.client.robustness.draws import seeded_numpy
from temper.client.scores import Float32Array, Int64Array, UInt8Array, finite_rows

_BLOCK_SIZE = 128
# ART asks for the image, its loss and the new loss: at the start, and in every iteration.
_QUERIES_PER_STEP = 3


@dataclass(frozen=True, kw_only=True)
class ArtSquareConfig(AttackConfig):
    """ART's Square Attack."""

    name: Literal["art-square"] = "art-square"
    norm: Literal["linf"] = "linf"
    p_init: float = 0.8
    """Share of the image that the first squares cover."""

    def __post_init__(self) -> None:
        """Check the share, and that there are queries for one iteration.

        Raises:
            ValueError: a field is out of its range.
        """
        super().__post_init__()
        if not 0 < self.p_init < 1:
            raise ValueError(f"p_init: got {self.p_init:g}, expected a share between 0 and 1")
        if self.max_queries < 2 * _QUERIES_PER_STEP:
            raise ValueError(
                f"max_queries: got {self.max_queries}, expected at least {2 * _QUERIES_PER_STEP}: "
                f"art-square spends {_QUERIES_PER_STEP} queries per image and iteration"
            )


async def attack_with_art(harness: Harness, todo: Int64Array) -> None:
    """Run ART's SquareAttack over the images `todo`; blocks that a checkpoint has finished are left out.

    ART draws from numpy's global generator: it is seeded for each block and put back afterwards, so nothing else
    should draw from it meanwhile.

    Raises:
        ClientError: ART is not installed.
    """
    assert isinstance(harness.config, ArtSquareConfig)
    build = _load_art(harness.config)
    num_classes = await harness.count_classes() if todo.size else 0
    assert num_classes is not None, "this attack sees scores"
    for start in range(0, len(todo), _BLOCK_SIZE):
        rows = todo[start : start + _BLOCK_SIZE]
        if harness.finished[rows].all():
            continue
        block = _Block(harness, rows, asyncio.get_running_loop())
        try:
            await asyncio.to_thread(block.generate, build, num_classes, start)
        finally:
            block.stopped.set()
        harness.finish(rows)


class _Block:
    """One block of images: ART's blocking calls on one side, the event loop on the other."""

    def __init__(self, harness: Harness, rows: Int64Array, loop: asyncio.AbstractEventLoop) -> None:
        self._harness, self._rows, self._loop = harness, rows, loop
        self._originals: UInt8Array = np.array(harness.images[rows])
        # Which images of the block ART's next batch holds: its batches carry no names.
        self._asked: Int64Array = np.arange(len(rows))
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
        with seeded_numpy([self._harness.config.seed, number]):
            attack.generate(self._originals.astype(np.float32), self._harness.labels[self._rows])

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
        scores = await self._harness.ask(self._rows[asked], images)
        assert scores is not None, "this attack sees scores"
        broken = ~finite_rows(scores)
        # ART is shown a wrong class where there is no score, so that it leaves the image alone.
        scores[broken] = 0
        scores[broken, self._harness.labels[self._rows[asked]][broken]] = -1
        return scores


def _load_art(config: ArtSquareConfig) -> Callable[..., Any]:
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
            eps=config.ball.reach,
            max_iter=config.max_queries // _QUERIES_PER_STEP - 1,
            p_init=config.p_init,
            batch_size=_BLOCK_SIZE,
            verbose=False,
        )

    return build


ART_SQUARE = AttackKind(
    about="The Square Attack of adversarial-robustness-toolbox, as a reference: three queries per step",
    config=ArtSquareConfig,
    sees="scores",
    run=attack_with_art,
    libraries=("adversarial-robustness-toolbox",),
)
