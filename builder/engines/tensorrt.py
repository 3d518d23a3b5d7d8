"""TensorRT compiles on the GPU that will run the plan; Triton's own backend serves it, or the plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from temper.builder.engines.containers import check_release, expected_tensorrt
from temper.builder.engines.kind import is_importable
from temper.builder.engines.nvidia import NvidiaConfig, NvidiaKind
from temper.builder.errors import EngineError
from temper.builder.publish.plans import Binding
from temper.builder.publish.triton_config import Backend, NativeBackend, PluginBackend

_EMBEDDED = "pytriton"
"""The package of the embedded server."""
_COMPATIBILITIES = ("none", "same_compute_capability", "ampere_plus")


@dataclass(frozen=True, kw_only=True)
class TensorRtConfig(NvidiaConfig):
    """TensorRT on NVIDIA GPUs."""

    not_built_from: ClassVar[tuple[str, ...]] = ("num_instances", "server_backend")

    kind: Literal["tensorrt"] = "tensorrt"
    server_backend: Literal["auto", "temper", "tensorrt"] = "auto"
    """Triton's own backend runs the plan (`tensorrt`), or the plugin (`temper`), which copies images more often.
    `auto` takes the plugin where Temper's embedded server is installed, as that has no TensorRT backend."""
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    """On which other GPUs the plan runs; more of them make it slower. With `none` TensorRT promises it to the type
    of GPU that built it alone, and the plugin warns of others of its compute capability."""
    version_compatible: bool = False
    """Whether later versions of TensorRT run the plan; it then carries code that the server runs."""
    triton_release: str | None = None
    """The release of the tritonserver container that will serve; a plan that it cannot load is refused. Known so
    far: "26.06"."""

    def __post_init__(self) -> None:
        """Checks every field, and the fields together.

        Raises:
            ValueError: A field is out of its range, or does not go with another.
        """
        super().__post_init__()
        if self.server_backend not in ("auto", "temper", "tensorrt"):
            raise ValueError(
                f"server_backend: got {self.server_backend!r}, expected 'auto', 'temper' or 'tensorrt'"
            )
        if self.hardware_compatibility not in _COMPATIBILITIES:
            allowed = ", ".join(map(repr, _COMPATIBILITIES))
            raise ValueError(
                f"hardware_compatibility: got {self.hardware_compatibility!r}, expected one of {allowed}"
            )
        if self.triton_release is not None:
            try:
                expected_tensorrt(self.triton_release)
            except EngineError as error:
                raise ValueError(str(error)) from error
        self._refuse_with_torch(
            # It leaves the lean runtime out of a version-compatible plan, and Triton has none of its own.
            version_compatible=self.version_compatible,
            hardware_compatibility=self.hardware_compatibility == "same_compute_capability",
        )


class TensorRt(NvidiaKind[TensorRtConfig]):
    """Runs on every GPU that it can build on."""

    name = "tensorrt"
    title = "TensorRT"
    package = "tensorrt"
    project = "tensorrt"
    extra = "tensorrt"
    install_note = "where pip reaches NVIDIA's own index; or build in docker/builder.Dockerfile"
    file = "model.plan"
    rank = 10
    builds_anywhere = False
    has_timings = True
    torch_project = "torch-tensorrt"
    config = TensorRtConfig

    def check(self, trt: Any, config: TensorRtConfig) -> None:
        """Refuses a plan that the container which will serve it cannot load."""
        if config.triton_release is not None:
            check_release(config.triton_release, trt.__version__, version_compatible=config.version_compatible)

    def configure(self, trt: Any, settings: Any, config: TensorRtConfig) -> None:
        """Asks for a plan that later versions or other GPUs run."""
        if config.version_compatible:
            settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if config.hardware_compatibility != "none":
            level = getattr(trt.HardwareCompatibilityLevel, config.hardware_compatibility.upper())
            settings.hardware_compatibility_level = level

    def figures(self, config: TensorRtConfig) -> dict[str, Any]:
        """On which other GPUs and versions it runs."""
        return {
            "hardware_compatibility": config.hardware_compatibility,
            "version_compatible": config.version_compatible,
        }

    def is_hardware_compatible(self, config: TensorRtConfig) -> bool:
        """Where that is asked for."""
        return config.hardware_compatibility == "ampere_plus"

    def binding(self, config: TensorRtConfig, figures: dict[str, Any]) -> Binding | None:
        """To a compute capability, unless built for Ampere and later; to a type of GPU, unless told not to."""
        if self.is_hardware_compatible(config):
            return None
        bound = config.hardware_compatibility == "none"
        return Binding(compute_capability=figures["compute_capability"], gpu=figures["gpu"] if bound else None)

    @property
    def needs_plugin(self) -> bool:
        """Where the embedded server is what serves, unless the recipe says otherwise."""
        return is_importable(_EMBEDDED)

    def backend(self, config: TensorRtConfig, weight_bits: int | None) -> Backend:
        """Triton's own, or the plugin."""
        if config.server_backend == "tensorrt" or (config.server_backend == "auto" and not self.needs_plugin):
            return NativeBackend(opt_batch=config.opt_batch)
        return PluginBackend(
            engine=self.name, opt_batch=config.opt_batch, version_compatible=config.version_compatible
        )


TENSORRT = TensorRt()
