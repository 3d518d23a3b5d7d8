"""TensorRT-RTX: compiles a graph ahead of time, with or without a GPU.

The network is strongly typed: the Q/DQ pairs in the graph decide what runs in int8, no flag does. Kernels are made
when the file is loaded, for the GPU that is there, so the file is not bound to this machine.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorrt_rtx as trt  # type: ignore[import-untyped]  # ships none

from builder.errors import EngineError
from builder.triton_config import INPUT_NAME

if TYPE_CHECKING:
    from builder.engines import EngineConfig

FILE = "model.rtx"
logger = logging.getLogger(__name__)


class _Logger(trt.ILogger):  # type: ignore[misc]  # untyped base
    """Passes the library's messages to logging and keeps the errors for ours."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self._lock = threading.Lock()
        self._levels = {
            trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
            trt.ILogger.Severity.ERROR: logging.ERROR,
            trt.ILogger.Severity.WARNING: logging.WARNING,
            trt.ILogger.Severity.INFO: logging.DEBUG,
        }

    def log(self, severity: object, message: str) -> None:
        level = self._levels.get(severity)
        if level is None:
            return  # VERBOSE: thousands of lines
        if level == logging.ERROR:
            with self._lock:
                self.errors.append(message)
        logger.log(logging.DEBUG if level == logging.ERROR else level, "%s", message)


def build(onnx_path: Path, folder: Path, config: EngineConfig) -> dict[str, Any]:
    """Compiles a graph for batches of `min_batch` to `max_batch`, tuned for `opt_batch`.

    Args:
        onnx_path: The graph, float32 or Q/DQ.
        folder: Receives model.rtx.
        config: The batch sizes.

    Returns:
        file, runtime, min_batch, opt_batch, max_batch.

    Raises:
        EngineError: TensorRT-RTX cannot parse or compile the graph.
    """
    log = _Logger()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_path.read_bytes()):
        raise EngineError(f"engine tensorrt-rtx: cannot parse {onnx_path.name}: {_parser_error(parser)}")
    settings = builder.create_builder_config()
    settings.add_optimization_profile(_profile(builder, network, onnx_path, config))
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        reason = log.errors[0] if log.errors else "no reason given"
        raise EngineError(f"engine tensorrt-rtx: cannot compile {onnx_path.name}: {reason}")
    (folder / FILE).write_bytes(memoryview(engine))
    return {
        "file": FILE,
        "runtime": f"TensorRT-RTX {trt.__version__}",
        "min_batch": config.min_batch,
        "opt_batch": config.opt_batch,
        "max_batch": config.max_batch,
    }


def _profile(builder: Any, network: Any, onnx_path: Path, config: EngineConfig) -> Any:
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    if names != [INPUT_NAME]:
        raise EngineError(f"engine tensorrt-rtx: {onnx_path.name} has inputs {names}, expected {[INPUT_NAME]}")
    image = tuple(network.get_input(0).shape)[1:]
    profile = builder.create_optimization_profile()
    batches = (config.min_batch, config.opt_batch, config.max_batch)
    profile.set_shape(INPUT_NAME, *((batch, *image) for batch in batches))
    return profile


def _parser_error(parser: Any) -> str:
    if parser.num_errors == 0:
        return "no reason given"
    error = parser.get_error(0)
    where = f"node {error.node_name()!r}: " if error.node_name() else ""
    return f"{where}{error.desc()}"
