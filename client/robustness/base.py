"""What an attack is: its config, what the harness shows it, and where all of them are listed.

Most attacks work on *slots*: each holds one image under attack, with its own query count and its own random
stream. The harness fills the slots, asks for proposals, rounds and projects them, sends them, counts, and judges
the answers; an image that is fooled or out of queries leaves its slot and the next image takes it. As nothing is
shared between slots, a result does not depend on the batch size, the concurrency or the order of the answers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from temper.client.robustness.balls import BALLS, EVERYTHING, Ball, Norm
from temper.client.scores import Float32Array, Int64Array, UInt8Array
from temper.client.stats import BoolArray
from temper.plugins import Registry, Tagged

Sees = Literal["scores", "labels", "surrogate", "nothing"]
OWN = "own"
"""The surrogate that is the attacked model's own graph."""
REFERENCE = "reference"
"""The surrogate that is the graph of the model that an attack `compares` with."""


RANDOM = frozenset({"random_resize"})
"""Those of config.pbtxt's `defend` that draw at random."""


class Network(NamedTuple):
    """A network whose gradients an attack follows."""

    path: Path
    """Its ONNX file."""
    defend: str = ""
    """What images go through before it, as config.pbtxt's parameter `defend` says it; empty for nothing."""

    @property
    def is_random(self) -> bool:
        """Whether that draws at random."""
        return any(name in RANDOM for step in json.loads(self.defend or "[]") for name in step)


Surrogates = Mapping[str, Sequence[Path | Network]]
"""Networks by the name that a config calls them; several where their logits are averaged."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Tagged):
    """One attack on one endpoint: what all attacks share. Each has its own config, beside its code."""

    tag_key: ClassVar[str] = "name"
    default_tag: ClassVar[str] = "square"
    min_classes: ClassVar[int] = 2
    """Of the endpoint; with fewer there is nothing that the attack could raise."""

    name: str
    """Attack family."""
    epsilon: float = 8.0
    """Budget in units of 1/255 on the uint8 image. "linf": per channel of a pixel, 1 to 255, and as the grid is
    integer, its floor is what counts. "l2": over all values of the image, 1 or more."""
    norm: Norm = "linf"
    """Norm of the budget."""
    curve: tuple[float, ...] = ()
    """Further budgets that a recipe measures, for the curve of accuracy against epsilon."""
    num_images: int | None = None
    """Images to evaluate, drawn by the seed; all when not given."""
    max_queries: int = 1000
    """Queries per image, without the one that tells whether the clean image is right."""
    expectation: int = 1
    """For an endpoint that draws at random: answers to each image that is sent. Every one counts as a query; their
    mean judges, of an endpoint without scores the most frequent class. A surrogate's gradients are the mean over
    so many draws. In a recipe, variants that do not draw are asked once. Too few leave luck: compare with `noise`
    at epsilon 1."""
    batch_size: int = 32
    """Images per request."""
    concurrency: int = 4
    """Requests in flight."""
    seed: int = 0
    """Decides the images and every random draw."""

    def __post_init__(self) -> None:
        """Refuse what no attack can run with.

        Raises:
            ValueError: a field is out of its range, or not among what this attack knows.
            TypeError: this is the base itself, which is no attack.
        """
        if type(self) is AttackConfig:
            raise TypeError("AttackConfig is the base of all, expected one attack's own, such as SquareConfig")
        for field, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, field) not in get_args(kind):
                listed = ", ".join(f'"{choice}"' for choice in get_args(kind))
                raise ValueError(f'{field}: got "{getattr(self, field)}", expected one of {listed}')
        BALLS[self.norm](self.epsilon)  # checks it
        for epsilon in self.curve:
            try:
                BALLS[self.norm](epsilon)
            except ValueError as error:
                raise ValueError(str(error).replace("epsilon", "curve", 1)) from error
        for field in ("max_queries", "batch_size", "concurrency", "expectation"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected at least 1")
        if self.num_images is not None and self.num_images < 1:
            raise ValueError(f"num_images: got {self.num_images}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected at least 0")
        self._check_expectation()

    def _check_expectation(self) -> None:
        if self.expectation > 1:
            try:
                self.of_one_answer()
            except ValueError as error:
                raise ValueError(f"{error}, after it was divided by expectation ({self.expectation})") from error

    def of_one_answer(self) -> Self:
        """Return the attack as it goes on means of answers: each is one query, and costs `expectation` of them."""
        return replace(self, max_queries=self.max_queries // self.expectation, expectation=1)

    @classmethod
    def kinds(cls) -> dict[str, type[Tagged]]:
        """Return the configs of all attacks, by name.

        Raises:
            PluginError: an attack of another package cannot be used.
        """
        return {name: kind.config for name, kind in ATTACKS.all().items()}

    def why_not(self, num_classes: int) -> str | None:
        """Return why a model of so many classes cannot be attacked, None when it can."""
        if num_classes >= self.min_classes:
            return None
        return (
            f"attack {self.name}: got a model of {num_classes} classes, expected at least {self.min_classes}; "
            "use another one, such as apgd-ce"
        )

    @property
    def is_white_box(self) -> bool:
        """Whether it follows the gradients of the attacked model's own graph, step by step."""
        return False

    def each_budget(self) -> Iterator[Self]:
        """Yield the attack at each of its budgets, alone."""
        for epsilon in sorted({self.epsilon, *self.curve}):
            yield replace(self, epsilon=epsilon, curve=())

    @property
    def ball(self) -> Ball:
        """The images that the budget allows."""
        return BALLS[self.norm](self.epsilon)


