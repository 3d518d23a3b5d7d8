"""What an engine kind is: one object says all that the rest of Temper must know of it.

A kind is one file with its config and its `EngineKind`. Ours are listed at the end; another package brings its own
by an entry point of the group `temper.engines`, and the module that runs it inside Triton by one of the group
`temper.runners` (see backends/temper/runners). Nothing here or in a kind's file imports its library at the top.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from temper.builder.errors import EngineError
from temper.plugins import Registry, Tagged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.publish.plans import Binding
    from temper.builder.publish.triton_config import Backend

_OPT_BATCH = 8
# Far above what a ResNet gains from; the plugin holds one batch of this size in memory for every instance.
_LARGEST_BATCH = 4096
_MOST_INSTANCES = 256

Run = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]
"""A graph in this process: uint8 [N, H, W, 3] to float32 logits [N, classes]."""
RunOutputs = Callable[["NDArray[np.uint8]"], "dict[str, NDArray[np.float32]]"]
"""The same, to all outputs of the graph by name."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Tagged):
    """What every kind is told: what runs the variants, and for which batches it is built."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    tag_key: ClassVar[str] = "kind"
    default_tag: ClassVar[str] = "auto"
    not_built_from: ClassVar[tuple[str, ...]] = ("num_instances",)
    """The fields that only serving reads: another value of theirs builds nothing again."""

    kind: str
    """The engine; `auto` takes the best one that this machine can run."""
    opt_batch: int = None  # type: ignore[assignment]  # an integer from __post_init__ on
    """The batch that a compiled engine is tuned for; not given: 8, or `max_batch` when that is less."""
    max_batch: int = 32
    """The largest batch that Triton puts together."""
    num_instances: int = 2
    """Triton's model instances: batches in flight at once."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        own = type(self).__dataclass_fields__["kind"].default
        if self.kind != own:
            raise ValueError(f"kind: got {self.kind!r}, expected {own!r}")
        if not 1 <= self.max_batch <= _LARGEST_BATCH:
            raise ValueError(f"max_batch: got {self.max_batch}, expected 1 to {_LARGEST_BATCH}")
        if self.opt_batch is None:
            object.__setattr__(self, "opt_batch", min(_OPT_BATCH, self.max_batch))
        if not 1 <= self.opt_batch <= self.max_batch:
            raise ValueError(f"opt_batch: got {self.opt_batch}, expected 1 to {self.max_batch} (max_batch)")
        if not 1 <= self.num_instances <= _MOST_INSTANCES:
            raise ValueError(f"num_instances: got {self.num_instances}, expected 1 to {_MOST_INSTANCES}")

    @classmethod
    def kinds(cls) -> dict[str, type[Tagged]]:
        """The configs of all kinds, `auto` first.

        Raises:
            PluginError: Another package's kind does not load.
        """
        return {"auto": AutoConfig, **{name: kind.config for name, kind in ENGINES.all().items()}}

    def build_key(self) -> dict[str, Any]:
        """Returns what decides the engine file, as JSON."""
        return {name: value for name, value in asdict(self).items() if name not in self.not_built_from}


@dataclass(frozen=True, kw_only=True)
class AutoConfig(EngineConfig):
    """The best kind that this machine can run; it takes over those of these keys that it knows."""

    kind: Literal["auto"] = "auto"
    precision_hint: Literal["f32", "bf16"] = "f32"
    """Where OpenVINO is taken: the type of what is not quantised."""
    max_high_precision_convs: int | None = None
    """Where TensorRT is taken: fail the build when more convolutions than this run in a higher precision."""
    max_reformats: int | None = None
    """Where TensorRT is taken: fail the build when more layers than this only change a tensor's format."""

    def become(self, config: type[EngineConfig]) -> EngineConfig:
        """Returns the picked kind's config.

        Raises:
            ValueError: A value is out of its range.
        """
        known = config.__dataclass_fields__.keys() - {"kind"}
        values = {name: value for name, value in asdict(self).items() if name in known}
        return config(**values)

    def __post_init__(self) -> None:
        """Checks every field, as the kinds that may be picked do.

        Raises:
            ValueError: A field is out of its range.
        """
        super().__post_init__()
        check_hint(self.precision_hint)
        check_limits(self.max_high_precision_convs, self.max_reformats)


def check_hint(precision_hint: str) -> None:
    """Refuses what is no type of OpenVINO's.

    Raises:
        ValueError: It is neither `f32` nor `bf16`.
    """
    if precision_hint not in ("f32", "bf16"):
        raise ValueError(f"precision_hint: got {precision_hint!r}, expected 'f32' or 'bf16'")


def check_limits(max_high_precision_convs: int | None, max_reformats: int | None) -> None:
    """Refuses limits below 0 of an engine's audit.

    Raises:
        ValueError: Names the limit.
    """
    limits = {"max_high_precision_convs": max_high_precision_convs, "max_reformats": max_reformats}
    for name, value in limits.items():
        if value is not None and value < 0:
            raise ValueError(f"{name}: got {value}, expected 0 or more")


Config = TypeVar("Config", bound=EngineConfig)


@dataclass(frozen=True, kw_only=True)
class BuildJob(Generic[Config]):
    """One engine to build."""

    onnx_path: Path
    """The graph, float32, half precision or Q/DQ."""
    folder: Path
    """Receives the engine file."""
    config: Config
    """Batch sizes, portability, limits."""
    images: NDArray[np.uint8] | None = None
    """uint8 [N, H, W, 3] to run it on, where this machine can."""
    precision: str = "fp32"
    """The variant's, `fp32`, `fp16`, `bf16`, `int8` or `fp8`."""
    sparse_weights: bool = False
    """Sparse kernels may be used; the weights are 2:4."""
    timing_cache: Path | None = None
    """A file of kernel timings that the next build may read."""
    module: nn.Module | None = None
    """The PyTorch network behind its preprocessing, where `EngineKind.wants_module` and the variant has one."""


