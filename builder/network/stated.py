"""What weights state about themselves, held against the recipe: order of classes, preprocessing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from temper.builder.class_names import check_same_order
from temper.builder.data.pixels import PixelsConfig
from temper.builder.errors import ModelError
from temper.builder.network.preprocessing import left_to_timm, preprocessing_of, preprocessing_source
from temper.imaging.errors import show
from temper.imaging.folder import name_few

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from temper.builder.network.stage import Setting
    from temper.imaging.preprocess import Preprocessing

# What follows from an argument of timm's script that was left to timm.
_OF_TIMM = {
    "img_size": ("height", "width", "resize"),
    "crop_pct": ("resize",),
    "interpolation": ("interpolation",),
}


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
    """Says where `[data]` makes other images than weights that are taken as they are state.

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
        beside = preprocessing_of(path)
        stated = beside or preprocessing_of(path, timm_args)
    except ModelError:  # what [data] cannot say, the recipe has in another way
        return {}
    if stated is None:
        return {}
    guessed = {key for left in left_to_timm({} if beside else timm_args or {}) for key in _OF_TIMM[left]}
    own, given = (_plain(each) for each in (PixelsConfig(**stated).preprocessing, setting.data.preprocessing))
    other = [key for key in own if key not in guessed and not _is_same(own[key], given[key])]
    if not other:
        return {}
    theirs, ours = (", ".join(f"{key} {_say(each[key])}" for key in other) for each in (own, given))
    return {"warning": f"the weights state {theirs} ({preprocessing_source(path, timm_args)}), [data] has {ours}"}


def _plain(how: Preprocessing) -> dict[str, Any]:
    """What tells one from another: not a scale, which mean and std can hold, nor how half a pixel is rounded."""
    mean, std = how.normalization
    keys = ("height", "width", "resize", "interpolation", "antialias", "upright", "colour")
    return {**{key: getattr(how, key) for key in keys}, "mean": mean, "std": std}


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and bool(np.allclose(one, other, 1e-3, 1e-3))
    return bool(one == other)


def _say(value: Any) -> str:
    if isinstance(value, tuple):
        return str([round(each, 6) for each in value])
    return "to cover" if value is None else str(value)
