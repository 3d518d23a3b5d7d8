"""Transfer attacks: gradients of a surrogate make the image, the endpoint judges it.

The surrogates take turns, as many as `max_queries`, and each sends one image a turn; an image that is
fooled is left alone. What is torch lies in `surrogate.py` and `ascent.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from temper.client.errors import ClientError
from temper.client.robustness.base import OWN, AttackConfig, AttackKind, Harness, Network
from temper.client.scores import Float32Array, Int64Array, UInt8Array
from temper.client.stats import BoolArray

if TYPE_CHECKING:
    from temper.client.robustness.surrogate import Surrogate

Made = tuple[Float32Array, BoolArray]
"""Images, float32 [n, H, W, 3] in units of uint8; and bool [n], true where there was no gradient."""
# Pixels of one channel that are climbed together: what their activations take fits a small machine.
_BLOCK_PIXELS = 1 << 20
_MAX_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class TransferConfig(AttackConfig):
    """What all transfer attacks share."""

    norm: Literal["linf", "l2"] = "linf"
    surrogates: tuple[str, ...] = (OWN,)
    """Networks whose gradients are followed, in turns. In a recipe: "own", the graph that the attacked variant's
    engine was made from (of an ensemble all of its members', behind its defence); a variant's name, its graph;
    "a+b", the mean of their logits. Elsewhere: an ONNX file that takes what the endpoint takes."""
    max_queries: int = 2
    """Images sent per image at most: one a turn, each further turn of a surrogate from another random start."""
    steps: int = 1
    """Steps along the gradient, each turn."""

    def __post_init__(self) -> None:
        """Check the surrogates and the steps as well.

        Raises:
            ValueError: a field is out of its range.
        """
        super().__post_init__()
        if not self.surrogates or not all(self.surrogates):
            raise ValueError("surrogates: got none, expected the name or the ONNX file of at least one")
        if len(self.surrogates) > self.max_queries:
            raise ValueError(
                f"max_queries: got {self.max_queries}, expected at least {len(self.surrogates)}: "
                "one for each of the surrogates"
            )
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")

    @property
    def is_white_box(self) -> bool:
        """Whether it takes several steps on the attacked model's own graph."""
        return OWN in self.surrogates and self.steps > 1

    def make(
        self, surrogate: Surrogate, images: UInt8Array, labels: Int64Array, indices: Int64Array, turn: int
    ) -> Made:
        """Return the next images and where there was no gradient, as the functions of `ascent` do."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class StepConfig(TransferConfig):
    """Steps of one size along the gradient of the cross entropy; see the subclasses."""

    random_start: ClassVar[bool] = True
    step_share: float = 0.1
    """Size of a step as a share of the budget."""
    momentum: float = 0.0
    """Share of the earlier steps' direction that is kept."""
    diversity: float = 0.0
    """Share of the steps whose gradient is that of the image made smaller, at a random place on black."""
    resize: float = 0.9
    """The smallest such size, as a share of the image's."""

    def __post_init__(self) -> None:
        """Check the shares as well.

        Raises:
            ValueError: a field is out of its range.
        """
        super().__post_init__()
        if self.step_share <= 0:
            raise ValueError(f"step_share: got {self.step_share:g}, expected more than 0")
        for field, value in (("momentum", self.momentum), ("diversity", self.diversity)):
            if not 0 <= value <= 1:
                raise ValueError(f"{field}: got {value:g}, expected 0 to 1")
        if not 0 < self.resize <= 1:
            raise ValueError(f"resize: got {self.resize:g}, expected more than 0, at most 1")

    def make(
        self, surrogate: Surrogate, images: UInt8Array, labels: Int64Array, indices: Int64Array, turn: int
    ) -> Made:
        """Take the steps."""
        from temper.client.robustness.ascent import climb_steps

        return climb_steps(
            surrogate,
            images,
            labels,
            indices,
            turn,
            config=self,
            steps=self.steps,
            step_share=self.step_share,
            random_start=self.random_start,
            momentum=self.momentum,
            diversity=self.diversity,
            resize=self.resize,
        )


@dataclass(frozen=True, kw_only=True)
class FgsmConfig(StepConfig):
    """FGSM."""

    random_start: ClassVar[bool] = False
    name: Literal["fgsm"] = "fgsm"
    step_share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PgdConfig(StepConfig):
    """PGD."""

    name: Literal["pgd"] = "pgd"
    steps: int = 40


@dataclass(frozen=True, kw_only=True)
class MiFgsmConfig(StepConfig):
    """MI-FGSM with input diversity."""

    random_start: ClassVar[bool] = False
    name: Literal["mi-fgsm"] = "mi-fgsm"
    steps: int = 20
    momentum: float = 1.0
    diversity: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ApgdConfig(TransferConfig):
    """APGD; see the subclasses."""

    loss: ClassVar[str]
    steps: int = 50

    def make(
        self, surrogate: Surrogate, images: UInt8Array, labels: Int64Array, indices: Int64Array, turn: int
    ) -> Made:
        """Take the steps."""
        from temper.client.robustness.ascent import climb_auto

        return climb_auto(surrogate, images, labels, indices, turn, config=self, steps=self.steps, loss=self.loss)


@dataclass(frozen=True, kw_only=True)
class ApgdCeConfig(ApgdConfig):
    """APGD-CE."""

    loss: ClassVar[str] = "ce"
    name: Literal["apgd-ce"] = "apgd-ce"


@dataclass(frozen=True, kw_only=True)
class ApgdDlrConfig(ApgdConfig):
    """APGD-DLR."""

    loss: ClassVar[str] = "dlr"
    min_classes: ClassVar[int] = 3
    name: Literal["apgd-dlr"] = "apgd-dlr"


@dataclass(frozen=True, kw_only=True)
class ApgdTConfig(ApgdConfig):
    """APGD-T."""

    loss: ClassVar[str] = "targeted"
    min_classes: ClassVar[int] = 4
    name: Literal["apgd-t"] = "apgd-t"
    max_queries: int = 9
    """Images sent per image at most: one a turn, towards the next likely class at a surrogate's next turn."""


async def replay(harness: Harness, todo: Int64Array) -> None:
    """Make images on the surrogates and send them, block by block; finished images are left out.

    Raises:
        ClientError: PyTorch or onnx is missing, or a surrogate does not fit.
    """
    config = harness.config
    assert isinstance(config, TransferConfig)
    # Two names of one network have one turn: "own" is the first variant's too when that is attacked.
    files = dict.fromkeys(tuple(harness.surrogates[name]) for name in config.surrogates)
    surrogates = await load_surrogates(harness, todo, list(files))

    def make(images: UInt8Array, labels: Int64Array, indices: Int64Array, turn: int) -> Made:
        turn, which = divmod(turn, len(surrogates))
        return config.make(surrogates[which], images, labels, indices, turn)

    await send_turns(harness, todo, make)


async def load_surrogates(
    harness: Harness, todo: Int64Array, files: Sequence[Sequence[Network]]
) -> list[Surrogate]:
    """Read networks, and check those that images are made on.

    Raises:
        ClientError: PyTorch or onnx is missing, or a network does not fit.
    """
    from temper.client.robustness.surrogate import load_surrogate

    surrogates = [load_surrogate(tuple(networks), harness.expectation) for networks in files]
    num_classes = await harness.count_classes() if todo.size else None
    for surrogate in surrogates if todo.size else []:
        found = surrogate.check(harness.images.shape[1:], num_classes, int(harness.labels.max()) + 1)
        if why := harness.config.why_not(found):
            raise ClientError(why)
    return surrogates


async def send_turns(
    harness: Harness, todo: Int64Array, make: Callable[[UInt8Array, Int64Array, Int64Array, int], Made]
) -> None:
    """Make images block by block and send one a turn for each that is not lost; finished ones are left out.

    Args:
        harness: the images and the endpoint.
        todo: int64 [n], indices of the images.
        make: takes images, their labels, their indices and the turn, from 0; returns as `TransferConfig.make`.
    """
    height, width, _ = harness.images.shape[1:]
    block = max(1, min(_MAX_BLOCK, _BLOCK_PIXELS // (height * width)))
    todo = todo[~harness.finished[todo]]
    for start in range(0, len(todo), block):
        rows = left = todo[start : start + block]
        for turn in range(harness.config.max_queries):
            images, labels = np.array(harness.images[left]), harness.labels[left]
            proposals, stuck = await asyncio.to_thread(partial(make, images, labels, left, turn))
            harness.note_stuck(left[stuck])
            await harness.ask(left, proposals)
            left = left[harness.lost_at[left] == 0]
            if not left.size:
                break
        harness.finish(rows)


FGSM, PGD, MI_FGSM, APGD_CE, APGD_DLR, APGD_T = (
    AttackKind(about=about, config=config, sees="surrogate", run=replay, libraries=("kornia", "torch"))
    for about, config in (
        ("FGSM: one step along the gradient of a surrogate", FgsmConfig),
        ("PGD: many steps along the gradient of a surrogate", PgdConfig),
        (
            "MI-FGSM with input diversity: steps with momentum, made to transfer to networks unlike it",
            MiFgsmConfig,
        ),
        ("APGD-CE: PGD that finds its own step size, on the cross entropy", ApgdCeConfig),
        (
            "APGD-DLR: the same on the difference of logits ratio, whose gradient no certainty makes vanish",
            ApgdDlrConfig,
        ),
        ("APGD-T: the same towards each of the likeliest other classes in turn", ApgdTConfig),
    )
)
