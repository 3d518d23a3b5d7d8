"""Transfer learning: the head alone, then all layers; interrupted training goes on where it was.

Every epoch draws its random numbers from the seed and its own number, so a run that was killed and resumed gives
the same weights as one that was not (on the same machine: other hardware rounds differently).

Over 500 lines, of which a third is the config with its texts and checks; the loop needs the rest at hand.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from temper.builder.contract import SNAPSHOT_FILE, WEIGHTS_FILE
from temper.builder.errors import DataError, TrainError
from temper.builder.network.adversarial import AdversarialConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.data import DataLoader

    from temper.builder.data.sources import TrainImages
    from temper.builder.network.average import Average
    from temper.builder.network.checkpoint import Part
    from temper.builder.network.validate import Validation

CHECKPOINT_FILE = "checkpoint.pt"

Progress = Callable[[int, int], None]
Loss = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Takes pixels [N, S, S, 3] of 0 to 255, float32 logits [N, classes] and labels, int64 [N] or, of mixed images,
probabilities [N, classes]; returns a scalar."""
_Losses = Callable[["torch.Tensor", "torch.Tensor", float], Iterator["torch.Tensor"]]
"""Takes images and labels on the device and the share of the training that is over; yields a loss for every step
of the optimiser, each after the backward pass of the one before."""
_WARMUP_SHARE = 0.1
_MAX_WORKERS = 8
_MAX_MAGNITUDE = 30
_VALIDATION_SHARE = 0.1
# Steps between two looks at the loss: a look waits for the device, which else is given a step before one is done.
_LOOK_EVERY = 32


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is finetuned: AdamW, a short warm-up, then a cosine to zero."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    head_epochs: int = 0
    """Epochs that train the head alone, before the others."""
    epochs: int = 15
    """Epochs that train every layer; 0 with 0 `head_epochs` takes the weights as they are."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 1e-3
    """The largest learning rate of either phase."""
    weight_decay: float = 0.05
    """AdamW's, for weights of two or more dimensions."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    max_grad_norm: float | None = None
    """The largest L2 norm of a step's gradient, to which a larger one is scaled."""
    randaugment: int | None = None
    """RandAugment's magnitude, 0 to 30: two random operations on an image, after the data's own augmentation."""
    mixup: float | None = None
    """mixup's alpha: images are blended in pairs, and their labels, with a share from Beta(alpha, alpha)."""
    ema: float | None = None
    """Decay of the moving average of the weights and of batch normalisation's statistics, which is what is kept;
    smaller in the first steps."""
    adversarial: AdversarialConfig | None = None
    """Train on perturbed images."""
    validation: float | None = None
    """Share of the training images, at most 1000 of them, held out to choose the epoch whose weights are kept. Not
    given: 0.1 in adversarial training, else none, and the last epoch is kept."""
    snapshots: int | None = None
    """Networks along the finetuning, evenly over all its epochs, that are kept to look at later; that after the
    last epoch is none of them."""
    seed: int = 0
    """Decides the order, the augmentation and a new head."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU when PyTorch sees one."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        for name, low in (("head_epochs", 0), ("epochs", 0), ("batch_size", 2), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected {low} or more")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: got {self.learning_rate}, expected a positive number")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: got {self.weight_decay}, expected 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}, expected 0 to less than 1")
        self._check_options()
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: got {self.device!r}, expected 'auto', 'cpu' or 'cuda'")

    def _check_options(self) -> None:
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise ValueError(f"max_grad_norm: got {self.max_grad_norm}, expected a positive number")
        if self.randaugment is not None and not 0 <= self.randaugment <= _MAX_MAGNITUDE:
            raise ValueError(f"randaugment: got {self.randaugment}, expected 0 to {_MAX_MAGNITUDE}")
        if self.snapshots is not None and self.snapshots < 1:
            raise ValueError(f"snapshots: got {self.snapshots}, expected 1 or more")
        if self.mixup is not None and not 0 < self.mixup < math.inf:
            raise ValueError(f"mixup: got {self.mixup}, expected a positive number")
        for name in ("ema", "validation"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name}: got {value}, expected 0 to less than 1")
        if self.adversarial is not None and self.head_epochs + self.epochs == 0:
            raise ValueError(
                "adversarial: got it with no epochs, which train nothing; leave it out, or set epochs"
            )

    @property
    def validation_share(self) -> float:
        """Share of the training images that is held out."""
        if self.validation is None:
            return 0.0 if self.adversarial is None else _VALIDATION_SHARE
        return self.validation

    @property
    def snapshot_epochs(self) -> list[int]:
        """After which epochs, from 1, the finetuning keeps a snapshot."""
        epochs = self.head_epochs + self.epochs
        count = min(self.snapshots or 0, epochs - 1)
        return [number * epochs // (count + 1) for number in range(1, count + 1)]


@dataclass
class _State:
    """What a step changes."""

    served: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    loss: Loss
    after_step: Callable[[], None] | None = None
    average: Average | None = None
    validation: Validation | None = None
    after_epoch: Callable[[int], None] | None = None
    losses: _Losses | None = None
    """Of the epoch's batches; the plain loss when not given."""
    step: int = 0
    total_loss: torch.Tensor | None = None
    """Of the steps since the last look at it, on the device."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the float32 logits of pixels [N, S, S, 3] of 0 to 255."""
        import torch

        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=_autocasts(self.device)):
            logits: torch.Tensor = self.served(images)
        return logits.float()

    def plain_losses(self, images: torch.Tensor, labels: torch.Tensor, share: float) -> Iterator[torch.Tensor]:
        """The one loss of images as they are."""
        yield self.loss(images, self.forward(images), labels)


