"""report.json, typed: what a run built and measured, as frozen dataclasses. Standard library only.

JSON is what `dataclasses.asdict` makes of them; `read.py` reads it back and `schema/report.json` describes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from temper.report.measured import (
    Accuracy,
    Attack,
    ClassShare,
    Corruptions,
    Differential,
    Latency,
    LoadRun,
    Mask,
    Paired,
    PairedAttack,
    PairedCorruptions,
    PairedWorstCase,
    Record,
    Share,
    WorstCase,
)
from temper.report.verdict import Verdict

AnyAttack = TypeVar("AnyAttack", bound=Attack)
FORMAT: Literal[2] = 2
"""Raised when a key goes or changes its meaning; a further key is no other format, and needs a default."""


@dataclass(frozen=True, kw_only=True)
class Stage(Record):
    """One stage of a variant's build."""

    name: str
    """`data`, `weights`, a step of the compression, `export` or `engine`."""
    figures: dict[str, Any]
    """What it says of its result; every stage has its own."""
    reused: bool
    """Whether nothing had to run."""


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """How a variant was quantised, what the Q/DQ audit counted, and how near it is to float32."""

    precision: str
    """`int8` or `fp8`."""
    method: str
    """How the ranges were found."""
    num_calibration: int
    """Training images that they were found on."""
    num_conv: int
    """Convolutions quantised, per channel."""
    num_gemm: int
    """Linear layers quantised, per channel."""
    num_residual_adds: int
    """Residual additions with exactly one quantised branch."""
    agreement: float
    """Share of the images with the same answer as float32, 0 to 1."""
    num_images: int
    """Test images compared."""


@dataclass(frozen=True, kw_only=True)
class RangeLoss(Record):
    """How far OpenVINO's answers at AVX2 are from the graph's exact arithmetic."""

    num_images: int
    """Images compared."""
    changed: float
    """Share of answers that are others, 0 to 1."""
    rms: float
    """Of the logits' change, as a share of their standard deviation."""


@dataclass(frozen=True, kw_only=True)
class ReduceRange(Record):
    """Whether the weights of int8 have 7 bits, and why."""

    asked: bool | Literal["auto"]
    """`reduce_range` in the recipe."""
    used: bool
    """Whether they have."""
    why: str
    """The reason."""
    full: RangeLoss | None = None
    """`auto`: what 8 bits lose."""
    reduced: RangeLoss | None = None
    """`auto`: what 7 bits lose."""


@dataclass(frozen=True, kw_only=True)
class Exactness(Record):
    """How far the served answers are from the exact arithmetic of the graph."""

    num_images: int
    """Test images compared."""
    agreement: float
    """Share of the images with the same answer, 0 to 1."""
    relative_rms: float
    """Of the logits' differences, as a share of their standard deviation."""
    max_abs_diff: float
    """The largest difference of a logit."""
    max_abs_logit: float
    """The largest logit."""
    retries: dict[str, int]
    """Requests that were sent again, by the kind of error that made it necessary."""


@dataclass(frozen=True, kw_only=True)
class Parity(Record):
    """The served answers against torchvision and the network as they are, by `[data]`, on raw files."""

    num_images: int
    """Test images compared."""
    num_same_pixels: int
    """Of how many torchvision's own reading and transforms give the very pixels that are tested."""
    max_pixel_diff: float
    """The largest difference of a pixel, 0 to 255."""
    agreement: Share
    """Share of the images with the same answer."""
    relative_rms: float
    """Of the logits' differences, as a share of their standard deviation."""
    max_abs_diff: float
    """The largest difference of a logit."""
    max_abs_logit: float
    """The owner's largest logit."""
    runtime: Literal["PyTorch", "ONNX Runtime"]
    """What ran the owner's network: PyTorch, or ONNX Runtime where it came as an ONNX file."""
    num_same_encoded: int | None = None
    """Of how many the file itself, sent to `encoded_model`, gives the same logits to the bit; null without one,
    and where answers are drawn at random."""
    retries: dict[str, int]
    """Requests that were sent again, by the kind of error that made it necessary."""


