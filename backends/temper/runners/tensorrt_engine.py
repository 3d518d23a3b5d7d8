"""A published TensorRT or TensorRT-RTX engine: every check that needs no deserialising, then the deserialising.

The two libraries have one Python API; `Library` says which of them runs a kind.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

import runners
from artifact import ArtifactError, Entry
from runners import cuda

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Library:
    """The package that runs a kind of engine."""

    name: str
    """As NVIDIA writes it."""
    package: str
    """As Python imports it."""
    project: str
    """As pip installs it."""
    bindings: str | None = None
    """As Python imports its bindings alone, for a machine that has NVIDIA's libraries, as Triton's image."""
    compiles_on_load: bool = False
    """Its engines hold no kernels: they are compiled for the GPU that is here, and kept."""
    checks_headers: bool = False
    """It says from an engine's header whether it runs here; of the others' plans the card tells."""


LIBRARIES = {
    "tensorrt": Library(name="TensorRT", package="tensorrt", project="tensorrt", bindings="tensorrt_bindings"),
    "tensorrt-rtx": Library(
        name="TensorRT-RTX",
        package="tensorrt_rtx",
        project="tensorrt-rtx",
        compiles_on_load=True,
        checks_headers=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A deserialised engine and what it must outlive."""

    trt: Any
    """The library's module."""
    logger: Any
    """Holds the library's last errors, in `errors`."""
    runtime: Any
    engine: Any
    """trt.ICudaEngine."""
    input: str
    output: str
    opt_batch: int
    """The batch that the engine was tuned for."""


def load_engine(entry: Entry, instance: runners.Instance, device: cuda.Device) -> Engine:
    """Check an engine against this machine and config.pbtxt, and deserialise it.

    Args:
        entry: Of the GPU's compute capability.
        instance: What config.pbtxt says.
        device: The current one.

    Raises:
        ArtifactError: The library is missing or too new for the driver, the engine was built for another version
            or compute capability, is none, does not fit the GPU's memory, or does not fit config.pbtxt.
    """
    library = LIBRARIES[entry.engine]
    trt = _import(library, entry.engine)
    cuda.require_driver(device.driver_cuda, _cuda_of(library), library.project)
    check_built_for(entry, version=trt.__version__, capability=device.capability)
    if warning := explain_other_gpu(entry, device.name):
        instance.log(warning)
    logger = make_logger(trt, instance)
    content = entry.read()
    runtime = trt.Runtime(logger)
    if library.checks_headers:
        _check_validity(trt, runtime, content, entry, logger, device)
    # A version compatible plan carries host code, so it is not enough that its digest is right: config.pbtxt,
    # written by whoever published it, must say so as well.
    runtime.engine_host_code_allowed = entry.parameters.get("version_compatible") == "true"
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise _refusal(entry, library, logger, len(content))
    _require_memory(engine.device_memory_size_v2, entry, "its activations")
    image, logits = _check_tensors(trt, engine, entry, instance.signature)
    smallest, best, largest = (int(shape[0]) for shape in engine.get_tensor_profile_shape(image, 0))
    if smallest != 1 or instance.max_batch > largest:
        raise ArtifactError(
            f"{entry.file}: max_batch_size in config.pbtxt is {instance.max_batch}, the engine's profile takes "
            f"batches of {smallest} to {largest}; lower max_batch_size, or build with engine.max_batch = "
            f"{instance.max_batch}"
        )
    return Engine(
        trt=trt, logger=logger, runtime=runtime, engine=engine, input=image, output=logits, opt_batch=best
    )


def check_built_for(entry: Entry, *, version: str, capability: str) -> None:
    """Compare the card with the library and the GPU that are here, before the engine is parsed.

    Args:
        entry: With the card.
        version: The library's.
        capability: The GPU's, as "9.0".

    Raises:
        ArtifactError: The engine was built for another version or compute capability.
    """
    library, figures = LIBRARIES[entry.engine], entry.figures
    compatible = entry.parameters.get("version_compatible") == "true"
    built = re.search(r"\d+\.\d+\.\d+[.\d]*", str(figures.get("runtime", "")))
    if built and not compatible and built[0].split(".")[:3] != version.split(".")[:3]:
        raise ArtifactError(
            f"{entry.file} was built with {library.name} {built[0]}, here is {version}; install "
            f"{library.project}=={built[0]} beside tritonserver, or build the recipe with {version}"
        )
    # card.json describes one plan of several.
    if not library.checks_headers and not entry.file_of_capability:
        wanted = figures.get("compute_capability")
        if wanted is not None and not _runs_on(str(wanted), capability, figures):
            raise ArtifactError(
                f"{entry.file} was built for compute capability {wanted}, this GPU has {capability}; "
                "build the recipe on this GPU and publish both (cc_model_filenames)"
            )


def explain_other_gpu(entry: Entry, gpu: str) -> str | None:
    """What to know of a plan that was built on another type of GPU than this one, of the same compute capability.

    Without hardware compatibility TensorRT promises a plan to the type of GPU that built it and to no other.

    Args:
        entry: With the card.
        gpu: This one's name, as the driver gives it.

    Returns:
        The warning, or None when there is nothing to say.
    """
    if entry.bound_to in (None, gpu):
        return None
    return (
        f"{entry.file} was built on {entry.bound_to}, this is {gpu}: it may be slower here, or fail; to serve "
        "both, build with engine.hardware_compatibility = 'same_compute_capability'"
    )


