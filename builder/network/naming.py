"""Other libraries' names of a ResNet's weights, and where among them the network begins.

Hugging Face's transformers call a block's parts by their kind and number; `nn.Sequential(*resnet.children())`, as
in many an encoder, leaves numbers in the place of names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from temper.builder.network.head import HEAD

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Modules that torch.compile, FSDP and activation checkpointing put around another."""
_COUNTS = ("total_ops", "total_params")
"""What thop leaves in every module."""
_BODY = re.compile(r"(conv1|bn1|layer[1-4])\.")
_KINDS = {"convolution": "conv", "normalization": "bn"}
_STAGE = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|(shortcut))\.(\w+)\.(\w+)")
_EMBEDDER = re.compile(r"embedder\.embedder\.(\w+)\.(\w+)")
_CHILDREN = ("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Naming:
    """How somebody names a ResNet's weights."""

    anchor: str
    """A weight that every ResNet has, by which its names are found."""
    translate: Callable[[str], str | None]
    """From a name below the network to torchvision's; None for what is not of the body."""


def _torchvision(name: str) -> str | None:
    return name if _BODY.match(name) else None


def _huggingface(name: str) -> str | None:
    if match := _EMBEDDER.fullmatch(name):
        kind, last = match.groups()
        return f"{_KINDS[kind]}1.{last}" if kind in _KINDS else None
    match = _STAGE.fullmatch(name)
    if match is None or match.group(5) not in _KINDS:
        return None
    stage, block, layer, shortcut, kind, last = match.groups()
    where = f"layer{int(stage) + 1}.{block}"
    if shortcut:
        return f"{where}.downsample.{int(kind == 'normalization')}.{last}"
    return f"{where}.{_KINDS[kind]}{int(layer) + 1}.{last}"


def _children(name: str) -> str | None:
    number, _, rest = name.partition(".")
    known = _CHILDREN[int(number)] if number.isdigit() and int(number) < len(_CHILDREN) else ""
    return f"{known}.{rest}" if known else None


_NAMINGS = (
    Naming("layer1.0.conv1.weight", _torchvision),
    Naming("encoder.stages.0.layers.0.layer.0.convolution.weight", _huggingface),
    Naming("4.0.conv1.weight", _children),
)


def find_roots(names: Iterable[str]) -> list[tuple[str, Naming]]:
    """Finds the prefixes below which a ResNet's names begin: `""`, `model.`, `model.backbone.`, ..."""
    return [
        (name.removesuffix(naming.anchor), naming)
        for name in names
        for naming in _NAMINGS
        if name == naming.anchor or name.endswith(f".{naming.anchor}")
    ]


def plain_name(name: str) -> str | None:
    """Returns a weight's name without wrappers; None for what only counts operations."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return None if parts[-1] in _COUNTS else ".".join(parts)


def wrappers_in(names: Iterable[str]) -> tuple[str, ...]:
    """Returns which wrappers' names are among those of weights."""
    parts = {part for name in names for part in name.split(".")}
    return tuple(wrapper for wrapper in _WRAPPERS if wrapper in parts)


def is_head(name: str) -> bool:
    """Whether a name below the network is of torchvision's head."""
    return name.startswith(f"{HEAD}.")
