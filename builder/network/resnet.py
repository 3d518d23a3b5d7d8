"""Torchvision's ResNets, and timm's kin of them, with weights from torchvision, from a checkpoint, or random."""

from __future__ import annotations

import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from temper.builder.errors import ModelError
from temper.builder.network.design import ARCHITECTURES, TORCHVISION, Architecture, design_of, new_resnet
from temper.builder.network.head import HEAD, new_head
from temper.builder.network.imported import Checkpoint, open_checkpoint
from temper.builder.network.weights import CHECKPOINT_SUFFIXES
from temper.imaging.errors import show

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "Architecture", "ModelConfig", "build_model", "find_arch", "head_of", "load_model"]

_GRAPH_SUFFIX = ".onnx"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture and where its weights come from."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    arch: Architecture = "resnet18"
    """The network, under torchvision's or timm's name. Not given with an ONNX file, which holds its own."""
    weights: str = "random"
    """`random`, `torchvision` (its best ImageNet weights, downloaded), or the path of a checkpoint: a file as
    torch.save, Lightning, timm or safetensors write it, whatever the network is called in it, or a folder of a
    model hub with its config.json (written with a `/`: `./resnet-50`). Or that of an ONNX classifier,
    `model.onnx`, which is taken as a graph: served as it is, quantised or cast, but not trained
    (`train.epochs = 0`), pruned or given another head."""
    averaged: bool | None = None
    """Of a checkpoint with averaged weights (EMA, SWA) beside those as trained: take the averaged ones, or not.
    Where there is one kind only, it is taken and this is not needed."""
    replace_head: bool = False
    """Drop the checkpoint's head and start a new one; torchvision's head is replaced whenever it does not fit."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch: got {self.arch!r}, expected one of {', '.join(ARCHITECTURES)}")
        if self.weights == "torchvision" and self.arch not in TORCHVISION:
            raise ValueError(
                f"weights: torchvision has none of {self.arch}, expected one of {', '.join(TORCHVISION)}"
            )
        # A relative path is not yet one from where this runs, so a folder is known by the way it is written.
        is_folder = "/" in self.weights or Path(self.weights).is_dir()
        suffixes = (*CHECKPOINT_SUFFIXES, _GRAPH_SUFFIX)
        if self.checkpoint is not None and self.checkpoint.suffix not in suffixes and not is_folder:
            allowed = ", ".join(suffixes)
            raise ValueError(
                f"weights: got {self.weights!r}, expected 'random', 'torchvision', a file that ends in {allowed}, "
                f"or a folder, written as './{self.weights}'"
            )
        if self.graph is not None and self.replace_head:
            raise ValueError(
                "replace_head: got true with an ONNX file, expected false: its head cannot be trained"
            )

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's path, or None when the weights do not come from a file."""
        return None if self.weights in ("random", "torchvision") else Path(self.weights)

    @property
    def graph(self) -> Path | None:
        """The checkpoint's path when it is an ONNX file, else None."""
        path = self.checkpoint
        return path if path is not None and path.suffix == _GRAPH_SUFFIX else None


def build_model(config: ModelConfig, num_classes: int, *, bgr: bool = False) -> nn.Module:
    """Builds a ResNet.

    Args:
        config: The architecture and its weights.
        num_classes: Length of the output.
        bgr: Whether a checkpoint's network was trained on BGR; the one returned takes RGB all the same.

    Returns:
        A module on the CPU in evaluation mode: float32 [N, 3, H, W], normalised, to logits [N, num_classes].

    Raises:
        ModelError: The checkpoint cannot be read or does not fit, or the weights cannot be downloaded.
    """
    return load_model(config, num_classes, bgr=bgr)[0]


def load_model(config: ModelConfig, num_classes: int, *, bgr: bool = False) -> tuple[nn.Module, Checkpoint | None]:
    """Does what `build_model` does, and returns the checkpoint as well, None where there is none."""
    checkpoint = None
    if config.checkpoint is not None:
        checkpoint = open_checkpoint(config.checkpoint, config.averaged)
        model = _from_checkpoint(config, checkpoint, num_classes, bgr)
    elif config.weights == "torchvision":
        model = _pretrained_resnet(config.arch, num_classes)
    else:
        model = new_resnet(design_of(config.arch), num_classes)
    return model.eval(), checkpoint


def find_arch(path: Path) -> tuple[Architecture, int | None]:
    """Finds the architecture whose layers a checkpoint holds; `open_checkpoint` says more about it.

    Returns:
        The architecture, and the classes of its head; None when it has none, so that `replace_head` must be set.

    Raises:
        ModelError: It cannot be read, or no architecture has these layers.
    """
    checkpoint = open_checkpoint(path, prefer_averaged=True)
    return checkpoint.arch, checkpoint.num_classes


def head_of(model: nn.Module) -> nn.Module:
    """Returns the head, which depends on the number of classes: one linear layer, or two and a ReLU between."""
    head: nn.Module = model.get_submodule(HEAD)
    return head


def set_head(model: nn.Module, hidden: int, num_classes: int) -> None:
    """Gives a network with a linear head one of two layers, with random weights."""
    num_features: Any = head_of(model).in_features
    model.set_submodule(HEAD, new_head(num_features, hidden, num_classes))


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's weights as safetensors."""
    from safetensors.torch import save

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # Not save_file: a full disk shall be an OSError, as it is everywhere else.
    path.write_bytes(save(weights))


def _pretrained_resnet(arch: str, num_classes: int) -> nn.Module:
    import torchvision.models  # type: ignore[import-untyped]  # ships none
    from torch import nn

    try:
        model: nn.Module = torchvision.models.get_model(arch, weights="DEFAULT")
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"weights of {arch}: cannot be downloaded ({error}); give a checkpoint's path in model.weights"
        ) from error
    head = model.get_submodule(HEAD)
    if head.out_features != num_classes:
        model.set_submodule(HEAD, nn.Linear(head.in_features, num_classes))  # type: ignore[arg-type]  # of a Linear
    return model


def _from_checkpoint(config: ModelConfig, checkpoint: Checkpoint, num_classes: int, bgr: bool) -> nn.Module:
    where = f"checkpoint {show(config.weights)}"
    if checkpoint.arch != config.arch:
        raise ModelError(
            f'{where}: is a {checkpoint.arch}, not a {config.arch}; set model.arch = "{checkpoint.arch}"'
        )
    if not config.replace_head and checkpoint.num_classes is None:
        raise ModelError(
            f"{where}: {checkpoint.head_fault}; to keep the other layers and train a new head set "
            "model.replace_head = true"
        )
    if not config.replace_head and checkpoint.num_classes != num_classes:
        raise ModelError(
            f"{where}: its head has {checkpoint.num_classes} classes, the data has {num_classes}; "
            "use the checkpoint's own classes, or set model.replace_head = true and train the new head"
        )
    model = new_resnet(design_of(config.arch), num_classes)
    weights = dict(checkpoint.weights)
    if config.replace_head:
        own = model.state_dict()
        weights = {name: own[name] if name.startswith(f"{HEAD}.") else weights[name] for name in own}
    elif checkpoint.hidden is not None:
        set_head(model, checkpoint.hidden, num_classes)
    if bgr and not checkpoint.is_grey:
        first = next(name for name in ("conv1.weight", "conv1.0.weight") if name in weights)
        weights[first] = weights[first].flip(1)
    model.load_state_dict(weights)
    return model
