"""A network's architecture and weights go through files unchanged, and damaged files are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from temper.builder.errors import ModelError
from temper.builder.network.files import count_layers, count_network, load_network, save_network
from temper.builder.network.resnet import ModelConfig, build_model, set_head

_CLASSES = 7


def _new(arch: Any = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    network = build_model(ModelConfig(arch=arch), _CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def _prune(network: nn.Module) -> nn.Module:
    """Narrows one block's inside, as pruning does."""
    block: Any = network.get_submodule("layer2.0")
    block.conv1 = nn.Conv2d(64, 32, 3, stride=2, padding=1, bias=False)
    block.bn1 = nn.BatchNorm2d(32)
    block.conv2 = nn.Conv2d(32, 128, 3, padding=1, bias=False)
    return network.eval()


def _cut(network: nn.Module) -> nn.Module:
    """Replaces a convolution and a projection by chains, as low rank does."""
    chain = nn.Sequential(nn.Conv2d(64, 8, 1, bias=False), nn.Conv2d(8, 64, 3, padding=1, bias=True))
    network.set_submodule("layer1.0.conv1", chain)
    projection = nn.Sequential(nn.Conv2d(64, 16, 1, stride=2, bias=False), nn.Conv2d(16, 128, 1, bias=False))
    network.set_submodule("layer2.0.downsample.0", projection)
    return network.eval()


def _two_layers(network: nn.Module) -> nn.Module:
    set_head(network, 33, _CLASSES)
    return network.eval()


@pytest.mark.parametrize(
    ("arch", "change"),
    [
        ("resnet18", lambda network: network),
        ("resnet18", _prune),
        ("resnet18", _cut),
        ("resnet18", lambda network: _cut(_prune(network))),
        ("resnet50", lambda network: network),
        ("resnext50_32x4d", lambda network: network),
        ("resnet18", lambda network: _two_layers(_cut(network))),
        ("resnet18d", _two_layers),
        ("resnet50s", lambda network: network),
    ],
    ids=[
        "plain",
        "pruned",
        "low rank",
        "both",
        "resnet50",
        "grouped",
        "two layers",
        "pooled",
        "deep and wide stem",
    ],
)
def test_network_round_trip_gives_identical_logits(
    arch: Any, change: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    network = change(_new(arch))
    images = torch.randn(2, 3, 64, 64)
    before = torch.random.get_rng_state()
    save_network(network, tmp_path)
    loaded = load_network(ModelConfig(arch=arch), _CLASSES, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before), "loading drew random numbers"
    with torch.inference_mode():
        assert torch.equal(loaded(images), network(images))
    assert not loaded.training
    assert all(weight.requires_grad for weight in loaded.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.json", "weights.safetensors"]


def test_load_network_trains_on(tmp_path: Path) -> None:
    save_network(_cut(_new()), tmp_path)
    loaded = load_network(ModelConfig(), _CLASSES, tmp_path).train()
    loaded(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(weight.grad is not None for weight in loaded.parameters())


@pytest.mark.parametrize(("arch", "gmacs", "millions"), [("resnet18", 1.814, 11.69), ("resnet50", 4.089, 25.56)])
def test_count_network_gives_torchvisions_figures(arch: Any, gmacs: float, millions: float) -> None:
    # "GFLOPS" in torchvision's table of weights: multiply-adds at 224 pixels, 1000 classes.
    size = count_network(build_model(ModelConfig(arch=arch), 1000), 224)
    assert size.flops / 2e9 == pytest.approx(gmacs, rel=1e-3)
    assert size.num_parameters / 1e6 == pytest.approx(millions, rel=1e-3)


def test_count_network_agrees_with_torchs_counter_and_changes_nothing() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = _new("resnext50_32x4d").train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    counted = count_network(network, 64).flops
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.zeros(1, 3, 64, 64))
    assert counted == counter.get_total_flops()


def test_count_layers_names_the_convolutions_of_a_chain() -> None:
    flops = count_layers(_cut(_new()), 32)
    assert flops["layer1.0.conv1.0"] == 2 * 64 * 8 * 8 * 8
    assert flops["layer1.0.conv1.1"] == 2 * 8 * 64 * 9 * 8 * 8


def test_save_network_refuses_what_it_cannot_rebuild(tmp_path: Path) -> None:
    network = _new()
    network.set_submodule("layer1.0.relu", nn.Hardswish())
    with pytest.raises(ModelError, match=r"network: layer1\.0\.relu is a Hardswish, expected the layers of torch"):
        save_network(network, tmp_path)

    class Quantised(nn.Conv2d):
        pass

    network = _new()
    network.set_submodule("conv1", Quantised(3, 64, 7, stride=2, padding=3, bias=False))
    with pytest.raises(ModelError, match="network: conv1 is a Quantised, expected the layers of torchvision's"):
        save_network(network, tmp_path)
    assert list(tmp_path.iterdir()) == []


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "network.json").read_text())
        change(content["layers"])
        (folder / "network.json").write_text(json.dumps(content))

    return edit


def _replace_weights(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    save_network(_prune(_new()), other)
    (other / "weights.safetensors").rename(folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "network.json").unlink(), r"network\.json: no such file"),
        (lambda folder: (folder / "network.json").write_text('{"format": 1, "lay'), "is damaged: .*JSON"),
        (lambda folder: (folder / "network.json").write_text('{"format": 9, "layers": {}}'), "damaged: format: "),
        (_edit(lambda layers: layers["conv1"].update(stride=[2])), r"is damaged: layers\.conv1"),
        (_edit(lambda layers: layers["conv1"].update(groups=2)), "expected the sizes of a convolution"),
        (
            _edit(lambda layers: layers.update({"fc.0": layers["fc"]})),
            "it has the unknown layer fc;",
        ),
        (_edit(lambda layers: layers.pop("bn1")), "is no resnet18: it lacks bn1"),
        (_edit(lambda layers: layers.update(bn9=layers["bn1"])), "it has the unknown layer bn9"),
        (_edit(lambda layers: layers.update(bn1=layers["fc"])), "bn1 is a linear, expected a batch_norm"),
        (
            _edit(lambda layers: layers["layer1.0.conv1"].update(out_channels=32)),
            "its layers do not fit together",
        ),
        (_edit(lambda layers: layers["fc"].update(out_features=9)), "has 9 classes, expected 7"),
        (lambda folder: (folder / "weights.safetensors").unlink(), r"weights\.safetensors: no such file"),
        (
            lambda folder: (folder / "weights.safetensors").write_bytes(b"\x10" * 100),
            r"is no file of weights \(it begins with 10 10 .*\), expected a safetensors file",
        ),
        (
            _replace_weights,
            r"layer2\.0\.conv1\.weight is torch\.float32 \[32, 64, 3, 3\], expected torch\.float32",
        ),
    ],
)
def test_load_network_refuses_damage(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    save_network(_new(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load_network(ModelConfig(), _CLASSES, tmp_path)
    assert "\n" not in str(caught.value)


def test_load_network_refuses_another_architecture(tmp_path: Path) -> None:
    save_network(_new("resnet34"), tmp_path)
    with pytest.raises(ModelError, match="is no resnet18: it has the unknown layer layer1.2.bn1"):
        load_network(ModelConfig(arch="resnet18"), _CLASSES, tmp_path)
