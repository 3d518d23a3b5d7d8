"""The stage that exports a network, the finetuned one or what a step left of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.contract import GRAPH_FILE, REFERENCE_FILE, TEST_IMAGES_FILE
from temper.builder.network.export import export_onnx, verify_onnx
from temper.builder.network.files import count_network
from temper.builder.network.served import Served, predict
from temper.builder.network.stage import NUM_VERIFY, Setting, images_of, open_network

if TYPE_CHECKING:
    from pathlib import Path

    from temper.builder.store.artifacts import Artifact


def export_graph(setting: Setting, data: Artifact, weights: Artifact, folder: Path) -> dict[str, Any]:
    """Exports the network, compares the graph with PyTorch, and keeps PyTorch's logits for the engine's turn."""
    network = open_network(setting, data, weights)
    size, (mean, std) = setting.data.image_size, setting.data.normalization
    export_onnx(network, folder / GRAPH_FILE, image_size=size, mean=mean, std=std)
    images = images_of(data, TEST_IMAGES_FILE)[:NUM_VERIFY]
    figures = verify_onnx(folder / GRAPH_FILE, network, images, mean=mean, std=std)
    np.save(folder / REFERENCE_FILE, predict(Served(network, mean=mean, std=std), images))
    return {**figures, **dataclasses.asdict(count_network(network, size))}
