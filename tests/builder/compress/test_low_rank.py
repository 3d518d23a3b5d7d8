"""Chains in the place of convolutions: what they cost, what they keep, and what is left alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.sample import Sample, make_context
from temper.builder.compress.calibrate import held_out_accuracy, recalibrate, training_batches
from temper.builder.compress.chains import Decomposition
from temper.builder.compress.low_rank import LowRankConfig, run_low_rank
from temper.builder.compress.moments import measure_moments
from temper.builder.compress.step import StepContext
from temper.builder.errors import CompressError
from temper.builder.network.files import count_layers, count_network, is_chain, load_network, save_network

_SEEN = 128


@pytest.fixture(scope="module")
def context(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    """The sample's digits: 128 to measure on, 64 held out."""
    return make_context(tmp_path_factory.mktemp("work"), num_train=_SEEN, teacher=sample.model)


@pytest.fixture(scope="module")
def network(sample: Sample, context: StepContext) -> nn.Module:
    """The sample's network, its batch normalisation measured as the step does it."""
    network = copy.deepcopy(sample.model)
    recalibrate(network, training_batches(context, _SEEN))
    return network


def _thin(network: nn.Module, rank: int) -> nn.Module:
    """Gives every convolution but the stem a weight of the given rank, in inputs and outputs."""
    torch.manual_seed(0)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and name != "conv1":
            size = module.weight.shape
            left, right = torch.randn(size[0], rank), torch.randn(rank, size[1])
            core = torch.randn(rank, rank, *size[2:])
            weight = torch.einsum("or,rskl,si->oikl", left, core, right)
            module.weight.data = weight / weight.flatten(1).norm(dim=1).mean()
    return network


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_low_rank_of_weights_that_have_it_loses_nothing(
    method: Any, network: nn.Module, context: StepContext
) -> None:
    thin = _thin(copy.deepcopy(network), rank=8)
    recalibrate(thin, training_batches(context, _SEEN))
    config = LowRankConfig(method=method, energy=0.9999, multiple=8)
    chained, info = run_low_rank(thin, config, context)
    images = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        expected, actual = thin(images), chained(images)
    assert float((expected - actual).abs().max()) < 2e-2 * float(expected.abs().max())
    assert info["flops"] < 0.4 * info["flops_before"]
    ranks = {tuple(layer["ranks"]) for name, layer in info["layers"].items() if ".downsample" not in name}
    assert ranks == {(8,)} if method == "svd" else ranks == {(8, 8)}


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_low_rank_meets_a_budget_of_flops(
    method: Any, network: nn.Module, context: StepContext, tmp_path: Path, sample: Sample
) -> None:
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    chained, info = run_low_rank(network, LowRankConfig(method=method, flops=0.6), context)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    size, before = count_network(chained, 32), count_network(network, 32)
    assert 0.55 * before.flops < size.flops <= 0.6 * before.flops
    assert (info["flops"], info["num_parameters"]) == (size.flops, size.num_parameters)
    assert (info["flops_before"], info["num_parameters_before"]) == (before.flops, before.num_parameters)
    assert info["accuracy"] == held_out_accuracy(chained, context)
    _check_layers(chained, network, info)
    save_network(chained, tmp_path)
    loaded = load_network(sample.config, 10, tmp_path)
    assert all(torch.equal(tensor, chained.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def _check_layers(chained: nn.Module, network: nn.Module, info: dict[str, Any]) -> None:
    convs = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert info["layers"].keys() | info["left_alone"].keys() == convs
    assert not info["layers"].keys() & info["left_alone"].keys()
    assert info["left_alone"]["conv1"] == "the stem: 3 input channels leave little to cut"
    old, new = count_layers(network, 32), count_layers(chained, 32)
    for name, layer in info["layers"].items():
        chain = chained.get_submodule(name)
        assert isinstance(chain, nn.Sequential) and is_chain(chain)
        assert [conv.out_channels for conv in list(chain)[:-1]] == layer["ranks"]
        assert all(rank % 32 == 0 for rank in layer["ranks"])
        assert sum(new[f"{name}.{part}"] for part in range(len(list(chain)))) == layer["flops"] < old[name]
        whole = network.get_parameter(f"{name}.weight")
        assert sum(weight.numel() for weight in chain.parameters()) < whole.numel()
        assert 0 < layer["energy"] < 1


def test_low_rank_keeps_the_energy_it_is_asked_for(network: nn.Module, context: StepContext) -> None:
    _, much = run_low_rank(network, LowRankConfig(energy=0.99), context)
    chained, little = run_low_rank(network, LowRankConfig(energy=0.7), context)
    assert len(little["layers"]) > 0
    assert all(layer["energy"] >= 0.99 for layer in much["layers"].values())
    assert all(layer["energy"] >= 0.7 for layer in little["layers"].values())
    assert little["flops"] < much["flops"]
    kept = [
        reason for reason in much["left_alone"].values() if "keeps 0.99 of its energy would cost more" in reason
    ]
    assert len(kept) > 0
    _, again = run_low_rank(chained, LowRankConfig(energy=0.7), context)
    assert again["left_alone"][f"{next(iter(little['layers']))}.1"] == "part of a chain already"


def test_chain_follows_the_data_better_than_the_weights_alone(network: nn.Module, context: StepContext) -> None:
    name, rank = "layer3.0.conv2", 32
    batches = training_batches(context, _SEEN)
    conv = network.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    moments = measure_moments(copy.deepcopy(network), [name], batches, context.progress, seed=0)[name]
    # Every output channel counts alike, so that the error is a plain mean of squares.
    moments = dataclasses.replace(moments, gradients=torch.eye(len(moments.gradients), dtype=torch.float64))
    cut = Decomposition(conv, moments)
    inputs: list[torch.Tensor] = []
    hook = conv.register_forward_hook(lambda module, given, made: inputs.append(given[0]))
    with torch.inference_mode():
        network(batches[0])
        hook.remove()
        expected = conv(inputs[0])
        left, values, right = torch.linalg.svd(conv.weight.flatten(1), full_matrices=False)
        weight = (left[:, :rank] * values[:rank] @ right[:rank]).reshape(conv.weight.shape)
        plain = nn.functional.conv2d(inputs[0], weight, padding=1) - expected
        ours = cut.build_chain((rank,))(inputs[0]) - expected
    # The mean is what batch normalisation takes away.
    plain_error, our_error = (float(error.var(dim=(0, 2, 3)).sum()) for error in (plain, ours))
    assert our_error < 0.9 * plain_error
    whole = float(expected.var(dim=(0, 2, 3)).sum())
    (choice,) = [one for one in cut.list_choices(10**12, "svd", 32) if one.ranks == (rank,)]
    assert 1 - our_error / whole == pytest.approx(choice.energy, abs=0.02)


@pytest.mark.slow
def test_low_rank_leaves_grouped_convolutions_alone_and_cuts_strided_ones(context: StepContext) -> None:
    from torchvision.models.resnet import Bottleneck, ResNet  # type: ignore[import-untyped]  # ships none

    torch.manual_seed(0)
    network = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, groups=4, width_per_group=16).eval()
    chained, info = run_low_rank(network, LowRankConfig(energy=0.5, multiple=8), context)
    assert info["left_alone"]["layer1.0.conv2"] == "grouped: each of its 4 groups is small already"
    assert "layer2.0.downsample.0" in info["layers"]
    with torch.inference_mode():
        assert chained(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_low_rank_gives_the_same_twice_whatever_was_drawn_before(network: nn.Module, context: StepContext) -> None:
    config = LowRankConfig(flops=0.7, num_images=32)
    first, _ = run_low_rank(network, config, context)
    torch.rand(3)
    second, _ = run_low_rank(network, config, context)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


@pytest.mark.parametrize("budget", [{"flops": 1.0}, {"energy": 1.0}])
def test_low_rank_without_anything_to_do_says_so(
    budget: dict[str, Any], network: nn.Module, context: StepContext
) -> None:
    same, info = run_low_rank(network, LowRankConfig(**budget), context)
    assert info["note"] == f"{next(iter(budget))} = 1 leaves nothing to do, 100 % of the FLOPs"
    assert info["flops"] == info["flops_before"]
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in same.state_dict().items())


def test_low_rank_that_cannot_be_reached_names_the_smallest(network: nn.Module, context: StepContext) -> None:
    with pytest.raises(
        CompressError, match=r"flops: got 0\.05, but with every chain at its smallest 0\.\d+"
    ) as error:
        run_low_rank(network, LowRankConfig(flops=0.05), context)
    smallest = float(str(error.value).split("smallest ")[1].split()[0])
    _, info = run_low_rank(network, LowRankConfig(flops=smallest), context)
    assert info["flops"] <= smallest * info["flops_before"] < info["flops"] + 0.002 * info["flops_before"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankConfig(), "flops: got neither of energy and flops, expected one of them"),
        (
            lambda: LowRankConfig(energy=0.9, flops=0.5),
            "flops: got both of energy and flops, expected one of them",
        ),
        (lambda: LowRankConfig(flops=0.0), r"flops: got 0\.0, expected a share of more than 0 and at most 1"),
        (lambda: LowRankConfig(energy=1.5), r"energy: got 1\.5, expected a share of more than 0 and at most 1"),
        (lambda: LowRankConfig(flops=float("nan")), "flops: got nan, expected a share"),
        (lambda: LowRankConfig(flops=0.5, multiple=0), "multiple: got 0, expected 1 or more"),
        (lambda: LowRankConfig(flops=0.5, num_images=1), "num_images: got 1, expected 2 or more"),
        (lambda: LowRankConfig(flops=0.5, method="cp"), "method: got 'cp', expected 'svd' or 'tucker'"),  # type: ignore[arg-type]
    ],
)
def test_low_rank_config_refuses(make: Callable[[], LowRankConfig], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
