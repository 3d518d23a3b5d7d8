"""Early stopping: images held out of the training split judge every epoch; the best epoch's weights are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from temper.builder.network.adversarial import percent
from temper.builder.network.perturb import ascend, in_evaluation_mode, uniform_start

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.network.adversarial import AdversarialConfig
    from temper.builder.network.perturb import Forward

_BATCH = 128
_COLLAPSED = 0.5


class Validation:
    """Measures a network after every epoch and remembers the best one.

    The best epoch has the largest robust accuracy in adversarial training, else the largest accuracy; of equals
    it is the latest.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], adversarial: AdversarialConfig | None
    ) -> None:
        """Takes the images.

        Args:
            images: uint8 [N, S, S, 3]; never test images.
            labels: int64 [N].
            adversarial: What is trained against; None leaves the images unperturbed.
        """
        self._images = torch.from_numpy(np.array(images))
        self._labels = torch.from_numpy(np.array(labels))
        self._adversarial = adversarial
        self._history: list[dict[str, Any]] = []
        self._best = 0
        self._weights: dict[str, torch.Tensor] = {}

    def after_epoch(self, network: nn.Module, forward: Forward, device: torch.device) -> None:
        """Measures the network, and keeps its weights when it is the best so far."""
        found: dict[str, Any] = {"epoch": len(self._history) + 1}
        with in_evaluation_mode(network):
            found |= self.measure(forward, device)
        self._history.append(found)
        if self._score(found) >= self._score(self._history[self._best]):
            self._best = len(self._history) - 1
            self._weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def measure(self, forward: Forward, device: torch.device) -> dict[str, float]:
        """Returns what an epoch's entry in the history has, of a network in evaluation mode."""
        budget, count = self._adversarial, {"accuracy": 0, "robust_accuracy": 0, "single_step_accuracy": 0}
        # The same starts after every epoch.
        generator = torch.Generator(device).manual_seed(0)
        for first in range(0, len(self._labels), _BATCH):
            images = self._images[first : first + _BATCH].to(device).float()
            labels = self._labels[first : first + _BATCH].to(device)
            correct = _is_correct(forward, images, labels)
            count["accuracy"] += int(correct.sum())
            images, labels = images[correct], labels[correct]
            if budget is not None and len(images) > 0:
                epsilon, steps = budget.epsilon, budget.validation_steps
                attacked, centre = (forward, images, labels), torch.zeros_like(images)
                start = uniform_start(images, epsilon, generator)
                count["robust_accuracy"] += num_robust(
                    *attacked, start, epsilon=epsilon, step_size=2.5 * epsilon / steps, steps=steps
                )
                count["single_step_accuracy"] += num_robust(
                    *attacked, centre, epsilon=epsilon, step_size=epsilon, steps=1
                )
        names = count if budget is not None else ["accuracy"]
        return {name: count[name] / len(self._labels) for name in names}

    def _score(self, epoch: dict[str, Any]) -> float:
        score: float = epoch.get("robust_accuracy", epoch["accuracy"])
        return score

    def load_best(self, network: nn.Module) -> None:
        """Gives the network the weights of the best epoch."""
        network.load_state_dict(self._weights)

    def info(self) -> dict[str, Any]:
        """Returns the figures, as JSON.

        Returns:
            num_validation, best_epoch (from 1), history: for every epoch its number, accuracy and, in adversarial
            training, robust_accuracy (PGD of `validation_steps`) and single_step_accuracy (FGSM); `warning`, one
            line, when catastrophic overfitting was seen.
        """
        warning = self._warning()
        return {
            "num_validation": len(self._labels),
            "best_epoch": self._best + 1,
            "history": self._history,
            **({"warning": warning} if warning else {}),
        }

    def _warning(self) -> str | None:
        """Says when robustness collapsed against several steps and not against one (Wong et al., 2020)."""
        if self._adversarial is None:
            return None
        best = 0.0
        others = " or ".join(repr(method) for method in ("pgd", "trades") if method != self._adversarial.method)
        for epoch in self._history:
            robust, single = epoch["robust_accuracy"], epoch["single_step_accuracy"]
            if robust < _COLLAPSED * min(best, single):
                return (
                    f"catastrophic overfitting in epoch {epoch['epoch']}: {percent(robust)} of the validation "
                    f"images withstand several steps, after {percent(best)}, and {percent(single)} a single one; "
                    f"the weights of epoch {self._best + 1} are kept; train with method {others}, or with a "
                    "smaller step_size"
                )
            best = max(best, robust)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs."""
        return {"history": self._history, "best": self._best, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self._history, self._best, self._weights = state["history"], state["best"], state["weights"]


def num_robust(
    forward: Forward,
    images: torch.Tensor,
    labels: torch.Tensor,
    start: torch.Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> int:
    """Counts the images that a network in evaluation mode is right on after PGD; see `ascend`."""
    perturbed = ascend(
        lambda pixels: cross_entropy(forward(pixels), labels),
        images,
        start,
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
    )
    return int(_is_correct(forward, perturbed, labels).sum())


@torch.no_grad()
def _is_correct(forward: Forward, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return forward(images).argmax(1) == labels
