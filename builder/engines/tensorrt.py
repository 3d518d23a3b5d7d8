"""TensorRT and TensorRT-RTX: one Python API, one code path.

The network is strongly typed: the graph's types and Q/DQ pairs decide in what a layer runs, no flag does.
TensorRT 11 knows nothing else; TensorRT 10.12 and later, and TensorRT-RTX, are told so. TensorRT compiles on the
GPU that will run the plan; TensorRT-RTX makes its kernels when the file is loaded, so its file is not bound to
this machine.

One optimisation profile serves all instances: since TensorRT 10 several execution contexts may share a profile.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.contract import INPUT_NAME
from temper.builder.engines.gpu import compute_capability
from temper.builder.engines.library import LIBRARIES, Library, Logger, load_library, strongly_typed
from temper.builder.errors import EngineError
from temper.builder.quiet import quiet_native

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.engines.config import EngineConfig

logger = logging.getLogger(__name__)


def build(
    kind: str,
    onnx_path: Path,
    folder: Path,
    config: EngineConfig,
    images: NDArray[np.uint8] | None,
    *,
    precision: str,
    sparse_weights: bool,
    timing_cache: Path | None,
    module: nn.Module | None,
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Compiles a graph; runs and inspects the engine where there is a GPU.

    Args and errors are those of `build_engine`.

    Returns:
        file, runtime, the batches, frontend, precision, sparse_weights, hardware_compatibility,
        version_compatible, compute_capability (of the GPU that it was built on, None without one),
        compute_capabilities (asked for), timings_reused (whether a timing cache was there; None without timings),
        build_s, engine_audit (counts, or why there are none); and the logits, float32 [N, classes], or None where
        it cannot run here.
    """
    library = LIBRARIES[kind]
    trt = load_library(library)
    capability = compute_capability()
    if capability is None and not library.builds_anywhere:
        raise EngineError(
            f"engine {kind}: no NVIDIA GPU here, and {library.name} compiles on the GPU that will run the plan; "
            "build there, or choose engine.kind = 'tensorrt-rtx', which compiles anywhere"
        )
    _check_release(config, trt)
    started, known_timings = time.monotonic(), timing_cache is not None and timing_cache.exists()
    if config.frontend == "torch-tensorrt":
        from temper.builder.engines.torch_tensorrt import compile_module

        engine = compile_module(
            library,
            module,
            config,
            image_shape=_image_shape(onnx_path),
            precision=precision,
            sparse_weights=sparse_weights,
            timing_cache=timing_cache,
        )
    else:
        engine = _compile(library, trt, onnx_path, config, sparse_weights, timing_cache)
    (folder / library.file).write_bytes(memoryview(engine))
    info: dict[str, Any] = {
        "file": library.file,
        "runtime": f"{library.name} {trt.__version__}",
        "min_batch": config.min_batch,
        "opt_batch": config.opt_batch,
        "max_batch": config.max_batch,
        "frontend": config.frontend,
        "precision": precision,
        "sparse_weights": sparse_weights,
        "hardware_compatibility": config.hardware_compatibility,
        "version_compatible": config.version_compatible,
        "compute_capability": capability,
        "compute_capabilities": list(config.compute_capabilities),
        # TensorRT-RTX has no timings: it measures nothing when it builds.
        "timings_reused": None if library.builds_anywhere else known_timings,
        "build_s": round(time.monotonic() - started, 1),
    }
    reason = _why_not_here(kind, config, capability)
    if reason is not None:
        info["engine_audit"] = {"status": "not inspected", "reason": f"{reason}; the Q/DQ audit stands alone"}
        return info, None
    return _try(library, folder, config, images, precision, info)


def _try(
    library: Library,
    folder: Path,
    config: EngineConfig,
    images: NDArray[np.uint8] | None,
    precision: str,
    info: dict[str, Any],
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Loads the engine on the GPU that is here, inspects it, and runs it on the images."""
    from temper.builder.engines.inspect import INSPECTION_FILE, audit_engine, check_engine
    from temper.builder.engines.run import LoadedEngine

    with LoadedEngine(library, folder / library.file) as engine:
        layers = engine.inspect()
        (folder / INSPECTION_FILE).write_text(layers)
        report = audit_engine(layers)
        check_engine(report, precision, config.max_high_precision_convs, config.max_reformats)
        info["engine_audit"] = {"status": "inspected", **report.to_json()}
        logits = engine.run(images, config.max_batch) if images is not None and len(images) > 0 else None
    return info, logits


def _why_not_here(kind: str, config: EngineConfig, capability: str | None) -> str | None:
    """Says why an engine that was just built cannot run on this machine; None when it can."""
    if capability is None:
        return "no NVIDIA GPU"
    if config.compute_capabilities and capability not in config.compute_capabilities:
        return f"built for {', '.join(config.compute_capabilities)}, and this GPU is {capability}"
    return why_not(kind, capability)


@functools.cache
def why_not(kind: str, capability: str) -> str | None:
    """Says why engines of a kind do not run on the GPU that is here; None when they do.

    TensorRT runs on every GPU that it can build on. TensorRT-RTX builds for GPUs that it does not run on, and its
    support matrix is silent on 9.0, so it is asked: a convolution is built, loaded and made ready.

    Args:
        kind: `tensorrt` or `tensorrt-rtx`.
        capability: Of the GPU, as "9.0".

    Raises:
        EngineError: The package cannot be imported.
    """
    library = LIBRARIES[kind]
    trt = load_library(library)
    reason = _probe(trt) if library.builds_anywhere else None
    if reason is None:
        return None
    return (
        f"{library.name} {trt.__version__} does not run on compute capability {capability} (it names "
        f"{', '.join(known_capabilities(trt))}): {reason}"
    )


def _probe(trt: Any) -> str | None:
    """Takes one convolution from the builder to an execution context; returns the library's reason if it fails."""
    import numpy as np

    log = Logger(trt)
    builder = trt.Builder(log.native)
    network = builder.create_network(strongly_typed(trt))
    image = network.add_input("image", trt.float32, (1, 8, 8, 8))
    weights = np.ones((8, 8, 3, 3), np.float32)
    conv = network.add_convolution_nd(image, 8, (3, 3), trt.Weights(weights), trt.Weights())
    network.mark_output(conv.get_output(0))
    with quiet_native():
        content = builder.build_serialized_network(network, builder.create_builder_config())
        runtime = trt.Runtime(log.native)
        engine = None if content is None else runtime.deserialize_cuda_engine(content)
        context = None if engine is None else engine.create_execution_context()
    return log.reason if context is None else None


def known_capabilities(trt: Any) -> list[str]:
    """Returns the compute capabilities that TensorRT-RTX builds for, as "8.9", in rising order."""
    numbers = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM") and name[2:].isdigit()]
    return [f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int)]


