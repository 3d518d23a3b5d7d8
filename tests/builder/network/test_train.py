"""Training: it learns, it resumes to the same weights, and it says what it cannot do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from temper.builder.data.config import DataConfig
from temper.builder.data.prepare import load_train, prepare_data
from temper.builder.errors import DataError, ModelError, TrainError
from temper.builder.network.adversarial import AdversarialConfig
from temper.builder.network.resnet import ModelConfig, build_model
from temper.builder.network.served import Served
from temper.builder.network.stage import Setting, initial_network, open_snapshot
from temper.builder.network.stage_weights import make_weights
from temper.builder.network.train import TrainConfig, finetune, pick_device, train_epochs
from temper.builder.store.artifacts import Artifact
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

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
            model, load_train(data), evaluation, config, folder, progress, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )


# Trains, and kills itself in the middle of the second epoch.
KILLED = """
import os, signal, sys
from pathlib import Path
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD
from temper.builder.data.prepare import DataConfig
sys.path.insert(0, sys.argv[3])
from tests_train import train

def progress(done, total):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

data = DataConfig(source="folder", path=sys.argv[1], image_size=32, augment="shift")
train(data, Path(sys.argv[2]), progress, head_epochs=1, snapshots=9)
"""


def test_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    data = make_images(tmp_path / "images")
    whole = train(data, tmp_path / "whole", head_epochs=1, snapshots=9)
    (tmp_path / "tests_train.py").symlink_to(__file__)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "images"), str(tmp_path / "part"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    assert files_in(tmp_path / "part") == ["checkpoint.pt", "snapshots/epoch-001.safetensors"]
    resumed = train(data, tmp_path / "part", head_epochs=1, snapshots=9)
    assert (whole["resumed_epoch"], resumed["resumed_epoch"]) == (0, 1)
    assert whole["snapshots"] == resumed["snapshots"] == [1, 2, 3]
    kept = [f"snapshots/epoch-00{epoch}.safetensors" for epoch in (1, 2, 3)] + ["weights.safetensors"]
    assert files_in(tmp_path / "part") == kept
    contents = [(tmp_path / "whole" / name).read_bytes() for name in kept]
    assert contents == [(tmp_path / "part" / name).read_bytes() for name in kept]
    assert len(set(contents)) == 4
    # The first epoch trained the head alone.
    first, result = (load_file(tmp_path / "whole" / name) for name in (kept[0], kept[-1]))
    assert changed_from_start(first) == {"fc.weight", "fc.bias"} < changed_from_start(result)


@pytest.mark.parametrize(
    ("head_epochs", "epochs", "snapshots", "expected"),
    [
        (0, 15, None, []),
        (0, 15, 4, [3, 6, 9, 12]),
        (5, 15, 3, [5, 10, 15]),
        (1, 9, 3, [2, 5, 7]),
        (0, 4, 3, [1, 2, 3]),
        (0, 4, 4, [1, 2, 3]),
        (1, 3, 99, [1, 2, 3]),
        (0, 1, 1, []),
        (0, 0, 1, []),
    ],
)
def test_snapshots_lie_evenly(head_epochs: int, epochs: int, snapshots: int | None, expected: list[int]) -> None:
    config = TrainConfig(head_epochs=head_epochs, epochs=epochs, snapshots=snapshots)
    assert config.snapshot_epochs == expected


@pytest.mark.parametrize("ema", [None, 0.9])
def test_snapshot_is_what_would_be_kept(tmp_path: Path, ema: float | None) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1:  # of the one step of every epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_images(tmp_path / "images", 12), tmp_path, stop, batch_size=5, snapshots=2, ema=ema)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    average = checkpoint["model"] if ema is None else checkpoint["average"]["values"]
    snapshot = load_file(tmp_path / "snapshots" / "epoch-001.safetensors")
    assert changed_from_start(snapshot)
    for name, tensor in snapshot.items():
        assert torch.equal(tensor, average[f"model.{name}"]), name


def test_only_a_finetuning_keeps_snapshots(tmp_path: Path) -> None:
    served = Served(build_model(MODEL, 2), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    config = TrainConfig(epochs=2, batch_size=9, device="cpu", snapshots=1)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "checkpoint.pt"
    train_epochs(served, load_train(make_images(tmp_path / "images", 12)), config, torch.device("cpu"), path, None)
    assert files_in(tmp_path / "out") == ["checkpoint.pt"]


def test_networks_along_the_finetuning_are_opened(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 12)
    config = TrainConfig(epochs=3, batch_size=5, device="cpu", snapshots=2, seed=3)
    setting = Setting(data=images, model=MODEL, train=config)
    data = Artifact(tmp_path / "data", "", {}, reused=False)
    data.path.mkdir()
    prepare_data(images, data.path)

    def make(name: str, setting: Setting) -> Artifact:
        (tmp_path / name).mkdir()
        info = make_weights(setting, data, tmp_path / name, lambda done, total: None)
        return Artifact(tmp_path / name, "", info, reused=False)

    weights = make("weights", setting)
    assert weights.info["snapshots"] == [1, 2]
    for epoch in weights.info["snapshots"]:
        network = open_snapshot(setting, data, weights, epoch)
        expected = load_file(weights.path / "snapshots" / f"epoch-00{epoch}.safetensors")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
        assert not network.training
    with pytest.raises(ModelError, match=r"epoch-003\.safetensors.*no such file"):
        open_snapshot(setting, data, weights, 3)
    untrained = make("untrained", replace(setting, train=replace(config, epochs=0)))
    expected = load_file(untrained.path / "weights.safetensors")
    before = torch.random.get_rng_state()
    initial = initial_network(setting, 2).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in initial.items())
    assert untrained.info["snapshots"] == []


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def changed_from_start(weights: dict[str, torch.Tensor]) -> set[str]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = build_model(MODEL, 2).state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, weights[name])}


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
    assert changed_from_start(load_file(tmp_path / "out" / "weights.safetensors")) == {"fc.weight", "fc.bias"}


def test_no_epochs_keep_the_weights(tmp_path: Path) -> None:
    info = train(make_images(tmp_path / "images"), tmp_path / "out", epochs=0)
    assert (info["epochs"], info["head_epochs"]) == (0, 0)
    assert changed_from_start(load_file(tmp_path / "out" / "weights.safetensors")) == set()


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
def test_missing_gpu_is_one_line() -> None:
    with pytest.raises(TrainError, match=r"train.device: got 'cuda', but PyTorch sees no GPU; set it to 'auto'"):
        pick_device(TrainConfig(device="cuda"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, r"epochs: got -1, expected 0 or more"),
        ({"batch_size": 1}, r"batch_size: got 1, expected 2 or more"),
        ({"learning_rate": 0.0}, r"learning_rate: got 0.0, expected a positive number"),
        ({"label_smoothing": 1.0}, r"label_smoothing: got 1.0, expected 0 to less than 1"),
        ({"snapshots": 0}, r"snapshots: got 0, expected 1 or more"),
        ({"weight_decay": -0.1}, r"weight_decay: got -0.1, expected 0 or more"),
        ({"device": "tpu"}, r"device: got 'tpu', expected 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)
