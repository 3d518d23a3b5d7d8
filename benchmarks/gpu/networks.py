"""The networks that are measured: ResNets whose weights are made from their names, the same on every machine.

Speed does not depend on the weights, so they need not be trained; but the engines and PyTorch must hold the same
ones, for their answers to be compared. Only integers and one float32 product make them, so numpy gives the same
bits everywhere, and a graph travels without its weights (see skeletons.py).
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.context import IMAGE_SIZE
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import nn

NUM_CLASSES = 1000
_EPS = 1e-5  # torchvision's batch normalisation
# Damps the last convolutions of a residual branch: float16 must hold the sum of ResNet-101's 33 blocks.
_BRANCH_GAIN = 0.5
_NUM_CALIBRATION = 16


def make_weights(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Returns the weights of one layer, nearly normal, with the spread of He's initialisation.

    Args:
        name: The parameter's name in torchvision's ResNet; it is the seed.
        shape: The parameter's shape; one dimension is a bias.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    rng = np.random.default_rng(seed)
    parts = sum(rng.integers(-2048, 2048, shape, np.int32) for _ in range(4))
    deviation = math.sqrt(4 * 4096**2 / 12)
    if len(shape) == 1:
        spread = 0.01
    elif name.startswith("fc."):
        spread = 1 / math.sqrt(shape[1])
    else:
        spread = math.sqrt(2 / math.prod(shape[1:]))
    if name.endswith("conv3.weight") or (name.endswith("conv2.weight") and shape[0] == shape[1]):
        spread *= _BRANCH_GAIN
    weights: npt.NDArray[np.float32] = np.asarray(parts, np.float32) * np.float32(spread / deviation)
    return weights


def build_network(arch: str) -> nn.Module:
    """Returns torchvision's ResNet with these weights, in evaluation mode on the CPU.

    Its batch normalisations only add a bias: with a mean of 0 and a variance of 1 - eps they scale by exactly 1,
    so folding them into the convolutions leaves the weights as they are.
    """
    import torch
    from torch import nn

    from temper.builder.network.resnet import ModelConfig, build_model

    config = ModelConfig(arch=arch)  # type: ignore[arg-type]  # the command line offers these only
    network = build_model(config, NUM_CLASSES)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            module = network.get_submodule(name.rpartition(".")[0])
            if isinstance(module, nn.BatchNorm2d) and name.endswith(".weight"):
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.from_numpy(make_weights(name, tuple(parameter.shape))))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.zero_()
                module.running_var.fill_(1.0 - _EPS)
    return network


def serve(network: nn.Module) -> nn.Module:
    """Returns a network behind its preprocessing: uint8 [N, H, W, 3] to float32 logits [N, classes]."""
    from temper.builder.network.served import Served

    return Served(network, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()


def make_images(count: int, size: int = IMAGE_SIZE) -> npt.NDArray[np.uint8]:
    """Returns uint8 [count, size, size, 3], smooth enough to be images and the same on every machine."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 224, (count, size // 16 + 1, size // 16 + 1, 3), np.uint8)
    smooth = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :size, :size]
    return smooth + rng.integers(0, 32, smooth.shape, np.uint8)


def make_graph(arch: str, precision: str, folder: Path, size: int = IMAGE_SIZE) -> Path:
    """Exports, quantises and casts one graph; needs ModelOpt for all but fp32.

    Args:
        arch: One of context.ARCHS.
        precision: One of context.PRECISIONS.
        folder: Receives `<arch>-<precision>.onnx`, and the steps before it; what is there is taken.
        size: Height and width of the input, in pixels.

    Raises:
        BuilderError: A step failed.
    """
    from temper.builder.compress.cast import CastConfig, cast_onnx
    from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
    from temper.builder.network.export import export_onnx

    path, source = (folder / f"{arch}-{each}.onnx" for each in (precision, "fp32"))
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        export_onnx(build_network(arch), source, image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    images = make_images(_NUM_CALIBRATION, size)
    if precision in ("int8", "fp8"):
        quantized = quantized_graph(path)
        settings: Any = {"precision": precision, "method": "max"}
        quantize_onnx(source, quantized, images, QuantizeConfig(**settings))
        source = quantized
    if precision != "fp32":
        cast_onnx(source, path, images[:1], CastConfig())
    return path


def quantized_graph(path: Path) -> Path:
    """Returns where `make_graph` leaves the quantised graph whose rest is still float32."""
    return path.with_suffix(".qdq.onnx")