def _compile(
    library: Library,
    trt: Any,
    onnx_path: Path,
    config: EngineConfig,
    sparse_weights: bool,
    timing_cache: Path | None,
) -> Any:
    log = Logger(trt)
    builder = trt.Builder(log.native)
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, log.native)
    if not parser.parse(onnx_path.read_bytes()):
        raise EngineError(f"engine {library.kind}: cannot parse {onnx_path.name}: {_parser_error(parser)}")
    settings = builder.create_builder_config()
    settings.add_optimization_profile(_profile(builder, network, onnx_path, library, config))
    _configure(library, trt, settings, config, sparse_weights)
    # TensorRT-RTX has no timings: it measures nothing when it builds.
    cache = None if library.builds_anywhere or timing_cache is None else _open_timings(settings, timing_cache)
    with quiet_native():
        engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise EngineError(f"engine {library.kind}: cannot compile {onnx_path.name}: {log.reason}")
    if cache is not None and timing_cache is not None:
        _write_timings(settings, timing_cache)
    return engine


def _configure(library: Library, trt: Any, settings: Any, config: EngineConfig, sparse_weights: bool) -> None:
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector gives names only
    settings.set_flag(trt.BuilderFlag.TF32)
    if sparse_weights:
        settings.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if config.version_compatible:
        settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if config.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, config.hardware_compatibility.upper())
        settings.hardware_compatibility_level = level
    if config.compute_capabilities:
        known = known_capabilities(trt)
        unknown = [each for each in config.compute_capabilities if each not in known]
        if unknown:
            raise EngineError(
                f"engine {library.kind}: engine.compute_capabilities: got {', '.join(unknown)}, expected some of "
                f"{', '.join(known)}, which {library.name} {trt.__version__} builds for"
            )
        settings.num_compute_capabilities = len(config.compute_capabilities)
        for index, each in enumerate(config.compute_capabilities):
            settings.set_compute_capability(getattr(trt.ComputeCapability, f"SM{each.replace('.', '')}"), index)


def _profile(builder: Any, network: Any, onnx_path: Path, library: Library, config: EngineConfig) -> Any:
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    if names != [INPUT_NAME]:
        raise EngineError(f"engine {library.kind}: {onnx_path.name} has inputs {names}, expected {[INPUT_NAME]}")
    batch, *image = network.get_input(0).shape
    if batch != -1:
        raise EngineError(
            f"engine {library.kind}: {onnx_path.name} has a fixed batch of {batch}, expected a free one; export "
            "it again with a dynamic first dimension"
        )
    profile = builder.create_optimization_profile()
    batches = (config.min_batch, config.opt_batch, config.max_batch)
    profile.set_shape(INPUT_NAME, *((batch, *image) for batch in batches))
    return profile


def _open_timings(settings: Any, path: Path) -> Any:
    content = path.read_bytes() if path.exists() else b""
    cache = settings.create_timing_cache(content)
    # A cache of another GPU or version is refused, and a new one begun.
    if cache is None or not settings.set_timing_cache(cache, ignore_mismatch=False):
        cache = settings.create_timing_cache(b"")
        settings.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _write_timings(settings: Any, path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(memoryview(settings.get_timing_cache().serialize()))
    os.replace(file.name, path)


def _image_shape(onnx_path: Path) -> tuple[int, ...]:
    import onnx

    (graph_input,) = onnx.load(onnx_path, load_external_data=False).graph.input
    return tuple(dim.dim_value for dim in graph_input.type.tensor_type.shape.dim[1:])


def _parser_error(parser: Any) -> str:
    if parser.num_errors == 0:
        return "no reason given"
    error = parser.get_error(0)
    where = f"node {error.node_name()!r}: " if error.node_name() else ""
    return f"{where}{error.desc()}"


def _check_release(config: EngineConfig, trt: Any) -> None:
    if config.triton_release is not None:
        from temper.builder.engines.containers import check_release

        check_release(config.triton_release, trt.__version__, version_compatible=config.version_compatible)
