"""The NVIDIA GPU of this machine, asked of the driver itself: no package is imported for it."""

from __future__ import annotations

import ctypes

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h


def count_gpus() -> int:
    """Returns how many NVIDIA GPUs this process may use: the driver's answer, 0 without one.

    `CUDA_VISIBLE_DEVICES` counts, as the driver reads it.
    """
    cuda = _driver()
    count = ctypes.c_int(0)
    if cuda is None or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def compute_capability(index: int = 0) -> str | None:
    """Returns a GPU's compute capability, as "9.0"; None without that GPU."""
    cuda = _driver()
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if cuda is None or cuda.cuDeviceGet(ctypes.byref(device), index) != 0:
        return None
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
    return f"{major.value}.{minor.value}"


def _driver() -> ctypes.CDLL | None:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return cuda if cuda.cuInit(0) == 0 else None
