"""Attributions: Captum's maps from the graph alone, in every precision; which images; and their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam  # type: ignore[import-untyped]  # it ships no py.typed
from PIL import Image

from benchmarks.sample import Sample
from temper.builder.compress.cast import CastConfig, cast_onnx
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.network.export import export_onnx, run_onnx
from temper.builder.network.resnet import ModelConfig, build_model
from temper.builder.network.served import Served
from temper.client.errors import ClientError
from temper.client.robustness.surrogate import Surrogate
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD
from temper.report.gallery import heat_over, signed_heat
from temper.run.explain.maps import (
    Explained,
    explain_answers,
    grad_cam,
    mean_image,
    pick_disagreements,
    write_attributions,
)

MODEL = ModelConfig()
NUM_IMAGES = 2
MakeGraph = Callable[[str], Path]


@pytest.fixture(scope="module")
def make_graph(sample: Sample, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeGraph:
    """Gives the sample's graph in a precision."""
    folder = tmp_path_factory.mktemp("attribution")

    def make(precision: Any) -> Path:
        path = folder / f"{precision}.onnx"
        if precision == "float32":
            return toy_onnx
        if precision == "fp16":
            cast_onnx(toy_onnx, path, sample.calibration[:4], CastConfig())
        else:
            config = QuantizeConfig(precision=precision, method="max")
            quantize_onnx(toy_onnx, path, sample.calibration[:8], config)
        return path

    return make


@pytest.fixture(scope="module")
def exact(sample: Sample, toy_onnx: Path) -> Explained:
    """What float32's maps are."""
    baseline = mean_image(sample.images)
    return explain_answers(
        toy_onnx, sample.images[:NUM_IMAGES], sample.labels[:NUM_IMAGES], baseline, num_steps=64
    )


@pytest.mark.parametrize(
    ("precision", "error", "likeness", "cam_likeness"),
    # Gradients leave out what the rounding itself does: to these random convolutions that is much.
    [
        ("float32", 0.03, 0.98, 0.9999),
        ("fp16", 0.03, 0.98, 0.99),
        ("int8", 0.4, 0.9, 0.7),
        ("fp8", 0.4, 0.85, 0.3),
    ],
)
def test_maps_in_every_precision_are_like_those_of_float32_and_complete(
    sample: Sample,
    make_graph: MakeGraph,
    exact: Explained,
    precision: str,
    error: float,
    likeness: float,
    cam_likeness: float,
) -> None:
    images, baseline, path = sample.images[:NUM_IMAGES], mean_image(sample.images), make_graph(precision)
    labels = sample.labels[:NUM_IMAGES]
    found = explain_answers(path, images, labels, baseline, num_steps=32)
    assert found.places == (4, 4)
    # Complete against the graph as ONNX Runtime runs it, not by the method's own word.
    logits = run_onnx(path, images)
    with torch.no_grad():
        start = Surrogate([path], device="cpu").logits(torch.from_numpy(baseline[None])).numpy()[0]
    change = logits[range(NUM_IMAGES), labels] - start[labels]
    assert (np.abs(found.integrated_gradients.sum((1, 2)) - change) < error * np.ptp(logits, axis=1)).all()
    assert (found.completeness_error < error).all()
    assert min(correlations(found.integrated_gradients, exact.integrated_gradients)) > likeness
    assert np.mean(correlations(found.grad_cam, exact.grad_cam)) > cam_likeness


