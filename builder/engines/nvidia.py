"""What TensorRT and TensorRT-RTX have in common as engine kinds; `compile.py` is how they compile a graph."""

from __future__ import annotations

import functools
import importlib.metadata
import tempfile
import time
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from temper.builder.engines.gpu import Driver, first_gpu, read_driver
from temper.builder.engines.kind import BuildJob, EngineConfig, EngineKind, RunOutputs, check_limits, is_importable
from temper.builder.engines.library import load_library
from temper.builder.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BINDINGS = "cuda.bindings.runtime"
"""With what the plugin drives the GPU."""


@dataclass(frozen=True, kw_only=True)
class NvidiaConfig(EngineConfig):
    """An engine that is compiled for NVIDIA GPUs."""

    frontend: Literal["onnx", "torch-tensorrt"] = "onnx"
    """The library's ONNX parser, or torch-tensorrt from the PyTorch network."""
    max_high_precision_convs: int | None = None
    """Fail the build when more convolutions than this run in a higher precision than the variant's."""
    max_reformats: int | None = None
    """Fail the build when the engine has more layers than this that only change a tensor's format."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        super().__post_init__()
        check_limits(self.max_high_precision_convs, self.max_reformats)
        if self.frontend not in ("onnx", "torch-tensorrt"):
            raise ValueError(f"frontend: got {self.frontend!r}, expected 'onnx' or 'torch-tensorrt'")

    def _refuse_with_torch(self, **unknown: bool) -> None:
        """Refuses what torch-tensorrt cannot be told, or does in a way that Triton cannot load."""
        for name, is_set in unknown.items():
            if is_set and self.frontend == "torch-tensorrt":
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r} with frontend 'torch-tensorrt', expected frontend 'onnx'"
                )


Config = TypeVar("Config", bound=NvidiaConfig)


class NvidiaKind(EngineKind[Config]):
    """Compiles a graph for a GPU, and looks at the engine where that GPU is here."""

    symbol = "Builder"
    device = "gpu"
    wants_half_precision = True  # its networks are strongly typed
    has_timings: ClassVar[bool]
    """It measures kernels when it builds."""
    torch_project: ClassVar[str]
    """The package that takes it a PyTorch network."""

    @abstractmethod
    def configure(self, trt: Any, settings: Any, config: Config) -> None:
        """Tells the builder's settings for which GPUs and versions the engine is.

        Raises:
            EngineError: The library does not know what is asked for.
        """

    def check(self, trt: Any, config: Config) -> None:
        """Refuses what the library does not know, or what could not be served.

        Raises:
            EngineError: Names the key, and what is expected.
        """

    def require(self, config: Config) -> None:
        """Asks the library as well."""
        super().require(config)
        self.check(load_library(self), config)

    def figures(self, config: Config) -> dict[str, Any]:
        """Returns the kind's own figures of an engine, as JSON."""
        return {}

    def why_not_try(self, trt: Any, capability: str) -> str | None:
        """Says why the library does not run its engines on the GPU that is here; None when it does."""
        return None

    def why_not_load_here(self, config: Config, capability: str | None) -> str | None:
        """Says why an engine that was just built cannot run on this machine; None when it can."""
        return "no NVIDIA GPU" if capability is None else _why_not_try(self, capability)

    def why_not_driver(self, driver: Driver | None, no_gpu: str) -> str | None:
        """Says what the driver lacks; None when there is nothing, as far as it can be told without the library.

        Args:
            driver: What `read_driver` found.
            no_gpu: Why it found none.
        """
        if driver is None:
            return no_gpu
        release = _cuda_release(self.package)
        if release is not None and driver.cuda[0] < release:
            return (
                f"the NVIDIA driver {driver.version or ''} knows CUDA {driver.cuda[0]}.{driver.cuda[1]}, "
                f"{self.title} needs {release}; install a newer driver"
            )
        return None

    def why_not_library(self) -> str | None:
        """Says why the library does not run its engines on the GPU that is here; None when it does."""
        if not self.is_installed:
            return f"{self.package} is not installed"
        driver, no_gpu = read_driver()
        reason = self.why_not_driver(driver, no_gpu)
        if reason is not None or driver is None:
            return reason
        return _why_not_try(self, driver.gpus[0].compute_capability)

    def why_not_run(self) -> str | None:
        """Asks the driver, the library, and for what the plugin needs beside it."""
        return self.why_not_library() or (_why_no_bindings() if self.needs_plugin else None)

    @property
    def needs_plugin(self) -> bool:
        """Whether it is the plugin that serves its engines where nothing else is asked for."""
        return True

    def why_not_build(self) -> str | None:
        """Asks the library, where it compiles on the GPU that will run the engine."""
        if self.builds_anywhere:
            return super().why_not_build()
        reason = self.why_not_library()
        return None if reason is None else f"{reason}; a plan is compiled on the GPU that will run it"

    def is_hardware_compatible(self, config: Config) -> bool:
        """Whether torch-tensorrt is told to make an engine for Ampere and later."""
        return False

    def libraries(self, config: Config) -> tuple[str, ...]:
        """With torch-tensorrt that and PyTorch as well."""
        return (self.project, *((self.torch_project, "torch") if self.wants_module(config) else ()))

    def machine_key(self) -> str | None:
        """The GPU that it is compiled and tried on; None without one."""
        gpu = first_gpu()
        return None if gpu is None else f"{gpu.name}, {gpu.compute_capability}"

    def wants_module(self, config: Config) -> bool:
        """With torch-tensorrt."""
        return config.frontend == "torch-tensorrt"

    def build(self, job: BuildJob[Config]) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """Compiles a graph; runs and inspects the engine where there is a GPU.

        Returns:
            runtime, the batches, frontend, precision, sparse_weights, compute_capability and gpu (its name) of
            the GPU that it was built on, None without one, timings_reused (whether a timing cache was there; None
            without timings), build_s, engine_audit (counts, or why there are none); and the logits, float32
            [N, classes], or None where it cannot run here.

        Raises:
            EngineError: The library is missing or refuses the graph, there is no GPU where it needs one, or a
                limit is passed.
        """
        trt = load_library(self)
        gpu = first_gpu()
        capability = None if gpu is None else gpu.compute_capability
        if capability is None and not self.builds_anywhere:
            raise EngineError(
                f"engine {self.name}: no NVIDIA GPU here, and {self.title} compiles on the GPU that will run the "
                "plan; build there, or choose engine.kind = 'tensorrt-rtx', which compiles anywhere, but not for "
                "compute capabilities 9.0 and 10.x"
            )
        started = time.monotonic()
        known_timings = job.timing_cache is not None and job.timing_cache.exists()
        (job.folder / self.file).write_bytes(memoryview(self._compile(trt, job)))
        info: dict[str, Any] = {
            "runtime": f"{self.title} {trt.__version__}",
            "opt_batch": job.config.opt_batch,
            "max_batch": job.config.max_batch,
            "frontend": job.config.frontend,
            "precision": job.precision,
            "sparse_weights": job.sparse_weights,
            "compute_capability": capability,
            "gpu": None if gpu is None else gpu.name,
            **self.figures(job.config),
            "timings_reused": known_timings if self.has_timings else None,
            "build_s": round(time.monotonic() - started, 1),
        }
        reason = self.why_not_load_here(job.config, capability)
        if reason is not None:
            info["engine_audit"] = {
                "status": "not inspected",
                "reason": f"{reason}; the Q/DQ audit stands alone",
            }
            return info, None
        audit, logits = self._try(job)
        return {**info, "engine_audit": audit}, logits

    def open_outputs(self, path: Path, config: Config) -> RunOutputs:
        """Compiles the graph for the GPU that is here; what is an output is not fused with what follows it."""
        from temper.builder.engines.run import LoadedEngine

        if (reason := self.why_not_library()) is not None:
            raise EngineError(f"engine {self.name}: its inner tensors cannot be read here: {reason}")
        with tempfile.TemporaryDirectory() as folder:
            engine = Path(folder) / self.file
            job = BuildJob(onnx_path=path, folder=engine.parent, config=replace(config, frontend="onnx"))
            engine.write_bytes(memoryview(self._compile(load_library(self), job)))
            loaded = LoadedEngine(self, engine)
        return lambda batch: loaded.run_outputs(batch, config.max_batch)

    def _compile(self, trt: Any, job: BuildJob[Config]) -> Any:
        from temper.builder.engines.compile import compile_graph, image_shape

        config = job.config
        timing_cache = job.timing_cache if self.has_timings else None
        if config.frontend == "onnx":
            return compile_graph(
                self,
                trt,
                job.onnx_path,
                config,
                lambda settings: self.configure(trt, settings, config),
                sparse_weights=job.sparse_weights,
                timing_cache=timing_cache,
            )
        from temper.builder.engines.torch_tensorrt import compile_module

        return compile_module(
            self,
            job.module,
            config,
            project=self.torch_project,
            image_shape=image_shape(job.onnx_path),
            precision=job.precision,
            hardware_compatible=self.is_hardware_compatible(config),
            sparse_weights=job.sparse_weights,
            timing_cache=timing_cache,
        )

    def _try(self, job: BuildJob[Config]) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        """Loads the engine on the GPU that is here, inspects it, and runs it on the images."""
        from temper.builder.engines.inspect import INSPECTION_FILE, audit_engine, check_engine
        from temper.builder.engines.run import LoadedEngine

        config, images = job.config, job.images
        with LoadedEngine(self, job.folder / self.file) as engine:
            layers = engine.inspect()
            (job.folder / INSPECTION_FILE).write_text(layers)
            report = audit_engine(layers)
            check_engine(report, job.precision, config.max_high_precision_convs, config.max_reformats)
            logits = engine.run(images, config.max_batch) if images is not None and len(images) > 0 else None
        return {"status": "inspected", **report.to_json()}, logits


@functools.cache
def _why_not_try(kind: NvidiaKind[Any], capability: str) -> str | None:
    try:
        return kind.why_not_try(load_library(kind), capability)
    except EngineError as error:
        return str(error)


def _why_no_bindings() -> str | None:
    return None if is_importable(_BINDINGS) else "cuda-bindings is missing, with which the plugin drives the GPU"


def _cuda_release(package: str) -> int | None:
    """Returns the CUDA major release that a package is built for, 12 or 13; None when its name does not say."""
    for major in (13, 12):
        try:
            importlib.metadata.version(f"{package}_cu{major}")
        except importlib.metadata.PackageNotFoundError:
            continue
        return major
    return None
