"""A network as files: its layers' sizes as JSON, its weights as safetensors, nothing pickled.

Compression changes the number of channels of a layer (pruning), or puts a chain of convolutions in the place of
one (low rank). All layers are written down with their sizes, and the network is rebuilt from that without running
any code of the file's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from temper.builder.contract import NETWORK_FILE, WEIGHTS_FILE
from temper.builder.errors import ModelError
from temper.builder.network.head import HEAD
from temper.builder.network.resnet import ModelConfig, build_model, save_weights, set_head
from temper.builder.network.weights import load_checkpoint
from temper.imaging.preprocess import Size, sides

if TYPE_CHECKING:
    import torch
    from torch import nn

# Raise it when a file of before can no longer be read.
_FORMAT = 1
_FORBID: dict[str, str] = {"extra": "forbid"}
# Modules without weights that torchvision's ResNets have; they stay where they are.
_WITHOUT_WEIGHTS = ("ReLU", "MaxPool2d", "AdaptiveAvgPool2d", "AvgPool2d", "Identity")
_CONTAINERS = ("ResNet", "BasicBlock", "Bottleneck", "Sequential")
_PROBE_SIZE = 32


@dataclass(frozen=True)
class NetworkSize:
    """How large a network is."""

    flops: int
    """2 x multiply-adds of every convolution and linear layer, for one image."""
    num_parameters: int
    """Weights and biases, those of batch normalisation included."""


@dataclass(frozen=True, kw_only=True)
class _Conv:
    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID

    kind: Literal["conv"] = "conv"
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.out_channels, *self.kernel_size, *self.stride, *self.dilation, self.groups)
        if (
            min(sizes) < 1
            or min(self.padding) < 0
            or self.in_channels % self.groups + self.out_channels % self.groups
        ):
            raise ValueError(f"got {asdict(self)}, expected the sizes of a convolution")

    def build(self) -> nn.Module:
        from torch import nn

        arguments = asdict(self)
        del arguments["kind"]
        return nn.Conv2d(**arguments)


@dataclass(frozen=True, kw_only=True)
class _BatchNorm:
    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID

    kind: Literal["batch_norm"] = "batch_norm"
    num_features: int
    eps: float
    momentum: float | None

    def __post_init__(self) -> None:
        if self.num_features < 1 or not 0 < self.eps < 1:
            raise ValueError(f"got {asdict(self)}, expected the sizes of a batch normalisation")

    def build(self) -> nn.Module:
        from torch import nn

        return nn.BatchNorm2d(self.num_features, eps=self.eps, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class _Linear:
    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID

    kind: Literal["linear"] = "linear"
    in_features: int
    out_features: int
    bias: bool

    def __post_init__(self) -> None:
        if min(self.in_features, self.out_features) < 1:
            raise ValueError(f"got {asdict(self)}, expected the sizes of a linear layer")

    def build(self) -> nn.Module:
        from torch import nn

        return nn.Linear(self.in_features, self.out_features, bias=self.bias)


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """Convolutions one after another in the place of one."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID

    kind: Literal["chain"] = "chain"
    convs: tuple[_Conv, ...]

    def __post_init__(self) -> None:
        if len(self.convs) < 2:
            raise ValueError(f"got a chain of {len(self.convs)} convolutions, expected at least 2")

    def build(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(*(conv.build() for conv in self.convs))


_Layer = _Conv | _BatchNorm | _Linear | _Chain


@dataclass(frozen=True, kw_only=True)
class _File:
    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID

    format: Literal[1]
    layers: dict[str, _Layer]


def save_network(network: nn.Module, folder: Path) -> None:
    """Writes a network into a folder: network.json and weights.safetensors.

    Args:
        network: One of torchvision's ResNets, its layers of any width, a convolution perhaps replaced by a
            Sequential of convolutions.
        folder: Exists.

    Raises:
        ModelError: It holds any other module, such as a wrapper of ModelOpt's.
    """
    layers = {name: asdict(layer) for name, layer in _describe(network).items()}
    (folder / NETWORK_FILE).write_text(json.dumps({"format": _FORMAT, "layers": layers}, indent=1) + "\n")
    save_weights(network, folder / WEIGHTS_FILE)


def load_network(model_config: ModelConfig, num_classes: int, folder: Path) -> nn.Module:
    """Rebuilds what `save_network` wrote.

    Args:
        model_config: Its architecture counts, its weights do not.
        num_classes: Length of the output.
        folder: With network.json and weights.safetensors.

    Returns:
        A module on the CPU in evaluation mode: float32 [N, 3, H, W], normalised, to logits [N, num_classes].

    Raises:
        ModelError: A file is missing or damaged, or the two and the architecture do not fit together.
    """
    import torch

    path = folder / NETWORK_FILE
    layers = _read_layers(path)
    # Without memory, and without drawing weights that would be thrown away.
    with torch.device("meta"):
        network = build_model(replace(model_config, weights="random", replace_head=False), num_classes)
        inner = layers.get(f"{HEAD}.0")
        if isinstance(inner, _Linear):
            set_head(network, inner.out_features, num_classes)
        _apply(network, layers, model_config.arch, path)
    _check_flow(network, num_classes, path)
    _load_weights(network, load_checkpoint(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    return network.eval()


def count_network(network: nn.Module, image_size: Size) -> NetworkSize:
    """Counts the work and the weights of a network.

    Args:
        network: Takes float32 [N, 3, H, W]; it is not run on data and stays as it is.
        image_size: H and W in pixels, or one number for both.
    """
    flops = sum(count_layers(network, image_size).values())
    return NetworkSize(flops=flops, num_parameters=sum(weight.numel() for weight in network.parameters()))


def count_layers(network: nn.Module, image_size: Size) -> dict[str, int]:
    """Returns the FLOPs (2 x multiply-adds) of every Conv2d and Linear for one image, by the layer's name."""
    from torch import nn

    flops: dict[str, int] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def count(module: nn.Module, _: Any, output: torch.Tensor, name: str = name) -> None:
                weight = cast("torch.Tensor", module.weight)
                flops[name] = 2 * output.numel() * (weight.numel() // weight.shape[0])

            hooks.append(module.register_forward_hook(count))
    try:
        _run_on_meta(network, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    return flops


def is_chain(module: nn.Module) -> bool:
    """Returns True for a Sequential of convolutions only: what low rank puts in the place of one."""
    from torch import nn

    return type(module) is nn.Sequential and len(module) > 1 and all(type(each) is nn.Conv2d for each in module)


def _run_on_meta(network: nn.Module, image_size: Size) -> torch.Tensor:
    """Runs a network on tensors that have a shape and nothing else."""
    import torch

    on_meta = {name: tensor.detach().to("meta") for name, tensor in network.state_dict(keep_vars=True).items()}
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            image = torch.zeros((1, 3, *sides(image_size)), device="meta")
            logits: torch.Tensor = torch.func.functional_call(network, on_meta, (image,))
    finally:
        for module in training:
            module.training = True
    return logits


def _describe(network: nn.Module) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    inside: list[str] = []
    for name, module in network.named_modules():
        kind = type(module).__name__
        if any(name.startswith(chain) for chain in inside):
            continue
        if is_chain(module):
            layers[name] = _Chain(convs=tuple(_describe_conv(name, conv) for conv in module.children()))
            inside.append(f"{name}.")
        elif (layer := _describe_layer(name, module)) is not None:
            layers[name] = layer
        elif kind not in _WITHOUT_WEIGHTS + _CONTAINERS or not _is_known(module):
            raise ModelError(
                f"network: {name or 'its root'} is a {kind}, expected the layers of torchvision's ResNet; "
                "export what wraps it first"
            )
    return layers


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.", "torchvision.models."))


def _describe_layer(name: str, module: nn.Module) -> _Layer | None:
    from torch import nn

    # The exact type: a subclass, such as ModelOpt's quantised convolution, does more than its weights say.
    if type(module) is nn.Conv2d:
        return _describe_conv(name, module)
    if type(module) is nn.BatchNorm2d:
        return _BatchNorm(num_features=module.num_features, eps=module.eps, momentum=module.momentum)
    if type(module) is nn.Linear:
        return _Linear(
            in_features=module.in_features, out_features=module.out_features, bias=module.bias is not None
        )
    return None


def _describe_conv(name: str, conv: Any) -> _Conv:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise ModelError(f"network: {name} pads with {conv.padding_mode} by {conv.padding!r}, expected zeros")
    return _Conv(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
    )


def _read_layers(path: Path) -> dict[str, _Layer]:
    from pydantic import TypeAdapter, ValidationError

    try:
        file: _File = TypeAdapter(_File).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; the stage that wrote this folder has to run again") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ModelError(
            f"{path}: is damaged: {where}: {first['msg']}; delete the folder and run again"
        ) from error
    return file.layers


def _apply(network: nn.Module, layers: dict[str, _Layer], arch: str, path: Path) -> None:
    """Puts the written layers in the place of the architecture's own, where the two differ."""
    own = _describe(network)
    different = sorted(own.keys() ^ layers.keys())
    if different:
        name = different[0]
        missing = "lacks" if name in own else "has the unknown layer"
        raise ModelError(
            f"{path}: is no {arch}: it {missing} {name}; set model.arch to the one it was written from"
        )
    for name, layer in layers.items():
        allowed = {own[name].kind, "chain"} if own[name].kind == "conv" else {own[name].kind}
        if layer.kind not in allowed:
            raise ModelError(f"{path}: {name} is a {layer.kind}, expected a {own[name].kind}")
        if layer != own[name]:
            network.set_submodule(name, layer.build())


def _check_flow(network: nn.Module, num_classes: int, path: Path) -> None:
    """Checks that the channels of every layer fit those of its neighbours."""
    try:
        logits = _run_on_meta(network, _PROBE_SIZE)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path}: its layers do not fit together: {reason}; delete the folder") from error
    if logits.shape[1] != num_classes:
        raise ModelError(f"{path}: has {logits.shape[1]} classes, expected {num_classes}")


def _load_weights(network: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    own = network.state_dict()
    different = sorted(own.keys() ^ weights.keys())
    if different:
        missing = "lacks" if different[0] in own else "has the unknown"
        raise ModelError(f"{path}: {missing} {different[0]}; it is not of the {NETWORK_FILE} beside it")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape or tensor.dtype != weights[name].dtype:
            raise ModelError(
                f"{path}: {name} is {weights[name].dtype} {list(weights[name].shape)}, "
                f"expected {tensor.dtype} {list(tensor.shape)}; it is not of the {NETWORK_FILE} beside it"
            )
    network.load_state_dict(weights, assign=True)
