"""FastNAS: the budget is met by a plain network, and a search that was killed ends as one that was not.

Run as a script, it prunes into the folder it is given and kills itself on the way.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.sample import make_context
from temper.builder.compress.calibrate import held_out_accuracy, recalibrate, training_batches
from temper.builder.compress.prune import PruneConfig, run_prune
from temper.builder.compress.step import StepContext
from temper.builder.engines.latency import compare_in_engine
from temper.builder.engines.openvino import OpenVinoConfig
from temper.builder.engines.tensorrt import TensorRtConfig
from temper.builder.errors import CompressError
from temper.builder.network.files import count_network, load_network, save_network
from temper.builder.network.resnet import ModelConfig, build_model
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

_CONFIG = ModelConfig()
# Few widths per layer, so that a search takes seconds.
_PRUNE: dict[str, Any] = {"divisor": 64, "num_images": 32}
_NUM_TRAIN = 256
_DEAD = ("layer3.0", "layer4.0", "layer4.1")


def _make_network(context: StepContext) -> nn.Module:
    """A ResNet-18 whose last stages have blocks with half of their channels dead, and a head that reads digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_model(_CONFIG, 10)
    for name in _DEAD:
        block: Any = network.get_submodule(name)
        dead = torch.arange(block.conv1.out_channels) % 2 == 0
        block.conv1.weight.data[dead] = 0
        block.conv2.weight.data[:, dead] = 0
    batches = training_batches(context, len(context.train))
    recalibrate(network, batches)
    head: Any = network.get_submodule("fc")
    network.set_submodule("fc", nn.Identity())
    with torch.inference_mode():
        features = torch.cat([network(batch) for batch in batches]).double()
    labels = torch.tensor([context.train[index][1] for index in range(len(context.train))])
    targets = nn.functional.one_hot(labels, 10).double() - 0.1
    centred = features - features.mean(0)
    penalty = 0.1 * centred.pow(2).sum() / len(features) * torch.eye(512, dtype=torch.float64)
    weight = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ targets)
    head.weight.data = 10 * weight.T.float()
    head.bias.data = -10 * (features.mean(0) @ weight).float()
    network.set_submodule("fc", head)
    return network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return _make_network(make_context(tmp_path_factory.mktemp("work"), num_train=_NUM_TRAIN))


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return make_context(tmp_path, num_train=_NUM_TRAIN)