def finetune(
    model: nn.Module,
    train: TrainImages,
    evaluation: tuple[NDArray[np.uint8], NDArray[np.int64]],
    config: TrainConfig,
    folder: Path,
    progress: Progress | None = None,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> dict[str, Any]:
    """Trains a model in place, writes weights.safetensors, and measures it on images that it has not seen.

    The weights of the last epoch are kept, or those of the best one on images held out of the training split; none
    is picked by its accuracy on the evaluation images.

    Args:
        model: Takes float32 [N, 3, S, S], normalised. It comes back on the CPU in evaluation mode.
        train: The training split.
        evaluation: uint8 [N, S, S, 3] and int64 [N].
        config: The schedule.
        folder: Receives weights.safetensors, and snapshots/epoch-001.safetensors and so on, if any are asked for;
            checkpoint.pt in it is where an interrupted run goes on.
        progress: Called with (steps done, steps in all).
        mean: Mean per channel, RGB, on a scale of 0 to 1.
        std: Standard deviation per channel, RGB, on a scale of 0 to 1.

    Returns:
        accuracy, num_images, num_train, epochs, head_epochs, snapshots (their epochs, from 1), device, precision,
        seconds (of this run), resumed_epoch; with images held out also what `Validation.info` gives.

    Raises:
        TrainError: There are too few images, no such device or not enough memory, or the loss is not finite.
        DataError: A training image cannot be decoded.
    """
    from temper.builder.data.prepare import hold_out
    from temper.builder.network.checkpoint import save_snapshot
    from temper.builder.network.resnet import save_weights
    from temper.builder.network.served import Served, predict
    from temper.builder.network.validate import Validation

    device = pick_device(config)
    started = time.monotonic()
    served = Served(model, mean=mean, std=std).to(device)
    resumed, validation = 0, None
    if config.head_epochs + config.epochs > 0:
        if config.validation_share > 0:
            train, held_out = hold_out(train, config.validation_share, config.seed)
            validation = Validation(*held_out, config.adversarial)

        def keep(epoch: int) -> None:
            if epoch in config.snapshot_epochs:
                save_snapshot(model, folder / SNAPSHOT_FILE.format(epoch))

        checkpoint = folder / CHECKPOINT_FILE
        resumed = train_epochs(
            served, train, config, device, checkpoint, progress, validation=validation, after_epoch=keep
        )
    correct = predict(served, evaluation[0]).argmax(1) == evaluation[1]
    model.cpu().eval()
    save_weights(model, folder / WEIGHTS_FILE)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return {
        "accuracy": float(correct.mean()),
        "num_images": len(correct),
        "num_train": len(train),
        "epochs": config.epochs,
        "head_epochs": config.head_epochs,
        "snapshots": config.snapshot_epochs,
        "device": device.type,
        "precision": "bf16" if _autocasts(device) else "f32",
        "seconds": round(time.monotonic() - started, 2),
        "resumed_epoch": resumed,
        **(validation.info() if validation is not None else {}),
    }


def pick_device(config: TrainConfig) -> torch.device:
    """Returns the device to train on.

    Raises:
        TrainError: The config asks for a GPU that PyTorch does not see.
    """
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainError("train.device: got 'cuda', but PyTorch sees no GPU; set it to 'auto'")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _autocasts(device: torch.device) -> bool:
    """Returns True where bfloat16 pays: on 2 cores with AVX512-BF16 it was between 0.5 and 1.3 times as fast."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def train_epochs(
    served: nn.Module,
    train: TrainImages,
    config: TrainConfig,
    device: torch.device,
    checkpoint: Path,
    progress: Progress | None,
    *,
    loss: Loss | None = None,
    after_step: Callable[[], None] | None = None,
    validation: Validation | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> int:
    """Trains a module in place for the epochs of a config; an interrupted run goes on after its last epoch.

    Args:
        served: Takes uint8 [N, S, S, 3], on the device.
        train: The training split.
        config: The schedule.
        device: From `pick_device`.
        checkpoint: Written after every epoch, and read when it is there; the caller removes it at the end.
        progress: Called with (steps done, steps in all).
        loss: What is made small; cross entropy with the labels when not given.
        after_step: Called after every step, for example to keep zeros at zero.
        validation: Judges every epoch; the weights of the best one are kept. None keeps the last.
        after_epoch: Called after every epoch with its number, from 1, while the module has the weights that would
            be kept if it were the last; an interrupted run may call it again for the epoch that it does again.

    Returns:
        The number of epochs that an earlier run had done.

    Raises:
        TrainError: There are too few images or not enough memory, or the loss is not finite.
        DataError: A training image cannot be decoded.
    """
    import torch

    try:
        return _train(
            served, train, config, device, checkpoint, progress, loss, after_step, validation, after_epoch
        )
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"training: {device} has no memory for a batch of {config.batch_size}; make train.batch_size smaller"
        ) from error


def _train(
    served: nn.Module,
    train: TrainImages,
    config: TrainConfig,
    device: torch.device,
    checkpoint: Path,
    progress: Progress | None,
    loss: Loss | None,
    after_step: Callable[[], None] | None,
    validation: Validation | None,
    after_epoch: Callable[[int], None] | None,
) -> int:
    import torch

    from temper.builder.network.average import Average
    from temper.builder.network.checkpoint import resume, save_checkpoint

    if len(train) < 2:
        raise TrainError(f"training: got {len(train)} images, expected at least two")
    if device.type == "cuda":  # on a CPU it was between 0.6 and 1 times as fast
        served.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks this form
    average = Average(served, config.ema) if config.ema is not None else None
    loss = loss or _cross_entropy(config)
    optimizer = _new_optimizer(served, config)
    state = _State(served, optimizer, device, loss, after_step, average, validation, after_epoch)
    first = resume(checkpoint, asdict(config), device, _parts(state))
    epochs = config.head_epochs + config.epochs
    num_steps = len(_loader(train, config, device, 0))
    for epoch in range(first, epochs):
        if epoch == config.head_epochs and epoch > 0:
            state.optimizer = _new_optimizer(served, config)  # the head's moments are not those of all layers
        state.step = epoch * num_steps
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        state.losses = _new_losses(state, config, len(train.source.class_names))
        for images, labels in _batches(train, config, device, epoch):
            if progress is not None:
                progress(state.step, epochs * num_steps)
            _step(state, images, labels, config, num_steps)
            if state.step % _LOOK_EVERY == 0:
                _check_loss(state, epoch)
        _end_epoch(state, epoch)
        save_checkpoint(checkpoint, asdict(config), epoch + 1, _parts(state))
    _load_kept(state)
    if progress is not None:
        progress(epochs * num_steps, epochs * num_steps)
    return first


def _loader(
    train: TrainImages, config: TrainConfig, device: torch.device, epoch: int
) -> DataLoader[tuple[torch.Tensor, int]]:
    import torch
    from torch.utils.data import DataLoader

    from temper.builder.network.augment import RandAugmented

    return DataLoader(
        train if config.randaugment is None else RandAugmented(train, config.randaugment),
        batch_size=config.batch_size,
        shuffle=True,
        # A last batch of one image has no variance to normalise by.
        drop_last=len(train) >= config.batch_size,
        num_workers=0 if train.source.in_memory else min(_MAX_WORKERS, os.cpu_count() or 1),
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch),
    )


def _batches(
    train: TrainImages, config: TrainConfig, device: torch.device, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    try:
        yield from _loader(train, config, device, epoch)
    except DataError as error:
        # A loading process hands its error over with its whole traceback; the message is the last line.
        message = str(error).strip().splitlines()[-1]
        raise DataError(message.removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")) from None


def _new_optimizer(served: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    import torch

    weights = [parameter for parameter in served.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in served.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Returns the rate of a step: each phase warms up over a tenth and then follows a cosine to zero."""
    first, last = 0, config.head_epochs * num_steps
    if step >= last:
        first, last = last, last + config.epochs * num_steps
    share = (step - first + 1) / (last - first)
    if share < _WARMUP_SHARE:
        return config.learning_rate * share / _WARMUP_SHARE
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (share - _WARMUP_SHARE) / (1 - _WARMUP_SHARE)))


