"""The stage that makes a network and finetunes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from temper.builder.contract import TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.data.prepare import load_train
from temper.builder.errors import ModelError
from temper.builder.network.stage import Progress, Setting, images_of, labels_of, open_initial
from temper.builder.network.stated import check_order, warn_of_pixels
from temper.builder.network.train import finetune
from temper.imaging.errors import show

if TYPE_CHECKING:
    from temper.builder.network.imported import Checkpoint
    from temper.builder.store.artifacts import Artifact


def make_weights(setting: Setting, data: Artifact, folder: Path, progress: Progress) -> dict[str, Any]:
    """Builds the network and finetunes it; the figures say what its checkpoint is."""
    names, warning = labels_of(data), dict[str, str]()
    network, checkpoint = open_initial(setting, len(names))
    if checkpoint is not None:
        _check_pixels(setting, checkpoint)
        if not setting.model.replace_head:
            check_order(setting, names, checkpoint.class_names)
            warning = warn_of_pixels(setting, Path(setting.model.weights), checkpoint.timm_args)
    evaluation = (images_of(data, TEST_IMAGES_FILE), images_of(data, TEST_LABELS_FILE))
    mean, std = setting.data.normalization
    train = load_train(setting.data)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        figures = finetune(network, train, evaluation, setting.train, folder, progress, mean=mean, std=std)
    return {**figures, **({"checkpoint": checkpoint.description} if checkpoint else {}), **warning}


def _check_pixels(setting: Setting, checkpoint: Checkpoint) -> None:
    """Refuses a mean and std other than those that a checkpoint shows it was trained with."""
    how, where = setting.data.preprocessing, f"checkpoint {show(setting.model.weights)}"
    if checkpoint.is_grey and any(len(set(each)) > 1 for each in (how.mean, how.std)):
        raise ModelError(
            f"{where}: reads grey images, got data.mean = {list(how.mean)} and data.std = {list(how.std)}, "
            "expected the same for every channel; set data.mean and data.std to those of its "
            "training, three times each"
        )
    for name, own in checkpoint.normalization.items():
        index = 1 if name.endswith("std") else 0
        given = (how.mean, how.std)[index]
        if not any(np.allclose(own, each, 1e-3, 1e-3) for each in (given, how.normalization[index])):
            key = "std" if index else "mean"
            raise ModelError(
                f"{where}: holds {show(name[:80])} = {[round(value, 6) for value in own]}, which its owner's "
                f"network applied to images, [data] has the {key} {list(given)}; set data.{key} to it"
            )
