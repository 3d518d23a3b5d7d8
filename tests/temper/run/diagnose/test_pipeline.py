"""The right pipeline is torchvision's own, pixel for pixel; files and statements are read as they are written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from temper.builder.data.config import DataConfig
from temper.client.model import ModelInfo
from temper.run.diagnose.diagnose import Question, _pipelines
from temper.run.diagnose.errors import DiagnoseError
from temper.run.diagnose.how import fields_of_checkpoint, fields_of_server, make_pipeline, read_fields
from temper.run.diagnose.pipeline import Pipeline, fit, normalise, open_picture
from temper.run.diagnose.served import read_answers, read_wire

from .conftest import pictures

INFO: dict[str, Any] = {"name": "m", "version": "1", "input_name": "x", "output_name": "y", "num_classes": 3}


@pytest.mark.parametrize("resize", [37, (40, 35), (32, 32)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_pixels_are_torchvisions(resize: Any, mode: Any) -> None:
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize  # type: ignore[import-untyped]

    how = Pipeline(height=32, width=32, resize=resize, interpolation=mode)
    for picture in pictures(6, seed=3):
        sized = Resize(resize, InterpolationMode(mode))(picture.image)
        assert np.array_equal(fit(picture, how), np.asarray(CenterCrop(32)(sized)))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_pixels_without_antialiasing_are_those_of_torchvisions_tensors(mode: Any) -> None:
    import torch
    from torchvision.transforms import InterpolationMode, functional

    how = Pipeline(height=32, width=32, resize=37, interpolation=mode, antialias=False)
    for picture in pictures(4, seed=3):
        pixels = torch.from_numpy(np.array(picture.image)).permute(2, 0, 1)
        sized = functional.resize(pixels, 37, InterpolationMode(mode), antialias=False)
        expected = functional.center_crop(sized, [32, 32]).permute(1, 2, 0).numpy()
        assert np.abs(fit(picture, how).astype(int) - expected).max() <= 1


def test_exif_is_applied_or_ignored(tmp_path: Path) -> None:
    image = pictures(1, seed=5)[0].image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "a.png", exif=exif)
    picture = open_picture(tmp_path / "a.png", Pipeline(height=32, width=32))
    assert picture.oriented(False).tobytes() == image.tobytes()
    assert picture.oriented(True).tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_normalised_is_as_torchvision_has_it() -> None:
    from torchvision.transforms import Normalize, ToTensor

    how = Pipeline(height=32, width=32, resize=37)
    images = np.stack([fit(one, how) for one in pictures(3, seed=2)])
    expected = [Normalize(how.mean, how.std)(ToTensor()(image)).numpy() for image in images]
    assert np.abs(normalise(images, how) - np.stack(expected)).max() < 1e-5


FIELDS: list[tuple[list[str], dict[str, Any]]] = [
    (["torchvision"], {"resize": 256, "interpolation": "bilinear", "height": 224}),
    (["timm"], {"resize": 256, "interpolation": "bicubic"}),
    (["timm", "image_size = 64, mean = [0, 0, 0]"], {"resize": 73, "height": 64, "mean": (0.0, 0.0, 0.0)}),
    (
        ['image_size = [40, 36], resize = "cover", colour = "bgr"'],
        {"height": 40, "resize": "cover", "colour": "bgr"},
    ),
    (["resize = [50, 60]", "antialias = false"], {"resize": (50, 60), "antialias": False}),
]


@pytest.mark.parametrize(("texts", "expected"), FIELDS, ids=lambda one: str(one)[:40])
def test_statements_are_read(texts: list[str], expected: dict[str, Any]) -> None:
    made = make_pipeline(read_fields(texts), None)
    assert {name: getattr(made, name) for name in expected} == expected


WRONG = [
    ("resize", "preprocessing: got resize, expected torchvision, timm"),
    ("size = 3", "got the key size, expected some of preset, image_size"),
    ("resize = 2020-01-01", 'resize: got "2020-01-01", expected an integer'),
    ('preset = "foo", resize = "cover"', 'preset: got "foo", expected one of'),
    ("resize = 0", "resize: got 0, expected 1 to 4096 pixels"),
    ("std = [1, 1, 0]", "std: got (1.0, 1.0, 0.0), expected three positive numbers"),
    ('colour = "cmyk"', 'expected one of "rgb", "bgr"'),
    ("image_size = 100", "image_size: got 100 x 100, and the server takes 64 x 64"),
    ("nowhere.json", "nowhere.json: no such file, expected"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=lambda one: one[:30])
def test_a_wrong_statement_is_one_line(text: str, message: str) -> None:
    with pytest.raises(DiagnoseError) as caught:
        make_pipeline(read_fields([text]), (64, 64))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


JSON: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 224},
            "crop_pct": 0.875,
            "resample": 3,
            "image_mean": [0.5] * 3,
        },
        {"resize": 256, "interpolation": "bicubic", "height": 224, "mean": (0.5, 0.5, 0.5)},
    ),
    (
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 192}},
        {"resize": 256, "height": 224, "width": 192},
    ),
    ({"size": {"height": 96, "width": 80}, "do_normalize": False}, {"resize": (96, 80), "std": (1.0, 1.0, 1.0)}),
    (
        {
            "architecture": "resnet18",
            "pretrained_cfg": {
                "input_size": [3, 288, 288],
                "crop_pct": 0.95,
                "interpolation": "bicubic",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
            },
        },
        {"resize": 303, "height": 288, "std": (0.5, 0.5, 0.5)},
    ),
]


@pytest.mark.parametrize(("content", "expected"), JSON, ids=["convnext", "crop", "exact", "timm"])
def test_files_of_libraries_are_read(tmp_path: Path, content: dict[str, Any], expected: dict[str, Any]) -> None:
    name = "config.json" if "pretrained_cfg" in content else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(content))
    other = tmp_path / "other" / "mine.json"  # the file that is named, whatever lies beside it
    other.parent.mkdir()
    other.write_text(json.dumps(content))
    (other.parent / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}}))
    for fields in (fields_of_checkpoint(tmp_path), read_fields([str(tmp_path / name)]), read_fields([str(other)])):
        made = make_pipeline(fields, None)
        assert {name: getattr(made, name) for name in expected} == expected


def test_what_timms_script_kept_is_read(tmp_path: Path) -> None:
    import torch
    from torchvision.models import resnet18  # type: ignore[import-untyped]  # ships none

    saved = {
        "arch": "resnet18",
        "version": 2,
        "args": argparse.Namespace(img_size=96, crop_pct=1.0, mean=[0.5] * 3),
    }
    torch.save({**saved, "state_dict": resnet18(num_classes=3).state_dict()}, tmp_path / "last.pth.tar")
    made = make_pipeline(fields_of_checkpoint(tmp_path / "last.pth.tar"), None)
    assert (made.height, made.resize, made.interpolation, made.mean) == (96, 96, "bicubic", (0.5, 0.5, 0.5))


@pytest.mark.parametrize(("size", "resize"), [((64, 64), 73), ((64, 96), "cover")])
def test_what_nothing_states_is_torchvisions_and_covers_what_is_no_square(
    tmp_path: Path, size: tuple[int, int], resize: Any
) -> None:
    info = ModelInfo(**{**INFO, "image_shape": (*size, 3), "max_batch_size": 8})
    question = Question(model="m", files=[], root=tmp_path, weights=[tmp_path / "x.pt"])
    for how in _pipelines(question, info, size)[:2]:
        assert (how.resize, how.upright, how.interpolation) == (resize, False, "bilinear")


def test_margin_of_what_is_served_is_kept() -> None:
    """By way of its preset, as no key says it."""
    how = DataConfig(preset="huggingface", image_size=32).preprocessing
    info = ModelInfo(**{**INFO, "image_shape": (32, 32, 3), "max_batch_size": 8, "preprocessing": how})
    made = make_pipeline(fields_of_server(info), (32, 32))
    assert (made.crop_margin, made.resize, made.interpolation) == ("floor", 36, "bicubic")


INPUTS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"image_shape": (64, 48, 3), "max_batch_size": 32}, (64, 48, False, 0, 8)),
    ({"image_shape": (3, 64, 48), "max_batch_size": 4, "input_dtype": "FP32"}, (64, 48, True, 0, 4)),
    ({"image_shape": (3, -1, -1), "max_batch_size": 0, "input_dtype": "FP16"}, (None, None, True, 0, 1)),
    ({"image_shape": (-1, 3, 64, 48), "max_batch_size": 0, "input_dtype": "FP32"}, (64, 48, True, 8, 8)),
    ({"image_shape": (2, 64, 48, 3), "max_batch_size": 0, "input_dtype": "FP32"}, (64, 48, False, 2, 2)),
]


@pytest.mark.parametrize(("fields", "expected"), INPUTS, ids=lambda one: str(one)[:30])
def test_every_shape_of_input_is_read(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    wire = read_wire(ModelInfo(**{**INFO, **fields}))
    assert (wire.height, wire.width, wire.channels_first, wire.block, wire.batch) == expected


@pytest.mark.parametrize(
    "fields", [{"image_shape": (1, 64, 64)}, {"image_shape": (3, 64, 64), "input_dtype": "INT64"}]
)
def test_what_is_no_image_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DiagnoseError, match=r"model m: takes .*, expected UINT8, FP32 or FP16 images"):
        read_wire(ModelInfo(**{**INFO, "max_batch_size": 8, **fields}))


FILES = [Path("d/a.png"), Path("d/sub/b.png")]
ANSWERS = {
    "list.json": "[[1, 2, 3], [4, 5, 6]]",
    "names.json": '{"sub/b.png": [4, 5, 6], "a.png": [1, 2, 3]}',
    "rows.csv": "1,2,3\n4,5,6\n",
    "titled.csv": "file,x,y,z\nb.png,4,5,6\na.png,1,2,3\n",
}


@pytest.mark.parametrize(("name", "text"), ANSWERS.items())
def test_answers_are_read_in_the_order_of_the_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_answers(tmp_path / name, FILES, Path("d")).tolist() == [[1, 2, 3], [4, 5, 6]]


BAD_ANSWERS = [
    ("a.json", "[[1, 2], [3]]", "expected as many numbers for every image"),
    ("a.json", "[[1, 2]]", r"holds \[1, 2\] scores, expected \[2, classes\]"),
    ("a.json", '{"a.png": [1, 2]}', "has no scores of sub/b.png"),
    ("a.json", "{", "holds no scores that can be read"),
    ("a.txt", "1", r"ends in .txt, expected .npy, .json or .csv"),
    ("a.csv", "1,nan\n2,3\n", "holds NaN"),
    ("a.npy", "x", "holds no scores that can be read"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_ANSWERS, ids=lambda one: one[:20])
def test_wrong_answers_are_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DiagnoseError, match=message):
        read_answers(tmp_path / name, FILES, Path("d"))
