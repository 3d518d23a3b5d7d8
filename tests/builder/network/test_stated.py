"""A recipe that makes other images than the weights were trained with says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from temper.builder.data.config import DataConfig
from temper.builder.network.resnet import ModelConfig
from temper.builder.network.stage import Setting
from temper.builder.network.stated import warn_of_pixels
from temper.builder.network.train import TrainConfig

HUB = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 64},
    "crop_pct": 0.875,
    "image_mean": [0.5] * 3,
    "image_std": [0.25] * 3,
    "resample": 3,
}
SAME: dict[str, Any] = {"preset": "huggingface", "image_size": 64, "mean": (0.5,) * 3, "std": (0.25,) * 3}
# What lies beside the weights, [data], [train], and the warning.
SAID: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str | None]] = {
    "the same": (HUB, SAME, {}, None),
    "another preset": (
        HUB,
        {**SAME, "preset": "torchvision"},
        {},
        "the weights state interpolation bicubic, upright True (preprocessor_config.json of Hugging Face "
        "(ConvNextImageProcessor)), [data] has interpolation bilinear, upright False",
    ),
    "another mean": (
        HUB,
        {**SAME, "mean": (0.4, 0.5, 0.5)},
        {},
        "the weights state mean [0.5, 0.5, 0.5] (preprocessor_config.json of Hugging Face "
        "(ConvNextImageProcessor)), [data] has mean [0.4, 0.5, 0.5]",
    ),
    "the same on another scale": (
        HUB,
        {**SAME, "scale": 255.0, "mean": (127.5,) * 3, "std": (63.75,) * 3},
        {},
        None,
    ),
    "trained anew": (HUB, {**SAME, "preset": "torchvision"}, {"epochs": 1}, None),
    "nothing stated": (None, SAME, {}, None),
    "what [data] cannot say": ({**HUB, "resample": 5}, SAME, {}, None),
}


@pytest.mark.parametrize(("beside", "data", "train", "warning"), SAID.values(), ids=SAID.keys())
def test_other_images_than_in_training_are_said(
    tmp_path: Path, beside: Any, data: dict[str, Any], train: dict[str, Any], warning: str | None
) -> None:
    if beside is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(beside))
    setting = Setting(
        data=DataConfig(**data),
        model=ModelConfig(weights=f"{tmp_path}/"),
        train=TrainConfig(**{"epochs": 0, "head_epochs": 0, **train}),
    )
    assert warn_of_pixels(setting, tmp_path).get("warning") == warning


def test_what_timms_script_left_to_timm_is_not_held_against_a_recipe(tmp_path: Path) -> None:
    data = DataConfig(preset="timm", image_size=96, resize=101, interpolation="bilinear", mean=(0.4,) * 3)
    setting = Setting(data=data, model=ModelConfig(), train=TrainConfig(epochs=0, head_epochs=0))
    said = warn_of_pixels(setting, tmp_path / "last.pth.tar", {"img_size": 96, "mean": [0.5] * 3})["warning"]
    assert said.startswith(
        "the weights state mean [0.5, 0.5, 0.5] (timm's training script in last.pth.tar: img_size, "
    )
    assert said.endswith("), [data] has mean [0.4, 0.4, 0.4]")
