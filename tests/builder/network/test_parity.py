"""Torchvision and PyTorch as they are: the same pixels as ours from any file by any preset, the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from temper.builder.contract import OWNER_LOGITS_FILE, TEST_IMAGES_FILE
from temper.builder.data.config import DataConfig
from temper.builder.data.prepare import prepare_data, spread
from temper.builder.network.parity import answer_files, load
from temper.builder.network.resnet import ModelConfig, build_model, save_weights
from temper.builder.network.served import Served, predict
from temper.builder.network.stage import Setting
from temper.builder.network.train import TrainConfig
from temper.builder.store.artifacts import Artifact

NUM = 8


def write_photos(root: Path) -> None:
    """Noise of every shape, some of it turned by its EXIF, in two classes."""
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    for index in range(4 * NUM):
        folder = root / ("train" if index % 2 else "val") / ("ant" if index % 4 < 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(30, 90, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(folder / f"{index}.jpg", exif=turned if index % 3 == 0 else Image.Exif())


SETTINGS: list[dict[str, Any]] = [
    {},
    {"preset": "torchvision"},
    {"preset": "timm", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    {"preset": "huggingface", "resize": (41, 39)},
    {"preset": "huggingface", "resize": "none"},
    {"image_size": (32, 48), "interpolation": "lanczos"},
    {"resize": 41, "interpolation": "nearest", "antialias": False},
    {"resize": "none", "scale": 255.0},
    {"source": "digits", "preset": "torchvision"},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_owner_sees_what_is_served(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_photos(tmp_path / "photos")
    source = {"source": "folder", "path": str(tmp_path / "photos")} if "source" not in changes else {}
    config = DataConfig(**{"image_size": 32, **source, **changes})
    figures, difference = _compare(config, tmp_path)
    assert (figures["num_images"], figures["num_same_pixels"]) == (NUM, NUM)
    assert figures["max_pixel_diff"] < 1e-3
    assert difference <= 1e-4


def test_owner_without_antialias_is_half_a_step_away(tmp_path: Path) -> None:
    """PyTorch's tensors keep what lies between two numbers, and the wire does not."""
    write_photos(tmp_path / "photos")
    config = DataConfig(source="folder", path=str(tmp_path / "photos"), image_size=32, antialias=False)
    figures, difference = _compare(config, tmp_path)
    assert figures["num_same_pixels"] < NUM and figures["max_pixel_diff"] <= 0.5 + 1e-3
    assert difference < 0.05


def _compare(config: DataConfig, folder: Path) -> tuple[dict[str, Any], float]:
    """The stage's figures, and how far the owner's logits are from ours, over the largest one."""
    data, weights, out = (folder / name for name in ("data", "weights", "out"))
    for each in (data, weights, out):
        each.mkdir()
    prepare_data(config, data)
    setting = Setting(data=config, model=ModelConfig(), train=TrainConfig())
    num_classes = len((data / "labels.txt").read_text().splitlines())
    torch.manual_seed(0)
    network = build_model(setting.model, num_classes)
    save_weights(network, weights / "weights.safetensors")
    data_made, weights_made = (Artifact(path=path, digest="", info={}, reused=False) for path in (data, weights))
    figures = answer_files(setting, data_made, weights_made, NUM, out, lambda done, total: None)
    mean, std = config.normalization
    tests = np.load(data / TEST_IMAGES_FILE)
    ours = predict(Served(network, mean=mean, std=std), tests[spread(len(tests), NUM)])
    owners = np.load(out / OWNER_LOGITS_FILE)
    return figures, float(np.abs(ours - owners).max() / np.abs(owners).max())


def test_exif_that_cannot_be_rewritten_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise TypeError("a tag of another type")

    Image.new("RGB", (4, 2)).save(tmp_path / "x.png")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    assert load(tmp_path / "x.png", upright=True).size == (4, 2)
