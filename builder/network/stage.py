"""What the stages share: the recipe's settings, and the network that a stage left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from temper.builder.contract import LABELS_FILE, NETWORK_FILE, SNAPSHOT_FILE, WEIGHTS_FILE
from temper.builder.errors import ModelError
from temper.builder.names import read_labels
from temper.builder.network.files import load_network
from temper.builder.network.resnet import build_model, load_model
from temper.imaging.errors import show

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.data.config import DataConfig
    from temper.builder.network.imported import Checkpoint
    from temper.builder.network.resnet import ModelConfig
    from temper.builder.network.train import TrainConfig
    from temper.builder.store.artifacts import Artifact

NUM_VERIFY = 64
"""Test images that a graph or an engine is compared with its origin on."""

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all stages of a recipe share."""

    data: DataConfig
    """The images."""
    model: ModelConfig
    """The architecture and its weights."""
    train: TrainConfig
    """How they were finetuned."""


def images_of(data: Artifact, name: str) -> NDArray[Any]:
    """Opens an array of the data stage, mapped from its file."""
    import numpy as np  # who reads a `Setting` can do without

    images: NDArray[Any] = np.load(data.path / name, mmap_mode="r")
    return images


def labels_of(data: Artifact) -> list[str]:
    """Returns the class names."""
    return read_labels(data.path / LABELS_FILE)


def open_network(setting: Setting, data: Artifact, weights: Artifact) -> nn.Module:
    """Loads the network of the weights stage, or of a compression step.

    Raises:
        ModelError: It came as an ONNX file, of which there is none.
    """
    if setting.model.graph is not None:
        raise ModelError(f"ONNX file {show(setting.model.graph)}: a graph, of which there is no PyTorch network")
    if (weights.path / NETWORK_FILE).exists():
        return load_network(setting.model, len(labels_of(data)), weights.path)
    return _load(setting, data, weights.path / WEIGHTS_FILE)


def open_snapshot(setting: Setting, data: Artifact, weights: Artifact, epoch: int) -> nn.Module:
    """Loads the network as it was after an epoch of the finetuning, one of the weights stage's `snapshots`.

    Raises:
        ModelError: There is no snapshot of it.
    """
    return _load(setting, data, weights.path / SNAPSHOT_FILE.format(epoch))


def _load(setting: Setting, data: Artifact, path: Path) -> nn.Module:
    model = dataclasses.replace(setting.model, weights=str(path), replace_head=False, averaged=None)
    return build_model(model, len(labels_of(data)))


def initial_network(setting: Setting, num_classes: int) -> nn.Module:
    """Builds the network as it was before the finetuning; the caller's random state stays as it was."""
    return open_initial(setting, num_classes)[0]


def open_initial(setting: Setting, num_classes: int) -> tuple[nn.Module, Checkpoint | None]:
    """Does what `initial_network` does, and returns the checkpoint as well, None where there is none."""
    import torch  # who reads a `Setting` can do without

    # The seed decides a random network and a new head.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.train.seed)
        return load_model(setting.model, num_classes, bgr=setting.data.colour == "bgr")


def served_module(setting: Setting, data: Artifact, weights: Artifact) -> nn.Module:
    """Loads a network behind its preprocessing: uint8 [N, H, W, 3] to logits."""
    from temper.builder.network.served import Served  # brings torch along

    mean, std = setting.data.normalization
    return Served(open_network(setting, data, weights), mean=mean, std=std)
