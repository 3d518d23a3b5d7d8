"""The preprocessing beside a model hub's weights: the pixels that the library itself makes from an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from temper.builder.data.config import DataConfig
from temper.builder.errors import ModelError
from temper.builder.network.preprocessing import (
    _SHORTER_SIDES,
    _SQUARES,
    left_to_timm,
    preprocessing_of,
    preprocessing_source,
)
from temper.imaging.fit import fit_image

SIZES = [(330, 260), (331, 260), (261, 330), (261, 331)]
"""Width and height: margins of every rest by four, where half of an odd one may be rounded up or down."""


def picture(size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def apply(keys: dict[str, Any], image: Image.Image) -> torch.Tensor:
    """What a recipe with these keys makes of an image."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()
    }
    how = DataConfig(**given).preprocessing
    pixels = torch.from_numpy(np.asarray(fit_image(image, how)).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in how.normalization)
    return (pixels - mean) / std


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
def test_timm_makes_the_same_pixels(tmp_path: Path, pretrained: dict[str, Any]) -> None:
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    write_timm(tmp_path, **pretrained)
    keys = preprocessing_of(tmp_path)
    assert keys is not None and keys["preset"] == "timm"
    resolve: Any = resolve_data_config
    transform: Any = create_transform(**resolve(pretrained_cfg=pretrained))
    for image in map(picture, SIZES):
        assert torch.allclose(apply(keys, image), transform(image), atol=1e-5)


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
def test_timms_script_made_the_same_pixels(args: dict[str, Any], left: str) -> None:
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    keys = preprocessing_of(Path("last.pth.tar"), args)
    assert keys is not None and keys["preset"] == "timm"
    resolve: Any = resolve_data_config
    transform: Any = create_transform(**resolve(args))
    for image in map(picture, SIZES):
        assert torch.allclose(apply(keys, image), transform(image), atol=1e-5)
    assert " and ".join(left_to_timm(args)) == left
    source = preprocessing_source(Path("last.pth.tar"), args)
    assert source.startswith(f"timm's training script in last.pth.tar: {next(iter(args))}") and left in source


HUGGINGFACE: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvNeXt, small": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "ConvNeXt, odd": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    "ConvNeXt, large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "resample": 2}),
    "ViT": ("ViTImageProcessor", {"size": {"height": 96, "width": 128}}),
    "ViT, as it is": ("ViTImageProcessor", {"do_normalize": False, "resample": 3}),
    "Bit": ("BitImageProcessor", {"size": {"shortest_edge": 200}, "crop_size": {"height": 160, "width": 192}}),
    "CLIP, odd": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 199}, "crop_size": {"height": 160, "width": 97}},
    ),
    "Bit, 0 to 255": (
        "BitImageProcessor",
        {"do_rescale": False, "image_mean": [1.0, 2.0, 3.0], "image_std": [60.0] * 3},
    ),
}


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize(("kind", "config"), HUGGINGFACE.values(), ids=HUGGINGFACE.keys())
@pytest.mark.parametrize("size", SIZES)
def test_huggingface_makes_the_same_pixels(
    tmp_path: Path, kind: str, config: dict[str, Any], size: tuple[int, int]
) -> None:
    """Of its processors on Pillow to the pixel; those on tensors, its default, round in their resize."""
    import transformers

    getattr(transformers, kind)(**config).save_pretrained(tmp_path)
    keys = preprocessing_of(tmp_path)
    assert keys is not None and keys["preset"] == "huggingface"
    image = picture(size)
    found = apply(keys, image)
    step = keys["scale"] / 255 / min(keys["std"])
    for backend, most in (("Pil", 0), ("", 2)):
        processor: Any = getattr(transformers, f"{kind}{backend}")(**config)
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) < (most + 0.01) * step
    assert kind in preprocessing_source(tmp_path)


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("size", [(40, 40), (41, 40), (43, 45), (64, 33), (31, 29), (30, 47), (50, 27), (32, 33)])
def test_huggingface_cuts_and_fills_up_alike(tmp_path: Path, size: tuple[int, int]) -> None:
    """Its default processors, where nothing is resized: every pixel, also of an image that is smaller."""
    from transformers import CLIPImageProcessor, ConvNextImageProcessor

    crop = {"height": 32, "width": 33}
    for kind in (CLIPImageProcessor, ConvNextImageProcessor):
        config: dict[str, Any] = {
            "do_resize": False,
            "do_rescale": False,
            "do_normalize": False,
            "do_center_crop": True,
        }
        processor: Any = kind(**config, crop_size=crop)
        keys = {"preset": "huggingface", "image_size": [32, 33], "resize": "none", "scale": 255.0}
        image = picture(size)
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        found = apply({**keys, "mean": [0.0] * 3, "std": [1.0] * 3}, image)
        assert torch.equal(found.round().byte(), expected.byte())


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("kind", (*_SQUARES, *_SHORTER_SIDES))
def test_older_files_with_one_number_are_read_as_their_processor_reads_them(tmp_path: Path, kind: str) -> None:
    import transformers

    image = picture((330, 261))
    crops: list[dict[str, Any]] = [{}, {"crop_size": 90}]
    for crop in crops:
        own = {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        stated: dict[str, Any] = {"size": 231, "do_center_crop": kind in _SHORTER_SIDES, **own, **crop}
        older = {"feature_extractor_type": f"{kind}FeatureExtractor", **stated}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
        keys = preprocessing_of(tmp_path)
        assert keys is not None
        processor: Any = getattr(transformers, f"{kind}ImageProcessorPil")(**stated)
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        assert np.abs(apply(keys, image).numpy() - expected).max() < 1e-5


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
        ("preprocessor_config.json", {"size": 224}, "cannot: size is 224 of no processor; write"),
        (
            "preprocessor_config.json",
            {"size": 224, "image_processor_type": "OtherImageProcessor"},
            "cannot: size is 224 of OtherImageProcessor; write",
        ),
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 224, "longest_edge": 300}},
            "cannot: size is .*'longest_edge': 300",
        ),
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 224}, "crop_pct": 0.9, "image_processor_type": "PoolFormerImageProcessor"},
            "cannot: crop_pct is 0.9 of PoolFormerImageProcessor",
        ),
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
