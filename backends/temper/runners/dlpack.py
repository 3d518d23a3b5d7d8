"""Images that Triton hands over on the GPU: their address, read from a DLPack capsule without another library."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

import runners

# Codes of DLDataType, from dlpack.h; together with the bits they name a numpy type.
_KINDS = {0: "i", 1: "u", 2: "f"}


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """DLTensor, the first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_get_pointer.restype = ctypes.c_void_p


class DeviceTensor:
    """A dense tensor that another library owns; valid while this object lives.

    The capsule is never marked as used, so that its own destructor gives the tensor back when this object ends.

    Args:
        capsule: From `__dlpack__()` or `to_dlpack()`, named "dltensor".

    Raises:
        RunnerError: The tensor's rows do not follow one another, or its type is not one that numpy has.
    """

    def __init__(self, capsule: Any) -> None:
        """Read the description; the data stays where it is."""
        self._capsule = capsule
        tensor = _Tensor.from_address(_get_pointer(capsule, b"dltensor"))
        self.shape: tuple[int, ...] = tuple(tensor.shape[: tensor.ndim])
        self.dtype = _numpy_type(tensor.dtype)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.pointer = (tensor.data or 0) + tensor.byte_offset
        if tensor.strides and not _is_dense(self.shape, tensor.strides[: tensor.ndim]):
            raise runners.RunnerError(f"got a GPU tensor {list(self.shape)} with gaps, expected a contiguous one")

    def __len__(self) -> int:
        """Rows: the first dimension."""
        return self.shape[0] if self.shape else 0


def _numpy_type(dtype: _DataType) -> np.dtype[Any]:
    if dtype.code not in _KINDS or dtype.bits not in (8, 16, 32, 64) or dtype.lanes != 1:
        raise runners.RunnerError(f"got a GPU tensor of DLPack type {dtype.code}/{dtype.bits}, expected uint8")
    return np.dtype(f"{_KINDS[dtype.code]}{dtype.bits // 8}")


def _is_dense(shape: tuple[int, ...], strides: list[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


Images = npt.NDArray[np.uint8] | DeviceTensor
"""UINT8 [N, H, W, 3], in this process's memory or on a GPU."""
