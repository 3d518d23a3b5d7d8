"""What a compression step is: one object that says all there is to know of it, and does it.

A step is declared once, in its own file: its config, what it works on, its place in the order, what it needs, and
`run`. The recipe, the sweep, the store's keys, the report and the docs read it from here. Other packages bring
steps by the entry points `temper.steps`; docs/extend.md shows how.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from temper.plugins import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.data.sources import TrainImages
    from temper.builder.engines.kind import EngineKind
    from temper.builder.engines.latency import CompareLatency
    from temper.builder.network.train import TrainConfig
    from temper.imaging.preprocess import Size

Config = TypeVar("Config")
Need = Literal["engine", "training"]
"""`engine`: the latency in the engine that will run the variant. `training`: of a step on a graph, the PyTorch
network that the graph came from, with its teacher and the training images; a step on a network has them anyway."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """The data and the surroundings of a step that changes or trains a network."""

    train: TrainImages
    """The training split, augmented, without the images held out."""
    held_out: tuple[NDArray[np.uint8], NDArray[np.int64]]
    """Training images set aside to score candidates with, uint8 [N, H, W, 3], and labels; never test images."""
    teacher: nn.Module
    """The network before any compression: float32 [N, 3, H, W], normalised, to logits."""
    folder: Path
    """The step's work folder; what a killed step left in it is still there."""
    progress: Callable[[int, int], None]
    """Called with (done, total)."""
    image_size: Size
    """H and W in pixels, or one number for both."""
    mean: tuple[float, float, float]
    """Mean per channel, RGB, on a scale of 0 to 1."""
    std: tuple[float, float, float]
    """Standard deviation per channel, RGB, on a scale of 0 to 1."""
    num_classes: int
    """Length of the output."""
    train_config: TrainConfig
    """How the uncompressed network was finetuned: what a step trains with, unless it says otherwise."""
    seed: int
    """Decides whatever a step draws."""
    compare_latency: CompareLatency | None = None
    """Times two networks in the engine that will run the variant; given to steps that need `engine`."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a step on a graph is given when it trains."""

    network: nn.Module
    """The network that the graph was exported from."""
    context: StepContext
    """The images, the teacher and the schedule."""


@dataclass(frozen=True, kw_only=True)
class GraphContext:
    """The data and the surroundings of a step that changes an ONNX graph."""

    calibration: NDArray[np.uint8]
    """Training images, uint8 [M, H, W, 3], mapped from their file."""
    images: NDArray[np.uint8]
    """A few test images to compare the graph before and after on; nothing may be chosen by them."""
    folder: Path
    """The step's work folder."""
    progress: Callable[[int, int], None]
    """Called with (done, total)."""
    open_training: Callable[[], Training]
    """Loads what a step that needs `training` trains with; of any other step it is an error of ours."""


