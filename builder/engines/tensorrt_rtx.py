"""TensorRT-RTX compiles with or without a GPU: it makes its kernels when the file is loaded, on the user's GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from temper.builder.engines.nvidia import NvidiaConfig, NvidiaKind
from temper.builder.errors import EngineError
from temper.builder.publish.triton_config import Backend, PluginBackend


@dataclass(frozen=True, kw_only=True)
class TensorRtRtxConfig(NvidiaConfig):
    """TensorRT-RTX on NVIDIA GPUs."""

    kind: Literal["tensorrt-rtx"] = "tensorrt-rtx"
    compute_capabilities: tuple[str, ...] = ()
    """The GPUs to build for, as "8.9"; none is its portable engine, which leaves 7.5 out. For 9.0 and 10.x (H100,
    H200, B200) it has no kernels, but TensorRT has."""

    def __post_init__(self) -> None:
        """Checks every field, and the fields together.

        Raises:
            ValueError: A field is out of its range, or does not go with another.
        """
        super().__post_init__()
        for each in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", each):
                raise ValueError(f"compute_capabilities: got {each!r}, expected some such as '8.9'")
        self._refuse_with_torch(compute_capabilities=bool(self.compute_capabilities))


class TensorRtRtx(NvidiaKind[TensorRtRtxConfig]):
    """Builds for GPUs that it does not run on, and its support matrix is silent on some: so it is tried."""

    name = "tensorrt-rtx"
    title = "TensorRT-RTX"
    package = "tensorrt_rtx"
    project = "tensorrt-rtx"
    extra = "rtx"
    file = "model.rtx"
    rank = 20
    has_timings = False
    torch_project = "torch-tensorrt-rtx"
    config = TensorRtRtxConfig

    def why_not_try(self, trt: Any, capability: str) -> str | None:
        """Builds, loads and makes ready a convolution."""
        from temper.builder.engines.compile import try_convolution

        reason = try_convolution(trt)
        if reason is None:
            return None
        return (
            f"{self.title} {trt.__version__} does not run on compute capability {capability} (it names "
            f"{', '.join(known_capabilities(trt))}; engine.kind = 'tensorrt' is for the others): {reason}"
        )

    def why_not_load_here(self, config: TensorRtRtxConfig, capability: str | None) -> str | None:
        """Not where it was built for other GPUs."""
        wanted = config.compute_capabilities
        if capability is not None and wanted and capability not in wanted:
            return f"built for {', '.join(wanted)}, and this GPU is {capability}"
        return super().why_not_load_here(config, capability)

    def check(self, trt: Any, config: TensorRtRtxConfig) -> None:
        """Refuses GPUs for which the library has no kernels."""
        known = known_capabilities(trt)
        unknown = [each for each in config.compute_capabilities if each not in known]
        if unknown:
            raise EngineError(
                f"engine {self.name}: engine.compute_capabilities: got {', '.join(unknown)}, expected some of "
                f"{', '.join(known)}, which {self.title} {trt.__version__} has kernels for; "
                "engine.kind = 'tensorrt' builds for the others, on the GPU itself"
            )

    def configure(self, trt: Any, settings: Any, config: TensorRtRtxConfig) -> None:
        """Asks for an engine that can be captured in a CUDA graph, and for the GPUs that are named."""
        settings.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if not config.compute_capabilities:
            return
        settings.num_compute_capabilities = len(config.compute_capabilities)
        for index, each in enumerate(config.compute_capabilities):
            settings.set_compute_capability(getattr(trt.ComputeCapability, f"SM{each.replace('.', '')}"), index)

    def figures(self, config: TensorRtRtxConfig) -> dict[str, Any]:
        """The GPUs that were asked for."""
        return {"compute_capabilities": list(config.compute_capabilities)}

    def backend(self, config: TensorRtRtxConfig, weight_bits: int | None) -> Backend:
        """The plugin, with few graphs: each is a context, whose kernels are compiled when it is loaded."""
        few = (1, config.opt_batch, config.max_batch)
        return PluginBackend(engine=self.name, opt_batch=config.opt_batch, graph_batches=few)


TENSORRT_RTX = TensorRtRtx()


def known_capabilities(trt: Any) -> list[str]:
    """Returns the compute capabilities that TensorRT-RTX builds for, as "8.9", in rising order."""
    numbers = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM") and name[2:].isdigit()]
    return [f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int)]