@dataclass(frozen=True, kw_only=True)
class Int8(Record):
    """What decides whether int8 answers depend on the CPU."""

    weight_bits: int
    """Bits that the weights use, 7 or 8."""
    reduce_range: ReduceRange | None
    """Null for an ensemble."""
    verified_isa: str | None
    """The instruction set that the engine was verified on."""
    serving_isa: str | None
    """The instruction set that served; null when no CPU does."""
    warning: str | None
    """What that CPU does to the answers; null when there is nothing to say."""
    exact: Exactness | None
    """How exact it is as served; null when that was not measured."""


@dataclass(frozen=True, kw_only=True)
class Step(Record):
    """One step of a variant's compression, measured in process."""

    name: str
    """The step, `float32` for the network before any."""
    engine: str
    """What ran it: the engine that serves, or one that runs in process where that one does not."""
    flops: int
    """Two per multiply-add of the convolutions and linear layers, for one image."""
    num_parameters: int
    """Weights, biases and normalisations of the network."""
    size_bytes: int
    """Size of the graph's file."""
    accuracy: Share
    """On the test images."""
    agreement: float
    """Share of the float32 network's answers, 0 to 1."""
    latency_ms: float
    """Of one image, the median."""
    latency_ratio: float | None
    """To the step before, timed in turns; null for the first."""
    latency_before_ms: float | None = None
    """Of the step before in these turns, which its own row's figure is not: that was measured at another time."""
    accuracy_change: Paired | None = None
    """Against the step before; null for the first."""
    verdict: str | None = None
    """Says so when the step gained nothing."""


@dataclass(frozen=True, kw_only=True)
class Variant(Record):
    """One variant: what it is, and what was measured on it as served."""

    name: str
    """The variant's name in the recipe."""
    model: str
    """Its model in the repository."""
    version: int
    """The version that was measured."""
    encoded_model: str | None = None
    """The model that takes image files for it, and gives its answers; null when there is none."""
    engine: str
    """The kind of engine that runs it."""
    engine_reason: str
    """Why that one."""
    size_bytes: int
    """Size of the engine file, of all members' together for an ensemble."""
    accuracy: Accuracy | None = None
    """On all test images; null when it was not measured."""
    per_class: tuple[ClassShare, ...] = ()
    """The same by class."""
    parity: Parity | None = None
    """Against torchvision and the network as they are; null when it was not compared."""
    throughput_ips: float | None = None
    """Best closed-loop throughput in images per second."""
    latency_ms: Latency | None = None
    """Of one load run."""
    latency_from: str | None = None
    """Which one."""
    load: tuple[LoadRun, ...] = ()
    """Every load run."""
    robustness: tuple[Attack, ...] = ()
    """Every attack, in the recipe's order."""
    worst_case: tuple[WorstCase, ...] = ()
    """What all of them together leave, at every budget."""
    masks: tuple[Mask, ...] = ()
    """The attacks among them that saw only a mask."""
    differential: tuple[Differential, ...] = ()
    """Every attack that compares it with a reference, in the recipe's order; none of them is part of the above."""
    corruptions: Corruptions | None = None
    """On corrupted images; null when it was not measured."""
    calibration: Calibration | None
    """Null when it is not quantised."""
    int8: Int8 | None
    """Null when it is not int8."""
    steps: tuple[Step, ...] = ()
    """What each step of its compression did; none without steps."""
    build: tuple[Stage, ...]
    """The stages that made it, but for the quantisation; none for an ensemble."""
    frontier: bool | None = None
    """In a sweep: whether no other variant beats it."""

    def attack(self, key: tuple[str, str, float]) -> Attack | None:
        """The attack of this name, norm and epsilon, if it was measured."""
        return next((attack for attack in self.robustness if attack.key == key), None)

    def worst_at(self, budget: tuple[str, float]) -> WorstCase | None:
        """The worst case at this norm and epsilon, if it was measured."""
        return next((case for case in self.worst_case if case.budget == budget), None)


