"""A stand-in for TensorRT's Python package, for machines with an NVIDIA GPU and without TensorRT. It is no engine.

It has what the plugin uses of the real one, and queues real CUDA work of an engine's size on the stream that it
is given: each image's first bytes become its logits, but for every fourth, and so many bytes per image are set
and copied on the GPU besides. So buffers, streams, graphs, transports and errors are the real ones, and every
answer can be checked bit for bit; its speed says nothing about TensorRT's, only what the plugin and Triton
around it deliver at most. Found only where somebody puts this folder on the path: it is in no wheel.
"""

from __future__ import annotations

import enum
import json
import math
from typing import Any

from cuda.bindings import driver, runtime  # type: ignore[import-untyped]  # ships none

__version__ = "0.0.0.stand-in"

_HIGH_BYTE = 0x3F
_SUCCESS = runtime.cudaError_t.cudaSuccess
# Writes where nothing is, which ends the context: no later call of the process succeeds.
_FAULT = b"""
.version 6.4
.target sm_75
.address_size 64
.visible .entry fault() {
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
\0"""
_ON_DEVICE = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice


class _Type(enum.Enum):
    """Names of tensor types, as TensorRT writes them."""

    UINT8 = "uint8"
    FLOAT = "float32"


uint8, float32 = _Type.UINT8, _Type.FLOAT


class TensorIOMode(enum.Enum):
    """What a tensor is to the engine."""

    INPUT = 1
    OUTPUT = 2


class ILogger:
    """What the library writes goes to `log` of a class derived from this one."""

    class Severity(enum.Enum):
        """How bad it is."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3


class Runtime:
    """Reads engines, which `benchmarks.standin.write_engine` writes."""

    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        """Keep the logger."""
        self._logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> ICudaEngine | None:
        """The engine, or None after an error in the log."""
        try:
            return self._open(json.loads(content))
        except (ValueError, KeyError, TypeError) as error:
            tell(self._logger, f"not one of its engines: {error!r}")
            return None

    def _open(self, described: dict[str, Any]) -> ICudaEngine:
        return ICudaEngine(described, self._logger)


class ICudaEngine:
    """One input, one output, one profile."""

    num_io_tensors = 2

    def __init__(self, described: dict[str, Any], logger: Any) -> None:
        """Take what `write_engine` wrote."""
        self.logger = logger
        self.input, self.output = described["input"], described["output"]
        self.profile: list[int] = described["profile"]
        self.work_bytes: int = described["work_bytes"]
        self.fault_batch: int = described["fault_batch"]
        self.image_bytes, self.row_bytes = math.prod(self.input["shape"]), 4 * math.prod(self.output["shape"])
        if self.row_bytes > self.image_bytes:
            raise ValueError(f"an image has {self.image_bytes} bytes, its logits need {self.row_bytes}")

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes that a context allocates: what is worked on, twice."""
        return 2 * self.work_bytes * self.profile[-1]

    def get_tensor_name(self, index: int) -> str:
        """The input, then the output."""
        return str((self.input, self.output)[index]["name"])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Input or output."""
        return TensorIOMode.INPUT if name == self.input["name"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> _Type:
        """As on the wire."""
        return uint8 if name == self.input["name"] else float32

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """With -1 for the batch."""
        return (-1, *(self.input if name == self.input["name"] else self.output)["shape"])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        """Of the smallest, the best and the largest batch."""
        del profile
        return [(batch, *self.get_tensor_shape(name)[1:]) for batch in self.profile]

    def create_execution_context(self) -> IExecutionContext | None:
        """A context with its memory, or None after an error in the log."""
        pointer = self._allocate()
        return None if pointer is None else IExecutionContext(self, pointer)

    def _allocate(self) -> int | None:
        status, pointer = runtime.cudaMalloc(max(1, self.device_memory_size_v2))
        if status != _SUCCESS:
            runtime.cudaGetLastError()
            tell(self.logger, f"no memory for activations: {status.name}")
            return None
        return int(pointer)


class IExecutionContext:
    """The shape, the addresses, and the memory that is worked on."""

    def __init__(self, engine: ICudaEngine, own_work: int | None) -> None:
        """Own the memory, if some is given."""
        self._engine, self._own_work = engine, own_work
        self._work = own_work or 0
        self._addresses: dict[str, int] = {}
        self._batch, self._is_set_up = 0, False

    def __del__(self) -> None:
        """Give the memory back."""
        if self._own_work is not None:
            runtime.cudaFree(self._own_work)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Only the batch may change, within the profile."""
        smallest, _, largest = self._engine.profile
        expected = self._engine.get_tensor_shape(name)[1:]
        if tuple(shape[1:]) != expected or not smallest <= shape[0] <= largest:
            tell(
                self._engine.logger, f"{name}: got {tuple(shape)}, expected {smallest} to {largest} of {expected}"
            )
            return False
        self._batch, self._is_set_up = shape[0], False
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Where a tensor lies on the GPU."""
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Queue the work of one batch; it waits for nothing. The first run of a shape cannot be captured."""
        _, capturing = runtime.cudaStreamIsCapturing(stream)
        if not self._is_set_up and capturing != runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone:
            tell(self._engine.logger, "a shape was set, and its first run cannot be captured")
            return False
        self._is_set_up = True
        return self._queue(stream)

    def _queue(self, stream: int) -> bool:
        engine, batch = self._engine, self._batch
        source, target = (self._addresses[each["name"]] for each in (engine.input, engine.output))
        calls = [
            runtime.cudaMemcpy2DAsync(
                *(target, engine.row_bytes, source, engine.image_bytes, engine.row_bytes, batch),
                *(_ON_DEVICE, stream),
            ),
            # Every fourth byte, so that what they make is a number: 0.5 to 2.
            runtime.cudaMemset2DAsync(target + 3, 4, _HIGH_BYTE, 1, engine.row_bytes * batch // 4, stream),
        ]
        if nbytes := engine.work_bytes * batch:
            calls += [
                runtime.cudaMemsetAsync(self._work, 0, nbytes, stream),
                runtime.cudaMemcpyAsync(self._work + nbytes, self._work, nbytes, _ON_DEVICE, stream),
            ]
        if batch == engine.fault_batch:
            _fault(stream)
        failed = [status.name for (status,) in calls if status != _SUCCESS]
        for name in failed:
            tell(engine.logger, name)
        return not failed


def tell(logger: Any, text: str) -> None:
    """Write an error into the library's log."""
    message = f"stand-in: {text}"
    logger.log(ILogger.Severity.ERROR, message)


def _fault(stream: int) -> None:
    _, module = driver.cuModuleLoadData(_FAULT)
    _, kernel = driver.cuModuleGetFunction(module, b"fault")
    (status,) = driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, 0, 0)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"stand-in: the kernel that shall fault does not start: {status.name}")
