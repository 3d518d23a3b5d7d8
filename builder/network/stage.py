"""The stages of the network: its weights, and the graph that is exported from it or from what a step left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from temper.builder.contract import (
    GRAPH_FILE,
    LABELS_FILE,
    NETWORK_FILE,
    REFERENCE_FILE,
    TEST_IMAGES_FILE,
    TEST_LABELS_FILE,
    WEIGHTS_FILE,
)
from temper.builder.data.prepare import load_train
from temper.builder.names import read_labels
from temper.builder.network.files import count_network, load_network
from temper.builder.network.resnet import build_model
from temper.builder.network.train import finetune

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
    images: NDArray[Any] = np.load(data.path / name, mmap_mode="r")
    return images


def labels_of(data: Artifact) -> list[str]:
    """Returns the class names."""
    return read_labels(data.path / LABELS_FILE)


def make_weights(setting: Setting, data: Artifact, folder: Path, progress: Progress) -> dict[str, Any]:
    """Builds the network and finetunes it."""
    # The seed decides a random network and a new head; the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.train.seed)
        network = build_model(setting.model, len(labels_of(data)))
        evaluation = (images_of(data, TEST_IMAGES_FILE), images_of(data, TEST_LABELS_FILE))
        mean, std = setting.model.mean, setting.model.std
        train = load_train(setting.data)
        return finetune(network, train, evaluation, setting.train, folder, progress, mean=mean, std=std)


def open_network(setting: Setting, data: Artifact, weights: Artifact) -> nn.Module:
    """Loads the network of the weights stage, or of a compression step."""
    num_classes = len(labels_of(data))
    if (weights.path / NETWORK_FILE).exists():
        return load_network(setting.model, num_classes, weights.path)
    path = str(weights.path / WEIGHTS_FILE)
    return build_model(dataclasses.replace(setting.model, weights=path, replace_head=False), num_classes)


def export_graph(setting: Setting, data: Artifact, weights: Artifact, folder: Path) -> dict[str, Any]:
    """Exports the network, compares the graph with PyTorch, and keeps PyTorch's logits for the engine's turn."""
    from temper.builder.network.export import Served, export_onnx, predict, verify_onnx

    network = open_network(setting, data, weights)
    size, mean, std = setting.data.image_size, setting.model.mean, setting.model.std
    export_onnx(network, folder / GRAPH_FILE, image_size=size, mean=mean, std=std)
    images = images_of(data, TEST_IMAGES_FILE)[:NUM_VERIFY]
    figures = verify_onnx(folder / GRAPH_FILE, network, images, mean=mean, std=std)
    np.save(folder / REFERENCE_FILE, predict(Served(network, mean=mean, std=std), images))
    return {**figures, **dataclasses.asdict(count_network(network, size))}


def served_module(setting: Setting, data: Artifact, weights: Artifact) -> nn.Module:
    """Loads a network behind its preprocessing: uint8 [N, S, S, 3] to logits."""
    from temper.builder.network.export import Served

    return Served(open_network(setting, data, weights), mean=setting.model.mean, std=setting.model.std)