def _new_losses(state: _State, config: TrainConfig, num_classes: int) -> _Losses:
    """Returns what makes the losses of one epoch; it knows nothing of the epoch before, maybe of another run."""
    from temper.builder.network.augment import mix
    from temper.builder.network.perturb import Adversary

    losses = state.plain_losses
    if config.adversarial is not None:
        losses = Adversary(config.adversarial, state.served, state.forward, state.loss).losses

    def mixed(images: torch.Tensor, labels: torch.Tensor, share: float) -> Iterator[torch.Tensor]:
        assert config.mixup is not None, "else nothing is mixed"
        yield from losses(*mix(images, labels, alpha=config.mixup, num_classes=num_classes), share)

    return losses if config.mixup is None else mixed


def _step(state: _State, images: torch.Tensor, labels: torch.Tensor, config: TrainConfig, num_steps: int) -> None:
    """Takes one batch, in as many steps of the optimiser as there are losses."""
    import torch

    _set_phase(state.served, state.step < config.head_epochs * num_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = _learning_rate(state.step, num_steps, config)
    images = images.to(state.device, non_blocking=True)
    labels = labels.to(state.device, non_blocking=True)
    share = state.step / ((config.head_epochs + config.epochs) * num_steps)
    for loss in (state.losses or state.plain_losses)(images, labels, share):
        state.total_loss = loss.detach() if state.total_loss is None else state.total_loss + loss.detach()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.served.parameters(), config.max_grad_norm)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.after_step is not None:
            state.after_step()
        if state.average is not None:
            state.average.update()
    state.step += 1


