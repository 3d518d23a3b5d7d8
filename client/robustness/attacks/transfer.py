"""Transfer attacks: gradients of a surrogate make the image, the endpoint judges it.

The surrogates take turns, as many as `max_queries`, and each sends one image a turn; an image that is
fooled is left alone. What is torch lies in `surrogate.py` and `ascent.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from temper.client.robustness.base import OWN, AttackConfig, AttackKind, Harness
from temper.client.scores import Float32Array, Int64Array, UInt8Array
from temper.client.stats import BoolArray

if TYPE_CHECKING:
    from temper.client.robustness.surrogate import Surrogate

# Pixels of one channel that are climbed together: what their activations take fits a small machine.
_BLOCK_PIXELS = 1 << 20
_MAX_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class TransferConfig(AttackConfig):
    """What all transfer attacks share."""

    norm: Literal["linf", "l2"] = "linf"
    surrogates: tuple[str, ...] = (OWN,)
    """Networks whose gradients are followed, in turns. In a recipe: "own", the graph that the attacked variant's
    engine was made from; a variant's name, its graph; "a+b", the mean of their logits. Elsewhere: an ONNX file."""
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

    def make(
        self, surrogate: Surrogate, images: UInt8Array, labels: Int64Array, indices: Int64Array, turn: int
    ) -> tuple[Float32Array, BoolArray]:
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
    ) -> tuple[Float32Array, BoolArray]:
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
    ) -> tuple[Float32Array, BoolArray]:
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
    name: Literal["apgd-dlr"] = "apgd-dlr"


@dataclass(frozen=True, kw_only=True)
class ApgdTConfig(ApgdConfig):
    """APGD-T."""

    loss: ClassVar[str] = "targeted"
    name: Literal["apgd-t"] = "apgd-t"
    max_queries: int = 9
    """Images sent per image at most: one a turn, towards the next likely class at a surrogate's next turn."""


async def replay(harness: Harness, todo: Int64Array) -> None:
    """Make images on the surrogates and send them, block by block; finished images are left out.

    Raises:
        ClientError: PyTorch or onnx is missing, or a surrogate does not fit.
    """
    from temper.client.robustness.surrogate import load_surrogate

    config = harness.config
    assert isinstance(config, TransferConfig)
    # Two names of one network have one turn: "own" is the first variant's too when that is attacked.
    files = dict.fromkeys(tuple(harness.surrogates[name]) for name in config.surrogates)
    surrogates = [load_surrogate(networks, harness.expectation) for networks in files]
    num_classes = await harness.count_classes() if todo.size else None
    height, width, channels = harness.images.shape[1:]
    for surrogate in surrogates if todo.size else []:
        surrogate.check((height, width, channels), num_classes)
    block = max(1, min(_MAX_BLOCK, _BLOCK_PIXELS // (height * width)))
    todo = todo[~harness.finished[todo]]
    for start in range(0, len(todo), block):
        rows = left = todo[start : start + block]
        for turn in range(config.max_queries):
            images, labels = np.array(harness.images[left]), harness.labels[left]
            surrogate = surrogates[turn % len(surrogates)]
            make = partial(config.make, surrogate, images, labels, left, turn // len(surrogates))
            proposals, stuck = await asyncio.to_thread(make)
            harness.note_stuck(left[stuck])
            answers = await harness.ask(left, proposals)
            assert answers is not None, "this attack sees labels"
            left = left[answers == labels]
            if not left.size:
                break
        harness.finish(rows)


FGSM, PGD, MI_FGSM, APGD_CE, APGD_DLR, APGD_T = (
    AttackKind(about=about, config=config, sees="surrogate", run=replay, libraries=("torch",))
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
