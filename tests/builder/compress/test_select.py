"""A network cut to some of its last features: what stays the same, what is folded, what may follow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.sample import Sample, make_context
from temper.builder.compress.calibrate import ServedBatches, held_out_accuracy, recalibrate
from temper.builder.compress.distil import DistilConfig
from temper.builder.compress.low_rank import LowRankConfig, run_low_rank
from temper.builder.compress.select import SelectConfig, run_select
from temper.builder.compress.step import StepContext
from temper.builder.compress.variant import ChosenStep, VariantConfig
from temper.builder.errors import CompressError
from temper.builder.network.files import count_network, load_network, save_network
from temper.builder.network.resnet import ModelConfig, build_model, set_head

_SEEN = 520


@pytest.fixture(scope="module")
def context(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    """The sample's digits: 520 to look at, more than there are features, and 64 held out."""
    return make_context(tmp_path_factory.mktemp("work"), num_train=_SEEN, teacher=sample.model)


@pytest.fixture(scope="module")
def network(sample: Sample, context: StepContext) -> nn.Module:
    """The sample's network, its batch normalisation measured as the step does it."""
    network = copy.deepcopy(sample.model)
    recalibrate(network, ServedBatches(context, _SEEN))
    return network


def test_select_refuses_a_head_of_two_layers(network: nn.Module, context: StepContext) -> None:
    other = copy.deepcopy(network)
    set_head(other, 16, 10)
    with pytest.raises(CompressError, match="select: the head has two layers, expected a linear one"):
        run_select(other, SelectConfig(features=0.25), context)


def test_select_cuts_pooled_shortcuts(context: StepContext) -> None:
    network = build_model(ModelConfig(arch="resnet18d"), 10)
    cut, _ = run_select(network, SelectConfig(features=0.5, num_images=64), context)
    assert cut.get_submodule("layer4.0.downsample.1").out_channels == 256
    assert cut(torch.zeros(1, 3, 33, 33)).shape == (1, 10)