def _watch(context: StepContext) -> tuple[StepContext, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    return dataclasses.replace(context, progress=lambda done, total: seen.append((done, total))), seen


@pytest.mark.slow
def test_prune_meets_a_budget_with_a_plain_network(
    network: nn.Module, context: StepContext, tmp_path: Path
) -> None:
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    context, seen = _watch(context)
    pruned, info = run_prune(network, PruneConfig(flops=0.7, **_PRUNE), context)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    before, after = count_network(network, 32), count_network(pruned, 32)
    assert info["flops"] == after.flops <= 0.7 * before.flops == 0.7 * info["flops_before"]
    assert info["num_parameters"] == after.num_parameters < info["num_parameters_before"] == before.num_parameters
    assert info["reached"] == after.flops / before.flops
    # What is dead goes first, and costs nothing.
    for name in _DEAD:
        old, new = info["widths"][f"{name}.conv1"]
        assert new <= old // 2
    assert all(new % 64 == 0 for _, new in info["widths"].values())
    assert info["accuracy_before"] > 0.8
    # Without training afterwards; guessing would be right on a tenth.
    assert info["accuracy"] == held_out_accuracy(pruned, context) > 0.3
    # Scored from first to last, never backwards.
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {seen[0][1]}
    assert list(context.folder.iterdir()) == []
    _check_plain(pruned, tmp_path)


def _check_plain(pruned: nn.Module, folder: Path) -> None:
    from temper.builder.network.export import export_onnx, verify_onnx

    assert not any("modelopt" in type(module).__module__ for module in pruned.modules())
    assert not any(name.startswith("_modelopt") for module in pruned.modules() for name in vars(module))
    save_network(pruned, folder)
    loaded = load_network(_CONFIG, 10, folder)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    export_onnx(loaded, folder / "model.onnx", image_size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    verify_onnx(folder / "model.onnx", pruned, images, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.mark.slow
def test_prune_that_was_killed_ends_as_without_the_kill(
    network: nn.Module, context: StepContext, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}  # a script has its own folder alone
    run = subprocess.run([sys.executable, __file__, str(killed)], capture_output=True, text=True, env=path)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert (killed / "search.pth").stat().st_size > 0
    (tmp_path / "whole").mkdir()
    config = PruneConfig(params=0.4, **_PRUNE)
    whole, seen = _watch(dataclasses.replace(context, folder=tmp_path / "whole"))
    expected, expected_info = run_prune(network, config, whole)
    resumed, seen_again = _watch(dataclasses.replace(context, folder=killed))
    torch.rand(5)  # what was drawn before does not matter
    actual, info = run_prune(network, config, resumed)
    assert 0 < len(seen_again) < len(seen) - 5
    assert info["widths"] == expected_info["widths"]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, actual.state_dict()[name]), name


@pytest.mark.slow
def test_prune_starts_again_from_a_damaged_checkpoint(network: nn.Module, context: StepContext) -> None:
    (context.folder / "search.pth").write_bytes(b"PK\x03\x04 cut off")
    _, info = run_prune(network, PruneConfig(flops=0.9, divisor=256, num_images=32), context)
    assert info["flops"] <= 0.9 * info["flops_before"]


@pytest.mark.slow
def test_prune_by_latency_measures_candidates_in_the_engine(
    network: nn.Module, context: StepContext, until: Callable[[Callable[[], object]], None]
) -> None:
    config = PruneConfig(latency=0.9, divisor=128, num_images=32)
    with pytest.raises(CompressError, match="prune: latency: there is no engine to measure it in; give flops or"):
        run_prune(network, config, context)
    engine = compare_in_engine(OpenVinoConfig(), image_size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)).eval()

    def tells_them_apart() -> bool:
        candidate_ms, original_ms = engine(tiny, network)
        return 0 < candidate_ms < original_ms

    until(tells_them_apart)
    measured: list[float] = []

    def compare(candidate: nn.Module, original: nn.Module) -> tuple[float, float]:
        """Runs both in the engine; what is told is the work, as a busy machine's times could lie in any order."""
        measured.extend(engine(candidate, original))
        narrow, wide = count_network(candidate, 32), count_network(original, 32)
        return narrow.flops / 1e6, wide.flops / 1e6

    pruned, info = run_prune(network, config, dataclasses.replace(context, compare_latency=compare))
    assert len(measured) > 2 and min(measured) > 0
    assert info["latency_ms"] <= 0.9 * info["latency_ms_before"]
    assert info["reached"] == info["latency_ms"] / info["latency_ms_before"] <= 0.9
    assert info["flops"] == count_network(pruned, 32).flops < info["flops_before"]


def test_prune_by_latency_takes_the_times_of_the_run_before(network: nn.Module, context: StepContext) -> None:
    def refuse(candidate: nn.Module, original: nn.Module) -> tuple[float, float]:
        raise AssertionError("measured again")

    narrowest = "64 " * 20
    known = {narrowest.strip(): [9.5, 10.0]}
    (context.folder / "latency.json").write_text(json.dumps(known))
    # Every layer of one width to choose: the last stage's outputs, which the head reads, stay as they are.
    with pytest.raises(AssertionError, match="measured again"):
        run_prune(
            network, PruneConfig(latency=0.5, divisor=64), dataclasses.replace(context, compare_latency=refuse)
        )
    widths = " ".join(str(width) for width in _narrowest_widths(network))
    (context.folder / "latency.json").write_text(json.dumps({widths: [9.5, 10.0]}))
    with pytest.raises(
        CompressError, match=r"latency: got 0\.5, but with every layer at its narrowest 0\.95 of the l"
    ):
        run_prune(
            network, PruneConfig(latency=0.5, divisor=64), dataclasses.replace(context, compare_latency=refuse)
        )


def _narrowest_widths(network: nn.Module) -> list[int]:
    fixed = ("layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv2")
    return [
        module.out_channels if name in fixed else 64
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]


def test_latency_is_not_measured_in_an_engine_that_it_does_not_know() -> None:
    with pytest.raises(
        CompressError, match="latency: is measured in openvino only, not in tensorrt; give flops or"
    ):
        compare_in_engine(TensorRtConfig(), image_size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _budget(name: str, share: float) -> PruneConfig:
    settings: dict[str, Any] = {name: share}
    return PruneConfig(**settings)


@pytest.mark.parametrize("budget", ["flops", "params", "latency"])
def test_prune_without_anything_to_do_says_so(budget: str, network: nn.Module, context: StepContext) -> None:
    timed = dataclasses.replace(context, compare_latency=lambda candidate, original: (1.0, 1.0))
    same, info = run_prune(network, _budget(budget, 1.0), timed)
    assert info["note"] == f"{budget} = 1 leaves nothing to prune"
    assert info["widths"] == {}
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in same.state_dict().items())


@pytest.mark.parametrize(("budget", "unit"), [("flops", "FLOPs"), ("params", "parameters")])
def test_prune_that_cannot_be_reached_names_the_smallest(
    budget: str, unit: str, network: nn.Module, context: StepContext
) -> None:
    expected = rf"prune: {budget}: got 0\.01, but with every layer at its narrowest 0\.\d+ of the {unit} are left"
    with pytest.raises(CompressError, match=expected):
        run_prune(network, _budget(budget, 0.01), context)


@pytest.mark.slow
def test_prune_reaches_the_smallest_that_it_names(network: nn.Module, context: StepContext) -> None:
    with pytest.raises(CompressError, match="narrowest") as error:
        run_prune(network, PruneConfig(flops=0.01, divisor=256), context)
    smallest = float(str(error.value).split("narrowest ")[1].split()[0])
    _, info = run_prune(network, PruneConfig(flops=smallest, divisor=256, num_images=32), context)
    assert info["reached"] <= smallest < info["reached"] + 0.001


def test_prune_without_held_out_images_says_so(network: nn.Module, context: StepContext) -> None:
    images, labels = context.held_out
    context = dataclasses.replace(context, held_out=(images[:0], labels[:0]))
    with pytest.raises(CompressError, match="prune: got no held-out image to score candidates with"):
        run_prune(network, PruneConfig(flops=0.5), context)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PruneConfig(), "flops: got none of flops, params, latency, expected one"),
        (lambda: PruneConfig(flops=0.5, latency=0.5), "latency: got flops and latency of flops, params, latency"),
        (lambda: PruneConfig(flops=0.0), r"flops: got 0\.0, expected a share of more than 0 and at most 1"),
        (lambda: PruneConfig(params=1.1), r"params: got 1\.1, expected a share of more than 0 and at most 1"),
        (lambda: PruneConfig(flops=float("nan")), "flops: got nan, expected a share"),
        (lambda: PruneConfig(flops=0.5, divisor=0), "divisor: got 0, expected 1 or more"),
        (lambda: PruneConfig(flops=0.5, num_images=1), "num_images: got 1, expected 2 or more"),
        (lambda: PruneConfig(flops=0.5, method="l1"), "method: got 'l1', expected 'fastnas'"),  # type: ignore[arg-type]
        (lambda: PruneConfig(flops=0.5, score="loss"), "score: got 'loss', expected 'expected_accuracy' or"),  # type: ignore[arg-type]
    ],
)
def test_prune_config_refuses(make: Callable[[], PruneConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def _prune_and_die(folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done > total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    context = make_context(folder, num_train=_NUM_TRAIN, progress=progress)
    run_prune(_make_network(context), PruneConfig(params=0.4, **_PRUNE), context)


if __name__ == "__main__":
    _prune_and_die(Path(sys.argv[1]))
