"""Adversarial finetuning as a step: a robust variant beside the one that was finetuned without an attacker."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from temper.builder.compress.step import NetworkStep, StepContext
from temper.builder.network.adversarial import AdversarialConfig, percent

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT_FILE = "adversarial.pt"


@dataclass(frozen=True, kw_only=True)
class AdversarialStepConfig(AdversarialConfig):
    """Finetuning on perturbed images, with what `train` says of the batches, the augmentation and the loss."""

    epochs: int = 10
    """Epochs over the training images."""
    learning_rate: float | None = None
    """The largest learning rate; that of `train` when not given, as robust features are learned anew."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        super().__post_init__()
        if self.epochs < 1:
            raise ValueError(f"epochs: got {self.epochs}, expected at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: got {self.learning_rate}, expected a positive number")

    @property
    def budget(self) -> AdversarialConfig:
        """What of it is not the schedule."""
        return AdversarialConfig(**{field.name: getattr(self, field.name) for field in fields(AdversarialConfig)})


class Adversarial(NetworkStep[AdversarialStepConfig]):
    """Finetunes on perturbed images."""

    name = "adversarial"
    about = "Finetune on perturbed images, before a network is made smaller or to recover robustness afterwards."
    config = AdversarialStepConfig
    place = 5
    repeats = True
    may_begin = True
    gain = "robustness"

    def libraries(self, config: AdversarialStepConfig) -> tuple[str, ...]:
        """PyTorch alone trains."""
        return ("torch", "torchvision")

    def label(self, config: AdversarialStepConfig) -> str:
        """Says how."""
        return f"{config.method} adversarial training"

    def note(self, info: dict[str, Any]) -> str:
        """The robust accuracies, and a warning if there is one."""
        return f"{info['note']}; warning: {info['warning']}" if "warning" in info else str(info["note"])

    def run(
        self, network: nn.Module, config: AdversarialStepConfig, context: StepContext
    ) -> tuple[nn.Module, dict[str, Any]]:
        """See `run_adversarial`."""
        return run_adversarial(network, config, context)


STEP = Adversarial()


def run_adversarial(
    network: nn.Module, config: AdversarialStepConfig, context: StepContext
) -> tuple[nn.Module, dict[str, Any]]:
    """Finetunes a network in place; the weights of the epoch with the best robust accuracy are kept.

    An interrupted run goes on after its last epoch, with the same result as one that was not interrupted. Zeros of
    2:4 sparsity stay zeros.

    Args:
        network: Float32 [N, 3, H, W], normalised, to logits.
        config: The method, its budget and the schedule.
        context: With the training images, those held out to judge the epochs by, and the folder of the checkpoint.
            The finetuning may have seen the latter.

    Returns:
        The network, on the CPU in evaluation mode, and: method, epsilon, epochs, learning_rate, before (accuracy,
        robust_accuracy and single_step_accuracy on the held-out images), num_sparse, resumed_epoch, note, and what
        `temper.builder.network.validate.Validation.info` gives.

    Raises:
        TrainError: There is no such device or not enough memory, or the loss is not finite.
    """
    from temper.builder.compress.sparsify import keep_zeros
    from temper.builder.network.served import Served
    from temper.builder.network.train import pick_device, train_epochs
    from temper.builder.network.validate import Validation

    rate = config.learning_rate or context.train_config.learning_rate
    schedule = replace(
        context.train_config, epochs=config.epochs, head_epochs=0, learning_rate=rate, adversarial=config.budget
    )
    device = pick_device(schedule)
    served = Served(network, mean=context.mean, std=context.std).to(device).eval()
    validation = Validation(*context.held_out, schedule.adversarial)
    before = validation.measure(served, device)
    num_sparse, zero_again = keep_zeros(network)
    checkpoint = context.folder / CHECKPOINT_FILE
    resumed = train_epochs(
        served,
        context.train,
        schedule,
        device,
        checkpoint,
        context.progress,
        after_step=zero_again if num_sparse > 0 else None,
        validation=validation,
    )
    checkpoint.unlink(missing_ok=True)
    network.cpu().eval()
    judged = validation.info()
    after = judged["history"][judged["best_epoch"] - 1]
    return network, {
        "method": config.method,
        "epsilon": config.epsilon,
        "epochs": config.epochs,
        "learning_rate": rate,
        "before": before,
        "num_sparse": num_sparse,
        "resumed_epoch": resumed,
        **judged,
        "note": f"{percent(after['robust_accuracy'])} of {judged['num_validation']} held-out images withstand "
        f"epsilon {config.epsilon:g}, before {percent(before['robust_accuracy'])}",
    }
