"""The preprocessing that comes with weights: timm's pretrained_cfg or arguments, Hugging Face's processor.

Source: timm's `resolve_data_config` and `transforms_imagenet_eval`, transformers' image processors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temper.builder.data.pixels import PixelsConfig
from temper.builder.errors import ModelError
from temper.builder.network.hub import PREPROCESSOR_FILE, hub_folder, read_hub_config, read_json, read_json_beside
from temper.imaging.errors import show
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS

_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_STANDARD = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
_PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_SCALES = {1 / 255: 1.0, 1.0: 255.0}
# Whose `size`, where it is one number as in older files, is a square, or the shorter side.
_SQUARES = ("Beit", "DeiT", "Pvt", "Segformer", "ViT")
_SHORTER_SIDES = ("Bit", "CLIP", "ChineseCLIP", "Levit", "MobileNetV1", "MobileNetV2")
_LEVIT_FACTOR = 256 / 224
# Keys of PoolFormer, MobileViT and EfficientNet, which do what is not read here.
_OTHERWISE = ("crop_pct", "do_flip_channel_order", "include_top", "rescale_offset")
# From here on ConvNeXt's processor squeezes the whole image.
_CONVNEXT_WHOLE = 384


def preprocessing_of(path: Path, timm_args: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Returns the preprocessing that lies beside weights, or in them, in the keys of a recipe's `[data]`.

    Args:
        path: A hub's folder, or its file of weights.
        timm_args: What timm's training script kept in the weights; see `imported.Checkpoint`.

    Returns:
        preset, image_size (one number, or height and width), resize (of the shorter side, or height and width, or
        `"none"`), interpolation, antialias, upright, scale, mean and std; None where nothing is stated.

    Raises:
        ModelError: A file is damaged, or states what `[data]` cannot; names the key.
    """
    stated = _stated(path, timm_args)
    if stated is None:
        return None
    file, content = stated
    return _as_keys(file, content, is_timms=file.name != PREPROCESSOR_FILE)


def preprocessing_in(file: Path) -> dict[str, Any] | None:
    """Does what `preprocessing_of` does, of one JSON file: timm's, with a pretrained_cfg, or Hugging Face's.

    Raises:
        ModelError: As there.
    """
    content = read_json(file)
    if content is not None and isinstance(own := content.get("pretrained_cfg"), dict):
        return _as_keys(file, own, is_timms=True)
    if content is None or not content.keys() & {"do_resize", "do_normalize", "image_mean", "size"}:
        return None
    return _as_keys(file, content, is_timms=False)


def _as_keys(file: Path, content: Mapping[str, Any], *, is_timms: bool) -> dict[str, Any]:
    try:
        listed = _from_timm(content) if is_timms else _from_huggingface(content)
        keys: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in listed.items()
        }
        PixelsConfig(**keys)
        return keys
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
        reason = show(str(error)[:200])
        raise ModelError(
            f"{show(file)}: states a preprocessing that [data] cannot: {reason}; write [data] by hand"
        ) from error


def preprocessing_source(path: Path, timm_args: Mapping[str, Any] | None = None) -> str:
    """Returns the name of what `preprocessing_of` follows, for a comment; empty where there is none."""
    stated = _stated(path, timm_args)
    if stated is None:
        return ""
    file, content = stated
    if file.name == PREPROCESSOR_FILE:
        kind = content.get("image_processor_type") or content.get("feature_extractor_type") or "its processor"
        return f"{PREPROCESSOR_FILE} of Hugging Face ({show(str(kind)[:60])})"
    if file == path:
        left = " and ".join(left_to_timm(content))
        but = f" ({left}, which it took from timm's table, as usual in timm)" if left else ""
        return show(f"timm's training script in {file.name}: {', '.join(content)}{but}"[:200])
    larger = content.get("test_input_size")
    also = f"; timm also states {'x'.join(map(str, larger))} to test with" if isinstance(larger, list) else ""
    return show(f"pretrained_cfg in timm's {file.name}{also}"[:200])


def left_to_timm(timm_args: Mapping[str, Any]) -> list[str]:
    """Returns what timm's training script, told other things, took from the architecture's settings in timm."""
    named = {"img_size": "input_size", "crop_pct": "crop_pct", "interpolation": "interpolation"}
    return [key for key, other in named.items() if timm_args and not {key, other} & timm_args.keys()]


def _stated(path: Path, timm_args: Mapping[str, Any] | None) -> tuple[Path, Mapping[str, Any]] | None:
    hub = read_hub_config(path)
    own = hub.content.get("pretrained_cfg") if hub is not None else None
    if hub is not None and isinstance(own, dict):
        return hub.path, own
    content = read_json_beside(path, PREPROCESSOR_FILE)
    if content is not None:
        return hub_folder(path) / PREPROCESSOR_FILE, content
    return (path, timm_args) if timm_args else None


