"""Images in a region that client and server share, so that a request carries only the region's name.

tritonclient makes the regions, in system memory (POSIX) or on the GPU (CUDA IPC). The images are written once: a
client that writes new ones for every request adds that copy, which no transport saves it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from temper.client import protocol
from temper.client.model import ModelInfo
from temper.client.wire import pb

Transport = Literal["grpc", "system", "cuda"]
_IN_USE_S = 30.0
TRANSPORTS: tuple[Transport, ...] = ("grpc", "system", "cuda")


@contextlib.contextmanager
def handed_over(images: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """The images in this process's shared memory, as Triton's Python backend hands a request over.

    They are gone with the context: a runner that was given them is closed before.
    """
    memory = SharedMemory(create=True, size=images.nbytes)
    try:
        shared: npt.NDArray[np.uint8] = np.ndarray(images.shape, images.dtype, memory.buf)
        shared[:] = images
        yield shared
    finally:
        memory.close()
        memory.unlink()


@contextlib.contextmanager
def requests(
    url: str,
    transport: Transport,
    info: ModelInfo,
    images: npt.NDArray[np.uint8],
    batch: int,
    headers: Mapping[str, str],
) -> Iterator[tuple[bytes, ...]]:
    """Serialised requests of `batch` images each; the region lives while the context is open.

    Args:
        url: host:port of the gRPC endpoint.
        transport: The images inside the message, in system shared memory or in CUDA shared memory.
        info: The model.
        images: uint8 [N, H, W, 3], N a multiple of `batch`.
        batch: Images per request.
        headers: What the server asks for in calls about shared memory, as `TritonServer.key` gives it.
    """
    starts = range(0, len(images) - batch + 1, batch)
    if transport == "grpc":
        yield tuple(protocol.encode(info, images[start : start + batch], version=info.version) for start in starts)
        return
    make = _system_region if transport == "system" else _cuda_region
    with make(url, np.ascontiguousarray(images), dict(headers)) as region:
        image_bytes = images[0].nbytes
        yield tuple(_encode(info, region, batch, start * image_bytes, batch * image_bytes) for start in starts)


def _encode(info: ModelInfo, region: str, batch: int, offset: int, nbytes: int) -> bytes:
    """One ModelInferRequest whose input lies in a region (Triton's shared memory extension)."""
    request = pb.ModelInferRequest(model_name=info.name, model_version=info.version)
    source = request.inputs.add(name=info.input_name, datatype=info.input_dtype, shape=[batch, *info.image_shape])
    source.parameters["shared_memory_region"].string_param = region
    source.parameters["shared_memory_byte_size"].int64_param = nbytes
    if offset:
        source.parameters["shared_memory_offset"].int64_param = offset
    return bytes(request.SerializeToString())


@contextlib.contextmanager
def _system_region(url: str, images: npt.NDArray[np.uint8], headers: dict[str, str]) -> Iterator[str]:
    from tritonclient.utils import shared_memory  # type: ignore[import-untyped]  # ships none

    name = f"temper_gpu_{os.getpid()}"
    handle = shared_memory.create_shared_memory_region(name, name, images.nbytes)
    try:
        shared_memory.set_shared_memory_region(handle, [images])
        with _client(url) as client:
            client.register_system_shared_memory(name, name, images.nbytes, headers=headers)
            try:
                yield name
            finally:
                _unregister(partial(client.unregister_system_shared_memory, headers=headers), name)
    finally:
        shared_memory.destroy_shared_memory_region(handle)


@contextlib.contextmanager
def _cuda_region(url: str, images: npt.NDArray[np.uint8], headers: dict[str, str]) -> Iterator[str]:
    from tritonclient.utils import cuda_shared_memory

    name = f"temper_gpu_{os.getpid()}_cuda"
    handle = cuda_shared_memory.create_shared_memory_region(name, images.nbytes, 0)
    try:
        cuda_shared_memory.set_shared_memory_region(handle, [images])
        with _client(url) as client:
            raw = cuda_shared_memory.get_raw_handle(handle)
            client.register_cuda_shared_memory(name, raw, 0, images.nbytes, headers=headers)
            try:
                yield name
            finally:
                _unregister(partial(client.unregister_cuda_shared_memory, headers=headers), name)
    finally:
        cuda_shared_memory.destroy_shared_memory_region(handle)


def _unregister(unregister: Callable[[str], None], name: str) -> None:
    """Triton keeps a region while a request reads it, and load ends with requests in flight."""
    from tritonclient.utils import InferenceServerException

    deadline = time.monotonic() + _IN_USE_S
    while True:
        try:
            unregister(name)
            return
        except InferenceServerException as error:
            if "in use" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _client(url: str) -> Any:
    from tritonclient.grpc import InferenceServerClient  # type: ignore[import-untyped]  # ships none

    return InferenceServerClient(url, channel_args=[("grpc.enable_http_proxy", 0)])
