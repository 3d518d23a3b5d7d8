"""What a recipe cannot ask of a network that came as an ONNX file: there is no PyTorch network behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from temper.builder.compress.variant import VariantConfig
    from temper.builder.network.train import TrainConfig

_WHY = "model.weights is an ONNX file, which is taken as a graph"


def check_imported(train: TrainConfig, variants: Sequence[VariantConfig]) -> None:
    """Refuses what needs the PyTorch network.

    Raises:
        ValueError: The text begins with the key's path.
    """
    for key in ("epochs", "head_epochs"):
        if (epochs := getattr(train, key)) > 0:
            raise ValueError(f"train.{key}: got {epochs}, expected 0: {_WHY} and cannot be trained")
    for index, variant in enumerate(variants):
        for position, chosen in enumerate(variant.compress):
            step = chosen.step
            if step.works_on == "network" or "training" in step.needs(chosen.config):
                kind = "trains" if step.works_on == "graph" else "changes the PyTorch network"
                raise ValueError(
                    f"variants[{index}].compress[{position}]: got {step.name}, which {kind}, expected steps on "
                    f"the graph, such as quantize or cast: {_WHY}"
                )