class EngineKind(ABC, Generic[Config]):
    """One kind of engine: its package, its config, and how it is built, run, timed and served."""

    name: ClassVar[str]
    """What `engine.kind` says."""
    title: ClassVar[str]
    """As its maker writes it."""
    package: ClassVar[str]
    """As Python imports it."""
    symbol: ClassVar[str]
    """What the real package has and a placeholder lacks."""
    project: ClassVar[str]
    """As pip knows it: its version is part of what decides the engine file."""
    extra: ClassVar[str | None] = None
    """The extra of ours that installs it."""
    install_note: ClassVar[str] = ""
    """What else there is to say of installing it."""
    file: ClassVar[str]
    """The engine file's name."""
    device: ClassVar[Literal["cpu", "gpu"]]
    """What runs it."""
    rank: ClassVar[int | None] = None
    """`auto` asks the kinds in this order, lowest first, and does not ask those without."""
    builds_anywhere: ClassVar[bool] = True
    """It is built without the device that will run it."""
    wants_half_precision: ClassVar[bool] = False
    """What a quantised graph keeps in float32 would run so, and is cast to float16 first."""
    saturates_int8: ClassVar[bool] = False
    """Its int8 answers may depend on the CPU, unless weights have 7 bits; see `isa.py`."""
    runs_in_process: ClassVar[bool] = False
    """`open_graph` works: steps are measured in it, and networks pruned by its latency."""
    config: type[Config]
    """Its keys in the recipe."""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'temper[{self.extra}]'" if self.extra else f"pip install {self.project}"

    @property
    def is_installed(self) -> bool:
        """Whether there is a package of its name; whether it works, `why_not_run` says."""
        return is_importable(self.package)

    def require(self, config: Config) -> None:
        """Refuses what cannot be built, before anything is made for it; whether the GPU is here is asked later.

        Raises:
            EngineError: The package is not installed, or does not know what the config asks for.
        """
        if not self.is_installed:
            note = f" ({self.install_note})" if self.install_note else ""
            raise EngineError(
                f"engine {self.name}: the package {self.package} is not installed; run `{self.install}`{note} or "
                "choose another engine.kind"
            )

    @abstractmethod
    def why_not_run(self) -> str | None:
        """Says why its engines do not run on this machine; None when they do.

        What `auto` asks in this process and `doctor` in one of its own. It may load the library and try it.
        """

    def why_not_build(self) -> str | None:
        """Says why no engine can be built here; None when it can."""
        return None if self.is_installed else f"{self.package} is not installed"

    def libraries(self, config: Config) -> tuple[str, ...]:
        """The packages, as pip names them, whose versions decide the engine file."""
        return (self.project,)

    def machine_key(self) -> str | None:
        """What of this machine decides the engine file or its figures; None when it is the same everywhere."""
        return None

    @abstractmethod
    def build(self, job: BuildJob[Config]) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """Builds an engine, and runs it on the job's images where this machine can.

        Returns:
            The figures, as JSON: `runtime` (library and version) and what else the kind has to say; and the
            logits, float32 [N, classes], or None.

        Raises:
            EngineError: The library refuses the graph, or a limit of the config is passed.
        """

    @abstractmethod
    def backend(self, config: Config, weight_bits: int | None) -> Backend:
        """Returns what serves its engines in Triton.

        Args:
            config: As built.
            weight_bits: Bits that int8 weights use, 7 or 8; None for what is not int8.
        """

    def binding(self, config: Config, figures: dict[str, Any]) -> Binding | None:
        """Returns to which GPUs an engine is bound; None when it runs on all that the server may have.

        Args:
            config: As built.
            figures: From `build`.
        """
        return None

    def wants_module(self, config: Config) -> bool:
        """Whether engines are built from the PyTorch network, where a variant has one."""
        return False

    def open_graph(self, path: Path, config: Config) -> Run:
        """Opens a graph in this process as the server does for one request at a time.

        Args:
            path: The ONNX file.
            config: As served.

        Raises:
            EngineError: This kind does not run in process, or it refuses the graph.
        """
        raise EngineError(f"engine {self.name}: does not run a graph in this process; choose another engine.kind")

    def open_outputs(self, path: Path, config: Config) -> RunOutputs:
        """Opens a graph as `open_graph` does, for all of its outputs: what a look into the network reads.

        Args:
            path: An ONNX file, to whose outputs some of its inner tensors were added.
            config: As served.

        Raises:
            EngineError: This kind does not give inner tensors, or it refuses the graph.
        """
        raise EngineError(f"engine {self.name}: its inner tensors cannot be read in this process")


def is_importable(package: str) -> bool:
    """Whether there is a package or module of this name; nothing of it is imported but what it lies in."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


ENGINES: Registry[EngineKind[Any]] = Registry(
    "temper.engines",
    "temper.builder.engines.kind:EngineKind",
    {
        "openvino": "temper.builder.engines.openvino:OPENVINO",
        "tensorrt-rtx": "temper.builder.engines.tensorrt_rtx:TENSORRT_RTX",
        "tensorrt": "temper.builder.engines.tensorrt:TENSORRT",
    },
)
