"""What the stages share: the recipe's settings, and the network that a stage left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from temper.builder.contract import LABELS_FILE, NETWORK_FILE, SNAPSHOT_FILE, WEIGHTS_FILE
from temper.builder.names import read_labels
from temper.builder.network.files import load_network
from temper.builder.network.resnet import build_model

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.data.config import DataConfig
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
    """Loads the network of the weights stage, or of a compression step."""
    num_classes = len(labels_of(data))
    if (weights.path / NETWORK_FILE).exists():
        return load_network(setting.model, num_classes, weights.path)
    path = str(weights.path / WEIGHTS_FILE)
    return build_model(dataclasses.replace(setting.model, weights=path, replace_head=False), num_classes)


def initial_network(setting: Setting, num_classes: int) -> nn.Module:
    """Builds the network as it was before the finetuning; the caller's random state stays as it was."""
    import torch  # who reads a `Setting` can do without

    # The seed decides a random network and a new head.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.train.seed)
        return build_model(setting.model, num_classes)


def open_snapshots(setting: Setting, data: Artifact, weights: Artifact) -> Mapping[int, nn.Module]:
    """Returns the networks of the finetuning's snapshots by epoch, from 1; each is loaded when it is asked for.

    Args:
        setting: The recipe's.
        data: The data stage.
        weights: The weights stage.
    """
    return _Snapshots(setting, len(labels_of(data)), weights)


@dataclasses.dataclass(frozen=True)
class _Snapshots(Mapping[int, "nn.Module"]):
    setting: Setting
    num_classes: int
    weights: Artifact

    def __getitem__(self, epoch: int) -> nn.Module:
        if epoch not in self.weights.info["snapshots"]:
            raise KeyError(epoch)
        path = str(self.weights.path / SNAPSHOT_FILE.format(epoch))
        return build_model(
            dataclasses.replace(self.setting.model, weights=path, replace_head=False), self.num_classes
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self.weights.info["snapshots"])

    def __len__(self) -> int:
        return len(self.weights.info["snapshots"])


def served_module(setting: Setting, data: Artifact, weights: Artifact) -> nn.Module:
    """Loads a network behind its preprocessing: uint8 [N, S, S, 3] to logits."""
    from temper.builder.network.served import Served  # brings torch along

    return Served(open_network(setting, data, weights), mean=setting.model.mean, std=setting.model.std)