def test_select_keeps_a_quarter(network: nn.Module, context: StepContext, sample: Sample, tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cut, info = run_select(network, SelectConfig(features=0.25), context)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert (info["num_features_before"], info["num_features"], len(set(info["kept"]))) == (512, 128, 128)
    assert (info["method"], info["num_images"], "warning" in info) == ("greedy", _SEEN, False)
    size, before = count_network(cut, 32), count_network(network, 32)
    assert (info["flops"], info["num_parameters"]) == (size.flops, size.num_parameters)
    assert (info["flops_before"], info["num_parameters_before"]) == (before.flops, before.num_parameters)
    assert size.flops < 0.9 * before.flops and size.num_parameters < 0.6 * before.num_parameters
    assert (
        info["note"]
        == f"128 of 512 features, the head fitted anew, {100 * size.flops / before.flops:.0f} % of the FLOPs"
    )
    assert info["accuracy"] == held_out_accuracy(cut, context) > info["accuracy_before"] - 0.05
    assert 0.3 < info["explained"]["layer4.1.conv1"] <= 1
    assert 0 < info["stability"]["low"] <= info["stability"]["value"] <= info["stability"]["high"] <= 1
    widths = {name: module.out_channels for name, module in cut.named_modules() if isinstance(module, nn.Conv2d)}
    cut_to = {name for name, width in widths.items() if width == 128 and name.startswith("layer4")}
    assert cut_to == {"layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv2"}
    save_network(cut, tmp_path)
    loaded = load_network(sample.config, 10, tmp_path)
    assert all(torch.equal(tensor, cut.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_select_of_features_that_are_there_twice_loses_nothing(network: nn.Module, context: StepContext) -> None:
    twice = copy.deepcopy(network)
    for name, module in twice.named_modules():
        if name.startswith("layer4") and ("2" in name.split(".")[-1] or "downsample." in name):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.dim() > 0:
                    tensor.data[256:] = tensor.data[:256]
    batches = ServedBatches(context, _SEEN)
    recalibrate(twice, batches, inside="layer4")
    cut, info = run_select(twice, SelectConfig(features=0.5), context)
    assert len({kept % 256 for kept in info["kept"]}) >= 250  # some are always 0
    assert info["explained"]["layer4.1.conv1"] > 0.99
    with torch.inference_mode():
        features = [_body(one)(next(iter(batches))) for one in (twice, cut)]
        logits = [one(next(iter(batches))) for one in (twice, cut)]
    expected = features[0][:, info["kept"]]
    assert float((features[1] - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert float((logits[0].argmax(1) == logits[1].argmax(1)).float().mean()) > 0.95


def _body(network: nn.Module) -> nn.Module:
    body = copy.deepcopy(network)
    body.set_submodule("fc", nn.Identity())
    return body


def test_inputs_that_are_missing_are_predicted(network: nn.Module, context: StepContext) -> None:
    batches = ServedBatches(context, _SEEN)
    cut, info = run_select(network, SelectConfig(features=0.25, method="random"), context)
    plain, kept = copy.deepcopy(cut), info["kept"]
    conv: Any = plain.get_submodule("layer4.1.conv1")
    conv.weight.data = network.get_parameter("layer4.1.conv1.weight").data[:, kept].clone()
    recalibrate(plain, batches, inside="layer4")
    with torch.inference_mode():
        wanted, folded, sliced = (_body(one)(next(iter(batches))) for one in (network, cut, plain))
    ours, theirs = (float((found - wanted[:, kept]).square().mean()) for found in (folded, sliced))
    assert ours < 0.7 * theirs


@pytest.mark.parametrize("groups", [1, 4])
def test_select_cuts_bottlenecks(context: StepContext, groups: int) -> None:
    from torchvision.models.resnet import Bottleneck, ResNet  # type: ignore[import-untyped]  # ships none

    torch.manual_seed(0)
    network = ResNet(Bottleneck, [1, 1, 1, 3], num_classes=10, groups=groups, width_per_group=16).eval()
    config = SelectConfig(features=0.125, method="activation", num_images=100)
    cut, info = run_select(network, config, context)
    assert list(info["explained"]) == ["layer4.1.conv1", "layer4.2.conv1"]
    assert cut.get_submodule("layer4.2.conv3").out_channels == info["num_features"] == 256
    assert info["warning"].startswith("100 images for 2,048 features tell no more than 99 of them apart: ")
    with torch.inference_mode():
        assert cut(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_steps_may_follow(network: nn.Module, context: StepContext, sample: Sample, tmp_path: Path) -> None:
    cut, _ = run_select(network, SelectConfig(features=0.25, num_images=64, method="taylor"), context)
    chained, info = run_low_rank(cut, LowRankConfig(flops=0.7, num_images=32), context)
    assert any(name.startswith("layer4") for name in info["layers"])
    save_network(chained, tmp_path)
    load_network(sample.config, 10, tmp_path)


def test_select_of_all_leaves_all(network: nn.Module, context: StepContext) -> None:
    same, info = run_select(network, SelectConfig(features=1.0), context)
    assert info["note"] == "features = 1 leaves all 512 as they are, 100 % of the FLOPs"
    assert (info["kept"], info["stability"], info["flops"]) == (list(range(512)), None, info["flops_before"])
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in same.state_dict().items())


def test_select_ends_its_progress(network: nn.Module, context: StepContext) -> None:
    seen: list[tuple[int, int]] = []
    watched = replace(context, progress=lambda *call: seen.append(call))
    run_select(network, SelectConfig(features=0.5, num_images=64, method="random"), watched)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("num_train", [0, 1])
def test_training_images_that_tell_nothing_are_refused(
    network: nn.Module, sample: Sample, tmp_path: Path, num_train: int
) -> None:
    few = make_context(tmp_path, num_train=num_train, teacher=sample.model)
    message = (
        rf"training split: got {num_train} images to measure on, expected at least 2, .*; give it more images"
    )
    with pytest.raises(CompressError, match=message):
        run_select(network, SelectConfig(features=0.5), few)


def test_select_gives_the_same_twice_whatever_was_drawn_before(network: nn.Module, context: StepContext) -> None:
    config = SelectConfig(features=0.5, num_images=64, method="random")
    first, _ = run_select(network, config, context)
    torch.rand(3)
    second, _ = run_select(network, config, context)
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize(
    ("features", "multiple", "of", "expected"),
    [
        (0.25, 32, 512, 128),
        (0.3, 32, 512, 160),
        (0.3, 1, 512, 154),
        (0.001, 32, 512, 32),
        (0.9999, 32, 512, 512),
        (1.0, 32, 500, 500),
        (0.5, 1024, 512, 512),
    ],
)
def test_number_kept_is_a_multiple(features: float, multiple: int, of: int, expected: int) -> None:
    assert SelectConfig(features=features, multiple=multiple).num_kept(of) == expected


def test_select_refuses_what_it_cannot_cut(network: nn.Module, context: StepContext) -> None:
    odd = copy.deepcopy(network)
    odd.set_submodule("layer4.1.conv2", nn.Sequential(nn.Conv2d(512, 32, 1), nn.Conv2d(32, 512, 3, padding=1)))
    message = r"^select: layer4\.1\.conv2 is a Sequential, expected a convolution; let select come before"
    with pytest.raises(CompressError, match=message):
        run_select(odd, SelectConfig(features=0.5), context)


def test_select_stands_between_prune_and_low_rank() -> None:
    select, chains = ChosenStep(select=SelectConfig(features=0.5)), ChosenStep(low_rank=LowRankConfig(flops=0.5))
    distil = ChosenStep(distil=DistilConfig())
    VariantConfig(name="fine", compress=(select, distil, chains))
    with pytest.raises(
        ValueError, match=r"compress\[1\]: got select after low_rank, expected prune, select, low_rank"
    ):
        VariantConfig(name="wrong", compress=(chains, select))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectConfig(features=0.0), r"features: got 0\.0, expected a share of more than 0 and at most 1"),
        (lambda: SelectConfig(features=1.5), r"features: got 1\.5, expected a share"),
        (lambda: SelectConfig(features=float("nan")), "features: got nan, expected a share"),
        (lambda: SelectConfig(features=0.5, multiple=0), "multiple: got 0, expected 1 or more"),
        (lambda: SelectConfig(features=0.5, num_images=1), "num_images: got 1, expected 2 or more"),
        (
            lambda: SelectConfig(features=0.5, method="best"),  # type: ignore[arg-type]
            "method: got 'best', expected one of greedy, l1, shapley, permutation, taylor, activation, random",
        ),
    ],
)
def test_select_config_refuses(make: Callable[[], SelectConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
