"""The GPU as the driver describes it, through ctypes: before any package is installed, and beside any."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

from temper.builder.engines.gpu import read_driver


def describe() -> dict[str, Any]:
    """Returns the driver and the first GPU, or `no_gpu` with the reason."""
    driver, reason = read_driver()
    if driver is None:
        return {"no_gpu": reason}
    return {"driver": driver.version, "driver_cuda": list(driver.cuda), **dataclasses.asdict(driver.gpus[0])}


class _Memory(ctypes.Structure):
    """nvmlMemory_t of nvml.h."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def memory_used_bytes() -> int | None:
    """Returns the first GPU's memory in use by all processes together, as NVML says; None where it does not."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        handle, memory = ctypes.c_void_p(), _Memory()
        if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
            return None
        if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
            return None
        return int(memory.used)
    finally:
        nvml.nvmlShutdown()


def used_mib(before: int | None) -> int | None:
    """Returns how much more memory is used than before, in MiB."""
    now = memory_used_bytes()
    return None if before is None or now is None else (now - before) >> 20
