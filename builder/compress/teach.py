"""Learning from the network before any compression: the loop and the loss of distillation and of training in int8.

The student learns the teacher's softened probabilities (Hinton et al., "Distilling the Knowledge in a Neural
Network", 2015; the loss is ModelOpt's) and, if asked, its last features. Zeros of 2:4 sparsity stay zeros.
In adversarial training the student sees perturbed images and the teacher the unperturbed ones (Goldblum et al.,
"Adversarially Robust Distillation", 2020); in int8 the gradient passes the quantisers straight through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from temper.builder.errors import CompressError
from temper.builder.network.adversarial import AdversarialConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from temper.builder.compress.step import StepContext

_FEATURES = "layer4"
CHECKPOINT_FILE = "taught.pt"
# The student starts near its goal: smaller steps than for a network that starts from nothing.
_RATE_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """How the uncompressed network teaches."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    epochs: int = 3
    """Epochs over the training images."""
    learning_rate: float | None = None
    """The largest learning rate; three tenths of train.learning_rate when not given."""
    temperature: float = 4.0
    """Softens the probabilities of both networks."""
    label_weight: float = 0.1
    """Share of the loss that comes from the labels instead of the teacher, 0 to 1."""
    adversarial: AdversarialConfig | None = None
    """Learn on perturbed images what the teacher answers to the unperturbed ones."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range.
        """
        if self.epochs < 1:
            raise ValueError(f"epochs: got {self.epochs}, expected at least 1")
        for name in ("learning_rate", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value}, expected a positive number")
        if not 0 <= self.label_weight <= 1:
            raise ValueError(f"label_weight: got {self.label_weight}, expected 0 to 1")


def teach(
    network: nn.Module, config: TeachConfig, context: StepContext, *, feature_weight: float = 0.0
) -> dict[str, Any]:
    """Trains a network, in place, to answer as the teacher does; an interrupted run goes on after its last epoch.

    Args:
        network: The student: float32 [N, 3, H, W], normalised, to logits. It comes back on the CPU in evaluation
            mode.
        config: The schedule and the loss.
        context: With the teacher, the training images and the folder of the checkpoint.
        feature_weight: Weight of the squared difference of the last features, over their variance.

    Returns:
        epochs, learning_rate, agreement_before and agreement (with the teacher, on the held-out images),
        num_held_out, num_sparse (layers whose zeros were kept), resumed_epoch; in adversarial training also what
        `temper.builder.network.validate.Validation.info` gives.

    Raises:
        CompressError: The features have a weight, but those of the two networks have different shapes.
        TrainError: There is no such device or not enough memory, or the loss is not finite.
    """
    from temper.builder.compress.sparsify import keep_zeros
    from temper.builder.network.served import Served, predict
    from temper.builder.network.train import pick_device, train_epochs
    from temper.builder.network.validate import Validation

    rate = config.learning_rate or _RATE_SHARE * context.train_config.learning_rate
    schedule = replace(
        context.train_config,
        epochs=config.epochs,
        head_epochs=0,
        learning_rate=rate,
        adversarial=config.adversarial,
    )
    device = pick_device(schedule)
    teacher = Served(context.teacher, mean=context.mean, std=context.std).to(device).eval()
    student = Served(network, mean=context.mean, std=context.std).to(device)
    images, checkpoint = context.held_out[0], context.folder / CHECKPOINT_FILE
    answers = predict(teacher, images).argmax(1)
    before = float((predict(student, images).argmax(1) == answers).mean())
    num_sparse, zero_again = keep_zeros(network)
    after_step = zero_again if num_sparse > 0 else None
    loss = Lesson(teacher, student, config, feature_weight)
    validation = Validation(*context.held_out, config.adversarial) if config.adversarial is not None else None
    resumed = train_epochs(
        student,
        context.train,
        schedule,
        device,
        checkpoint,
        context.progress,
        loss=loss,
        after_step=after_step,
        validation=validation,
    )
    loss.close()
    after = float((predict(student, images).argmax(1) == answers).mean())
    checkpoint.unlink(missing_ok=True)
    context.teacher.cpu()
    network.cpu().eval()
    return {
        "epochs": config.epochs,
        "learning_rate": rate,
        "agreement_before": before,
        "agreement": after,
        "num_held_out": len(images),
        "num_sparse": num_sparse,
        "resumed_epoch": resumed,
        **(validation.info() if validation is not None else {}),
    }


class Lesson:
    """The loss; with features it reads them off both networks as they run."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, config: TeachConfig, feature_weight: float = 0.0
    ) -> None:
        """Starts reading features, if they have a weight.

        Args:
            teacher: The uncompressed network, behind its preprocessing.
            student: The one that learns, likewise.
            config: The loss.
            feature_weight: Weight of the squared difference of the last features, over their variance.
        """
        from temper.builder.quiet import quiet_modelopt

        with quiet_modelopt():
            from modelopt.torch.distill.losses import (  # type: ignore[import-untyped]  # ships none
                LogitsDistillationLoss,
            )

        self._teacher = teacher
        self._config = config
        self._feature_weight = feature_weight
        self._soft = LogitsDistillationLoss(temperature=config.temperature, reduction="batchmean")
        self._features: dict[str, torch.Tensor] = {}
        self._handles = []
        if feature_weight > 0:
            for name, network in (("teacher", teacher), ("student", student)):
                layer = network.get_submodule("model").get_submodule(_FEATURES)
                self._handles.append(layer.register_forward_hook(self._keep(name)))

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            self._features[name] = output

        return hook

    def __call__(self, images: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a batch."""
        import torch
        from torch.nn.functional import cross_entropy

        with torch.no_grad():
            taught = self._teacher(images).float()
        share = self._config.label_weight
        loss: torch.Tensor = (1 - share) * self._soft(logits, taught) + share * cross_entropy(logits, labels)
        return loss + self._feature_loss() if self._handles else loss

    def _feature_loss(self) -> torch.Tensor:
        wanted, found = self._features["teacher"].float(), self._features["student"].float()
        if wanted.shape != found.shape:
            raise CompressError(
                f"distil: feature_weight: the features are {list(found.shape[1:])}, the teacher's "
                f"{list(wanted.shape[1:])}; set it to 0 for a pruned network"
            )
        return self._feature_weight * ((found - wanted) ** 2).mean() / (wanted.var() + 1e-6)

    def close(self) -> None:
        """Stops reading the features."""
        for handle in self._handles:
            handle.remove()
