"""Torchvision's ResNets, with weights from torchvision, from a checkpoint, or random."""

from __future__ import annotations

import math
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from temper.builder.errors import ModelError
from temper.builder.network.weights import CHECKPOINT_SUFFIXES, load_checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

Architecture = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
_HEAD = "fc"
_GRAPH_SUFFIX = ".onnx"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture and where its weights come from."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    arch: Architecture = "resnet18"
    """The network, under torchvision's name. Not used with an ONNX file, which holds its own."""
    weights: str = "random"
    """`random`, `torchvision` (its best ImageNet weights, downloaded), the path of a checkpoint, or that of an
    ONNX classifier, `model.onnx`, which is taken as a graph: served as it is, quantised or cast, but not trained
    (`train.epochs = 0`), pruned or given another head."""
    replace_head: bool = False
    """Drop the checkpoint's head and start a new one; torchvision's head is replaced whenever it does not fit."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean per channel, RGB, on a scale of 0 to 1; the default is ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation per channel, RGB, on a scale of 0 to 1; the default is ImageNet's."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch: got {self.arch!r}, expected one of {', '.join(ARCHITECTURES)}")
        allowed_suffixes = (*CHECKPOINT_SUFFIXES, _GRAPH_SUFFIX)
        if self.checkpoint is not None and self.checkpoint.suffix not in allowed_suffixes:
            allowed = ", ".join(allowed_suffixes)
            raise ValueError(
                f"weights: got {self.weights!r}, expected 'random', 'torchvision' or a file that ends in {allowed}"
            )
        if self.graph is not None and self.replace_head:
            raise ValueError(
                "replace_head: got true with an ONNX file, expected false: its head cannot be trained"
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"mean: got {self.mean}, expected three finite numbers on a scale of 0 to 1")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std: got {self.std}, expected three positive numbers on a scale of 0 to 1")

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's path, or None when the weights do not come from a file."""
        return None if self.weights in ("random", "torchvision") else Path(self.weights)

    @property
    def graph(self) -> Path | None:
        """The checkpoint's path when it is an ONNX file, else None."""
        path = self.checkpoint
        return path if path is not None and path.suffix == _GRAPH_SUFFIX else None


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """Builds a ResNet.

    Args:
        config: The architecture and its weights.
        num_classes: Length of the output.

    Returns:
        A module on the CPU in evaluation mode: float32 [N, 3, H, W], normalised, to logits [N, num_classes].

    Raises:
        ModelError: The checkpoint cannot be read or does not fit, or the weights cannot be downloaded.
    """
    if config.checkpoint is not None:
        model = _new_resnet(config.arch, num_classes)
        _load_into(model, config, load_checkpoint(config.checkpoint))
    elif config.weights == "torchvision":
        model = _pretrained_resnet(config.arch, num_classes)
    else:
        model = _new_resnet(config.arch, num_classes)
    return model.eval()


def find_arch(path: Path) -> tuple[Architecture, int | None]:
    """Finds the architecture whose layers a checkpoint holds.

    Returns:
        The architecture, and the classes of its head; None when it has none, so that `replace_head` must be set.

    Raises:
        ModelError: It cannot be read, or no architecture has these layers.
    """
    import torch

    weights = load_checkpoint(path)
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for arch in ARCHITECTURES:
        with torch.device("meta"):
            own = {name: tensor.shape for name, tensor in _new_resnet(arch, 1).state_dict().items()}
        if _without_head(own) == _without_head(shapes) and (not _head(shapes) or _head(shapes) == _head(own)):
            head = shapes.get(f"{_HEAD}.weight")
            return arch, None if head is None else head[0]
    raise ModelError(
        f"checkpoint {path}: holds the layers of none of {', '.join(ARCHITECTURES)}: {len(shapes)} weights, "
        f"{', '.join(list(shapes)[:2])} ...; expected those of one of torchvision's ResNets"
    )


def _without_head(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    return {name: shape for name, shape in shapes.items() if not name.startswith(f"{_HEAD}.")}


def _head(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """The head's weights; of their shapes only what does not depend on the number of classes."""
    return {name: shape[1:] for name, shape in shapes.items() if name.startswith(f"{_HEAD}.")}


def head_of(model: nn.Module) -> nn.Module:
    """Returns the last layer, the one that depends on the number of classes."""
    head: nn.Module = model.get_submodule(_HEAD)
    return head


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's weights as safetensors."""
    from safetensors.torch import save

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # Not save_file: a full disk shall be an OSError, as it is everywhere else.
    path.write_bytes(save(weights))


def _new_resnet(arch: str, num_classes: int) -> nn.Module:
    import torchvision.models  # type: ignore[import-untyped]  # ships none

    model: nn.Module = torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
    return model


def _pretrained_resnet(arch: str, num_classes: int) -> nn.Module:
    import torchvision.models
    from torch import nn

    try:
        model: nn.Module = torchvision.models.get_model(arch, weights="DEFAULT")
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"weights of {arch}: cannot be downloaded ({error}); give a checkpoint's path in model.weights"
        ) from error
    head = model.get_submodule(_HEAD)
    if head.out_features != num_classes:
        model.set_submodule(_HEAD, nn.Linear(head.in_features, num_classes))  # type: ignore[arg-type]  # of a Linear
    return model


def _load_into(model: nn.Module, config: ModelConfig, weights: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    if config.replace_head:
        weights = {**weights, **{name: own[name] for name in own if name.startswith(f"{_HEAD}.")}}
    where = f"checkpoint {config.weights}"
    head = f"{_HEAD}.weight"
    missing = sorted(own.keys() - weights.keys())
    unknown = sorted(weights.keys() - own.keys())
    if missing or unknown:
        found = f"{len(missing)} weights missing" + (f" ({missing[0]} ...)" if missing else "")
        found += f", {len(unknown)} unknown" + (f" ({unknown[0]} ...)" if unknown else "")
        raise ModelError(f"{where}: is no {config.arch}: {found}; set model.arch to the checkpoint's architecture")
    wrong = [name for name in own if own[name].shape != weights[name].shape]
    if wrong and all(name.startswith(f"{_HEAD}.") for name in wrong):
        raise ModelError(
            f"{where}: its head has {weights[head].shape[0]} classes, the data has {own[head].shape[0]}; "
            "use the checkpoint's own classes, or set model.replace_head = true and train the new head"
        )
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{where}: is no {config.arch}: {name} is {list(weights[name].shape)}, "
            f"expected {list(own[name].shape)}; "
            "set model.arch to the checkpoint's architecture"
        )
    model.load_state_dict(weights)
