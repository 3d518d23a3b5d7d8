"""Checkpoints of a training: after every epoch, of all that the next one goes on from."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from temper.builder.network.resnet import save_weights

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


class Part(Protocol):
    """What a checkpoint keeps: the network, its optimiser and whatever else has a state."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, in tensors, numbers and text."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Goes on from a state."""


def save_checkpoint(path: Path, config: Mapping[str, Any], epoch: int, parts: Mapping[str, Part]) -> None:
    """Writes a checkpoint in the place of the one before; a crash leaves one or the other.

    Args:
        path: The file.
        config: What decides the training, as JSON.
        epoch: The number of epochs that are done.
        parts: Whatever has a state, by name.
    """
    content = {"config": config, "epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}
    buffer = io.BytesIO()  # torch.save makes a RuntimeError of a full disk
    torch.save(content, buffer)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(buffer.getbuffer())
    os.replace(temporary, path)


def save_snapshot(network: nn.Module, path: Path) -> None:
    """Writes a network's weights as safetensors; a crash leaves them whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".new")
    save_weights(network, temporary)
    os.replace(temporary, path)


def resume(path: Path, config: Mapping[str, Any], device: torch.device, parts: Mapping[str, Part]) -> int:
    """Gives the parts the state of a checkpoint of the same config; returns the number of epochs that are done."""
    if not path.exists():
        return 0
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return 0  # cut off by a crash of the machine: from the start, then
    if content["config"] != config:
        return 0
    for name, part in parts.items():
        part.load_state_dict(content[name])
    epoch: int = content["epoch"]
    return epoch
