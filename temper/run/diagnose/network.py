"""The network in PyTorch, with what can be imitated of its arithmetic: batch statistics and precisions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.imaging.errors import show
from temper.run.diagnose.errors import DiagnoseError
from temper.run.diagnose.pipeline import Pipeline, Precision

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

_BATCH = 16
# u8 times s8 is added in pairs at 16 bits where there is no VNNI.
_MAX_PAIR = 32767


def open_networks(weights: Path) -> list[tuple[str, nn.Module, int]]:
    """Returns a checkpoint's networks, each with its name, in evaluation mode, and how many classes it knows.

    They are one; or two where averaged weights lie beside those as trained, the averaged ones first.

    Raises:
        DiagnoseError: The checkpoint has no head.
        ModelError: It cannot be read, or is none of the architectures.
    """
    from temper.builder.errors import ModelError

    try:
        return [(show(weights), *_open(weights, None))]
    except ModelError as error:
        kinds = {"averaged": True, "as trained": False}
        try:
            return [(f"{show(weights)} ({words})", *_open(weights, kind)) for words, kind in kinds.items()]
        except ModelError:
            raise error from None


def _open(weights: Path, averaged: bool | None) -> tuple[nn.Module, int]:
    from temper.builder.network.resnet import ModelConfig, build_model, find_arch

    arch, num_classes = find_arch(weights)
    if num_classes is None:
        raise DiagnoseError(f"checkpoint {show(weights)}: has no head, expected the network that is served")
    return build_model(ModelConfig(arch=arch, weights=str(weights), averaged=averaged), num_classes), num_classes


class Networks:
    """The checkpoints' networks and their imitations, each made when it is first asked for."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Takes networks in evaluation mode, float32 [N, 3, H, W] to logits."""
        self._networks = networks
        self._made: dict[tuple[int, bool, Precision], nn.Module] = {}

    def logits(self, values: NDArray[np.float32], how: Pipeline) -> NDArray[np.float32]:
        """Returns logits [N, classes] of what the network takes, float32 [N, 3, H, W]."""
        import torch

        network = self._network(how)
        size = how.batch_norm or _BATCH
        with torch.inference_mode():
            parts = [
                network(torch.from_numpy(values[start : start + size])).numpy()
                for start in range(0, len(values), size)
            ]
        return np.concatenate(parts)

    def num_macs(self, how: Pipeline) -> int:
        """Returns the multiplications of convolutions and linear layers that one image takes."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counted:
            self.logits(np.zeros((1, 3, how.height, how.width), np.float32), how)
        return max(1, int(counted.get_total_flops()) // 2)

    def _network(self, how: Pipeline) -> nn.Module:
        key = (how.network, how.batch_norm > 0, how.precision)
        if key not in self._made:
            network = self._networks[how.network]
            if how.batch_norm:
                network = _with_batch_statistics(network)
            if how.precision != "fp32":
                network = _rounded(network, how.precision)
            self._made[key] = network
        return self._made[key]


def _with_batch_statistics(network: nn.Module) -> nn.Module:
    import torch
    from torch import nn

    class BatchStatistics(nn.Module):
        """What batch normalisation does in training mode; of a single value too, where PyTorch refuses."""

        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm: Any = norm

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            norm = self.norm
            mean = values.mean((0, 2, 3), keepdim=True)
            variance = values.var((0, 2, 3), keepdim=True, unbiased=False)
            scaled = (values - mean) * torch.rsqrt(variance + norm.eps)
            made: torch.Tensor = scaled * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
            return made

    return _replaced(network, lambda layer: BatchStatistics(layer) if isinstance(layer, nn.BatchNorm2d) else None)


def _replaced(network: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy with some layers changed."""
    made = copy.deepcopy(network)
    for name, layer in list(made.named_modules()):
        if name and (new := change(layer)) is not None:
            made.set_submodule(name, new)
    return made.eval()


def _rounded(network: nn.Module, precision: Precision) -> nn.Module:
    """A copy whose convolutions and linear layers round what they are given, and their weights, as engines do."""
    from torch import nn

    layer_kinds = (nn.Conv2d, nn.Linear)
    wrap = _int8_layer if precision.startswith("int8") else _float_layer
    return _replaced(
        _folded(network), lambda layer: wrap(layer, precision) if isinstance(layer, layer_kinds) else None
    )


def _folded(network: nn.Module) -> nn.Module:
    """The network with its batch normalisation folded, as engines have it; as it is where it cannot be traced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its module is made of what PyTorch deprecates
        try:
            from torch.fx.experimental.optimization import fuse

            folded: nn.Module = fuse(network)
        except Exception:  # tracing runs the network's own code
            return network
    return folded


def _float_layer(layer: nn.Module, precision: Precision) -> nn.Module:
    import torch
    from torch import nn

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = copy.deepcopy(layer)
            for parameter in self.layer.parameters():
                parameter.data = parameter.data.to(dtype).float()

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.layer(values.to(dtype).float())
            return made.to(dtype).float()

    return Rounded()


def _int8_layer(layer: nn.Module, precision: Precision) -> nn.Module:
    """Weights symmetric per channel, activations per tensor over the batch, as ModelOpt's `max` has them."""
    from torch import nn

    largest = 64 if precision == "int8 of 7 bits" else 127
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]  # a convolution's or a linear layer's
    dims = tuple(range(1, weight.ndim))
    scales = weight.detach().abs().amax(dims, keepdim=True).clamp(min=1e-12) / largest
    whole = (weight.detach() / scales).round().clamp(-largest, largest - 1 if largest == 64 else largest)

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer: Any = copy.deepcopy(layer)
            self.layer.weight.data = whole * scales

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            saturates = precision == "int8, saturating" and isinstance(self.layer, nn.Conv2d)
            # Finer where an engine may be so: rounding that is not the engine's own hides what is.
            is_fine = bool(values.min() >= 0) and not saturates
            scale = values.abs().amax().clamp(min=1e-12) / (255 if is_fine else 127)
            steps = (values / scale).round()
            made: torch.Tensor = self.layer(steps * scale)
            if saturates:
                made = made - _cut_off(steps, whole, self.layer) * (scale * scales.view(1, -1, 1, 1))
            return made

    return Rounded()


def _cut_off(steps: torch.Tensor, whole: torch.Tensor, layer: Any) -> torch.Tensor:
    """How much of a convolution's sums is lost when the products of two neighbouring channels saturate at 16 bits.

    Activations are moved by 128 first, as oneDNN does to make them unsigned. Only weights that together pass 128
    can saturate (255 * 128 < 2^15), so only these are looked at.
    """
    import torch

    lost = torch.zeros(len(steps), len(whole), *layer(steps[:1]).shape[2:])
    if layer.groups != 1 or whole.shape[1] % 2:
        return lost
    pairs = whole.view(len(whole), -1, 2, *whole.shape[2:])
    padded = 128 + torch.nn.functional.pad(steps, (layer.padding[1],) * 2 + (layer.padding[0],) * 2)
    rows, columns = lost.shape[2:]
    for out, pair, top, left in torch.nonzero(pairs.sum(2).abs() > 128).tolist():
        part = padded[
            :,
            2 * pair : 2 * pair + 2,
            top : top + rows * layer.stride[0] : layer.stride[0],
            left : left + columns * layer.stride[1] : layer.stride[1],
        ]
        sums = (part * pairs[out, pair, :, top, left].view(1, 2, 1, 1)).sum(1)
        lost[:, out] += sums - sums.clamp(-_MAX_PAIR - 1, _MAX_PAIR)
    return lost
