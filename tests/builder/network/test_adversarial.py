"""Adversarial training and the options beside it: what is perturbed and how far, what is kept, how it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from temper.builder.data.prepare import hold_out
from temper.builder.data.sources import Source, TrainImages
from temper.builder.network.adversarial import AdversarialConfig, describe_training
from temper.builder.network.average import Average
from temper.builder.network.perturb import Adversary, ascend
from temper.builder.network.served import Served
from temper.builder.network.train import TrainConfig, train_epochs
from temper.builder.network.validate import Validation
from temper.imaging.preprocess import Preprocessing

SIZE = 8
HOW = Preprocessing(height=SIZE, width=SIZE)
CPU = torch.device("cpu")
METHODS = ["fast", "pgd", "trades", "free"]


def make_served() -> Served:
    """Two classes, one convolution with batch normalisation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIZE**2, 2)
    )
    return Served(model, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def make_train(num_images: int = 20) -> TrainImages:
    """Noise around 80 and around 170."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_images) % 2
    pixels = [rng.integers(30, 130, (SIZE, SIZE, 3)) + 90 * label for label in labels]
    images = [Image.fromarray(each.astype(np.uint8)) for each in pixels]
    every = np.arange(num_images)
    return TrainImages(Source(["a", "b"], labels, every, every[:0], HOW, images.__getitem__, True), "none")


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels all over the range, both ends included, and labels."""
    pixels = torch.rand((6, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(1)) * 400 - 70
    return pixels.clamp(0, 255).round().to(torch.uint8), torch.arange(6) % 2


class FromNchw(nn.Module):
    """What ART calls: float [N, 3, S, S] of 0 to 1."""

    def __init__(self, served: nn.Module) -> None:
        """Takes what is called with uint8 images."""
        super().__init__()
        self.served = served

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """PyTorch's hook."""
        logits: torch.Tensor = self.served(images.permute(0, 2, 3, 1) * 255)
        return logits


@pytest.mark.parametrize(("steps", "step_size"), [(1, 10.0), (7, 2.0)], ids=["fast", "pgd"])
def test_perturbed_images_are_those_of_art(steps: int, step_size: float) -> None:
    art = pytest.importorskip("art.estimators.classification")
    attacks = pytest.importorskip("art.attacks.evasion")
    served = make_served().eval()
    images, labels = make_batch()
    centre = images.float()
    drawn = np.random.RandomState(3).uniform(-8 / 255, 8 / 255, (6, 3, SIZE, SIZE))  # noqa: NPY002  # as ART draws
    ours = ascend(
        lambda pixels: cross_entropy(served(pixels), labels),
        centre,
        torch.from_numpy(drawn * 255).float().permute(0, 2, 3, 1),
        epsilon=8.0,
        step_size=step_size,
        steps=steps,
    )
    classifier = art.PyTorchClassifier(
        FromNchw(served),
        nn.CrossEntropyLoss(),
        (3, SIZE, SIZE),
        2,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = attacks.ProjectedGradientDescent(
        classifier, eps=8 / 255, eps_step=step_size / 255, max_iter=steps, num_random_init=1, verbose=False
    )
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    theirs = attack.generate(centre.permute(0, 3, 1, 2).numpy() / 255, y=labels.numpy())
    np.random.set_state(state)  # noqa: NPY002
    assert np.abs(ours.permute(0, 3, 1, 2).numpy() / 255 - theirs).max() < 1e-6
    assert (ours - centre).abs().max() > 7


@pytest.mark.parametrize("method", METHODS)
def test_training_sees_images_within_the_budget(method: Any) -> None:
    served, (images, labels) = make_served().train(), make_batch()
    seen: list[tuple[torch.Tensor, bool]] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((pixels.detach().float(), served.training))
        logits: torch.Tensor = served(pixels)
        return logits

    def loss(unperturbed: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert torch.equal(unperturbed, images.float())
        return cross_entropy(logits, labels)

    steps: dict[str, Any] = {"steps": 3} if method in ("pgd", "trades") else {}
    config = AdversarialConfig(method=method, epsilon=5.0, **steps)
    adversary = Adversary(config, served, forward, loss)
    losses = 0
    for value in adversary.losses(images, labels, 0.5):
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        losses += 1
    assert served.training
    moved = [float((pixels - images).abs().max()) for pixels, _ in seen]
    assert max(moved) == pytest.approx(5.0, abs=1e-4)
    assert all(0 <= pixels.min() and pixels.max() <= 255 for pixels, _ in seen)
    # Each forward pass: whether batch normalisation is in training mode, as the method's paper has it.
    modes = {"fast": [True] * 2, "pgd": [True] * 4, "trades": [False] * 4 + [True] * 2, "free": [True] * 4}
    assert [training for _, training in seen] == modes[method]
    assert losses == (4 if method == "free" else 1)
    if method in ("fast", "pgd"):  # what is trained on costs more than where it started
        assert cross_entropy(served(seen[-1][0]), labels) > cross_entropy(served(seen[0][0]), labels)


def test_epsilon_rises_over_the_warmup() -> None:
    config = AdversarialConfig(epsilon=8.0, warmup=0.5)
    assert [config.epsilon_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [0.0, 4.0, 8.0, 8.0]


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9, "mixup": 0.3, "randaugment": 5, "max_grad_norm": 1.0, "validation": 0.2},
        {"ema": 0.9, "adversarial": AdversarialConfig(warmup=0.5)},
        {"mixup": 0.3, "adversarial": AdversarialConfig(method="trades", steps=2)},
        {"adversarial": AdversarialConfig(method="free")},
    ],
    ids=["plain", "fast", "trades", "free"],
)
def test_resumed_training_gives_the_same_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    config = TrainConfig(epochs=3, batch_size=6, device="cpu", learning_rate=0.01, **options)

    def train(folder: str, stop_at: int = 99) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
        def progress(done: int, total: int) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        served, train = make_served(), make_train()
        train, held_out = hold_out(train, 0.2, 0)
        validation = Validation(*held_out, config.adversarial) if config.validation_share else None
        path = tmp_path / folder
        resumed = train_epochs(served, train, config, CPU, path, progress, validation=validation)
        return resumed, served.state_dict(), validation.info() if validation else {}

    _, whole, history = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("cut", stop_at=3)
    resumed, again, history_again = train("cut")
    assert resumed == 1
    assert history == history_again
    assert len(history["history"]) == 3
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name


def test_average_is_that_of_weights_and_statistics(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=5, device="cpu", ema=0.5, learning_rate=0.05)
    served, states = make_served(), list[dict[str, torch.Tensor]]()
    expected = {name: value.clone() for name, value in served.state_dict().items()}

    def keep() -> None:
        states.append({name: value.clone() for name, value in served.state_dict().items()})

    train_epochs(served, make_train(), config, CPU, tmp_path / "checkpoint", None, after_step=keep)
    assert len(states) == 4
    for step, state in enumerate(states, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in state.items()}
    for name in ("model.0.weight", "model.1.running_mean", "model.1.running_var"):
        assert torch.allclose(served.state_dict()[name], expected[name], atol=1e-6), name
        assert not torch.allclose(served.state_dict()[name], states[-1][name], atol=1e-4), name


def test_average_gives_the_network_back() -> None:
    served = make_served()
    average = Average(served, 0.5)
    with torch.no_grad():
        served.get_submodule("model.0").weight.add_(1)  # type: ignore[operator]  # a parameter
    before = served.get_parameter("model.0.weight").clone()
    with average.in_network():
        assert torch.allclose(served.get_parameter("model.0.weight"), before - 1)
    assert torch.equal(served.get_parameter("model.0.weight"), before)


def test_gradient_is_clipped(tmp_path: Path) -> None:
    """Adam's steps do not depend on a gradient's size, unless it is far below the optimiser's epsilon."""
    served, start = make_served(), make_served()
    config = TrainConfig(epochs=1, batch_size=20, device="cpu", max_grad_norm=1e-12, weight_decay=0.0)
    train_epochs(served, make_train(), config, CPU, tmp_path / "checkpoint", None)
    for name, weight in served.named_parameters():
        assert torch.allclose(weight, start.get_parameter(name), atol=1e-6), name


class Brittle(nn.Module):
    """Says class 0 of every image; with a slope of 1 its gradient is zero at the image itself, and else not."""

    def __init__(self, centre: NDArray[np.uint8]) -> None:
        """Takes the one image."""
        super().__init__()
        self.centre = torch.from_numpy(centre).float()
        self.slope = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """PyTorch's hook."""
        far = torch.relu((images - self.centre).abs() - 2).mean((1, 2, 3))
        return torch.stack([torch.full_like(far, 4.0), self.slope * far], 1)


@pytest.mark.parametrize(("method", "others"), [("fast", "'pgd' or 'trades'"), ("pgd", "'trades'")])
def test_catastrophic_overfitting_is_said_and_the_best_epoch_kept(method: Any, others: str) -> None:
    images = np.full((3, SIZE, SIZE, 3), 100, np.uint8)
    network = Brittle(images[0])
    validation = Validation(images, np.zeros(3, np.int64), AdversarialConfig(method=method, epsilon=8.0))
    for slope in (0.0, 1.0, 1.0):
        network.slope.data.fill_(slope)
        validation.after_epoch(network, network, CPU)
    info = validation.info()
    names = ("accuracy", "robust_accuracy", "single_step_accuracy")
    assert [[epoch[name] for name in names] for epoch in info["history"]] == [[1, 1, 1], [1, 0, 1], [1, 0, 1]]
    assert info["warning"] == (
        "catastrophic overfitting in epoch 2: 0.0 % of the validation images withstand several steps, after "
        "100.0 %, and 100.0 % a single one; the weights of epoch 1 are kept; train with method "
        f"{others}, or with a smaller step_size"
    )
    validation.load_best(network)
    assert (info["best_epoch"], float(network.slope.detach())) == (1, 0.0)
    line = describe_training({"accuracy": 0.5, "num_images": 8, **info})
    assert line.startswith(
        "50.00 % of 8 test images; epoch 1 kept (100.0 % of 3 held out, 100.0 % under attack); warning: "
    )


def test_images_held_out_are_not_trained_on() -> None:
    train = make_train()
    rest, (images, labels) = hold_out(train, 0.25, seed=3)
    assert (len(rest), len(images), len(train)) == (15, 5, 20)
    left = {train.source.read(int(index)).tobytes() for index in rest.source.train}
    assert not left & {image.tobytes() for image in images}
    assert [int(image.mean() > 125) for image in images] == labels.tolist()
    augmented, (again, _) = hold_out(TrainImages(train.source, "shift"), 0.25, seed=3)
    assert (again == images).all()
    assert augmented.augmentation == "shift"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "slow"}, r"method: got 'slow', expected one of fast, pgd, trades, free"),
        ({"epsilon": 0.0}, r"epsilon: got 0.0, expected more than 0 and at most 255"),
        ({"epsilon": 256.0}, r"epsilon: got 256.0, expected more than 0 and at most 255"),
        ({"steps": 3}, r"steps: got it with method 'fast', expected 'pgd' or 'trades'"),
        ({"beta": 3.0}, r"beta: got it with method 'fast', expected 'trades'"),
        ({"method": "pgd", "replays": 8}, r"replays: got it with method 'pgd', expected 'free'"),
        ({"method": "pgd", "steps": 0}, r"steps: got 0, expected 1 or more"),
        ({"method": "trades", "beta": -1.0}, r"beta: got -1.0, expected 0 or more"),
        ({"step_size": 0.0}, r"step_size: got 0.0, expected a positive number"),
        ({"warmup": 2.0}, r"warmup: got 2.0, expected a share from 0 to 1"),
    ],
)
def test_adversarial_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_grad_norm": 0.0}, r"max_grad_norm: got 0.0, expected a positive number"),
        ({"randaugment": 31}, r"randaugment: got 31, expected 0 to 30"),
        ({"mixup": 0.0}, r"mixup: got 0.0, expected a positive number"),
        ({"ema": 1.0}, r"ema: got 1.0, expected 0 to less than 1"),
        ({"validation": 1.0}, r"validation: got 1.0, expected 0 to less than 1"),
        ({"epochs": 0, "adversarial": AdversarialConfig()}, r"adversarial: got it with no epochs, which train"),
    ],
)
def test_option_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)