class Slots:
    """The images under attack: fixed memory, one row per slot, filled and emptied by the harness.

    Attributes:
        original: uint8 [S, H, W, 3], the images.
        ball: what a proposal is pulled into: the budget, or all images for an attack that `minimises`.
        low: uint8 [S, H, W, 3], the least value each pixel may take (original - budget, at least 0).
        high: uint8 [S, H, W, 3], the greatest.
        label: int64 [S], the true class.
        index: int64 [S], the image's index in the data set.
        num_queries: int64 [S], queries this image has spent; the first proposal is made at 0.
    """

    def __init__(
        self,
        num_slots: int,
        image_shape: tuple[int, int, int],
        config: AttackConfig,
        ball: Ball | None = None,
    ) -> None:
        """Allocate `num_slots` slots for images of shape (H, W, 3); the ball is the budget's when not given."""
        self.config = config
        self.ball = ball or config.ball
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
        self.ball.write_bounds(self.original[slot], self.low[slot], self.high[slot])
        self.label[slot] = label
        self.index[slot] = index
        self.num_queries[slot] = 0


class Attack(ABC):
    """A black-box attack that spends one query per image and step."""

    def __init__(self, slots: Slots) -> None:
        """Attach the attack to the slots it works on."""
        self.slots = slots

    @abstractmethod
    def propose(self, slots: Int64Array) -> npt.NDArray[Any]:
        """Return the next image for each of these slots, [n, H, W, 3] in units of uint8 (any number type).

        The harness owns the array from here on: it must be a new one.
        """

    def observe(self, slots: Int64Array, answers: npt.NDArray[Any], /) -> None:
        """Take in the endpoint's answers to the last proposals of these slots.

        They are what the attack's kind `sees`: scores, float32 [n, classes], or labels, int64 [n]. Only slots that
        go on are shown: not those whose image is fooled or out of queries. An attack that sees neither is never
        called and leaves this out.
        """
        raise NotImplementedError


