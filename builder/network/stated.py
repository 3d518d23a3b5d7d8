"""What weights state about themselves, held against the recipe: order of classes, preprocessing."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.class_names import check_same_order
from temper.builder.data.pixels import PixelsConfig
from temper.builder.errors import ModelError
from temper.builder.network.preprocessing import preprocessing_of, preprocessing_source
from temper.imaging.errors import show
from temper.imaging.folder import name_few

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from temper.builder.network.stage import Setting


def check_order(setting: Setting, names: list[str], own: list[str] | None) -> None:
    """Refuses classes that a network's outputs have in another order, as it says itself.

    Args:
        setting: What the recipe says.
        names: The classes in the order of the recipe's data.
        own: Those in the order of the outputs; None where nothing says it.

    Raises:
        ModelError: They differ, and the recipe has no list of its own.
        DataError: It has one, of the same names in another order.
    """
    if own is None or own == names:
        return
    where = f"{'checkpoint' if setting.model.graph is None else 'ONNX file'} {show(setting.model.weights)}"
    if setting.data.labels is not None:
        check_same_order(where, own, names, setting.data.labels)
        return
    shown = name_few([show(name) for name in own])
    if sorted(own) == sorted(names):
        raise ModelError(
            f"{where}: lists its classes in another order than the data: {shown}; write them into a file, one a "
            'line, and set data.labels = "classes.txt", or let `temper init` do so'
        )
    raise ModelError(
        f"{where}: lists the classes {shown}, the data has {name_few([show(name) for name in names])}; set "
        "data.labels to a file of the data's names in the order of its outputs, one a line"
    )


def warn_of_pixels(setting: Setting, path: Path, timm_args: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Says where `[data]` makes other images than weights that are taken as they are were trained with.

    Args:
        setting: What the recipe says.
        path: The weights.
        timm_args: As `preprocessing_of`.

    Returns:
        A stage's figure `warning`; nothing where they are the same, nothing is stated, or the network is trained.
    """
    if setting.train.epochs or setting.train.head_epochs:
        return {}
    try:
        stated = preprocessing_of(path, timm_args)
    except ModelError:  # what [data] cannot say, the recipe has in another way
        return {}
    if stated is None:
        return {}
    own, given = PixelsConfig(**stated).preprocessing, setting.data.preprocessing
    pairs = {each.name: (getattr(own, each.name), getattr(given, each.name)) for each in fields(own)}
    other = {name: pair for name, pair in pairs.items() if not _is_same(*pair)}
    if not other:
        return {}
    theirs, ours = (", ".join(f"{name} {_say(pair[at])}" for name, pair in other.items()) for at in (0, 1))
    return {
        "warning": f"it was trained with {theirs} ({preprocessing_source(path, timm_args)}), and [data] has {ours}"
    }


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and bool(np.allclose(one, other, 1e-3, 1e-3))
    return bool(one == other)


def _say(value: Any) -> str:
    return "of none" if value is None else str(list(value) if isinstance(value, tuple) else value)
