"""The few CUDA calls that a runner needs, through cuda-bindings: each one checked, and no other file calls CUDA.

Addresses are plain integers. Everything belongs to the device of `open_device`; one thread at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from artifact import ArtifactError

try:
    from cuda.bindings import runtime  # type: ignore[import-untyped]  # ships no types
except ImportError as error:
    # Named as it is installed, for the line that a user reads.
    raise ImportError(str(error), name="cuda-bindings") from error

# CUDA release -> oldest Linux driver, from the table in the CUDA Toolkit's release notes.
_OLDEST_DRIVER = {12: "525.60.13", 13: "580.65.06"}
_SUCCESS = runtime.cudaError_t.cudaSuccess


class CudaError(Exception):
    """A call failed; the message names the call and the driver's reason."""

    def __init__(self, call: str, status: Any) -> None:
        """Keep the status, and put the message together."""
        self.out_of_memory = status == runtime.cudaError_t.cudaErrorMemoryAllocation
        name = runtime.cudaGetErrorName(status)[1].decode()
        reason = runtime.cudaGetErrorString(status)[1].decode()
        super().__init__(f"{call}: {name} ({reason})")


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What a call returns besides its status."""
    status, *values = function(*arguments)
    if status != _SUCCESS:
        # Else the next call, of the engine's library as well, would report this error as its own.
        runtime.cudaGetLastError()
        raise CudaError(function.__name__, status)
    return values[0] if len(values) == 1 else tuple(values)


@dataclass(frozen=True, kw_only=True)
class Device:
    """The GPU of an instance."""

    index: int
    name: str
    capability: str
    """Compute capability, as "9.0"."""
    driver_cuda: tuple[int, int]
    """The newest CUDA release that the driver knows."""


def open_device(index: int) -> Device:
    """Make a GPU the one of this thread.

    Raises:
        ArtifactError: No driver, one that is too old for cuda-bindings, or no such GPU.
    """
    try:
        driver = _release(_call(runtime.cudaDriverGetVersion))
        if driver == (0, 0):
            raise ArtifactError(
                "no NVIDIA driver on this machine (libcuda.so.1 is missing); start tritonserver where a GPU is "
                "(a container: with --gpus all), or build the recipe with engine.kind = 'openvino'"
            )
        require_driver(driver, _release(_call(runtime.cudaRuntimeGetVersion))[0], "cuda-bindings")
        count = _call(runtime.cudaGetDeviceCount)
        if not 0 <= index < count:
            raise ArtifactError(
                f"got GPU {index}, this machine has {count}; correct instance_group in config.pbtxt"
            )
        _call(runtime.cudaSetDevice, index)
        # The first call that needs a context makes it, and fails here where the GPU cannot be used.
        _call(runtime.cudaFree, 0)
        attributes = runtime.cudaDeviceAttr
        major = _call(runtime.cudaDeviceGetAttribute, attributes.cudaDevAttrComputeCapabilityMajor, index)
        minor = _call(runtime.cudaDeviceGetAttribute, attributes.cudaDevAttrComputeCapabilityMinor, index)
        name = _call(runtime.cudaGetDeviceProperties, index).name.decode()
    except CudaError as error:
        raise ArtifactError(f"GPU {index} cannot be used: {error}; see what nvidia-smi says of it") from error
    return Device(index=index, name=name, capability=f"{major}.{minor}", driver_cuda=driver)


def require_driver(driver: tuple[int, int], major: int, package: str) -> None:
    """Refuse a driver that is older than a package's CUDA; within a major release every driver serves.

    Args:
        driver: The newest CUDA release that the driver knows.
        major: The CUDA major release that the package was built with.
        package: Named in the message.

    Raises:
        ArtifactError: The driver is too old; names the version that is needed.
    """
    if driver[0] < major:
        oldest = _OLDEST_DRIVER.get(major, "newer")
        raise ArtifactError(
            f"the NVIDIA driver serves CUDA {driver[0]}.{driver[1]}, {package} needs CUDA {major}; "
            f"install driver {oldest} or later, or the build of {package} for CUDA {driver[0]}"
        )


def free_memory() -> tuple[int, int]:
    """Free and total bytes of the GPU.

    Raises:
        CudaError: The driver failed.
    """
    free, total = _call(runtime.cudaMemGetInfo)
    return free, total


def _release(version: int) -> tuple[int, int]:
    return version // 1000, version % 1000 // 10


def is_lost() -> bool:
    """Tell whether a kernel's fault has ended CUDA's context: every call of this process fails from then on."""
    runtime.cudaFree(0)  # may still report an earlier error, of which nothing is left after it
    runtime.cudaGetLastError()
    return bool(runtime.cudaFree(0)[0] != _SUCCESS)


def pin(pointer: int, nbytes: int) -> None:
    """Let the GPU read and write memory of this process directly, until `unpin`; both must be whole pages.

    Raises:
        CudaError: The system does not allow it.
    """
    _call(runtime.cudaHostRegister, pointer, nbytes, runtime.cudaHostRegisterDefault)


def unpin(pointer: int) -> None:
    """Undo `pin`; no copy may be using the memory."""
    _call(runtime.cudaHostUnregister, pointer)


class DeviceBuffer:
    """Zeroed memory on the GPU, owned by this object until `close`."""

    def __init__(self, nbytes: int, stream: Stream) -> None:
        """Allocate, and queue the zeros on the stream that will use it: it waits for no other one.

        Raises:
            CudaError: Out of memory.
        """
        self.nbytes = nbytes
        self.pointer: int = _call(runtime.cudaMalloc, max(1, nbytes))
        _call(runtime.cudaMemsetAsync, self.pointer, 0, nbytes, stream.handle)

    def close(self) -> None:
        """Give the memory back; nothing may be using it."""
        _call(runtime.cudaFree, self.pointer)


class PinnedBuffer:
    """Host memory that the GPU reads and writes directly, seen as an array, owned by this object until `close`."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Allocate.

        Raises:
            CudaError: Out of memory.
        """
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.pointer: int = _call(runtime.cudaHostAlloc, nbytes, runtime.cudaHostAllocDefault)
        memory = (ctypes.c_uint8 * nbytes).from_address(self.pointer)
        self.array: npt.NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def close(self) -> None:
        """Give the memory back; no view of `array` may be used any more."""
        _call(runtime.cudaFreeHost, self.pointer)


class Graph:
    """A captured sequence of kernels, started as one."""

    def __init__(self, graph: Any) -> None:
        """Make the graph executable, and take it over.

        Raises:
            CudaError: It holds what cannot be repeated, or the GPU's memory is exhausted.
        """
        try:
            self._executable = _call(runtime.cudaGraphInstantiate, graph, 0)
        finally:
            _call(runtime.cudaGraphDestroy, graph)

    def launch(self, stream: Stream) -> None:
        """Start it behind what the stream already holds."""
        _call(runtime.cudaGraphLaunch, self._executable, stream.handle)

    def close(self) -> None:
        """Free it; it may not be running."""
        _call(runtime.cudaGraphExecDestroy, self._executable)


class Stream:
    """A queue of work for the GPU that waits for no other stream."""

    def __init__(self) -> None:
        """Make the stream.

        Raises:
            CudaError: Out of memory.
        """
        self.handle = _call(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy between any two addresses, on host or GPU; both stay valid until `synchronize`.

        Raises:
            CudaError: An address is not one of CUDA's, or an earlier kernel failed.
        """
        _call(
            runtime.cudaMemcpyAsync, target, source, nbytes, runtime.cudaMemcpyKind.cudaMemcpyDefault, self.handle
        )

    def synchronize(self) -> None:
        """Wait for everything queued.

        Raises:
            CudaError: Some of it failed.
        """
        _call(runtime.cudaStreamSynchronize, self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` queues on this stream instead of running it.

        Raises:
            CudaError: It did something that cannot be recorded; the stream is usable again.
        """
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call(runtime.cudaStreamBeginCapture, self.handle, mode)
        try:
            enqueue()
        except BaseException:
            # A capture that went wrong ends with an error of its own and without a graph.
            status, graph = runtime.cudaStreamEndCapture(self.handle)
            if status == _SUCCESS:
                runtime.cudaGraphDestroy(graph)
            runtime.cudaGetLastError()
            raise
        return Graph(_call(runtime.cudaStreamEndCapture, self.handle))

    def close(self) -> None:
        """Free it; nothing may be running on it."""
        _call(runtime.cudaStreamDestroy, self.handle)