def nearest(attacks: Sequence[AnyAttack], budgets: Sequence[tuple[str, float]]) -> list[AnyAttack]:
    """Of an attack at several budgets of one norm, the one nearest to that of `budgets`, (norm, epsilon)."""
    first = dict(budgets)
    by_distance = sorted(attacks, key=lambda one: -abs(one.epsilon - first.get(one.norm, 0)))
    return list({(one.attack, one.norm): one for one in by_distance}.values())


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """One variant against the first one, on the same images."""

    variant: str
    """The variant's name."""
    baseline: str
    """The first one's."""
    size_ratio: float
    """Size of its engine file over the baseline's."""
    throughput_ratio: float | None = None
    """Its throughput over the baseline's; null when one was not measured."""
    accuracy: Paired | None = None
    """Variant minus baseline; null when one was not measured."""
    robustness: tuple[PairedAttack, ...] = ()
    """The same under every attack that both went through."""
    worst_case: tuple[PairedWorstCase, ...] = ()
    """The same under all of them together, at every budget."""
    corruptions: PairedCorruptions | None = None
    """On corrupted images; null when one was not measured."""


@dataclass(frozen=True, kw_only=True)
class Gpu(Record):
    """An NVIDIA GPU."""

    name: str
    """Its name."""
    memory: str
    """Its memory, as nvidia-smi writes it."""
    driver: str
    """The driver's version."""


@dataclass(frozen=True, kw_only=True)
class Machine(Record):
    """Where it was measured."""

    cpu: str
    """The CPU's model name."""
    flags: tuple[str, ...]
    """Its instruction sets that matter here."""
    cores: int
    """Cores that the run might use."""
    ram_bytes: int
    """Memory that the run might use."""
    gpu: Gpu | None
    """The first GPU; null without one."""
    os: str
    """The operating system."""
    kernel: str
    """Its kernel's version."""


@dataclass(frozen=True, kw_only=True)
class Timing(Record):
    """One stage of the run, as it was shown."""

    stage: str
    """Its label."""
    seconds: float
    """How long it took."""
    reused: bool
    """Whether nothing had to run."""
    note: str
    """The figure that mattered."""


@dataclass(frozen=True, kw_only=True)
class Failure(Record):
    """A variant of a sweep that failed."""

    variant: str
    """Its name."""
    reason: str
    """Why, in one line."""


@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """What one `temper run` or `temper sweep` gives."""

    format: Literal[2]
    """Of this file."""
    recipe: str
    """The recipe's name."""
    created: str
    """When the run began, to the minute, in UTC."""
    seconds: float
    """How long the run took."""
    server: str
    """What it was measured through, in words."""
    stopped: str | None
    """Why the measurements are not complete, in one line; null when they are."""
    deaths: tuple[str, ...] = ()
    """One line for each time that the embedded server died and was started again."""
    warnings: tuple[str, ...] = ()
    """One line for each reason to doubt all figures, such as an accuracy that is none."""
    commit: str | None
    """Temper's commit; null when it ran from no checkout."""
    machine: Machine
    """Where it was measured."""
    versions: dict[str, str]
    """Versions of Python and of the libraries that a figure depends on."""
    config: dict[str, Any]
    """The recipe, with its defaults."""
    data: dict[str, Any]
    """What the images are: the figures of the stage `data`."""
    variants: tuple[Variant, ...]
    """In the recipe's order."""
    comparisons: tuple[Comparison, ...]
    """Every further variant against the first one."""
    timings: tuple[Timing, ...]
    """The run's stages, as they ran."""
    failed: tuple[Failure, ...] = ()
    """In a sweep: the variants that could not be measured."""
    explanation: str | None = None
    """The page beside the report that says where losses come from, `explain.html`; null when it was not made."""

    verdicts: tuple[Verdict, ...] = ()
    """What the gate says of each variant that it judged, in the recipe's order; empty without a gate."""

    def budgets(self) -> tuple[tuple[str, float], ...]:
        """The budget of each norm, (norm, epsilon), that is told first.

        It is where the first variant's worst case is nearest to half of its accuracy without attack: where nearly
        all images are left, or none, no two variants differ.
        """
        first = next((one for one in self.variants if one.worst_case and one.robustness), None)
        if first is None:
            return ()
        half = first.robustness[0].clean_accuracy.value / 2
        nearest = sorted(first.worst_case, key=lambda case: abs(case.value - half), reverse=True)
        return tuple({case.norm: case.budget for case in nearest}.values())

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return dataclasses.asdict(self)
