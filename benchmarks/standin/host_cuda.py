# ruff: noqa: D102, N802 - the names are CUDA's own, and its documentation says what they do
"""CUDA's runtime in this process's memory: what a GPU is told is done late, in an order in which it may be done.

Nothing is done before its stream is waited for, what was given to CUDA's own stream comes in the middle of that,
memory holds garbage until it is written, and what reaches beyond an allocation fails: a test sees what a GPU may
only do now and then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from cuda.bindings import runtime  # type: ignore[import-untyped]  # ships none

TOTAL_BYTES = 1 << 28
_GARBAGE = 0xA5
_ALIGNMENT = 256
_OK = runtime.cudaError_t.cudaSuccess
_FAILED = runtime.cudaError_t.cudaErrorInvalidValue

Work = Callable[[], object]


class HostCuda:
    """Stands for the module `cuda.bindings.runtime`, whose constants it has."""

    def __init__(self) -> None:
        """A machine with one GPU, of which nothing is in use."""
        self._device: dict[int, Any] = {}
        self._host: dict[int, Any] = {}
        self._streams: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._late: list[Work] = []
        self.pinned: dict[int, int] = {}
        """What was pinned besides its own allocations: address to bytes."""
        self.refuses_to_pin = False
        self.pageable_bytes = 0
        """Copied from memory that was not pinned."""

    def __getattr__(self, name: str) -> Any:
        """A constant."""
        return getattr(runtime, name)

    # The machine.

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return _OK, 13000

    def cudaRuntimeGetVersion(self) -> tuple[Any, int]:
        return _OK, 13000

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        return _OK, 1

    def cudaSetDevice(self, index: int) -> tuple[Any]:
        return (_OK,)

    def cudaGetLastError(self) -> tuple[Any]:
        return (_OK,)

    def cudaDeviceGetAttribute(self, attribute: Any, index: int) -> tuple[Any, int]:
        return _OK, 9 if attribute == runtime.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor else 0

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, Any]:
        return _OK, SimpleNamespace(name=b"Host")

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return _OK, TOTAL_BYTES - sum(map(ctypes.sizeof, self._device.values())), TOTAL_BYTES

    # Memory.

    def cudaMalloc(self, nbytes: int) -> tuple[Any, int]:
        if nbytes > self.cudaMemGetInfo()[1]:
            return runtime.cudaError_t.cudaErrorMemoryAllocation, 0
        return _OK, self._allocate(self._device, nbytes)

    def cudaFree(self, pointer: int) -> tuple[Any]:
        return self._free(self._device, pointer)

    def cudaHostAlloc(self, nbytes: int, flags: int) -> tuple[Any, int]:
        return _OK, self._allocate(self._host, nbytes)

    def cudaFreeHost(self, pointer: int) -> tuple[Any]:
        return self._free(self._host, pointer)

    def cudaHostRegister(self, pointer: int, nbytes: int, flags: int) -> tuple[Any]:
        if self.refuses_to_pin:
            return (_FAILED,)
        if any(_overlap((pointer, nbytes), known) for known in self.pinned.items()):
            return (runtime.cudaError_t.cudaErrorHostMemoryAlreadyRegistered,)
        self.pinned[pointer] = nbytes
        return (_OK,)

    def cudaHostUnregister(self, pointer: int) -> tuple[Any]:
        return (_FAILED if self._is_busy() or self.pinned.pop(pointer, None) is None else _OK,)

    def cudaMemset(self, pointer: int, value: int, nbytes: int) -> tuple[Any]:
        self._late.append(lambda: ctypes.memset(pointer, value, nbytes))
        return (_OK,)

    def cudaMemsetAsync(self, pointer: int, value: int, nbytes: int, stream: int) -> tuple[Any]:
        return self._queue(stream, lambda: ctypes.memset(pointer, value, nbytes), [(pointer, nbytes)])

    def cudaMemset2DAsync(
        self, pointer: int, pitch: int, value: int, width: int, height: int, stream: int
    ) -> tuple[Any]:
        rows = [pointer + row * pitch for row in range(height)]
        ends = [(pointer, pitch * (height - 1) + width)]
        return self._queue(stream, lambda: [ctypes.memset(row, value, width) for row in rows], ends)

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: Any, stream: int) -> tuple[Any]:
        if not self._has(self._device, source, nbytes) and not self._is_pinned(source, nbytes):
            if any(_overlap((source, nbytes), known) for known in self._allocations()):
                return (_FAILED,)
            content = ctypes.string_at(source, nbytes)  # as the driver does, at once
            self.pageable_bytes += nbytes
            return self._queue(stream, lambda: ctypes.memmove(target, content, nbytes), [(target, nbytes)])
        return self._queue(stream, lambda: ctypes.memmove(target, source, nbytes), [(target, nbytes)])

    def cudaMemcpy2DAsync(
        self, target: int, pitch: int, source: int, spitch: int, width: int, height: int, kind: Any, stream: int
    ) -> tuple[Any]:
        rows = [(target + row * pitch, source + row * spitch) for row in range(height)]
        ends = [(target, pitch * (height - 1) + width), (source, spitch * (height - 1) + width)]
        return self._queue(stream, lambda: [ctypes.memmove(*row, width) for row in rows], ends)

    # Streams and graphs.

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        handle = len(self._streams) + 1
        self._streams[handle] = []
        return _OK, handle

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        if stream in self._captures:
            return (runtime.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        queue = self._streams[stream]
        while queue:
            queue.pop(0)()
            while self._late:
                self._late.pop()()
        return (_OK,)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        return (_FAILED if self._streams.pop(stream) else _OK,)

    def cudaStreamIsCapturing(self, stream: int) -> tuple[Any, Any]:
        status = runtime.cudaStreamCaptureStatus
        active, none = status.cudaStreamCaptureStatusActive, status.cudaStreamCaptureStatusNone
        return _OK, active if stream in self._captures else none

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:
        self._captures[stream] = []
        return (_OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, list[Work]]:
        return _OK, self._captures.pop(stream)

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[Any, int]:
        handle = len(self._graphs) + 1
        self._graphs[handle] = graph
        return _OK, handle

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[Any]:
        return (_OK,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Any]:
        self._streams[stream] += self._graphs[executable]
        return (_OK,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[Any]:
        self._graphs[executable].clear()
        return (_OK,)

    def _queue(self, stream: int, work: Work, written: Iterable[tuple[int, int]]) -> tuple[Any]:
        known = (self._device, self._host)
        if not all(any(self._has(kind, *range_) for kind in known) for range_ in written):
            return (_FAILED,)
        self._captures.get(stream, self._streams[stream]).append(work)
        return (_OK,)

    def _allocate(self, kind: dict[int, Any], nbytes: int) -> int:
        memory = (ctypes.c_uint8 * (nbytes + _ALIGNMENT))()
        start = -ctypes.addressof(memory) % _ALIGNMENT
        pointer = ctypes.addressof(memory) + start
        ctypes.memset(pointer, _GARBAGE, nbytes)
        kind[pointer] = (ctypes.c_uint8 * nbytes).from_buffer(memory, start)
        return pointer

    def _free(self, kind: dict[int, Any], pointer: int) -> tuple[Any]:
        return (_FAILED if pointer and (self._is_busy() or kind.pop(pointer, None) is None) else _OK,)

    def _is_busy(self) -> bool:
        return bool(self._late) or any(self._streams.values())

    def _has(self, kind: dict[int, Any], pointer: int, nbytes: int) -> bool:
        ends = {start: start + ctypes.sizeof(memory) for start, memory in kind.items()}
        return _is_within(ends, pointer, nbytes)

    def _allocations(self) -> Iterator[tuple[int, int]]:
        for kind in (self._device, self._host):
            yield from ((start, ctypes.sizeof(memory)) for start, memory in kind.items())

    def _is_pinned(self, pointer: int, nbytes: int) -> bool:
        ends = {start: start + size for start, size in self.pinned.items()}
        return self._has(self._host, pointer, nbytes) or _is_within(ends, pointer, nbytes)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]


def _is_within(ends: dict[int, int], pointer: int, nbytes: int) -> bool:
    return any(start <= pointer and pointer + nbytes <= end for start, end in ends.items())
