"""What a checkpoint shows of its preprocessing: a recipe that says otherwise is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from temper.builder.contract import LABELS_FILE
from temper.builder.data.config import DataConfig
from temper.builder.errors import ModelError
from temper.builder.names import render_labels
from temper.builder.network.design import design_of, new_resnet
from temper.builder.network.resnet import ModelConfig
from temper.builder.network.stage import Setting
from temper.builder.network.stage_weights import make_weights
from temper.builder.network.train import TrainConfig
from temper.builder.store.artifacts import Artifact

HALF, NAMES = (0.5, 0.5, 0.5), ["ant", "bee", "cat"]
GREY, OWN = "grey.pt", "own.pt"


class PassedError(Exception):
    """All checks are passed."""


@cache
def state() -> dict[str, torch.Tensor]:
    return new_resnet(design_of("resnet18"), 3).state_dict()


def write(folder: Path) -> None:
    torch.save({**state(), "conv1.weight": torch.ones(64, 1, 7, 7)}, folder / GREY)
    own = {f"net.{name}": value for name, value in state().items()}
    torch.save(
        {**own, "norm.mean": torch.full((1, 3, 1, 1), 0.5), "norm.std": torch.full((3,), 0.25)}, folder / OWN
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (GREY, {}, r"reads grey images, got data.mean = \[0.485, .*; set data.mean and data.std to those"),
        (GREY, {"mean": HALF}, r"reads grey images, got .* data.std = \[0.229"),
        (GREY, {"mean": HALF, "std": HALF}, None),
        (OWN, {}, r"holds norm.mean = \[0.5, 0.5, 0.5\], which .* the mean \[0.485, .*; set data.mean to it"),
        (OWN, {"mean": HALF, "std": HALF}, r"holds norm.std = \[0.25, 0.25, 0.25\], .*; set data.std to it"),
        (OWN, {"mean": HALF, "std": (0.25,) * 3}, None),
        (OWN, {"scale": 255.0, "mean": (127.5,) * 3, "std": (63.75,) * 3}, None),
    ],
)
def test_recipe_says_what_the_checkpoint_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: dict[str, Any], message: str | None
) -> None:
    def stop(*_: object) -> None:
        raise PassedError

    monkeypatch.setattr("temper.builder.network.stage_weights.images_of", stop)
    write(tmp_path)
    (tmp_path / LABELS_FILE).write_bytes(render_labels(NAMES))
    setting = Setting(
        data=DataConfig(**data), model=ModelConfig(weights=str(tmp_path / name)), train=TrainConfig(epochs=0)
    )
    with pytest.raises(ModelError if message else PassedError, match=message):
        make_weights(setting, Artifact(tmp_path, "", {}, reused=False), tmp_path, lambda done, total: None)
