"""The exported graph: its wire, and that it says what PyTorch says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from temper.builder.errors import ExportError
from temper.builder.network.export import compare_logits, run_onnx, verify_onnx
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from benchmarks.sample import Sample


def test_graph_has_the_wire(toy_onnx: Path) -> None:
    graph = onnx.load(toy_onnx).graph
    (image,), (logits,) = graph.input, graph.output
    for value, name, kind, dims in (
        (image, "image", TensorProto.UINT8, [32, 32, 3]),
        (logits, "logits", TensorProto.FLOAT, [10]),
    ):
        shape = value.type.tensor_type.shape.dim
        assert value.name == name
        assert value.type.tensor_type.elem_type == kind
        assert shape[0].dim_param == "batch"
        assert [dim.dim_value for dim in shape[1:]] == dims


def test_graph_casts_first_and_folds_the_rest(toy_onnx: Path) -> None:
    graph = onnx.load(toy_onnx).graph
    consumers = [node.op_type for node in graph.node if "image" in node.input]
    assert consumers == ["Cast"]
    operators = {node.op_type for node in graph.node}
    assert not operators & {"BatchNormalization", "Identity", "Constant"}
    assert [node.op_type for node in graph.node][1] == "Transpose"


def test_graph_agrees_with_pytorch(sample: Sample, toy_onnx: Path) -> None:
    figures = verify_onnx(toy_onnx, sample.model, sample.images, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert figures["num_images"] == len(sample.images)
    assert figures["agreement"] == 1.0
    assert figures["max_abs_diff"] < 1e-3


@pytest.mark.parametrize("num_images", [1, 3, 33])
def test_any_batch_runs(sample: Sample, toy_onnx: Path, num_images: int) -> None:
    logits = run_onnx(toy_onnx, sample.images[:num_images])
    assert logits.shape == (num_images, 10)
    assert np.allclose(logits[0], run_onnx(toy_onnx, sample.images[:1])[0], atol=1e-3)


def test_other_preprocessing_is_caught(sample: Sample, toy_onnx: Path) -> None:
    with pytest.raises(ExportError, match=r"its logits differ from PyTorch's by .* on 8 images, expected at most"):
        verify_onnx(toy_onnx, sample.model, sample.images[:8], mean=(0.5, 0.5, 0.5), std=IMAGENET_STD)


def test_no_images_to_verify_with_is_an_error(sample: Sample, toy_onnx: Path) -> None:
    with pytest.raises(ExportError, match="got no image to compare with PyTorch, expected at least one"):
        verify_onnx(toy_onnx, sample.model, sample.images[:0], mean=IMAGENET_MEAN, std=IMAGENET_STD)


def test_compare_logits_counts_equal_answers() -> None:
    expected = np.array([[1, 2], [2, 1], [0, 4]], np.float32)
    actual = np.array([[1, 2], [1, 3], [0, 3]], np.float32)
    assert compare_logits(expected, actual) == {
        "num_images": 3,
        "max_abs_diff": 2.0,
        "max_abs_logit": 4.0,
        "relative_rms": pytest.approx(np.sqrt(((expected - actual) ** 2).mean()) / expected.std()),
        "agreement": pytest.approx(2 / 3),
    }