def correlations(ours: Any, theirs: Any) -> list[float]:
    return [float(np.corrcoef(one.ravel(), two.ravel())[0, 1]) for one, two in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize(
    ("arch", "size", "layer", "places"),
    [
        ("resnet18", (32, 32), "model.layer2", (4, 4)),
        ("resnet50", (64, 64), "model.layer3", (4, 4)),
        ("resnet18", (128, 192), "model.layer4", (4, 6)),
    ],
)
def test_grad_cam_is_that_of_captum_on_the_network(
    tmp_path: Path, arch: Any, size: tuple[int, int], layer: str, places: tuple[int, int]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(ModelConfig(arch=arch), 3)
    served = Served(network, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    export_onnx(network, tmp_path / "model.onnx", image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3)).astype(np.uint8)
    classes = np.arange(3)
    found, found_places = grad_cam(Surrogate([tmp_path / "model.onnx"], device="cpu"), images, classes)
    assert (found.shape, found_places) == (images.shape[:3], places)
    method = LayerGradCam(served, served.get_submodule(layer))
    pixels = torch.from_numpy(images).float().requires_grad_()
    coarse = method.attribute(pixels, target=torch.from_numpy(classes), relu_attributions=True)
    fine = LayerAttribution.interpolate(coarse, size, "bilinear").detach()[:, 0].numpy()
    np.testing.assert_allclose(found, fine, rtol=1e-4, atol=1e-4 * fine.max())
    assert fine.max() > 0


# One network in both layouts: channels last is what others export.
BOTH = """<ir_version: 8, opset_import: ["": 17]>
net (uint8[N, 12, 20, 3] image) => (float[N, 3] logits) {{
  a = Cast<to = 1>(image)
  b = Transpose<perm = [0, 3, 1, 2]>(a)
  c = Conv<strides = [2, 2]>(b, w)
  {}
  logits = MatMul(f, h)
}}"""
FIRST = "r = Relu(c) f = ReduceMean<axes = [2, 3], keepdims = 0>(r)"
LAST = "t = Transpose<perm = [0, 2, 3, 1]>(c) r = Relu(t) f = ReduceMean<axes = [1, 2], keepdims = 0>(r)"


def test_grad_cam_is_the_same_of_channels_last(tmp_path: Path) -> None:
    rng, maps = np.random.default_rng(0), []
    images = rng.integers(0, 256, (3, 12, 20, 3)).astype(np.uint8)
    weights = {"w": rng.normal(size=(5, 3, 2, 2)), "h": rng.normal(size=(5, 3))}
    for body in (FIRST, LAST):
        model = onnx.parser.parse_model(BOTH.format(body))
        for name, value in weights.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
        onnx.save(model, tmp_path / "model.onnx")
        found, places = grad_cam(Surrogate([tmp_path / "model.onnx"], device="cpu"), images, np.arange(3))
        assert places == (6, 10)
        maps.append(found)
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-4)
    assert maps[0].max() > 0


def test_feature_maps_that_are_too_coarse_are_refused(toy_onnx: Path) -> None:
    with pytest.raises(ClientError, match=r"model.onnx: has no feature maps of 33x33 or more .* larger images"):
        Surrogate([toy_onnx]).feature_maps(torch.zeros((1, 32, 32, 3)), 33)


ALIKE = "no attributions: the two answer all 6 test images alike"


@pytest.mark.parametrize(
    ("first", "second", "num_images", "picked", "note"),
    [
        pytest.param([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], 9, [], ALIKE, id="none"),
        pytest.param([0, 1, 1, 1, 2, 2], [1, 1, 1, 1, 2, 2], 9, [0], "", id="one"),
        pytest.param([0, 0, 1, 1, 2, 2], [1, 1, 0, 0, 0, 0], 6, [0, 2, 4, 1, 3, 5], "", id="every class in turn"),
        pytest.param([0, 0, 1, 1, 2, 2], [1, 1, 0, 0, 0, 0], 2, [0, 2], "", id="no more than asked for"),
        pytest.param([1, 0, 1, 0, 2, 1], [2, 1, 1, 1, 2, 2], 9, [1, 3, 5, 0], "", id="one is right first"),
    ],
)
def test_images_that_disagree_are_picked(
    first: list[int], second: list[int], num_images: int, picked: list[int], note: str
) -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    found, said = pick_disagreements(np.array(first), np.array(second), labels, num_images)
    assert (found.tolist(), said) == (picked, note)


def test_attributions_are_written_side_by_side(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    images, labels, names = sample.images[:40], sample.labels[:40], sample.class_names
    right = np.array(labels)
    wrong = np.where(np.isin(np.arange(40), [3, 17]), (right + 1) % 10, right)
    networks = [("one", toy_onnx, right), ("two", toy_onnx, wrong)]
    found, notes = write_attributions(
        tmp_path / "out", images, labels, names, networks, num_images=2, num_steps=2, progress=lambda *_: None
    )
    assert sorted(entry.index for entry in found) == [3, 17]
    for entry in found:
        assert [maps.network for maps in entry.maps] == ["one", "two"]
        assert [maps.answer for maps in entry.maps] == [names[right[entry.index]], names[wrong[entry.index]]]
        assert entry.label == names[labels[entry.index]]
        with Image.open(tmp_path / "out" / entry.image) as picture:
            assert (np.asarray(picture)[::5, ::5] == images[entry.index]).all()
    pictures = [name for one in found for maps in one.maps for name in (maps.integrated_gradients, maps.grad_cam)]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*pictures, *(entry.image for entry in found)}
    assert len(written) == 10
    for name in pictures:
        with Image.open(tmp_path / "out" / name) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (160, 160, 3)
        assert (pixels.min(-1) != pixels.max(-1)).any(), "a map without a colour"
    coarse, inexact = (
        "one: Grad-CAM tells 4x4 places of an image apart, and is enlarged from them",
        "one: the sum of the integrated gradients is off by",
    )
    assert notes[0] == coarse
    assert notes[1].startswith(inexact), "two steps are too few"
    assert write_attributions(
        tmp_path / "none",
        images,
        labels,
        names,
        [networks[0], networks[0]],
        num_images=2,
        progress=lambda *_: None,
    ) == (
        (),
        ("one and one: no attributions: the two answer all 40 test images alike",),
    )
    assert not (tmp_path / "none").exists()


def test_maps_are_pictures() -> None:
    image, values = np.full((2, 2, 3), 100, np.uint8), np.array([[0.0, 2.0], [-2.0, 1.0]], np.float32)
    assert signed_heat(values).tolist() == [
        [[255, 255, 255], [255, 0, 0]],
        [[0, 0, 255], [255, 128, 128]],
    ]
    assert heat_over(image, values.clip(0)).tolist()[0] == [[100, 100, 100], [216, 216, 25]]
    assert (heat_over(image, np.zeros((2, 2), np.float32)) == 100).all()
    assert (signed_heat(np.zeros((2, 2), np.float32)) == 255).all()
