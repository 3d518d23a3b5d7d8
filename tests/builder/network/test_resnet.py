"""Models and checkpoints: what loads, and the one line for what does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from temper.builder.errors import ModelError
from temper.builder.network.resnet import ModelConfig, build_model, find_arch, save_weights


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build_model(ModelConfig(), 10).state_dict()


def test_random_model_has_the_wanted_classes() -> None:
    model = build_model(ModelConfig(arch="resnet18"), 7)
    assert not model.training
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_checkpoint_round_trip(tmp_path: Path, weights: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    model = build_model(ModelConfig(weights=str(path)), 10)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    save_weights(model, tmp_path / "again.safetensors")
    assert load_file(tmp_path / "again.safetensors").keys() == weights.keys()


def test_head_that_does_not_fit_is_one_line(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    with pytest.raises(
        ModelError,
        match=r"model.safetensors: its head has 10 classes, the data has 4; .* set model.replace_head = true",
    ):
        build_model(ModelConfig(weights=str(path)), 4)


def test_replaced_head_keeps_the_rest(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    model = build_model(ModelConfig(weights=str(path), replace_head=True), 4)
    state = model.state_dict()
    assert state["fc.weight"].shape == (4, 512)
    assert all(torch.equal(state[name], weights[name]) for name in state if not name.startswith("fc."))


def test_checkpoint_without_head_needs_a_new_one(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "body.safetensors"
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}, path)
    with pytest.raises(
        ModelError, match=r"has no head; to keep the other layers .* set model.replace_head = true"
    ):
        build_model(ModelConfig(weights=str(path)), 4)
    assert build_model(ModelConfig(weights=str(path), replace_head=True), 4)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet34", r'is a resnet18, not a resnet34; set model.arch = "resnet18"'),
        ("resnet18d", r'is a resnet18, not a resnet18d; set model.arch = "resnet18"'),
    ],
)
def test_other_architecture_is_one_line(
    tmp_path: Path, weights: dict[str, torch.Tensor], arch: Any, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    with pytest.raises(ModelError, match=message):
        build_model(ModelConfig(arch=arch, weights=str(path)), 10)


def test_wider_weights_are_one_line(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    save_file({**weights, "conv1.weight": torch.zeros(64, 2, 7, 7)}, path)
    with pytest.raises(ModelError, match=r"conv1.weight is \[64, 2, 7, 7\], expected \[64, 3, 7, 7\]"):
        build_model(ModelConfig(weights=str(path)), 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "vgg16"}, r"arch: got 'vgg16', expected one of resnet18, "),
        (
            {"weights": "imagenet"},
            r"weights: got 'imagenet', expected 'random', 'torchvision', a file .* '\./imagenet'",
        ),
        ({"arch": "resnet50d", "weights": "torchvision"}, r"weights: torchvision has none of resnet50d, expected"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize("arch", ["resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_find_arch_of_a_checkpoint(tmp_path: Path, arch: Any) -> None:
    network = build_model(ModelConfig(arch=arch), 7)
    save_weights(network, tmp_path / "w.safetensors")
    assert find_arch(tmp_path / "w.safetensors") == (arch, 7)


# What is done to the weights of a ResNet-18 with 10 classes, and the classes that are found; None for a refusal.
HEADS: dict[str, tuple[dict[str, torch.Tensor | None], tuple[str, int | None] | None]] = {
    "none": ({"fc.weight": None, "fc.bias": None}, ("resnet18", None)),
    "of a Sequential": (
        {"fc.weight": None, "fc.bias": None, "fc.1.weight": torch.zeros(10, 512)},
        ("resnet18", 10),
    ),
    "too wide": ({"fc.weight": torch.zeros(10, 2048)}, ("resnet18", None)),
    "one layer less": ({"layer4.1.conv2.weight": None}, None),
}


@pytest.mark.parametrize(("changes", "expected"), HEADS.values(), ids=HEADS.keys())
def test_find_arch_takes_only_what_would_load(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    changes: dict[str, torch.Tensor | None],
    expected: tuple[str, int | None] | None,
) -> None:
    changed = {name: tensor for name, tensor in {**weights, **changes}.items() if tensor is not None}
    path = tmp_path / "w.safetensors"
    save_file(changed, path)
    if expected is None:
        with pytest.raises(ModelError, match=r"w.safetensors: is no ResNet .*: lacks layer4.1.conv2.weight; give"):
            find_arch(path)
    else:
        assert find_arch(path) == expected
        assert build_model(ModelConfig(weights=str(path), replace_head=True), 3)


def test_configs_import_nothing_heavy() -> None:
    code = (
        "import sys, temper.builder.build, temper.builder.publish.entry\n"
        "import temper.builder.network.train, temper.builder.engines.build\n"
        "print([m for m in ('torch', 'numpy', 'onnx', 'openvino', 'tritonclient', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
