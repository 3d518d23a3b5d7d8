"""Models and checkpoints: what loads, and the one line for what does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builder.errors import ModelError
from builder.model import ModelConfig, build_model, load_checkpoint, save_weights


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build_model(ModelConfig(), 10).state_dict()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        """Takes the path of the proof."""
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Says what unpickling calls."""
        return (os.mkdir, (str(self.path),))


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


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_nested_and_distributed_checkpoint_loads(
    tmp_path: Path, weights: dict[str, torch.Tensor], key: str
) -> None:
    path = tmp_path / "model.pt"
    torch.save({key: {f"module.{name}": tensor for name, tensor in weights.items()}, "epoch": 3}, path)
    assert load_checkpoint(path).keys() == weights.keys()


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
    with pytest.raises(ModelError, match=r"is no resnet18: 2 weights missing \(fc.bias ...\), 0 unknown"):
        build_model(ModelConfig(weights=str(path)), 4)
    assert build_model(ModelConfig(weights=str(path), replace_head=True), 4)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet34", r"is no resnet34: \d+ weights missing \(layer1.2.bn1.bias ...\).*set model.arch"),
        ("resnet50", r"is no resnet50: .*set model.arch to the checkpoint's architecture"),
    ],
)
def test_other_architecture_is_one_line(
    tmp_path: Path, weights: dict[str, torch.Tensor], arch: str, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    with pytest.raises(ModelError, match=message):
        build_model(ModelConfig(arch=arch, weights=str(path)), 10)


def test_wider_weights_are_one_line(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    save_file({**weights, "conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(ModelError, match=r"conv1.weight is \[64, 1, 7, 7\], expected \[64, 3, 7, 7\]"):
        build_model(ModelConfig(weights=str(path)), 10)


def test_pickle_that_is_not_weights_is_never_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "model.pt", tmp_path / "executed"
    torch.save({"state_dict": Evil(proof)}, path)
    with pytest.raises(
        ModelError, match=r"model.pt: holds more than weights and was not opened.*state_dict\(\) alone"
    ):
        load_checkpoint(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"not a checkpoint", r"a.pt: "),
        ("a.pt", b"", r"a.pt: is not a file that torch.save wrote"),
        ("a.safetensors", b"not a checkpoint at all", r"a.safetensors: is not a whole safetensors file"),
        ("a.safetensors", b"", r"a.safetensors: is not a whole safetensors file"),
    ],
)
def test_other_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_truncated_checkpoint_is_one_line(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ModelError, match=r"is not a (whole safetensors file|file that torch.save wrote)"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"got list, expected a state dict of tensors"),
        ({}, r"got dict, expected a state dict of tensors"),
        ({"epoch": 3}, r"'epoch' is int, expected a tensor"),
        ({"w": torch.tensor([float("nan")])}, r"'w' holds NaN or infinity; take an earlier checkpoint"),
    ],
)
def test_content_that_is_no_state_dict_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=message):
        load_checkpoint(tmp_path / "a.pt")


def test_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"checkpoint .*a.pt: no such file"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "vgg16"}, r"arch: got 'vgg16', expected one of resnet18, "),
        ({"weights": "imagenet"}, r"weights: got 'imagenet', expected 'random', 'torchvision' or a file"),
        ({"std": (0.1, 0.0, 0.1)}, r"std: got \(0.1, 0.0, 0.1\), expected three positive numbers"),
        ({"mean": (0.1, float("nan"), 0.1)}, r"mean: got .*, expected three finite numbers"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


def test_configs_import_nothing_heavy() -> None:
    code = (
        "import sys, builder.build, builder.publish, builder.train, builder.engines;"
        "print([m for m in ('torch', 'numpy', 'onnx', 'openvino', 'tritonclient', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
