"""A stand-in for TensorRT-RTX's Python package, as tensorrt.py beside it is one for TensorRT. It is no engine.

What it adds is what the documentation says of the library: kernels that are compiled for a shape and kept in a
cache, and a context's own CUDA graph, captured in the second run of a shape and replayed from the third on, until
the shape, an address or the memory changes.
"""

from __future__ import annotations

import enum
import json
from typing import Any

import tensorrt  # type: ignore[import-not-found]  # beside this, once it is found
from cuda.bindings import runtime  # type: ignore[import-untyped]  # ships none
from tensorrt import ILogger, TensorIOMode, __version__, float32, uint8  # the package's own names

__all__ = ["ILogger", "TensorIOMode", "__version__", "float32", "uint8"]

_ALIGNMENT = 256


class EngineValidity(enum.IntEnum):
    """The verdict on a header."""

    VALID = 0
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntEnum):
    """Why it is invalid; the numbers are the library's own."""

    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class ComputeCapability(enum.Enum):
    """Every GPU will do."""

    NONE = 0


class CudaGraphStrategy(enum.Enum):
    """Whether a context captures."""

    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    """When kernels are compiled for a shape."""

    LAZY = 0
    EAGER = 1
    NONE = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    """Who allocates what a context works in."""

    STATIC = 0
    USER_MANAGED = 2


class Runtime(tensorrt.Runtime):  # type: ignore[misc]
    """Reads the same engines."""

    def get_engine_validity(self, content: bytes) -> tuple[EngineValidity, int]:
        """Valid when it is one of the stand-in's."""
        try:
            json.loads(content)["work_bytes"]
        except (ValueError, KeyError, TypeError):
            return EngineValidity.INVALID, int(EngineInvalidityDiagnostics.MALFORMED_ENGINE)
        return EngineValidity.VALID, 0

    def _open(self, described: dict[str, Any]) -> ICudaEngine:
        return ICudaEngine(described, self._logger)


class RuntimeCache:
    """The batch sizes whose kernels were compiled."""

    def __init__(self) -> None:
        """Nothing was compiled."""
        self.batches: set[int] = set()

    def serialize(self) -> bytes:
        """As JSON."""
        return json.dumps(sorted(self.batches)).encode()

    def deserialize(self, content: bytes) -> bool:
        """Take over what an earlier process compiled."""
        self.batches = set(json.loads(content))
        return True


class RuntimeConfig:
    """What a context is told."""

    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def __init__(self) -> None:
        """As the library's defaults."""
        self.cache, self.allocation = RuntimeCache(), ExecutionContextAllocationStrategy.STATIC

    def create_runtime_cache(self) -> RuntimeCache:
        """An empty one."""
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        """Several contexts may share one."""
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        """Who allocates."""
        self.allocation = strategy


class ICudaEngine(tensorrt.ICudaEngine):  # type: ignore[misc]
    """The same engine, with contexts that are configured."""

    def create_runtime_config(self) -> RuntimeConfig:
        """The defaults."""
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig | None = None) -> IExecutionContext | None:
        """A context, or None after an error in the log."""
        config = config or RuntimeConfig()
        if config.allocation is ExecutionContextAllocationStrategy.USER_MANAGED:
            return IExecutionContext(self, None, config)
        pointer = self._allocate()
        return None if pointer is None else IExecutionContext(self, pointer, config)


class IExecutionContext(tensorrt.IExecutionContext):  # type: ignore[misc]
    """Compiles, captures and replays; `compiled` and `replays` count."""

    def __init__(self, engine: ICudaEngine, own_work: int | None, config: RuntimeConfig) -> None:
        """Has captured nothing."""
        super().__init__(engine, own_work)
        self._config, self._given = config, own_work is not None
        self._captured: Any = None
        self._key: tuple[Any, ...] = ()
        self.compiled = self.replays = 0

    def __del__(self) -> None:
        """Give the graph and the memory back."""
        self._drop_graph()
        super().__del__()

    def set_device_memory(self, memory: int, size: int) -> None:
        """What to work in."""
        self._given = memory % _ALIGNMENT == 0 and size >= self._engine.device_memory_size_v2
        self._work = memory

    def is_stream_capturable(self, stream: int) -> bool:
        """What an engine that is written with `fault_batch` -1 denies."""
        del stream
        return bool(self._engine.fault_batch != -1)

    def _queue(self, stream: int) -> bool:
        if not self._given:
            tensorrt.tell(self._engine.logger, "the context has no memory, too little, or at an odd address")
            return False
        strategy = DynamicShapesKernelSpecializationStrategy.EAGER
        if self._config.dynamic_shapes_kernel_specialization_strategy is strategy:
            self.compiled += self._batch not in self._config.cache.batches
            self._config.cache.batches.add(self._batch)
        if self._config.cuda_graph_strategy is CudaGraphStrategy.DISABLED:
            return bool(super()._queue(stream))
        key = (self._batch, self._work, *sorted(self._addresses.items()))
        if key != self._key:
            self._drop_graph()
            self._key = key
            return bool(super()._queue(stream))
        if self._captured is None:
            mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            runtime.cudaStreamBeginCapture(stream, mode)
            super()._queue(stream)
            _, graph = runtime.cudaStreamEndCapture(stream)
            _, self._captured = runtime.cudaGraphInstantiate(graph, 0)
            runtime.cudaGraphDestroy(graph)
        else:
            self.replays += 1
        (status,) = runtime.cudaGraphLaunch(self._captured, stream)
        return bool(status == runtime.cudaError_t.cudaSuccess)

    def _drop_graph(self) -> None:
        if self._captured is not None:
            runtime.cudaGraphExecDestroy(self._captured)
            self._captured = None
