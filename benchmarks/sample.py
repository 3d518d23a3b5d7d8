"""A small real model in seconds, for tests and for trying a server or a compression step.

No training loop, yet it reads digits: a ResNet-18 with random convolutions and a linear head fitted in closed form
(ridge regression) to scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from temper.builder.compress.step import StepContext
from temper.builder.data.config import DataConfig
from temper.builder.data.prepare import load_train
from temper.builder.data.sources import open_source
from temper.builder.network.export import export_onnx
from temper.builder.network.resnet import ModelConfig, build_model, head_of
from temper.builder.network.served import Served
from temper.builder.network.train import TrainConfig
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RIDGE = 1e-1
_BATCH = 128
_HELD_OUT = 64


@dataclass(frozen=True)
class Sample:
    """A model that reads digits, and images that it was not fitted to."""

    model: nn.Module
    """Takes float32 [N, 3, H, W], normalised as ImageNet; in evaluation mode."""
    config: ModelConfig
    """Its architecture."""
    images: NDArray[np.uint8]
    """Test images, uint8 [N, H, W, 3]."""
    labels: NDArray[np.int64]
    """Their labels."""
    calibration: NDArray[np.uint8]
    """Training images, uint8 [M, H, W, 3]."""
    class_names: list[str]
    """"0" to "9"."""

    def export(self, path: Path) -> None:
        """Writes the model as ONNX: `image` UINT8 [N, H, W, 3] to `logits` FP32 [N, 10]."""
        size = self.images.shape[1]
        export_onnx(self.model, path, image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def make_sample(*, image_size: int = 32, seed: int = 0) -> Sample:
    """Fits the model; the same seed gives the same one.

    Args:
        image_size: Height and width, in pixels.
        seed: Decides the random weights and the split.

    Returns:
        The model, 449 test images and 512 calibration images.
    """
    config = ModelConfig()
    source = open_source(DataConfig(image_size=image_size, seed=seed))
    train = np.stack([source.read(int(index)) for index in source.train])
    test = np.stack([source.read(int(index)) for index in source.test])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, len(source.class_names))
    _fit_head(model, train, source.labels[source.train])
    return Sample(model, config, test, source.labels[source.test], train[:512], source.class_names)


def make_context(folder: Path, *, num_train: int = 64, **changes: Any) -> StepContext:
    """What a compression step is given, with the digits: 64 held out, and those behind them to train with.

    Args:
        folder: The step's work folder; made when missing.
        num_train: Images to train with.
        **changes: Other values of the context's fields; without one the teacher is `nn.Identity()`.
    """
    train = load_train(DataConfig(image_size=32, augment="none"))
    source = train.source
    held_out, rest = source.train[:_HELD_OUT], source.train[_HELD_OUT : _HELD_OUT + num_train]
    train.source = replace(source, train=rest)
    folder.mkdir(exist_ok=True)
    context = StepContext(
        train=train,
        held_out=(np.stack([source.read(int(index)) for index in held_out]), source.labels[held_out]),
        teacher=nn.Identity(),
        folder=folder,
        progress=lambda done, total: None,
        image_size=32,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_classes=len(source.class_names),
        train_config=TrainConfig(batch_size=32, device="cpu"),
        seed=0,
    )
    return replace(context, **changes)


def _fit_head(model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    head = head_of(model)
    assert isinstance(head, nn.Linear)
    body = nn.Sequential(*list(model.children())[:-1], nn.Flatten())
    served = Served(body, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    with torch.inference_mode():
        features = torch.cat([served(batch) for batch in torch.split(torch.from_numpy(images), _BATCH)]).double()
    centre = features.mean(0)
    centred = features - centre
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), head.out_features).double() - 0.1
    gram = centred.T @ centred
    # Features keep their size and the penalty is large, so that no weight lives on what int8 rounds off.
    gram += _RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ targets)
    # Ten times, so that probabilities are sure of themselves as those of a trained model are.
    with torch.no_grad():
        head.weight.copy_(10 * weight.T)
        head.bias.copy_(10 * -(centre @ weight))
