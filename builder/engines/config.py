"""What runs the variants, and for which batches and GPUs it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

EngineKind = Literal["openvino", "tensorrt-rtx", "tensorrt"]
KINDS: tuple[EngineKind, ...] = ("openvino", "tensorrt-rtx", "tensorrt")
_OPT_BATCH = 8
# Far above what a ResNet gains from; the plugin holds one batch of this size in memory for every instance.
_LARGEST_BATCH = 4096
_MOST_INSTANCES = 256
_COMPATIBILITIES = ("none", "same_compute_capability", "ampere_plus")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What runs the variants, and for which batches and GPUs it is built."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["auto", "openvino", "tensorrt-rtx", "tensorrt"] = "auto"
    """The engine; `auto` takes the best one that this machine can run."""
    min_batch: int = 1
    """The smallest batch that the engine takes."""
    opt_batch: int = None  # type: ignore[assignment]  # an integer from __post_init__ on
    """The batch that a compiled engine is tuned for; not given: 8, or `max_batch` when that is less."""
    max_batch: int = 32
    """The largest batch that Triton puts together."""
    precision_hint: Literal["f32", "bf16"] = "f32"
    """`openvino`: the type of what is not quantised. Left to itself it takes bf16 where the CPU has it."""
    num_instances: int = 2
    """Triton's model instances: batches in flight at once."""
    frontend: Literal["onnx", "torch-tensorrt"] = "onnx"
    """TensorRT: its ONNX parser, or torch-tensorrt from the PyTorch network."""
    server_backend: Literal["temper", "tensorrt"] = "temper"
    """`tensorrt`: the plugin runs the plan, or Triton's own backend."""
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    """`tensorrt`: on which other GPUs the plan runs; more of them make it slower."""
    version_compatible: bool = False
    """`tensorrt`: whether later versions of TensorRT run the plan; it then carries code that the server runs."""
    compute_capabilities: tuple[str, ...] = ()
    """`tensorrt-rtx`: the GPUs to build for, as "8.9"; none is its portable engine, which leaves 7.5 out."""
    triton_release: str | None = None
    """`tensorrt`: the release of the tritonserver container that will serve, as "26.06"; a plan that it cannot
    load is refused."""
    max_high_precision_convs: int | None = None
    """Fail the build when more convolutions than this run in a higher precision than the variant's."""
    max_reformats: int | None = None
    """Fail the build when the engine has more layers than this that only change a tensor's format."""

    def __post_init__(self) -> None:
        """Checks every field, and the fields together.

        Raises:
            ValueError: A field is out of its range, or does not go with another.
        """
        if self.kind not in ("auto", *KINDS):
            raise ValueError(f"kind: got {self.kind!r}, expected one of 'auto', {', '.join(map(repr, KINDS))}")
        if self.min_batch != 1:
            # Triton sends what has arrived; a lone request is a batch of one.
            raise ValueError(f"min_batch: got {self.min_batch}, expected 1, as a request may come alone")
        if not 1 <= self.max_batch <= _LARGEST_BATCH:
            raise ValueError(f"max_batch: got {self.max_batch}, expected 1 to {_LARGEST_BATCH}")
        if self.opt_batch is None:
            object.__setattr__(self, "opt_batch", min(_OPT_BATCH, self.max_batch))
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"opt_batch: got {self.opt_batch}, expected {self.min_batch} (min_batch) to "
                f"{self.max_batch} (max_batch)"
            )
        if self.precision_hint not in ("f32", "bf16"):
            raise ValueError(f"precision_hint: got {self.precision_hint!r}, expected 'f32' or 'bf16'")
        if not 1 <= self.num_instances <= _MOST_INSTANCES:
            raise ValueError(f"num_instances: got {self.num_instances}, expected 1 to {_MOST_INSTANCES}")
        for name in ("max_high_precision_convs", "max_reformats"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}: got {value}, expected 0 or more")
        self._check_kind()

    def _check_kind(self) -> None:
        if self.frontend not in ("onnx", "torch-tensorrt"):
            raise ValueError(f"frontend: got {self.frontend!r}, expected 'onnx' or 'torch-tensorrt'")
        if self.server_backend not in ("temper", "tensorrt"):
            raise ValueError(f"server_backend: got {self.server_backend!r}, expected 'temper' or 'tensorrt'")
        if self.hardware_compatibility not in _COMPATIBILITIES:
            allowed = ", ".join(map(repr, _COMPATIBILITIES))
            raise ValueError(
                f"hardware_compatibility: got {self.hardware_compatibility!r}, expected one of {allowed}"
            )
        plain = EngineConfig.__dataclass_fields__
        only = {
            "frontend": ("tensorrt", "tensorrt-rtx"),
            "server_backend": ("tensorrt",),
            "hardware_compatibility": ("tensorrt",),
            "version_compatible": ("tensorrt",),
            "triton_release": ("tensorrt",),
            "compute_capabilities": ("tensorrt-rtx",),
        }
        for name, kinds in only.items():
            if getattr(self, name) != plain[name].default and self.kind not in kinds:
                allowed = " or ".join(map(repr, kinds))
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r} with kind {self.kind!r}, expected kind {allowed}"
                )
        self._check_frontend()

    def _check_frontend(self) -> None:
        """Refuses what torch-tensorrt cannot be told, or does in a way that Triton cannot load."""
        if self.frontend == "onnx":
            return
        # It leaves the lean runtime out of a version-compatible plan, and Triton has none of its own.
        unknown = {
            "version_compatible": self.version_compatible,
            "compute_capabilities": self.compute_capabilities,
            "hardware_compatibility": self.hardware_compatibility == "same_compute_capability",
        }
        for name, is_set in unknown.items():
            if is_set:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r} with frontend 'torch-tensorrt', expected frontend 'onnx'"
                )
