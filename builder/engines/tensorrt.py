"""TensorRT compiles on the GPU that will run the plan; the plugin serves it, or Triton's own backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from temper.builder.engines.nvidia import NvidiaConfig, NvidiaKind
from temper.builder.publish.triton_config import Backend, NativeBackend, PluginBackend

_COMPATIBILITIES = ("none", "same_compute_capability", "ampere_plus")


@dataclass(frozen=True, kw_only=True)
class TensorRtConfig(NvidiaConfig):
    """TensorRT on NVIDIA GPUs."""

    not_built_from: ClassVar[tuple[str, ...]] = ("num_instances", "server_backend")

    kind: Literal["tensorrt"] = "tensorrt"
    server_backend: Literal["temper", "tensorrt"] = "temper"
    """The plugin runs the plan, or Triton's own backend."""
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    """On which other GPUs the plan runs; more of them make it slower."""
    version_compatible: bool = False
    """Whether later versions of TensorRT run the plan; it then carries code that the server runs."""
    triton_release: str | None = None
    """The release of the tritonserver container that will serve, as "26.06"; a plan that it cannot load is
    refused."""

    def __post_init__(self) -> None:
        """Checks every field, and the fields together.

        Raises:
            ValueError: A field is out of its range, or does not go with another.
        """
        super().__post_init__()
        if self.server_backend not in ("temper", "tensorrt"):
            raise ValueError(f"server_backend: got {self.server_backend!r}, expected 'temper' or 'tensorrt'")
        if self.hardware_compatibility not in _COMPATIBILITIES:
            allowed = ", ".join(map(repr, _COMPATIBILITIES))
            raise ValueError(
                f"hardware_compatibility: got {self.hardware_compatibility!r}, expected one of {allowed}"
            )
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
            from temper.builder.engines.containers import check_release

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

    def is_bound(self, config: TensorRtConfig) -> bool:
        """Unless it was built for Ampere and later."""
        return not self.is_hardware_compatible(config)

    def backend(self, config: TensorRtConfig, weight_bits: int | None) -> Backend:
        """The plugin, or Triton's own."""
        if config.server_backend == "tensorrt":
            return NativeBackend(opt_batch=config.opt_batch)
        return PluginBackend(
            engine=self.name, opt_batch=config.opt_batch, version_compatible=config.version_compatible
        )


TENSORRT = TensorRt()
