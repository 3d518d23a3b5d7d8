"""The NVIDIA GPUs of this machine, asked of the driver's own libraries: no package is needed for it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
_TEXT_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that this process may use."""

    name: str
    compute_capability: str
    """As "9.0"."""
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The NVIDIA driver and its GPUs."""

    version: str | None
    """As "580.95.05"; None when NVML does not say."""
    cuda: tuple[int, int]
    """The newest CUDA release that the driver knows."""
    gpus: tuple[Gpu, ...]


def read_driver() -> tuple[Driver | None, str]:
    """Asks the driver what is there; `CUDA_VISIBLE_DEVICES` counts, as the driver reads it.

    Returns:
        The driver, and ""; or None, and why there is no GPU to use.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None, "no NVIDIA driver (libcuda.so.1 is missing)"
    status = cuda.cuInit(0)
    if status != 0:
        return None, f"the NVIDIA driver does not start: cuInit says {_error_name(cuda, status)}"
    release, count = ctypes.c_int(0), ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(release))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return None, "the NVIDIA driver shows no GPU to this process"
    return (
        Driver(
            version=_driver_version(),
            cuda=(release.value // 1000, release.value % 1000 // 10),
            gpus=tuple(_read_gpu(cuda, index) for index in range(count.value)),
        ),
        "",
    )


def first_gpu() -> Gpu | None:
    """Returns the GPU on which engines are built and tried; None without one."""
    driver, _ = read_driver()
    return None if driver is None else driver.gpus[0]


def compute_capability() -> str | None:
    """Returns that GPU's compute capability, as "9.0"; None without one."""
    gpu = first_gpu()
    return None if gpu is None else gpu.compute_capability


def _read_gpu(cuda: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    name, nbytes = ctypes.create_string_buffer(_TEXT_BYTES), ctypes.c_size_t(0)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, _TEXT_BYTES, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(nbytes), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=nbytes.value,
    )


def _error_name(cuda: Any, status: int) -> str:
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(status, ctypes.byref(name))
    return (name.value or str(status).encode()).decode()


def _driver_version() -> str | None:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    version = ctypes.create_string_buffer(_TEXT_BYTES)
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        done = nvml.nvmlSystemGetDriverVersion(version, _TEXT_BYTES) == 0
    finally:
        nvml.nvmlShutdown()
    return version.value.decode(errors="replace") if done else None
