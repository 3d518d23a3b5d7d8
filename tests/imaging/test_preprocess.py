"""From an image to the pixels that a model takes: torchvision's and timm's own, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import (  # type: ignore[import-untyped]  # ships none
    CenterCrop,
    InterpolationMode,
    Resize,
)

from temper.builder.data.config import DataConfig
from temper.imaging.fit import fit_image
from temper.imaging.preprocess import MAX_SIDE, Preprocessing, Size, read_preprocessing, sides

SIZES = [(50, 44), (44, 50), (32, 32), (31, 97), (97, 31), (7, 100), (300, 5), (1, 1), (33, 64)]
"""Width and height."""


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise, whose every pixel shows a filter that is another."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", [36, 20, (40, 36), (30, 50), None, "none"])
@pytest.mark.parametrize("crop", [32, (24, 40)])
def test_pixels_are_torchvisions(size: tuple[int, int], interpolation: Any, resize: Any, crop: Size) -> None:
    height, width = sides(crop)
    if resize is None and height != width:
        pytest.skip("torchvision has no resize that covers what is no square")
    image = picture(size)
    how = Preprocessing(height=height, width=width, resize=resize, interpolation=interpolation)
    expected = image
    if resize != "none":
        expected = Resize(resize or crop, InterpolationMode(interpolation))(image)
    assert np.array_equal(np.asarray(fit_image(image, how)), np.asarray(CenterCrop(crop)(expected)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_without_antialias_pixels_are_pytorchs(size: tuple[int, int], interpolation: Any) -> None:
    image = picture(size)
    how = Preprocessing(height=32, width=24, resize=(32, 24), interpolation=interpolation, antialias=False)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    corners = None if interpolation == "nearest" else False
    resized = torch.nn.functional.interpolate(pixels, (32, 24), mode=interpolation, align_corners=corners)
    exact = resized[0].permute(1, 2, 0).clamp(0, 255).numpy()
    assert np.abs(np.asarray(fit_image(image, how)) - exact).max() <= 0.5 + 1e-3  # to the nearest number


def test_nearest_without_antialias_takes_pytorchs_pixel_at_any_size() -> None:
    for length in range(1, 140, 3):
        image = picture((length, 2))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        for side in range(1, 70):
            expected = torch.nn.functional.interpolate(pixels, (2, side), mode="nearest")[0].permute(1, 2, 0)
            how = Preprocessing(height=2, width=side, resize=(2, side), interpolation="nearest", antialias=False)
            assert np.array_equal(np.asarray(fit_image(image, how)), expected.numpy())


@pytest.mark.parametrize("crop", [(32, 32), (24, 40), (40, 24)])
def test_without_a_resize_an_image_covers(crop: tuple[int, int]) -> None:
    """Nothing is black: of white images every pixel is white."""
    for size in SIZES:
        white = Image.new("RGB", size, "white")
        how = Preprocessing(height=crop[0], width=crop[1])
        found = np.asarray(fit_image(white, how))
        assert found.shape == (*crop, 3) and (found == 255).all()


@pytest.mark.parametrize(("height", "resize"), [(32, 32), (64, 32)])
def test_image_that_is_nearly_a_line_takes_no_memory(height: int, resize: int) -> None:
    """Resized whole it would have 134 million pixels; what is cut out of it is the same."""
    how = Preprocessing(height=height, width=32, resize=resize)
    line = Image.new("RGB", (4_194_304, 1), (10, 20, 30))
    found = np.asarray(fit_image(line, how))
    black = (height - resize) // 2
    assert found.shape == (height, 32, 3) and (found[black : black + resize] == (10, 20, 30)).all()
    assert not found[:black].any() and not found[black + resize :].any()


def test_timms_own_evaluation_is_the_preset() -> None:
    from timm.data.transforms_factory import create_transform

    for size, side in ((s, side) for s in SIZES[:6] for side in (32, 64, 96)):
        own = create_transform((3, side, side), crop_pct=0.875, interpolation="bicubic")
        image = picture(size)
        how = DataConfig(preset="timm", image_size=side).preprocessing
        mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in how.normalization)
        pixels = np.asarray(fit_image(image, how)).transpose(2, 0, 1).astype(np.float32) / 255
        np.testing.assert_allclose((pixels - mean) / std, own(image).numpy(), atol=1e-5)


def test_torchvisions_own_evaluation_is_the_preset() -> None:
    from torchvision.models import ResNet18_Weights, ResNet50_Weights  # type: ignore[import-untyped]  # ships none

    for weights, resize in ((ResNet18_Weights.IMAGENET1K_V1, None), (ResNet50_Weights.IMAGENET1K_V2, 232)):
        image = picture((310, 280))
        how = DataConfig(preset="torchvision", resize=resize).preprocessing
        mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in how.normalization)
        pixels = np.asarray(fit_image(image, how)).transpose(2, 0, 1).astype(np.float32) / 255
        np.testing.assert_allclose((pixels - mean) / std, weights.transforms()(image).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({"colour": "bgr"}, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({"scale": 255.0}, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        (
            {"colour": "bgr", "scale": 255.0, "mean": (102.0, 127.5, 153.0), "std": (1.0, 1.0, 51.0)},
            ((0.6, 0.5, 0.4), (0.2, 1 / 255, 1 / 255)),
        ),
    ],
)
def test_scale_and_order_of_colours_are_folded(given: dict[str, Any], expected: tuple[Any, Any]) -> None:
    np.testing.assert_allclose(DataConfig(**given).normalization, expected, rtol=1e-12)


def test_mean_of_another_scale_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"mean: got .* on a scale of 0 to 1, expected at most 1; set scale = 255"
    ):
        DataConfig(mean=(127.5, 127.5, 127.5))
    assert DataConfig(mean=(127.5, 127.5, 127.5), scale=255.0).normalization[0] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("preset", ["torchvision", "timm", "huggingface"])
def test_preset_of_what_is_no_square_needs_its_resize(preset: Any) -> None:
    line = rf"^preset: got {preset} for 64 x 96 pixels, expected a square, .*; give resize beside it, or leave"
    with pytest.raises(ValueError, match=line):
        DataConfig(preset=preset, image_size=(64, 96))
    assert DataConfig(preset=preset, image_size=(64, 96), resize=110).preprocessing.resize == 110
    assert DataConfig(preset=preset, image_size=(64, 64)).preprocessing.resize == 73


def test_what_is_written_is_read() -> None:
    how = DataConfig(preset="huggingface", image_size=64, colour="bgr", antialias=False).preprocessing
    assert read_preprocessing(how.render()) == how
    assert read_preprocessing(how.render()[:-1] + ', "later": 1}') == how
    assert (how.resize, how.interpolation, how.upright, how.crop_margin) == (73, "bicubic", True, "floor")
    older = how.render().replace('"crop_margin": "floor", ', "")
    assert "crop_margin" not in older and read_preprocessing(older) == replace(how, crop_margin="round")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"height": 0}, "height, width: got 0 x 32, expected 1 to 4096 pixels"),
    ({"width": 32.0}, "height, width: got 32 x 32.0, expected 1 to 4096 pixels"),
    ({"resize": (32, 32, 3)}, r"resize: got \(32, 32, 3\), expected 1 to 4096 pixels"),
    ({"resize": 0}, 'resize: got 0, expected 1 to 4096 pixels or "none"'),
    ({"resize": (32, MAX_SIDE + 1)}, r"resize: got \(32, 4097\), expected 1 to 4096"),
    ({"resize": "some"}, "resize: got 'some'"),
    ({"crop_margin": "ceil"}, "crop_margin: got 'ceil', expected one of round, floor"),
    ({"interpolation": "area"}, "interpolation: got 'area', expected one of nearest, bilinear, bicubic, lanczos"),
    ({"interpolation": "lanczos", "antialias": False}, "antialias: got false with lanczos"),
    ({"colour": "grb"}, "colour: got 'grb', expected one of rgb, bgr"),
    ({"scale": 0.0}, "scale: got 0.0, expected a positive number"),
    ({"mean": (0.5, 0.5, float("nan"))}, "mean: got .*expected three finite numbers"),
    ({"std": (0.5, 0.0, 0.5)}, "std: got .*expected three positive numbers"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_settings_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"height": 32, "width": 32, **change})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"height": "a", "width": 3}',
        '{"height": 32}',
        '{"height": 8, "width": 8, "mean": [1]}',
    ],
)
def test_foreign_text_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="^preprocessing: got .*, expected what Temper writes"):
        read_preprocessing(text)