def _from_timm(content: Mapping[str, Any]) -> dict[str, Any]:
    side = content.get("img_size") or 224
    _, height, width = content.get("input_size") or (3, side, side)
    crop_pct, mode = content.get("crop_pct") or 0.875, content.get("crop_mode") or "center"
    resized = [math.floor(height / crop_pct), math.floor(width / crop_pct)]
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ValueError(f"crop_mode is {mode!r} at {height} x {width}")
    mean, std = content.get("mean") or _IMAGENET[0], content.get("std") or _IMAGENET[1]
    return {
        "preset": "timm",
        "image_size": height if height == width else [height, width],
        "resize": resized[0] if mode == "center" else resized,
        "interpolation": _one_of("interpolation", content.get("interpolation") or "bicubic", INTERPOLATIONS),
        "antialias": True,
        "upright": False,
        "scale": 1.0,
        "mean": _three(mean),
        "std": _three(std),
    }


def _from_huggingface(content: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    is_convnext = kind.startswith("ConvNext")
    image_size, resize = _convnext_sizes(content) if is_convnext else _sizes(content, kind)
    resample = content.get("resample", 3 if is_convnext else 2)
    scale = 255.0
    if content.get("do_rescale", True):
        factor = content.get("rescale_factor", 1 / 255)
        scale = next((white for known, white in _SCALES.items() if math.isclose(factor, known)), 0.0)
        if not scale:
            raise ValueError(f"rescale_factor is {factor}")
    normalises = content.get("do_normalize", True)
    default = _IMAGENET if is_convnext else _STANDARD
    return {
        "preset": "huggingface",
        "image_size": image_size,
        "resize": resize,
        "interpolation": _one_of("resample", _PILLOW_FILTERS.get(resample, resample), INTERPOLATIONS),
        "antialias": True,
        "upright": True,
        "scale": scale,
        "mean": _three(content.get("image_mean") or default[0]) if normalises else [0.0] * 3,
        "std": _three(content.get("image_std") or default[1]) if normalises else [1.0] * 3,
    }


def _convnext_sizes(content: Mapping[str, Any]) -> tuple[int | list[int], int | list[int] | str]:
    size = content.get("size", _CONVNEXT_WHOLE)
    edge = int(size["shortest_edge"] if isinstance(size, dict) else size)
    if not content.get("do_resize", True):
        raise ValueError("do_resize is false, and nothing says what size remains")
    if edge >= _CONVNEXT_WHOLE:
        return edge, [edge, edge]
    return edge, int(edge / (content.get("crop_pct") or 224 / 256))


def _sizes(content: Mapping[str, Any], kind: str) -> tuple[int | list[int], int | list[int] | str]:
    """Resize and centre crop as the other processors state them: exact, or of the shorter side."""
    name = re.split("ImageProcessor|FeatureExtractor", kind)[0]
    for key in _OTHERWISE:
        if content.get(key):
            raise ValueError(f"{key} is {content[key]} of {kind or 'no processor'}")
    size = content.get("size", None if name in _SHORTER_SIDES else {"height": 224, "width": 224})
    if isinstance(size, int) and name in (*_SQUARES, *_SHORTER_SIDES):
        size = {"shortest_edge": size} if name in _SHORTER_SIDES else {"height": size, "width": size}
    if isinstance(size, dict):
        size = {key: value for key, value in size.items() if value is not None}
    if not isinstance(size, dict) or set(size) not in ({"height", "width"}, {"shortest_edge"}):
        raise ValueError(f"size is {size} of {kind or 'no processor'}")
    exact = _height_width(size) if "height" in size else None
    resize: int | list[int] | str = "none"
    if content.get("do_resize", True):
        resize = exact or int(size["shortest_edge"] * (_LEVIT_FACTOR if name == "Levit" else 1))
    crop = content.get("crop_size", 224 if name in _SHORTER_SIDES else None)
    cropped = _height_width(crop) if content.get("do_center_crop", False) and crop is not None else None
    left = cropped or (exact if resize != "none" else None)
    if left is None:
        raise ValueError("images keep sizes of their own, as nothing is cropped")
    return (left[0] if left[0] == left[1] else left), resize


def _height_width(size: Any) -> list[int]:
    return [int(size["height"]), int(size["width"])] if isinstance(size, dict) else [int(size)] * 2


def _three(values: Any) -> list[float]:
    listed = [float(value) for value in (values if isinstance(values, list | tuple) else [values])]
    if len(listed) not in (1, 3):
        raise ValueError(f"{len(listed)} channels")
    return listed * 3 if len(listed) == 1 else listed


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}")
    return value
