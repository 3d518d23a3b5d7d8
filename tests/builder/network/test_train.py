"""Training: it learns, it resumes to the same weights, and it says what it cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from temper.builder.data.config import DataConfig
from temper.builder.data.prepare import load_train
from temper.builder.errors import DataError, TrainError
from temper.builder.network.adversarial import AdversarialConfig
from temper.builder.network.resnet import ModelConfig, build_model
from temper.builder.network.train import TrainConfig, finetune

MODEL = ModelConfig()


def make_images(root: Path, num_images: int = 24) -> DataConfig:
    """Two classes that a network tells apart at once: dark and bright noise."""
    rng = np.random.default_rng(0)
    for name, low in (("bright", 150), ("dark", 0)):
        (root / name).mkdir(parents=True)
        for index in range(num_images // 2):
            pixels = rng.integers(low, low + 100, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return DataConfig(source="folder", path=str(root), image_size=32, augment="shift")


def train(data: DataConfig, folder: Path, progress: Any = None, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 6, "device": "cpu"}
    config = TrainConfig(**{**settings, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(MODEL, 2)
        images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (200, 50)])
        evaluation = (images, np.array([0, 1]))
        return finetune(
            model, load_train(data), evaluation, config, folder, progress, mean=MODEL.mean, std=MODEL.std
        )


# Trains, and kills itself in the middle of the second epoch.
KILLED = """
import os, signal, sys
from pathlib import Path
from temper.builder.data.prepare import DataConfig
sys.path.insert(0, sys.argv[3])
from tests_train import train

def progress(done, total):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

data = DataConfig(source="folder", path=sys.argv[1], image_size=32, augment="shift")
train(data, Path(sys.argv[2]), progress, head_epochs=1)
"""


def test_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    data = make_images(tmp_path / "images")
    whole = train(data, tmp_path / "whole", head_epochs=1)
    (tmp_path / "tests_train.py").symlink_to(__file__)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "images"), str(tmp_path / "part"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["checkpoint.pt"]
    resumed = train(data, tmp_path / "part", head_epochs=1)
    assert (whole["resumed_epoch"], resumed["resumed_epoch"]) == (0, 1)
    expected = load_file(tmp_path / "whole" / "weights.safetensors")
    actual = load_file(tmp_path / "part" / "weights.safetensors")
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["weights.safetensors"]


def test_training_learns_and_reports(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = make_images(tmp_path / "images")
    info = train(data, tmp_path / "out", lambda done, total: calls.append((done, total)), epochs=4)
    assert info["accuracy"] == 1.0
    assert (info["num_train"], info["num_images"], info["device"], info["precision"]) == (18, 2, "cpu", "f32")
    assert calls == [(step, 12) for step in range(13)]


def test_adversarial_training_is_judged_on_images_held_out(tmp_path: Path) -> None:
    adversarial = AdversarialConfig(epsilon=4.0, validation_steps=2)
    data = make_images(tmp_path / "images")
    info = train(data, tmp_path / "out", epochs=2, adversarial=adversarial, validation=0.2)
    assert (info["num_train"], info["num_validation"]) == (15, 3)
    assert [epoch["epoch"] for epoch in info["history"]] == [1, 2]
    best = max(info["history"], key=lambda epoch: (epoch["robust_accuracy"], epoch["epoch"]))
    assert info["best_epoch"] == best["epoch"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights.safetensors"]


def test_head_epochs_leave_the_body_as_it_was(tmp_path: Path) -> None:
    train(make_images(tmp_path / "images"), tmp_path / "out", epochs=0, head_epochs=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = build_model(MODEL, 2).state_dict()
    after = load_file(tmp_path / "out" / "weights.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_no_epochs_keep_the_weights(tmp_path: Path) -> None:
    info = train(make_images(tmp_path / "images"), tmp_path / "out", epochs=0)
    assert (info["epochs"], info["head_epochs"]) == (0, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = build_model(MODEL, 2).state_dict()
    after = load_file(tmp_path / "out" / "weights.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("damage", ["cut", "other config"])
def test_checkpoint_that_does_not_fit_starts_anew(tmp_path: Path, damage: str) -> None:
    data = make_images(tmp_path / "images", 12)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "out", stop, batch_size=5, epochs=2 if damage == "cut" else 3)
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert train(data, tmp_path / "out", batch_size=5, epochs=2)["resumed_epoch"] == 0


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Counts the numbers that are fetched from a tensor: on a GPU each waits for all that was queued before."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """PyTorch's hook."""
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_steps_do_not_wait_for_the_device(tmp_path: Path) -> None:
    waits, at_steps = Waits(), list[int]()  # type: ignore[no-untyped-call]  # torch has no types here
    with waits:
        train(make_images(tmp_path / "images"), tmp_path / "out", lambda *_: at_steps.append(waits.count))
    epochs = [at_steps[first : first + 3] for first in (0, 3, 6)]
    assert [min(waited) - max(waited) for waited in epochs] == [0, 0, 0]
    assert epochs[0][0] < epochs[1][0] < epochs[2][0] < at_steps[9], "the loss is looked at after each epoch"


def test_loss_that_is_not_finite_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"training: the loss is (nan|inf) in epoch \d; make train.learning_rate"):
        train(make_images(tmp_path / "images"), tmp_path / "out", learning_rate=1e30)


def test_loss_is_looked_at_within_an_epoch_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temper.builder.network.train._LOOK_EVERY", 2)
    steps = list[int]()
    with pytest.raises(TrainError, match=r"training: the loss is (nan|inf) in epoch 1"):
        train(
            make_images(tmp_path / "images", 60),
            tmp_path / "out",
            lambda done, total: steps.append(done),
            learning_rate=1e30,
            batch_size=4,
        )
    assert steps[-1] < 8, "of 11 in the epoch"


def test_damaged_training_image_names_its_file(tmp_path: Path) -> None:
    data = make_images(tmp_path / "images")
    for path in (tmp_path / "images" / "dark").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        DataError, match=r"images: 12 of 24 images cannot be used: dark/0\.png cannot be decoded \("
    ):
        train(data, tmp_path / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"train.device: got 'cuda', but PyTorch sees no GPU; set it to 'auto'"):
        train(make_images(tmp_path / "images"), tmp_path / "out", device="cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, r"epochs: got -1, expected 0 or more"),
        ({"batch_size": 1}, r"batch_size: got 1, expected 2 or more"),
        ({"learning_rate": 0.0}, r"learning_rate: got 0.0, expected a positive number"),
        ({"label_smoothing": 1.0}, r"label_smoothing: got 1.0, expected 0 to less than 1"),
        ({"weight_decay": -0.1}, r"weight_decay: got -0.1, expected 0 or more"),
        ({"device": "tpu"}, r"device: got 'tpu', expected 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)