class Harness(Protocol):
    """What an attack with a loop of its own is given: the images, and the endpoint as far as it may ask it.

    Attributes:
        config: the attack's config.
        images: uint8 [N, H, W, 3], all of the data set.
        labels: int64 [N], their classes.
        finished: bool [N], true for what needs no more queries.
        surrogates: networks by the name that the config calls them; several where their logits are averaged.
        expectation: draws that a gradient is the mean of, where something random stands before the network.
        lost_at: int64 [N], the query that fooled an image, or whose answer was none, counted from 1; 0 while there
            is no such query. What is lost needs no more queries either.
    """

    config: AttackConfig
    images: UInt8Array
    labels: Int64Array
    finished: BoolArray
    surrogates: Mapping[str, Sequence[Network]]
    expectation: int
    lost_at: Int64Array

    async def ask(self, indices: Int64Array, proposals: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """Send proposals and return what the attack's kind `sees` of the answers.

        Each is rounded and cut to its budget, or, of an attack that `minimises`, to 0 and 255 alone.

        Args:
            indices: int64 [n], the images; several proposals for one of them are several queries, in this order.
            proposals: [n, H, W, 3] of any number type, in units of uint8.

        Returns:
            Scores, float32 [n, classes], with NaN in the whole row where the answer was no score; or labels,
            int64 [n], with -1 there; None for an attack that sees neither.

        Raises:
            ClientError: the server failed, a proposal is no image, or one of the images is out of queries.
        """
        ...

    async def count_classes(self) -> int | None:
        """Return the number of the model's classes; None when it answers a class alone.

        It is one question that counts as no query.
        """
        ...

    def note_stuck(self, indices: Int64Array) -> None:
        """Note that the attack has nothing to follow on these images, as a gradient that is zero."""
        ...

    def finish(self, indices: Int64Array) -> None:
        """Note that the attack on these images is over."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttackKind:
    """All there is to know of one attack: what the recipe, the command line, the harness and the docs read."""

    about: str
    """What it does, in one line."""
    config: type[Any]
    """Its AttackConfig: the default of `name` names the attack, the choices of `norm` are the norms it has."""
    sees: Sees
    """What it is shown of the endpoint's answers: the scores, the answered class, or nothing; "surrogate" is shown
    the class too, to know when it is done: it follows the gradients of a network of its own."""
    minimises: bool = False
    """Whether it makes the distance smaller and smaller: what it proposes is rounded to uint8 and not pulled into
    the budget, and an image is fooled by what lies in the budget alone."""
    compares: bool = False
    """Whether it hunts for what a reference model still gets right: an image is fooled when the attacked model
    misjudges it and the reference does not, and only what both get right is attacked. Its config has `reference`.
    What it leaves is no robustness, so it is not part of the worst case."""
    attack: Callable[[Slots], Attack] | None = None
    """Makes the attack for the harness's slots: one query per image and step."""
    run: Callable[[Harness, Int64Array], Awaitable[None]] | None = None
    """Runs a loop of its own over the images of these indices, finished ones among them, instead."""
    libraries: tuple[str, ...] = ()
    """Packages, as pip names them, whose versions decide the outcome."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: the config has no name, the choices are not ours, or there is not one way to run it.
        """
        if not isinstance(getattr(self.config, self.config.tag_key, None), str):
            raise ValueError(
                f"config: got {self.config.__name__} without a name, expected it as the field's default"
            )
        if self.sees not in get_args(Sees):
            raise ValueError(f'sees: got "{self.sees}", expected one of {", ".join(get_args(Sees))}')
        if not set(self.norms) <= set(BALLS):
            raise ValueError(f"config: got the norms {', '.join(self.norms)}, expected some of {', '.join(BALLS)}")
        if self.compares and "reference" not in self.config.__dataclass_fields__:
            raise ValueError(
                f"config: got {self.config.__name__} without reference, expected it as compares is set"
            )
        if (self.attack is None) == (self.run is None):
            raise ValueError(f'attack: got {"neither" if self.run is None else "both"}, expected it or "run"')

    @property
    def name(self) -> str:
        """What recipes call it."""
        name: str = getattr(self.config, self.config.tag_key)
        return name

    @property
    def needs_scores(self) -> bool:
        """Whether it cannot run on an endpoint that answers the class alone."""
        return self.sees == "scores"

    def pull_into(self, config: AttackConfig) -> Ball:
        """Return the ball that its proposals are pulled into."""
        return EVERYTHING if self.minimises else config.ball

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that its budget may have."""
        return get_args(get_type_hints(self.config)["norm"])


_HERE = "temper.client.robustness"
ATTACKS: Registry[AttackKind] = Registry(
    "temper.attacks",
    f"{_HERE}.base:AttackKind",
    {
        "square": f"{_HERE}.attacks.square:SQUARE",
        "simba": f"{_HERE}.attacks.simba:SIMBA",
        "hop-skip-jump": f"{_HERE}.attacks.hop_skip_jump:HOP_SKIP_JUMP",
        "noise": f"{_HERE}.attacks.noise:NOISE",
        "fgsm": f"{_HERE}.attacks.transfer:FGSM",
        "pgd": f"{_HERE}.attacks.transfer:PGD",
        "mi-fgsm": f"{_HERE}.attacks.transfer:MI_FGSM",
        "apgd-ce": f"{_HERE}.attacks.transfer:APGD_CE",
        "apgd-dlr": f"{_HERE}.attacks.transfer:APGD_DLR",
        "apgd-t": f"{_HERE}.attacks.transfer:APGD_T",
        "differential": f"{_HERE}.attacks.differential:DIFFERENTIAL",
        "art-square": f"{_HERE}.attacks.art_square:ART_SQUARE",
    },
)
"""Ours, and those that other packages bring as entry points of `temper.attacks`."""


def margin(scores: Float32Array, labels: Int64Array) -> Float32Array:
    """Return float32 [n]: score of the true class minus the best other score; below 0 the image is fooled."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[rows, labels] = -np.inf
    found: Float32Array = scores[rows, labels] - others.max(axis=1)
    return found
