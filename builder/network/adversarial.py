"""What adversarial training is asked for; `perturb.py` does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

Method = Literal["fast", "pgd", "trades", "free"]
_STEPS = {"fast": 1, "pgd": 7, "trades": 10, "free": 1}
# Which method reads which key; the others are for all.
_KEYS = {"steps": ("pgd", "trades"), "beta": ("trades",), "replays": ("free",)}


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """Training on images that are perturbed, within an L∞ ball, to raise the network's own loss."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    method: Method = "fast"
    """`fast`: one step from a random start (Wong et al., 2020). `pgd`: several (Madry et al., 2018). `trades`:
    several that move the answer, and its change is part of the loss (Zhang et al., 2019). `free`: every batch is
    repeated, and a backward pass moves both the weights and the perturbation (Shafahi et al., 2019)."""
    epsilon: float = 8.0
    """The largest change of a value of the uint8 image, in units of 1/255, more than 0 to 255."""
    steps: int | None = None
    """Gradient steps for every batch of `pgd` (7 when not given) and `trades` (10)."""
    step_size: float | None = None
    """Length of such a step, in units of 1/255. When not given: 1.25 epsilon for `fast`, epsilon for `free`, else
    2.5 epsilon over the number of steps."""
    beta: float = 6.0
    """`trades`: weight of the answer's change against the loss on the unperturbed images."""
    replays: int = 4
    """`free`: how often a batch is repeated, each time as a step of training."""
    warmup: float = 0.0
    """Share of the training over which epsilon rises from 0, 0 to 1."""
    validation_steps: int = 10
    """Steps of PGD that the validation images are attacked with after every epoch."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is out of its range, or is not one of the method's.
        """
        if self.method not in _STEPS:
            raise ValueError(f"method: got {self.method!r}, expected one of {', '.join(_STEPS)}")
        if not 0 < self.epsilon <= 255:
            raise ValueError(f"epsilon: got {self.epsilon}, expected more than 0 and at most 255")
        for field in fields(self):
            methods = _KEYS.get(field.name, (self.method,))
            if getattr(self, field.name) != field.default and self.method not in methods:
                wanted = " or ".join(repr(method) for method in methods)
                raise ValueError(f"{field.name}: got it with method {self.method!r}, expected {wanted}")
        for name in ("steps", "replays", "validation_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected 1 or more")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size: got {self.step_size}, expected a positive number")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta: got {self.beta}, expected 0 or more")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup: got {self.warmup}, expected a share from 0 to 1")

    @property
    def num_steps(self) -> int:
        """Gradient steps for every batch."""
        return self.steps or _STEPS[self.method]

    @property
    def relative_step(self) -> float:
        """Length of a step as a share of epsilon."""
        if self.step_size is not None:
            return self.step_size / self.epsilon
        return {"fast": 1.25, "free": 1.0}.get(self.method, 2.5 / self.num_steps)

    def epsilon_at(self, share: float) -> float:
        """Epsilon when a share of the training, 0 to 1, is over."""
        return self.epsilon * min(1.0, share / self.warmup) if self.warmup > 0 else self.epsilon


def describe_training(info: Mapping[str, Any]) -> str:
    """Returns what `train.finetune` gave as one line: the accuracies, what the checkpoint is, a warning."""
    parts = [f"{100 * info['accuracy']:.2f} % of {info['num_images']} test images"]
    if "history" in info:
        best = info["history"][info["best_epoch"] - 1]
        robust = f", {percent(best['robust_accuracy'])} under attack" if "robust_accuracy" in best else ""
        held_out = f"{percent(best['accuracy'])} of {info['num_validation']} held out{robust}"
        parts.append(f"epoch {info['best_epoch']} kept ({held_out})")
    if "checkpoint" in info:
        parts.append(info["checkpoint"])
    return "; ".join([*parts, *([f"warning: {info['warning']}"] if "warning" in info else [])])


def percent(share: float) -> str:
    """Returns a share as text."""
    return f"{100 * share:.1f} %"
