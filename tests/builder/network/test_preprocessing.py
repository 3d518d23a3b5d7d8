"""The preprocessing beside a model hub's weights: the pixels that the library itself makes from an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from temper.builder.errors import ModelError
from temper.builder.network.preprocessing import left_to_timm, preprocessing_of, preprocessing_source


@pytest.fixture(scope="module")
def image() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((330, 260), Image.Resampling.BICUBIC)


def apply(keys: dict[str, Any], image: Image.Image) -> torch.Tensor:
    """What the keys say, with torchvision's functions."""
    from torchvision.transforms import InterpolationMode, functional  # type: ignore[import-untyped]  # ships none

    if keys["resize"] != "none":
        image = functional.resize(
            image, keys["resize"], InterpolationMode(keys["interpolation"]), antialias=keys["antialias"]
        )
    pixels = (
        functional.pil_to_tensor(functional.center_crop(image, keys["image_size"])).float() / 255 * keys["scale"]
    )
    result: torch.Tensor = functional.normalize(pixels, keys["mean"], keys["std"])
    return result


def write_timm(folder: Path, **pretrained: Any) -> None:
    config = {"architecture": "resnet18", "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))


TIMM: dict[str, dict[str, Any]] = {
    "torchvision's": {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bilinear"},
    "a1": {"input_size": [3, 160, 160], "crop_pct": 0.95, "crop_mode": "center", "interpolation": "bicubic"},
    "squashed": {"input_size": [3, 96, 128], "crop_pct": 0.9, "crop_mode": "squash"},
    "own norm": {"input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 1.0},
    "nothing said": {"num_classes": 5},
}


@pytest.mark.parametrize("pretrained", TIMM.values(), ids=TIMM.keys())
def test_timm_makes_the_same_pixels(tmp_path: Path, image: Image.Image, pretrained: dict[str, Any]) -> None:
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    write_timm(tmp_path, **pretrained)
    keys = preprocessing_of(tmp_path)
    assert keys is not None and keys["preset"] == "timm"
    resolve: Any = resolve_data_config
    transform: Any = create_transform(**resolve(pretrained_cfg=pretrained))
    assert torch.allclose(apply(keys, image), transform(image), atol=1e-6)


# What timm's training script was told, and what it left to the architecture's settings.
SCRIPT: dict[str, tuple[dict[str, Any], str]] = {
    "all": (
        {"img_size": 160, "crop_pct": 0.9, "interpolation": "bilinear", "mean": [0.4] * 3, "std": [0.3] * 3},
        "",
    ),
    "one mean": ({"input_size": [3, 64, 64], "crop_pct": 1.0, "mean": [0.5], "std": [0.5]}, "interpolation"),
    "a size": ({"img_size": 96}, "crop_pct and interpolation"),
    "a crop": ({"crop_pct": 0.95, "crop_mode": "center"}, "img_size and interpolation"),
}


@pytest.mark.parametrize(("args", "left"), SCRIPT.values(), ids=SCRIPT.keys())
def test_timms_script_made_the_same_pixels(image: Image.Image, args: dict[str, Any], left: str) -> None:
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    keys = preprocessing_of(Path("last.pth.tar"), args)
    assert keys is not None and keys["preset"] == "timm"
    resolve: Any = resolve_data_config
    transform: Any = create_transform(**resolve(args))
    assert torch.allclose(apply(keys, image), transform(image), atol=1e-6)
    assert " and ".join(left_to_timm(args)) == left
    source = preprocessing_source(Path("last.pth.tar"), args)
    assert source.startswith(f"timm's training script in last.pth.tar: {next(iter(args))}") and left in source


HUGGINGFACE: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvNeXt, small": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "ConvNeXt, large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "resample": 2}),
    "ViT": ("ViTImageProcessor", {"size": {"height": 96, "width": 128}}),
    "ViT, as it is": ("ViTImageProcessor", {"do_normalize": False, "resample": 3}),
    "Bit": ("BitImageProcessor", {"size": {"shortest_edge": 200}, "crop_size": {"height": 160, "width": 192}}),
    "Bit, 0 to 255": (
        "BitImageProcessor",
        {"do_rescale": False, "image_mean": [1.0, 2.0, 3.0], "image_std": [60.0] * 3},
    ),
}


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize(("kind", "config"), HUGGINGFACE.values(), ids=HUGGINGFACE.keys())
def test_huggingface_makes_the_same_pixels(
    tmp_path: Path, image: Image.Image, kind: str, config: dict[str, Any]
) -> None:
    import transformers

    processor: Any = getattr(transformers, kind)(**config)
    processor.save_pretrained(tmp_path)
    keys = preprocessing_of(tmp_path)
    assert keys is not None and keys["preset"] == "huggingface"
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    found = apply(keys, image)
    assert found.shape == expected.shape
    # Its resize of tensors and Pillow's round differently, by a step or two.
    step = keys["scale"] / 255 / min(keys["std"])
    assert float((found - expected).abs().mean()) < step and float((found - expected).abs().max()) < 4 * step
    assert kind.removesuffix("Fast") in preprocessing_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("preprocessor_config.json", {"do_resize": False}, "cannot: images keep sizes of their own"),
        (
            "preprocessor_config.json",
            {"rescale_factor": 0.5},
            "states a preprocessing .* cannot: rescale_factor is 0.5",
        ),
        ("preprocessor_config.json", {"resample": 5}, "cannot: resample is 5; write .data. by hand"),
        ("preprocessor_config.json", [], "got list, expected an object"),
        ("config.json", {"architecture": "x", "pretrained_cfg": {"crop_mode": "border"}}, "crop_mode is 'border'"),
        (
            "config.json",
            {"architecture": "x", "pretrained_cfg": {"interpolation": "random"}},
            "interpolation is 'random'",
        ),
        (
            "config.json",
            {"architecture": "x", "pretrained_cfg": {"input_size": [3, 16, 16]}},
            "cannot: image_size: got 16, expected 32 to 1024 pixels; write .data. by hand",
        ),
        (
            "config.json",
            {"architecture": "x", "pretrained_cfg": {"input_size": 3}},
            "config.json: states a preprocessing",
        ),
        ("config.json", {"architecture": "x", "pretrained_cfg": {"mean": [1, 2]}}, "cannot: 2 channels"),
    ],
)
def test_what_cannot_be_stated_is_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message) as caught:
        preprocessing_of(tmp_path)
    assert str(caught.value).isprintable()


def test_nothing_stated_is_none(tmp_path: Path) -> None:
    assert preprocessing_of(tmp_path) is None and preprocessing_source(tmp_path) == ""
    write_timm(tmp_path)
    assert preprocessing_of(tmp_path / "other.safetensors") is None, "of another model in the folder"
    assert preprocessing_of(tmp_path / "model.safetensors") is not None