class Step(ABC, Generic[Config]):
    """One kind of step. What differs between two uses of it is in its config."""

    name: ClassVar[str]
    """Its key in a recipe's `compress`, and its stage in the store."""
    about: ClassVar[str]
    """One sentence, for the docs."""
    config: type[Config]
    """A frozen dataclass that is checked when it is made."""
    works_on: ClassVar[Literal["network", "graph"]]
    """The PyTorch network, or the ONNX graph that is exported from it."""
    place: ClassVar[int]
    """Where it stands among the steps on the same thing: the lower one comes first."""
    repeats: ClassVar[bool] = False
    """It may follow any step on the same thing, more than once, to recover what that one cost."""
    may_begin: ClassVar[bool] = False
    """It repeats, and may come first as well."""
    gain: ClassVar[Literal["speed", "accuracy", "robustness"]] = "speed"
    """What it is for; the report says so when it gained nothing of the first two."""
    budgets: ClassVar[tuple[str, ...]] = ()
    """Keys of the config of which one is given; a sweep over one of them drops the others."""
    sparse_weights: ClassVar[bool] = False
    """It leaves 2:4 sparse weights, for which engines have kernels of their own."""
    code: ClassVar[tuple[str, ...]] = ()
    """Further modules that its result depends on, beside its own and what this one imports."""

    def needs(self, config: Config) -> frozenset[Need]:
        """What it needs beyond the data, the network or the graph."""
        return frozenset()

    def libraries(self, config: Config) -> tuple[str, ...]:
        """The packages, as pip names them, whose versions decide the result."""
        return ("torch", "nvidia-modelopt")

    def settle(self, config: Config, engine: EngineKind[Any]) -> Config:
        """The config for an engine kind, when part of it depends on where the variant will run."""
        return config

    def precision(self, config: Config) -> str | None:
        """The type that the network computes in afterwards: `fp16`, `bf16`, `int8`, `fp8`; None leaves it."""
        return None

    def leaves_float(self, config: Config) -> bool:
        """Whether part of the graph stays float32 beside a smaller type, so that it may be cast as well."""
        return False

    def check_after(self, config: Config, earlier: Sequence[tuple[Step[Any], Any]]) -> None:
        """Refuses what cannot follow the earlier steps, beyond the order.

        Raises:
            ValueError: It cannot; the text begins with `compress`.
        """

    def label(self, config: Config) -> str:
        """What is shown while it runs."""
        return self.name.replace("_", " ")

    def note(self, info: dict[str, Any]) -> str:
        """The figure that matters, of those that `run` returned."""
        return str(info.get("note", ""))

    def verify(self, graph: Path) -> dict[str, Any]:
        """Checks in the graph that the engine is made from what the step promised of it.

        Returns:
            Figures for the engine's stage, as JSON.

        Raises:
            BuilderError: A later step undid it.
        """
        return {}


class NetworkStep(Step[Config]):
    """A step on the PyTorch network."""

    works_on: ClassVar[Literal["network", "graph"]] = "network"

    @abstractmethod
    def run(self, network: nn.Module, config: Config, context: StepContext) -> tuple[nn.Module, dict[str, Any]]:
        """Changes a network.

        Args:
            network: Float32 [N, 3, H, W], normalised, to logits; it may be changed in place.
            config: The settings.
            context: The data and the surroundings.

        Returns:
            The network, on the CPU in evaluation mode, and figures as JSON; `note` among them is shown.

        Raises:
            BuilderError: It cannot; one line that begins with the step's name.
        """


class GraphStep(Step[Config]):
    """A step on the ONNX graph."""

    works_on: ClassVar[Literal["network", "graph"]] = "graph"

    @abstractmethod
    def run(self, source: Path, target: Path, config: Config, context: GraphContext) -> dict[str, Any]:
        """Writes a changed graph: input UINT8 [N, H, W, 3], output FP32 [N, classes], as the source has them.

        Args:
            source: The graph.
            target: The file to write.
            config: The settings.
            context: The data and the surroundings.

        Returns:
            Figures as JSON. `weight_bits` among them (7 or 8) are those of int8 weights.

        Raises:
            BuilderError: It cannot; one line.
        """


REGISTRY: Registry[Step[Any]] = Registry(
    "temper.steps",
    "temper.builder.compress.step:Step",
    {
        "prune": "temper.builder.compress.prune:STEP",
        "select": "temper.builder.compress.select:STEP",
        "low_rank": "temper.builder.compress.low_rank:STEP",
        "sparsify": "temper.builder.compress.sparsify:STEP",
        "distil": "temper.builder.compress.distil:STEP",
        "adversarial": "temper.builder.compress.adversarial:STEP",
        "quantize": "temper.builder.compress.quantize:STEP",
        "cast": "temper.builder.compress.cast:STEP",
    },
)
"""Every step by name. The line here is all that one of ours needs outside of its file."""


def rank(step: Step[Any]) -> tuple[bool, int]:
    """Orders steps: what changes the network comes before what changes its graph, then by place."""
    return step.works_on == "graph", step.place