def _end_epoch(state: _State, epoch: int) -> None:
    """Looks at the loss, judges the network and hands it on; of a moving average, that one."""
    _check_loss(state, epoch)
    if state.validation is not None or state.after_epoch is not None:
        with state.average.in_network() if state.average is not None else nullcontext():
            if state.validation is not None:
                state.validation.after_epoch(state.served, state.forward, state.device)
            if state.after_epoch is not None:
                state.after_epoch(epoch + 1)


def _load_kept(state: _State) -> None:
    """Gives the network the weights that are kept, if they are not those of the last step."""
    if state.validation is not None:
        state.validation.load_best(state.served)
    elif state.average is not None:
        state.average.load_into_network()


def _check_loss(state: _State, epoch: int) -> None:
    """Refuses a loss that is not finite; a sum keeps what one of its terms was."""
    if state.total_loss is not None and not math.isfinite(value := state.total_loss.item()):
        raise TrainError(f"training: the loss is {value} in epoch {epoch + 1}; make train.learning_rate smaller")
    state.total_loss = None


def _cross_entropy(config: TrainConfig) -> Loss:
    from torch.nn.functional import cross_entropy

    return lambda images, logits, labels: cross_entropy(logits, labels, label_smoothing=config.label_smoothing)


def _set_phase(served: nn.Module, head_only: bool) -> None:
    """Freezes all but the head, its running statistics too, or sets every layer free."""
    from temper.builder.network.resnet import head_of

    served.train(not head_only)
    served.requires_grad_(not head_only)
    if head_only:
        head_of(served.get_submodule("model")).requires_grad_(True).train()


def _parts(state: _State) -> dict[str, Part]:
    """What a checkpoint keeps: all that the next epoch starts from."""
    parts: dict[str, Part | None] = {
        "model": state.served,
        "optimizer": state.optimizer,
        "average": state.average,
        "validation": state.validation,
    }
    return {name: part for name, part in parts.items() if part is not None}
