"""Tensors of GPU memory as the plugin receives them: what is described, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import runners
from runners.dlpack import DeviceTensor


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_device_tensor_describes_the_memory(dtype: str) -> None:
    array = np.arange(2 * 4 * 4 * 3).astype(dtype).reshape(2, 4, 4, 3)
    tensor = DeviceTensor(array.__dlpack__())
    assert (tensor.shape, tensor.dtype, len(tensor)) == ((2, 4, 4, 3), array.dtype, 2)
    assert (tensor.pointer, tensor.nbytes) == (array.ctypes.data, array.nbytes)


def test_device_tensor_points_behind_an_offset() -> None:
    array = np.arange(10 * 12, dtype=np.uint8).reshape(10, 2, 2, 3)
    assert DeviceTensor(array[3:5].__dlpack__()).pointer == array.ctypes.data + 3 * 12


def test_device_tensor_takes_rows_of_one_image() -> None:
    """The stride of a dimension of size 1 means nothing."""
    assert len(DeviceTensor(np.zeros((8, 2, 2, 3), np.uint8)[::8].__dlpack__())) == 1


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[:, ::2], np.s_[..., :2]])
def test_device_tensor_refuses_gaps(cut: Any) -> None:
    array = np.zeros((8, 4, 4, 3), np.uint8)[cut]
    with pytest.raises(runners.RunnerError, match=r"got a GPU tensor \[.*\] with gaps, expected a contiguous one"):
        DeviceTensor(array.__dlpack__())


def test_device_tensor_refuses_a_type_that_numpy_lacks() -> None:
    with pytest.raises(runners.RunnerError, match="got a GPU tensor of DLPack type 5/64, expected uint8"):
        DeviceTensor(np.zeros((1, 2), np.complex64).__dlpack__())


def test_device_tensor_gives_the_memory_back() -> None:
    import weakref

    class Watched(np.ndarray):  # type: ignore[type-arg]  # an array that can be watched
        pass

    array = np.zeros((2, 3), np.uint8).view(Watched)
    watch = weakref.ref(array)
    tensor = DeviceTensor(array.__dlpack__())
    del array
    assert watch() is not None, "the tensor keeps the memory that it points to"
    del tensor
    assert watch() is None, "and gives it back"
