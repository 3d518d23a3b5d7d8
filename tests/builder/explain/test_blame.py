"""Blame: a layer that was spoilt comes first, with what is wrong with it, and putting it back mends it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import pytest

from benchmarks.faults import plant, readers_of
from temper.builder.compress.cast import CastConfig, cast_onnx
from temper.builder.compress.qdq import weighted_nodes
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.engines.gpu import first_gpu
from temper.builder.engines.kind import AutoConfig
from temper.builder.engines.openvino import OpenVinoConfig
from temper.builder.errors import ExplainError
from temper.builder.explain.activations import (
    EXACTLY,
    RunsIn,
    activated,
    block_outputs,
    pick_runs_in,
    run_logits,
    with_outputs,
    with_pooled,
)
from temper.builder.explain.blame import Blame
from temper.builder.explain.loss import LogitLoss, share_gone
from temper.builder.network.export import run_onnx

if TYPE_CHECKING:
    from benchmarks.sample import Sample

NUM_IMAGES = 48


@pytest.fixture(scope="module")
def openvino(toy_onnx: Path) -> RunsIn:
    return pick_runs_in(OpenVinoConfig(), onnx.load(toy_onnx))


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("scale", "dB below what their quantisation changed"),
        ("clip", "of its input is clipped: values reach"),
        ("outlier", "times as large as the typical one, and all share a scale"),
    ],
)
def test_spoilt_layer_comes_first_and_is_mended(
    fault: str,
    finding: str,
    toy_onnx: Path,
    toy_reduced: Path,
    sample: Sample,
    openvino: RunsIn,
    tmp_path: Path,
) -> None:
    float_graph, graph = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    shutil.copyfile(toy_reduced, graph)
    layer = plant(fault, toy_onnx, float_graph, graph, sample.calibration[:32], seed=3)
    seen: list[tuple[int, int]] = []
    blame = Blame(float_graph, graph, sample.images[:NUM_IMAGES], openvino)
    found = blame.find(lambda *call: seen.append(call))
    tried = [one for one in found.layers if one.share is not None]
    worst = max(tried, key=lambda one: one.share or ())
    readers = readers_of(float_graph, layer) if fault == "clip" else {layer}
    assert worst.name in readers
    assert worst.share is not None
    assert worst.share[1] <= worst.share[0] <= worst.share[2]
    assert any(finding in each for each in worst.figures()["findings"])
    assert set(found.kept) & readers
    before = found.layers[: min(index for index, one in enumerate(found.layers) if one.name in readers)]
    decibels = [one.figures()["signal_to_noise_db"] for one in before]
    assert all(one is None or one > 10 for one in decibels), "noise before the layer that makes it"
    others, labels = sample.images[NUM_IMAGES:144], sample.labels[NUM_IMAGES:144]
    models = (blame.float_model, blame.model, blame.put_back(found.kept))
    accuracies = [float((run_logits(openvino, each, others).argmax(1) == labels).mean()) for each in models]
    assert accuracies[1] < accuracies[0]
    assert accuracies[2] - accuracies[1] >= 0.9 * (accuracies[0] - accuracies[1])
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_range_of_fp8_that_is_not_used_is_no_finding(toy_onnx: Path, sample: Sample, tmp_path: Path) -> None:
    """Its steps grow with the values: what int8 would lose is not lost."""
    quantize_onnx(toy_onnx, tmp_path / "fp8.onnx", sample.calibration[:16], QuantizeConfig(precision="fp8"))
    layers = Blame(toy_onnx, tmp_path / "fp8.onnx", sample.images[:2], EXACTLY).layers
    quantized = [layer for layer in layers if layer.quantized]
    for layer in quantized:
        assert layer.limits is not None
        layer.read_input(np.array([[layer.limits[1] / 20, layer.limits[1] / 2000, 0]], np.float32))
    figures = [layer.figures() for layer in quantized]
    assert len(figures) > 20
    assert {round(one["range_used"], 3) for one in figures} == {0.05}
    assert [one["findings"] for one in figures if one["findings"]] == []


def test_float_graph_against_itself_is_refused(toy_onnx: Path, sample: Sample) -> None:
    with pytest.raises(
        ExplainError, match=r"model.onnx: has no quantised layer, expected a graph with Q/DQ pairs; give one that"
    ):
        Blame(toy_onnx, toy_onnx, sample.images[:4], EXACTLY)


def test_graph_of_another_network_is_refused(
    toy_onnx: Path, toy_int8: Path, sample: Sample, tmp_path: Path
) -> None:
    model = onnx.load(toy_onnx)
    weighted_nodes(model.graph)[3].name = "/other"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(
        ExplainError, match=r"has no layer '/other' with the output '.*', expected .* quantised from; give that"
    ):
        Blame(tmp_path / "other.onnx", toy_int8, sample.images[:4], EXACTLY)
    with pytest.raises(
        ExplainError, match="got no training images, expected at least one; give the training split"
    ):
        Blame(toy_onnx, toy_int8, sample.images[:0], EXACTLY)


def test_inner_tensors_are_the_graphs(toy_onnx: Path, sample: Sample, openvino: RunsIn) -> None:
    """What OpenVINO gives out is what the exact arithmetic gives, and the answers stay what they were."""
    model, images = onnx.load(toy_onnx), sample.images[:3]
    names = [activated(model.graph, node) for node in weighted_nodes(model.graph)]
    ours, exact = (runs_in.open(model, names)(images) for runs_in in (openvino, EXACTLY))
    assert set(ours) == {*names, "logits"}
    for name in names:
        np.testing.assert_allclose(ours[name], exact[name], rtol=1e-3, atol=1e-3 * np.abs(exact[name]).max())
    np.testing.assert_allclose(exact["logits"], run_onnx(toy_onnx, images), rtol=1e-5, atol=1e-5)
    assert [each.name for each in with_outputs(model, ["logits"]).graph.output] == ["logits"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_features_of_half_precision_are_those_of_float32(
    precision: Literal["fp16", "bf16"], toy_onnx: Path, sample: Sample, openvino: RunsIn, tmp_path: Path
) -> None:
    cast_onnx(toy_onnx, tmp_path / "half.onnx", sample.calibration[:4], CastConfig(precision=precision))
    found = []
    for path in (toy_onnx, tmp_path / "half.onnx"):
        model = onnx.load(path)
        pooling, pooled = with_pooled(model, list(block_outputs(model).values()))
        found.append(list(openvino.open(pooling, list(pooled.values()))(sample.images[:4]).values()))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, atol=0.05 * np.abs(one).max())


def test_blocks_of_a_network_and_of_its_int8_copy_are_the_same_tensors(toy_onnx: Path, toy_int8: Path) -> None:
    blocks = block_outputs(onnx.load(toy_onnx))
    assert list(blocks) == ["stem", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))]
    assert block_outputs(onnx.load(toy_int8)) == blocks


@pytest.mark.skipif(first_gpu() is not None, reason="a GPU gives the inner tensors")
def test_engine_that_gives_no_inner_tensors_falls_back_to_the_graph(toy_onnx: Path) -> None:
    from temper.builder.engines.kind import ENGINES

    config = ENGINES.get("tensorrt-rtx").config()
    assert not isinstance(config, AutoConfig)
    found = pick_runs_in(config, onnx.load(toy_onnx))
    assert (found.title, found.engine) == (EXACTLY.title, None)
    assert found.note.startswith("engine tensorrt-rtx: its inner tensors cannot be read here: ")
    assert found.note.endswith(f"; the graph was run in {EXACTLY.title}, which may differ from what is served")


def test_loss_does_not_see_what_all_classes_share() -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(0, 1, (200, 5)).astype(np.float32)
    noise = rng.normal(0, 0.1, (200, 5)).astype(np.float32)
    loss = LogitLoss(expected)
    shifted = expected + rng.normal(0, 5, (200, 1)).astype(np.float32)
    np.testing.assert_allclose(loss(shifted), 0, atol=1e-10)
    np.testing.assert_allclose(loss(expected + noise)[:7], loss((expected + noise)[:7], np.arange(7)))
    whole, half = loss(expected + noise), loss(expected + noise / 2)
    share, low, high = share_gone(half, whole, 0)
    assert share == pytest.approx(0.75, abs=1e-4)
    assert low <= share <= high
    assert share_gone(whole, np.zeros(200), 0) == (0.0, 0.0, 0.0)
