"""Quantisation by training: the graph is int8 where the audit wants it; a killed training ends as a whole one."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from benchmarks.sample import Sample, make_context, make_sample
from temper.builder.compress.qat import QatConfig, export_quantized, fold_batch_norms, quantize_network, run_qat
from temper.builder.compress.qdq import audit_qdq
from temper.builder.compress.saturation import measure, weight_bits
from temper.builder.compress.sparsify import SparsifyConfig, check_2_4, run_sparsify
from temper.builder.compress.step import StepContext
from temper.builder.errors import CompressError, TrainError
from temper.builder.network.export import run_onnx
from temper.builder.network.resnet import ModelConfig, build_model
from temper.builder.network.served import Served, predict
from temper.builder.network.train import TrainConfig
from temper.builder.store.files import sha256_file
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD


def quantize(network: nn.Module, context: StepContext, **changes: Any) -> tuple[Path, dict[str, Any]]:
    path = context.folder / "model.onnx"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        info = run_qat(network, QatConfig(**{"learning_rate": 1e-6, **changes}), context, path)
    return path, info


def test_graph_keeps_the_rules_and_answers_as_the_network(sample: Sample, tmp_path: Path) -> None:
    before = copy.deepcopy(sample.model.state_dict())
    context = make_context(tmp_path, teacher=sample.model)
    path, info = quantize(sample.model, context)
    report = audit_qdq(path)
    assert (len(report.nodes), report.num_residual_adds, report.kept_high) == (21, 8, [])
    graph = onnx.load(path).graph
    assert (graph.input[0].name, graph.input[0].type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    # One cast, of the image; each weight once, in int8.
    assert [node.op_type for node in graph.node].count("Cast") == 1
    assert not [node for node in graph.node if node.op_type in ("Constant", "BatchNormalization")]
    assert path.stat().st_size == info["size_bytes"] < 12e6
    labels = predict(Served(sample.model, mean=context.mean, std=context.std), sample.images).argmax(1)
    assert (run_onnx(path, sample.images).argmax(1) == labels).mean() > 0.98
    assert (info["method"], info["num_calibration"], info["num_held_out"]) == ("qat", 64, 64)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in sample.model.state_dict().items())


def test_graph_computes_what_pytorch_computes(sample: Sample, tmp_path: Path) -> None:
    context = make_context(tmp_path, teacher=sample.model)
    quantized, _ = quantize_network(sample.model, context, torch.device("cpu"))
    export_quantized(quantized, context, tmp_path / "model.onnx")
    expected = predict(Served(quantized, mean=context.mean, std=context.std), sample.images)
    actual = run_onnx(tmp_path / "model.onnx", sample.images)
    # The sums differ in their last bit, so now and then a value is rounded to the next integer.
    assert np.abs(actual - expected).mean() < 0.01 * np.abs(expected).max()


def test_weights_that_outgrew_their_range_are_published_as_trained(sample: Sample, tmp_path: Path) -> None:
    context = make_context(tmp_path, teacher=sample.model)
    quantized, _ = quantize_network(sample.model, context, torch.device("cpu"), weight_bits=7)
    first: Any = quantized.get_submodule("conv1")
    with torch.no_grad():
        first.weight[:8] *= 1.5
    export_quantized(quantized, context, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    integers, scales = next(
        (constants[node.input[0]], constants[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    )
    trained = first.weight_quantizer(first.weight).detach().numpy() / scales.reshape(-1, 1, 1, 1)
    assert (integers == np.rint(trained)).all()
    assert (integers.min(), integers.max()) == (-64, 63)


@pytest.mark.int8
@pytest.mark.slow
def test_reduced_range_is_trained_and_published(sample: Sample, tmp_path: Path) -> None:
    context = make_context(tmp_path, teacher=sample.model)
    path, info = quantize(sample.model, context, reduce_range="auto")
    assert info["reduce_range"]["used"]  # the sample saturates at AVX2
    assert weight_bits(path) == 7
    assert len(audit_qdq(path).nodes) == 21
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert measure(path, sample.images)["changed"] <= 0.01
    quantized, _ = quantize_network(sample.model, context, torch.device("cpu"), weight_bits=7)
    export_quantized(quantized, context, tmp_path / "model.onnx")
    expected = predict(Served(quantized, mean=context.mean, std=context.std), sample.images)
    actual = run_onnx(tmp_path / "model.onnx", sample.images)
    assert np.abs(actual - expected).mean() < 0.02 * np.abs(expected).max()


@pytest.mark.slow
def test_training_brings_it_nearer_to_its_teacher(sample: Sample, tmp_path: Path) -> None:
    network = copy.deepcopy(sample.model)
    head: Any = network.get_submodule("fc")
    with torch.no_grad():
        noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
        head.weight += head.weight.std() * noise
    seen = (sample.calibration[64:128], sample.labels[:64])  # of these it learns
    context = make_context(tmp_path, num_train=128, teacher=sample.model, held_out=seen)
    _, info = quantize(network, context, epochs=4, learning_rate=1e-4)
    assert info["agreement_before"] < 0.9
    assert info["agreement"] > info["agreement_before"] + 0.02


def test_sparse_network_stays_sparse_in_int8(sample: Sample, tmp_path: Path) -> None:
    context = make_context(tmp_path, teacher=sample.model)
    sparse, _ = run_sparsify(copy.deepcopy(sample.model), SparsifyConfig(), context)
    path, info = quantize(sparse, context, learning_rate=1e-4)
    assert info["num_sparse"] == len(check_2_4(path).sparse) == 19
    audit_qdq(path)


def test_chain_of_convolutions_is_quantised(sample: Sample, tmp_path: Path) -> None:
    network = copy.deepcopy(sample.model)
    chain = nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.Conv2d(16, 64, 3, padding=1, bias=False))
    network.set_submodule("layer1.0.conv1", chain)
    path, _ = quantize(network, make_context(tmp_path, teacher=sample.model))
    assert len(audit_qdq(path).nodes) == 22


@pytest.mark.slow
def test_bottleneck_keeps_the_rules(sample: Sample, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(ModelConfig(arch="resnet50"), 10)
    path, _ = quantize(network, make_context(tmp_path, num_train=8, teacher=network))
    report = audit_qdq(path)
    assert (len(report.nodes), report.num_residual_adds) == (54, 16)


def test_folding_changes_no_answer(sample: Sample) -> None:
    folded = fold_batch_norms(sample.model)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    settings: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    expected = predict(Served(sample.model, **settings), sample.images[:32])
    actual = predict(Served(folded, **settings), sample.images[:32])
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def test_batch_norm_without_convolution_is_one_line(sample: Sample) -> None:
    network = copy.deepcopy(sample.model)
    network.set_submodule("layer2.0.conv1", nn.Identity())
    with pytest.raises(CompressError, match=r"^quantize: layer2.0.bn1 does not follow a convolution of its own"):
        fold_batch_norms(network)


def test_quantised_network_is_refused(sample: Sample, tmp_path: Path) -> None:
    context = make_context(tmp_path, teacher=sample.model)
    quantized, _ = quantize_network(sample.model, context, torch.device("cpu"))
    with pytest.raises(
        CompressError, match=r"^quantize: the network is quantised already; give the float network"
    ):
        quantize(quantized, context)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_one_line(sample: Sample, tmp_path: Path) -> None:
    context = make_context(tmp_path, train_config=TrainConfig(device="cuda"), teacher=sample.model)
    with pytest.raises(TrainError, match=r"train.device: got 'cuda', but PyTorch sees no GPU; set it to 'auto'"):
        quantize(sample.model, context)


# Quantises, and kills itself in the middle of the second epoch.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from benchmarks.sample import make_context, make_sample
from tests_qat import quantize

def progress(done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

sample = make_sample()
context = make_context(Path(sys.argv[1]), progress=progress, teacher=sample.model)
quantize(sample.model, context, epochs=2, learning_rate=1e-4)
"""


@pytest.mark.slow
def test_killed_training_goes_on_to_the_same_graph(tmp_path: Path) -> None:
    sample = make_sample()
    contexts = {name: make_context(tmp_path / name, teacher=sample.model) for name in "ab"}
    whole, info = quantize(sample.model, contexts["a"], epochs=2, learning_rate=1e-4)
    assert info["resumed_epoch"] == 0
    (tmp_path / "tests_qat.py").symlink_to(__file__)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "b"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["taught.pt"]
    resumed, info = quantize(sample.model, contexts["b"], epochs=2, learning_rate=1e-4)
    assert info["resumed_epoch"] == 1
    assert sha256_file(whole) == sha256_file(resumed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"epochs: got 0, expected at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate: got 0.0, expected a positive number"),
        ({"temperature": -1.0}, r"temperature: got -1.0, expected a positive number"),
        ({"label_weight": 1.5}, r"label_weight: got 1.5, expected 0 to 1"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QatConfig(**changes)
