"""Quantisation with the real ModelOpt: what comes out, what is printed (nothing), what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from temper.builder.compress.qdq import audit_qdq
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.errors import AuditError, QuantizeError
from temper.builder.network.export import compare_logits, export_onnx, run_onnx
from temper.builder.network.resnet import ModelConfig, build_model
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from benchmarks.sample import Sample


@pytest.mark.parametrize("method", ["entropy", "max"])
def test_int8_agrees_with_float32(
    sample: Sample, toy_onnx: Path, tmp_path: Path, method: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[int, int]] = []
    handlers = list(logging.getLogger().handlers)
    info = quantize_onnx(
        toy_onnx,
        tmp_path / "model.onnx",
        sample.calibration[:40],
        QuantizeConfig(method=method),
        lambda done, total: calls.append((done, total)),
    )
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert logging.getLogger().handlers == handlers
    assert calls == [(0, 40), (16, 40), (32, 40), (40, 40)]
    size = (tmp_path / "model.onnx").stat().st_size
    expected = {"precision": "int8", "method": method, "num_calibration": 40, "size_bytes": size, "kept_high": []}
    assert info == expected
    assert size < 0.3 * toy_onnx.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    audit_qdq(tmp_path / "model.onnx")
    images = sample.images[:200]
    figures = compare_logits(run_onnx(toy_onnx, images), run_onnx(tmp_path / "model.onnx", images))
    assert figures["agreement"] > 0.95


def test_source_is_left_alone(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    before = toy_onnx.read_bytes()
    names = sorted(toy_onnx.parent.iterdir())
    quantize_onnx(toy_onnx, tmp_path / "model.onnx", sample.calibration[:2], QuantizeConfig(method="max"))
    assert toy_onnx.read_bytes() == before
    assert sorted(toy_onnx.parent.iterdir()) == names


def test_no_calibration_data_is_an_error(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(
        QuantizeError, match=r"got no calibration images, expected real ones; int8 scales are never"
    ):
        quantize_onnx(toy_onnx, tmp_path / "model.onnx", sample.calibration[:0], QuantizeConfig())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "images",
    [np.zeros((4, 32, 32, 3), np.float32), np.zeros((4, 16, 16, 3), np.uint8), np.zeros((4, 3, 32, 32), np.uint8)],
    ids=["float", "small", "channels first"],
)
def test_images_that_do_not_fit_are_refused(toy_onnx: Path, tmp_path: Path, images: Any) -> None:
    with pytest.raises(QuantizeError, match=r"got calibration images .*, expected uint8 \['N', 32, 32, 3\]"):
        quantize_onnx(toy_onnx, tmp_path / "model.onnx", images, QuantizeConfig())


def test_fp8_leaves_the_stem_high_and_says_why(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    config = QuantizeConfig(precision="fp8", method="max")
    info = quantize_onnx(toy_onnx, target, sample.calibration[:40], config)
    assert info["size_bytes"] < 0.3 * toy_onnx.stat().st_size
    report = audit_qdq(target, "fp8")
    assert (len(report.nodes), report.num_residual_adds) == (20, 8)
    (stem,) = report.kept_high
    assert (stem.name, stem.reason) == ("/model/conv1/Conv", "no fp8 convolution for a kernel of 7x7")
    images = sample.images[:100]
    figures = compare_logits(run_onnx(toy_onnx, images), run_onnx(target, images))
    assert figures["agreement"] > 0.9


def test_layers_that_are_named_stay_high(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    config = QuantizeConfig(method="max", keep_high=("*/layer1.0/*", "fc"))
    info = quantize_onnx(toy_onnx, target, sample.calibration[:8], config)
    kept = ["/model/layer1/layer1.0/conv1/Conv", "/model/layer1/layer1.0/conv2/Conv", "/model/fc/Gemm"]
    residual = "/model/layer1/layer1.0/Add"
    assert info["kept_high"] == [*kept[:2], residual, kept[2]]
    graph = onnx.load(target).graph
    (add,) = [node for node in graph.node if node.name == residual]
    assert not {node.op_type for node in graph.node if set(node.output) & set(add.input)} & {"DequantizeLinear"}
    report = audit_qdq(target, kept_high=kept)
    assert [(one.name, one.reason) for one in report.kept_high] == [(name, "kept on request") for name in kept]
    assert len(report.nodes) == 18
    with pytest.raises(AuditError, match=r"layer1.0/conv1/Conv.*is not quantised, expected int8"):
        audit_qdq(target)


def test_unknown_layer_is_refused_with_the_nearest(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(keep_high=("/model/conv/Conv",))
    with pytest.raises(
        QuantizeError, match=r"no layer is called '/model/conv/Conv'; the nearest are /model/conv1"
    ):
        quantize_onnx(toy_onnx, tmp_path / "model.onnx", sample.calibration[:8], config)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_every_family_passes_the_audit(sample: Sample, tmp_path: Path, arch: Any) -> None:
    config = ModelConfig(arch=arch)
    source = tmp_path / "source.onnx"
    export_onnx(build_model(config, 10), source, image_size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    quantize_onnx(source, tmp_path / "model.onnx", sample.calibration[:16], QuantizeConfig(method="max"))
    report = audit_qdq(tmp_path / "model.onnx").to_json()
    assert (report["num_conv"], report["num_gemm"], report["num_residual_adds"]) == (53, 1, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, r"precision: got 'int4', expected 'int8' or 'fp8'"),
        ({"method": "mse"}, r"method: got 'mse', expected 'entropy', 'max' or 'qat'"),
        ({"reduce_range": "yes"}, r"reduce_range: got 'yes', expected 'auto', true or false"),
        (
            {"precision": "fp8", "reduce_range": True},
            r"reduce_range: got true with precision 'fp8', expected 'int8'",
        ),
        ({"max_loss": -1.0}, r"max_loss: got -1.0, expected 0 to 100 percentage points"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizeConfig(**changes)