def _runs_on(built: str, here: str, figures: Mapping[str, Any]) -> bool:
    if figures.get("hardware_compatibility") == "ampere_plus":
        return float(here) >= 8.0
    return built == here


def _import(library: Library, kind: str) -> Any:
    try:
        try:
            return importlib.import_module(library.package)
        except ModuleNotFoundError:
            if library.bindings is None or find_spec(library.bindings) is None:
                raise
            return importlib.import_module(library.bindings)
    except (ImportError, OSError) as error:
        raise ArtifactError(
            f"engine {kind} needs the package {library.project} in the python3 of tritonserver: "
            f"{str(error).splitlines()[0]}; install it, or build the recipe with another engine.kind"
        ) from error


def _cuda_of(library: Library) -> int:
    """The CUDA major release of the installed build, which is in its project's name; 0 when it is not."""
    for major, suffix in product((13, 12), ("", "_bindings")):
        try:
            importlib.metadata.version(f"{library.package}_cu{major}{suffix}")
        except importlib.metadata.PackageNotFoundError:
            continue
        return major
    return 0


def make_logger(trt: Any, instance: runners.Instance) -> Any:
    """A logger of the library: `reason` gives the first error, warnings go to the server's log."""
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.errors.append(" ".join(message.split()))
                del self.errors[:-10]
            elif level == severity.WARNING:
                instance.log(message)

        def reason(self) -> str:
            """The first error since the last call: those that follow are consequences."""
            reason = self.errors[0] if self.errors else "it gives no reason"
            self.errors.clear()
            return reason

    return Logger()


def _check_validity(
    trt: Any, runtime: Any, content: bytes, entry: Entry, logger: Any, device: cuda.Device
) -> None:
    """Ask the library for its verdict on the engine's header."""
    verdict, flags = runtime.get_engine_validity(content)
    if verdict != trt.EngineValidity.INVALID:
        return
    causes = trt.EngineInvalidityDiagnostics
    if flags & int(causes.INSUFFICIENT_GPU_MEMORY):
        raise _out_of_memory(len(content), entry, "its weights")
    explained = {
        causes.MALFORMED_ENGINE: "it is no engine of this version of TensorRT-RTX; build the recipe again",
        causes.VERSION_MISMATCH: f"it needs another version than {trt.__version__}; build the recipe again",
        causes.OLD_CUDA_DRIVER: "the NVIDIA driver is too old for it; install a newer one",
        causes.OLD_CUDA_RUNTIME: "CUDA's runtime is too old for it; install the TensorRT-RTX it was built with",
        causes.CUDA_ERROR: "CUDA's driver or runtime is not installed correctly; see what nvidia-smi says of "
        f"{device.name}",
    }
    reasons = [text for cause, text in explained.items() if flags & int(cause)]
    if flags & int(causes.UNSUPPORTED_CC):
        reasons.insert(0, _explain_capability(trt, device))
    raise ArtifactError(f"{entry.file}: TensorRT-RTX refuses it: {'; '.join(reasons) or logger.reason()}")


def _explain_capability(trt: Any, device: cuda.Device) -> str:
    """Why an engine is not for this GPU: there is none of the library's for some, the H100 and H200 among them."""
    numbers = [name[2:] for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    known = [f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int)]
    here = f"compute capability {device.capability} ({device.name})"
    if device.capability in known:
        return f"it was not built for {here}; build it for that one (engine.compute_capabilities)"
    return (
        f"version {trt.__version__} has no kernels for {here}, only for {', '.join(known)}; build the recipe on "
        "this GPU with engine.kind = 'tensorrt'"
    )


def _refusal(entry: Entry, library: Library, logger: Any, nbytes: int) -> ArtifactError:
    free, _ = cuda.free_memory()
    if free < nbytes:
        return _out_of_memory(nbytes, entry, "its weights")
    return ArtifactError(
        f"{entry.file}: {library.name} cannot load it: {logger.reason()}; build the recipe again on this machine"
    )


def _require_memory(nbytes: int, entry: Entry, what: str) -> None:
    free, _ = cuda.free_memory()
    if free < nbytes:
        raise _out_of_memory(nbytes, entry, what)


def _out_of_memory(nbytes: int, entry: Entry, what: str) -> ArtifactError:
    free, total = cuda.free_memory()
    return ArtifactError(
        f"{entry.file}: the GPU's memory is exhausted: {free / _MIB:.0f} MiB of {total / _MIB:.0f} are free, "
        f"{what} need {nbytes / _MIB:.0f}; lower engine.num_instances or engine.max_batch, or unload another model"
    )


def _check_tensors(trt: Any, engine: Any, entry: Entry, expected: runners.Signature) -> tuple[str, str]:
    """Compare the engine's tensors with config.pbtxt's; the wire's types are fixed."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), list(engine.get_tensor_shape(name)))
        for name in names
    }
    image, logits = expected.input, expected.output
    wanted = {
        image.name: (trt.TensorIOMode.INPUT, trt.uint8, [-1, *image.dims]),
        logits.name: (trt.TensorIOMode.OUTPUT, trt.float32, [-1, *logits.dims]),
    }
    if found != wanted:
        raise ArtifactError(
            f"{entry.file}: got {_describe(found)}, expected {_describe(wanted)} as config.pbtxt says; "
            "publish this version again"
        )
    return image.name, logits.name


def _describe(tensors: Mapping[str, tuple[Any, Any, list[int]]]) -> str:
    return ", ".join(f"{name} {dtype.name} {shape}" for name, (_, dtype, shape) in sorted(tensors.items()))
