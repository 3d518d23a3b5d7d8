"""2:4 sparsity: the pattern lies along the channels, in the network and in the graph, and survives distilling."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from benchmarks.sample import Sample, make_context
from temper.builder.compress.distil import STEP, DistilConfig
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.compress.sparsify import SparsifyConfig, check_2_4, keep_zeros, run_sparsify
from temper.builder.compress.step import StepContext
from temper.builder.errors import CompressError
from temper.builder.network.export import export_onnx

DENSE = {"/model/conv1/Conv", "/model/fc/Gemm"}


@pytest.fixture
def context(sample: Sample, tmp_path: Path) -> StepContext:
    """Digits, a few images of them, with the sample as the teacher."""
    return make_context(tmp_path, teacher=copy.deepcopy(sample.model))


def export(network: Any, context: StepContext, path: Path) -> Path:
    export_onnx(network, path, image_size=32, mean=context.mean, std=context.std)
    return path


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_pattern_is_in_the_graph_also_when_quantised(
    sample: Sample, context: StepContext, tmp_path: Path, method: Any
) -> None:
    network, info = run_sparsify(copy.deepcopy(sample.model), SparsifyConfig(method=method), context)
    assert len(info["layers"]) == 19
    assert set(info["left_dense"]) == {"conv1", "fc"}
    assert 0.45 < info["share_zero"] < 0.9
    graph = export(network, context, tmp_path / "sparse.onnx")
    report = check_2_4(graph)
    assert (len(report.sparse), set(report.left_dense)) == (19, DENSE)
    quantize_onnx(graph, tmp_path / "int8.onnx", sample.calibration[:8], QuantizeConfig(method="max"))
    assert set(check_2_4(tmp_path / "int8.onnx").sparse) == set(report.sparse)


def test_input_that_is_always_zero_keeps_half_of_its_weights(sample: Sample, context: StepContext) -> None:
    network = copy.deepcopy(sample.model)
    norm: Any = network.get_submodule("layer1.0.bn1")
    with torch.no_grad():
        norm.weight[:4] = 0
        norm.bias[:4] = 0
    sparse, _ = run_sparsify(network, SparsifyConfig(method="sparsegpt"), context)
    weight: Any = sparse.get_submodule("layer1.0.conv2").weight
    assert ((weight[:, :4] != 0).sum(1) == 2).all()


def test_magnitude_keeps_the_larger_two_of_four_channels(sample: Sample, context: StepContext) -> None:
    before = sample.model.get_parameter("layer1.0.conv1.weight").detach().clone()
    network, _ = run_sparsify(copy.deepcopy(sample.model), SparsifyConfig(), context)
    after = network.get_parameter("layer1.0.conv1.weight").detach()
    assert isinstance(after, torch.Tensor)
    groups = before.abs().reshape(64, 16, 4, 9)
    kept = (after != 0).reshape(64, 16, 4, 9)
    smallest_kept = torch.where(kept, groups, torch.inf).amin(2)
    largest_dropped = torch.where(kept, 0, groups).amax(2)
    assert bool((kept.sum(2) == 2).all())
    assert bool((smallest_kept >= largest_dropped).all())


def test_dense_graph_is_refused_with_the_layer(toy_onnx: Path) -> None:
    with pytest.raises(
        CompressError, match=r"model.onnx: Conv '/model/layer1/layer1.0/conv1/Conv': has 4 of 4 wei"
    ):
        check_2_4(toy_onnx)


def test_one_filled_zero_is_found(sample: Sample, context: StepContext, tmp_path: Path) -> None:
    network, _ = run_sparsify(copy.deepcopy(sample.model), SparsifyConfig(), context)
    model = onnx.load(export(network, context, tmp_path / "sparse.onnx"))
    (node,) = [node for node in model.graph.node if node.name == "/model/layer3/layer3.1/conv2/Conv"]
    (weight,) = [each for each in model.graph.initializer if each.name == node.input[1]]
    values = numpy_helper.to_array(weight).copy()
    values[7, 8:12, 1, 2] = [1, 0, 1, 1]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "filled.onnx")
    with pytest.raises(CompressError, match=r"layer3.1/conv2/Conv': has 3 of 4 weights along the input channels"):
        check_2_4(tmp_path / "filled.onnx")


@pytest.mark.slow
def test_distilling_keeps_the_zeros_and_learns(sample: Sample, context: StepContext, tmp_path: Path) -> None:
    network, _ = run_sparsify(copy.deepcopy(sample.model), SparsifyConfig(), context)
    weights = copy.deepcopy(network.state_dict())
    student, info = STEP.run(network, DistilConfig(epochs=2), context)
    assert (info["num_sparse"], info["resumed_epoch"]) == (19, 0)
    assert info["agreement"] >= info["agreement_before"]
    assert len(check_2_4(export(student, context, tmp_path / "sparse.onnx")).sparse) == 19
    assert not torch.equal(student.state_dict()["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])
    assert keep_zeros(student)[0] == 19


def test_config_is_checked() -> None:
    with pytest.raises(ValueError, match=r"method: got 'random', expected 'magnitude' or 'sparsegpt'"):
        SparsifyConfig(method="random")  # type: ignore[arg-type]
