"""The stage that makes a network and finetunes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from temper.builder.contract import TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.data.prepare import load_train
from temper.builder.network.stage import Progress, Setting, images_of, labels_of, open_initial
from temper.builder.network.train import finetune

if TYPE_CHECKING:
    from pathlib import Path

    from temper.builder.store.artifacts import Artifact


def make_weights(setting: Setting, data: Artifact, folder: Path, progress: Progress) -> dict[str, Any]:
    """Builds the network and finetunes it; the figures say what its checkpoint is."""
    network, checkpoint = open_initial(setting, len(labels_of(data)))
    evaluation = (images_of(data, TEST_IMAGES_FILE), images_of(data, TEST_LABELS_FILE))
    mean, std = setting.data.normalization
    train = load_train(setting.data)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        figures = finetune(network, train, evaluation, setting.train, folder, progress, mean=mean, std=std)
    return {**figures, **({"checkpoint": checkpoint.description} if checkpoint else {})}
