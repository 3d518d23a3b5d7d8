"""From a graph to a serialised engine, with TensorRT or TensorRT-RTX: one Python API, one code path.

The network is strongly typed: the graph's types and Q/DQ pairs decide in what a layer runs, no flag does.
TensorRT 11 knows nothing else; TensorRT 10.12 and later, and TensorRT-RTX, are told so.

One optimisation profile serves all: since TensorRT 10 several execution contexts may share one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from temper.builder.contract import INPUT_NAME
from temper.builder.engines.kind import EngineConfig, EngineKind
from temper.builder.engines.library import Logger, strongly_typed
from temper.builder.errors import EngineError
from temper.builder.quiet import quiet_native


def compile_graph(
    kind: EngineKind[Any],
    trt: Any,
    onnx_path: Path,
    config: EngineConfig,
    configure: Callable[[Any], None],
    *,
    sparse_weights: bool = False,
    timing_cache: Path | None = None,
) -> Any:
    """Parses a graph and compiles it.

    Args:
        kind: TensorRT or TensorRT-RTX.
        trt: Its package.
        onnx_path: The graph.
        config: The batches.
        configure: Tells the builder's settings what only this kind knows.
        sparse_weights: Sparse kernels may be used; the weights must be 2:4.
        timing_cache: Timings, read when there and written back; None for a kind that measures nothing.

    Returns:
        The serialised engine: a buffer of bytes.

    Raises:
        EngineError: The library refuses the graph; names the node where the library does.
    """
    log = Logger(trt)
    builder = trt.Builder(log.native)
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, log.native)
    if not parser.parse(onnx_path.read_bytes()):
        raise EngineError(f"engine {kind.name}: cannot parse {onnx_path.name}: {_parser_error(parser)}")
    settings = builder.create_builder_config()
    settings.add_optimization_profile(_profile(builder, network, onnx_path, kind, config))
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector gives names only
    settings.set_flag(trt.BuilderFlag.TF32)
    if sparse_weights:
        settings.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    configure(settings)
    cache = None if timing_cache is None else _open_timings(settings, timing_cache)
    with quiet_native():
        engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise EngineError(f"engine {kind.name}: cannot compile {onnx_path.name}: {log.reason}")
    if cache is not None and timing_cache is not None:
        _write_timings(settings, timing_cache)
    return engine


def try_convolution(trt: Any) -> str | None:
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


def image_shape(onnx_path: Path) -> tuple[int, ...]:
    """Returns the shape of a graph's input without the batch: (H, W, 3)."""
    import onnx

    (graph_input,) = onnx.load(onnx_path, load_external_data=False).graph.input
    return tuple(dim.dim_value for dim in graph_input.type.tensor_type.shape.dim[1:])


def _profile(builder: Any, network: Any, onnx_path: Path, kind: EngineKind[Any], config: EngineConfig) -> Any:
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    if names != [INPUT_NAME]:
        raise EngineError(f"engine {kind.name}: {onnx_path.name} has inputs {names}, expected {[INPUT_NAME]}")
    batch, *image = network.get_input(0).shape
    if batch != -1:
        raise EngineError(
            f"engine {kind.name}: {onnx_path.name} has a fixed batch of {batch}, expected a free one; export "
            "it again with a dynamic first dimension"
        )
    profile = builder.create_optimization_profile()
    batches = (1, config.opt_batch, config.max_batch)
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


def _parser_error(parser: Any) -> str:
    if parser.num_errors == 0:
        return "no reason given"
    error = parser.get_error(0)
    where = f"node {error.node_name()!r}: " if error.node_name() else ""
    return f"{where}{error.desc()}"
