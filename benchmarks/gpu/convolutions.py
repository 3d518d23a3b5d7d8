"""A network's convolutions one by one: fp16 against the int8 and fp8 kernels that PyTorch has for them.

PyTorch has two kinds of int8 kernels on CUDA: `quantized::conv2d`, a prototype on cuDNN, and the matrix product
`torch._int_mm`, which serves convolutions of 1x1 with stride 1. What a network would need between them, quantising
the activations, is not part of the times.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.gpu.networks import make_images

_WARM_UP, _CALLS = 3, 10


class Layer(NamedTuple):
    """What the time of a convolution depends on, besides the batch."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    size: int
    """Height and width of its input, in pixels."""

    @property
    def is_product(self) -> bool:
        """Tells whether it is a matrix product of pixels and weights."""
        return (self.kernel, self.stride) == (1, 1)


def measure(network: nn.Module, batch: int, size: int, device: str) -> dict[str, dict[str, Any]]:
    """Times every convolution of a network alone, in turn by kernel.

    Args:
        network: Takes uint8 [N, H, W, 3], on the device.
        batch: N.
        size: S, in pixels.
        device: PyTorch's.

    Returns:
        By kernel: ms, the sum over the layers that it serves, and num_layers; or the first layer's error.
    """
    layers = find_layers(network, torch.from_numpy(make_images(1, size)).to(device))
    found: dict[str, dict[str, Any]] = {}
    with torch.inference_mode():
        for layer, count in layers.items():
            for name, make in _KERNELS.items():
                if name.startswith("1x1") and not layer.is_product:
                    continue
                sums = found.setdefault(name, {"ms": 0.0, "num_layers": 0})
                if "error" in sums:
                    continue
                try:
                    sums["ms"] += count * _time_ms(make(layer, batch, device), device)
                    sums["num_layers"] += count
                except Exception as error:  # a kernel that does not serve here: its words are the result
                    found[name] = {"error": f"{layer}: {error}".splitlines()[0][:400]}
    return found


def find_layers(network: nn.Module, images: torch.Tensor) -> Counter[Layer]:
    """Returns the convolutions of a network, each with how often it has one like it."""
    layers: Counter[Layer] = Counter()

    def note(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        kernel, stride, padding = (int(each[0]) for each in (module.kernel_size, module.stride, module.padding))
        layer = Layer(module.in_channels, module.out_channels, kernel, stride, padding, given[0].shape[-1])
        layers[layer] += 1

    modules = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(note) for module in modules]
    with torch.inference_mode():
        network(images)
    for hook in hooks:
        hook.remove()
    return layers


def _time_ms(call: Callable[[], object], device: str) -> float:
    for _ in range(_WARM_UP):
        call()
    if not device.startswith("cuda"):
        begin = time.perf_counter()
        for _ in range(_CALLS):
            call()
        return 1e3 * (time.perf_counter() - begin) / _CALLS
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    for _ in range(_CALLS):
        call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / _CALLS


def _tensors(layer: Layer, batch: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and weights, channels last."""
    images = torch.randn(batch, layer.inputs, layer.size, layer.size, device=device, dtype=dtype)
    weights = 0.1 * torch.randn(
        layer.outputs, layer.inputs, layer.kernel, layer.kernel, device=device, dtype=dtype
    )
    return images.to(memory_format=torch.channels_last), weights.to(memory_format=torch.channels_last)


def _half_convolution(layer: Layer, batch: int, device: str) -> Callable[[], object]:
    images, weights = _tensors(layer, batch, device, torch.float16)
    bias = torch.zeros(layer.outputs, device=device, dtype=torch.float16)
    return lambda: nn.functional.conv2d(images, weights, bias, layer.stride, layer.padding)


def _int8_convolution(layer: Layer, batch: int, device: str) -> Callable[[], object]:
    images, weights = _tensors(layer, batch, device, torch.float32)
    # cuDNN takes signed activations, the CPU's kernels unsigned ones.
    activations = torch.qint8 if device.startswith("cuda") else torch.quint8
    quantised = torch.quantize_per_tensor(images, 0.05, 0, activations)
    packed = torch.ops.quantized.conv2d_prepack(
        torch.quantize_per_tensor(weights, 0.005, 0, torch.qint8),
        torch.zeros(layer.outputs, device=device),
        [layer.stride] * 2,
        [layer.padding] * 2,
        [1, 1],
        1,
    )
    return lambda: torch.ops.quantized.conv2d(quantised, packed, 0.1, 0)


def _matrices(layer: Layer, batch: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [N, inputs], and weights [inputs, outputs] in the column order that the tensor cores want."""
    pixels = torch.randint(-8, 8, (batch * layer.size**2, layer.inputs), device=device)
    weights = torch.randint(-8, 8, (layer.outputs, layer.inputs), device=device)
    return pixels.to(dtype), weights.to(dtype).t()


def _half_product(layer: Layer, batch: int, device: str) -> Callable[[], object]:
    pixels, weights = _matrices(layer, batch, device, torch.float16)
    return lambda: torch.mm(pixels, weights)


def _int8_product(layer: Layer, batch: int, device: str) -> Callable[[], object]:
    pixels, weights = _matrices(layer, batch, device, torch.int8)
    return lambda: torch._int_mm(pixels, weights)


def _fp8_product(layer: Layer, batch: int, device: str) -> Callable[[], object]:
    pixels, weights = _matrices(layer, batch, device, torch.float8_e4m3fn)
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(
        pixels, weights, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
    )


_KERNELS: dict[str, Callable[[Layer, int, str], Callable[[], object]]] = {
    "fp16 conv2d": _half_convolution,
    "int8 quantized::conv2d": _int8_convolution,
    "1x1 fp16 conv2d": _half_convolution,
    "1x1 fp16 torch.mm": _half_product,
    "1x1 int8 torch._int_mm": _int8_product,
    "1x1 fp8 torch._scaled_mm": _fp8_product,
}
