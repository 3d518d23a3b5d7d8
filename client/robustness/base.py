"""What an attack is configured with, and what it must be able to do.

An attack works on *slots*: each holds one image under attack, with its own query count and its own random stream.
The harness fills the slots, asks for proposals, rounds and clips them, sends them, counts, and judges the answers;
an image that is fooled or out of queries leaves its slot and the next image takes it. As nothing is shared between
slots, a result does not depend on the batch size, the concurrency or the order of the answers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from temper.client.scores import Float32Array, Int64Array, UInt8Array

# ART asks for the image, its loss and the new loss: at the start, and in every iteration.
ART_QUERIES_PER_STEP = 3


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """One attack on one endpoint."""

    name: Literal["square", "noise", "art-square"] = "square"
    """attack family"""
    epsilon: float = 8.0
    """budget per channel of a pixel in units of 1/255; the grid is integer, so its floor is what counts"""
    norm: Literal["linf"] = "linf"
    """norm of the budget"""
    num_images: int | None = None
    """images to evaluate, drawn by the seed; all when not given"""
    max_queries: int = 1000
    """queries per image, without the one that tells whether the clean image is right"""
    batch_size: int = 32
    """images per request"""
    concurrency: int = 4
    """requests in flight"""
    seed: int = 0
    """decides the images and every random draw"""
    p_init: float = 0.8
    """Square: share of the image that the first squares cover; 0.8 as in AutoAttack, 0.05 for undefended ImageNet
    models in the paper"""

    def __post_init__(self) -> None:
        """Refuse what no attack can run with."""
        choices: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("name", ("square", "noise", "art-square")),
            ("norm", ("linf",)),
        )
        for field, allowed in choices:
            if getattr(self, field) not in allowed:
                listed = ", ".join(f'"{choice}"' for choice in allowed)
                raise ValueError(f'{field}: got "{getattr(self, field)}", expected one of {listed}')
        if not 1 <= self.epsilon <= 255:
            raise ValueError(
                f"epsilon: got {self.epsilon:g}, expected 1 to 255 (units of 1/255 on the uint8 image: 8/255 is 8)"
            )
        for field in ("max_queries", "batch_size", "concurrency"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least 1")
        if self.num_images is not None and self.num_images < 1:
            raise ValueError(f"num_images: got {self.num_images}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected at least 0")
        if not 0 < self.p_init < 1:
            raise ValueError(f"p_init: got {self.p_init:g}, expected a share between 0 and 1")
        if self.name == "art-square" and self.max_queries < 2 * ART_QUERIES_PER_STEP:
            raise ValueError(
                f"max_queries: got {self.max_queries}, expected at least {2 * ART_QUERIES_PER_STEP}: "
                f"art-square spends {ART_QUERIES_PER_STEP} queries per image and iteration"
            )

    @property
    def budget(self) -> int:
        """The largest change of one uint8 value that the budget allows."""
        return math.floor(self.epsilon)


class Slots:
    """The images under attack: fixed memory, one row per slot, filled and emptied by the harness.

    Attributes:
        original: uint8 [S, H, W, 3], the images.
        low: uint8 [S, H, W, 3], the least value each pixel may take (original - budget, at least 0).
        high: uint8 [S, H, W, 3], the greatest.
        label: int64 [S], the true class.
        index: int64 [S], the image's index in the data set.
        num_queries: int64 [S], queries this image has spent; the first proposal is made at 0.
    """

    def __init__(self, num_slots: int, image_shape: tuple[int, int, int], config: AttackConfig) -> None:
        """Allocate `num_slots` slots for images of shape (H, W, 3)."""
        self.config = config
        self.image_shape = image_shape
        self.original: UInt8Array = np.zeros((num_slots, *image_shape), dtype=np.uint8)
        self.low: UInt8Array = np.zeros((num_slots, *image_shape), dtype=np.uint8)
        self.high: UInt8Array = np.zeros((num_slots, *image_shape), dtype=np.uint8)
        self.label: Int64Array = np.zeros(num_slots, dtype=np.int64)
        self.index: Int64Array = np.zeros(num_slots, dtype=np.int64)
        self.num_queries: Int64Array = np.zeros(num_slots, dtype=np.int64)

    def fill(self, slot: int, index: int, image: UInt8Array, label: int) -> None:
        """Put an image, uint8 [H, W, 3], into a slot."""
        self.original[slot] = image
        write_bounds(self.original[slot], self.config.budget, self.low[slot], self.high[slot])
        self.label[slot] = label
        self.index[slot] = index
        self.num_queries[slot] = 0


class Attack(ABC):
    """A black-box attack that spends one query per image and step."""

    def __init__(self, slots: Slots) -> None:
        """Attach the attack to the slots it works on."""
        self.slots = slots
        self.config = slots.config

    @abstractmethod
    def propose(self, slots: Int64Array) -> npt.NDArray[Any]:
        """Return the next image for each of these slots, [n, H, W, 3] in units of uint8 (any number type).

        The harness owns the array from here on: it must be a new one.
        """

    @abstractmethod
    def observe(self, slots: Int64Array, scores: Float32Array) -> None:
        """Take in the endpoint's scores [n, classes] for the last proposals of these slots.

        Only slots that go on are shown: not those whose image is fooled or out of queries.
        """


def write_bounds(images: UInt8Array, budget: int, low: UInt8Array, high: UInt8Array) -> None:
    """Write the ends of the L-inf ball around uint8 images, cut at 0 and 255, without leaving uint8."""
    np.maximum(images, budget, out=low)
    low -= np.uint8(budget)
    np.minimum(images, 255 - budget, out=high)
    high += np.uint8(budget)


def margin(scores: Float32Array, labels: Int64Array) -> Float32Array:
    """Return float32 [n]: score of the true class minus the best other score; below 0 the image is fooled."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[rows, labels] = -np.inf
    found: Float32Array = scores[rows, labels] - others.max(axis=1)
    return found
