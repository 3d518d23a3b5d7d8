"""Heads of checkpoints: one linear layer, wherever it stands, or two with a ReLU between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

HEAD = "fc"
"""torchvision's name of the last layer."""
_EXPECTED = (
    "expected one linear layer, or two with a ReLU between them; keep the rest alone and train a new head with "
)


class HeadError(Exception):
    """A head that is none of those that are built here; its text says what it is."""


@dataclass(frozen=True)
class Head:
    """The head of a checkpoint."""

    weights: dict[str, torch.Tensor]
    """Under the names of the module that `new_head` builds."""
    num_classes: int
    """Length of the output."""
    hidden: int | None
    """Width between two layers; None where there is one."""
    note: str
    """What is worth saying about it; may be empty."""


def new_head(num_features: int, hidden: int | None, num_classes: int) -> nn.Module:
    """Builds a head: [N, num_features] to [N, num_classes]."""
    from torch import nn

    if hidden is None:
        return nn.Linear(num_features, num_classes)
    return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes))


def read_head(entries: Mapping[str, torch.Tensor], num_features: int, where: str = HEAD) -> Head:
    """Reads a head from its weights.

    Args:
        entries: By their names below the head: `weight`, `bias`, `1.weight`, ...
        num_features: What the body gives it.
        where: What the head is called; empty where its layers stand alone.

    Raises:
        HeadError: It is no head that can be built.
    """
    layers = _layers(entries)
    widths = [num_features, *(weight.shape[0] for weight, _ in layers.values())]
    read = [weight.shape[1] for weight, _ in layers.values()]
    if read != widths[:-1]:
        found = " and ".join(f"{inputs} to {outputs}" for inputs, outputs in zip(read, widths[1:], strict=True))
        raise HeadError(f"its head takes {found} features, the layers before it give {num_features}")
    names = list(layers)
    place = _join(where, names[0]) if names[0] else where
    if len(layers) == 1:
        weight, bias = layers[names[0]]
        note = "" if place == HEAD else f"head `{place}`"
        if bias is None:  # as an embedding's projection is, too
            note = f"head `{place}` without a bias"
        return Head(_named(HEAD, weight, bias), widths[1], None, note)
    if len(layers) > 2:
        raise HeadError(f"its head has {len(layers)} layers, {_EXPECTED}model.replace_head = true")
    if all(name.isdigit() for name in names) and int(names[1]) == int(names[0]) + 1:
        raise HeadError("its head has two linear layers and nothing between them, expected a ReLU")
    first, last = layers.values()
    weights = {**_named(f"{HEAD}.0", *first), **_named(f"{HEAD}.2", *last)}
    called = f"head `{where}`" if where else "head"
    return Head(weights, widths[2], widths[1], f"{called} of two layers, taken to have a ReLU between")


def _layers(entries: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """The linear layers in the order in which they are run."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in entries)
    layers = {}
    for module in sorted(modules, key=lambda name: int(name) if name.isdigit() else -1):
        inner = {
            name: entries[_join(module, name)] for name in ("weight", "bias") if _join(module, name) in entries
        }
        own = [name for name in entries if name.rpartition(".")[0] == module]
        weight, bias = inner.get("weight"), inner.get("bias")
        if _join(module, "running_mean") in entries:
            raise HeadError(f"its head has a batch normalisation, {_EXPECTED}model.replace_head = true")
        if weight is None or weight.ndim != 2 or len(own) != len(inner):
            odd = next((name for name in own if name.rpartition(".")[2] not in inner), own[0])
            raise HeadError(
                f"its head has {odd} of shape {list(entries[odd].shape)}, {_EXPECTED}model.replace_head = true"
            )
        layers[module] = (weight, bias)
    return layers


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _named(module: str, weight: torch.Tensor, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {
        f"{module}.weight": weight,
        f"{module}.bias": weight.new_zeros(weight.shape[0]) if bias is None else bias,
    }
