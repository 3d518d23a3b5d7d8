"""How images are prepared, as a user states it: a preset, a recipe, a library's own file, or keys of `[data]`."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from temper.client.model import ModelInfo
from temper.imaging.errors import show
from temper.run.diagnose.errors import DiagnoseError
from temper.run.diagnose.pipeline import IMAGENET, INTERPOLATIONS, Pipeline

Fields = dict[str, Any]
PRESETS = ("torchvision", "timm", "huggingface")
DEFAULT_SIZE = 224
_KEYS = ("image_size", "resize", "interpolation", "antialias", "upright", "colour", "scale", "mean", "std")
_PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box")
_EXPECTED = (
    f"{', '.join(PRESETS)}, a recipe (.toml), a preprocessor_config.json, or keys of [data] such as "
    "'resize = 256, mean = [0.5, 0.5, 0.5]'"
)


def read_fields(texts: Sequence[str]) -> Fields:
    """Reads what a user states; later texts win.

    Raises:
        DiagnoseError: A text is none of what is expected.
        RecipeError: A recipe cannot be read.
    """
    fields: Fields = {}
    for text in texts:
        if text in PRESETS:
            fields["preset"] = text
        elif text.endswith(".toml"):
            fields |= _of_recipe(Path(text))
        elif text.endswith(".json"):
            fields |= fields_of_json(Path(text))
        else:
            fields |= _of_keys(text)
    return fields


def _of_recipe(path: Path) -> Fields:
    from temper.run.recipe import load_recipe

    how = load_recipe(path).data.preprocessing
    return {**asdict(how), "image_size": [how.height, how.width], "resize": how.resize or "cover"}


def _of_keys(text: str) -> Fields:
    try:
        fields: Fields = tomllib.loads(f"keys = {{{text}}}")["keys"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise DiagnoseError(f"preprocessing: got {show(text)}, expected {_EXPECTED}") from error
    if unknown := [key for key in fields if key not in _KEYS]:
        raise DiagnoseError(f"preprocessing: got the key {show(unknown[0])}, expected some of {', '.join(_KEYS)}")
    return fields


def fields_of_checkpoint(weights: Path) -> Fields:
    """What lies beside a checkpoint: transformers' preprocessor_config.json or timm's config.json; or nothing."""
    folder = weights if weights.is_dir() else weights.parent
    for name in ("preprocessor_config.json", "config.json"):
        if (folder / name).is_file():
            try:
                return fields_of_json(folder / name)
            except DiagnoseError:
                continue  # a config.json of something else
    return {}


def fields_of_server(info: ModelInfo) -> Fields:
    """What the served model itself says: of Temper's own the way in which every client of ours prepares images."""
    is_ours = info.input_dtype == "UINT8" and info.input_name == "image" and info.output_name == "logits"
    return {"resize": "cover", "interpolation": "bilinear", "antialias": True} if is_ours else {}


def fields_of_json(path: Path) -> Fields:
    """Reads transformers' preprocessor_config.json, or timm's config.json with its pretrained_cfg.

    Raises:
        DiagnoseError: It is neither.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DiagnoseError(f"{show(path)}: cannot be read as JSON, expected {_EXPECTED}") from error
    if isinstance(content, dict):
        for read, key in ((_of_timm, "pretrained_cfg"), (_of_huggingface, "size")):
            if isinstance(content.get(key), dict):
                try:
                    return read(content)
                except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                    raise DiagnoseError(
                        f"{show(path)}: {key} is none that is known, expected {_EXPECTED}"
                    ) from error
    raise DiagnoseError(f"{show(path)}: holds neither size nor pretrained_cfg, expected {_EXPECTED}")


def _of_timm(content: Mapping[str, Any]) -> Fields:
    given = content["pretrained_cfg"]
    size = int(given["input_size"][-1])
    return {
        "image_size": size,
        "resize": math.floor(size / float(given.get("crop_pct") or 0.875)),
        "interpolation": str(given.get("interpolation", "bicubic")),
        "mean": given["mean"],
        "std": given["std"],
    }


def _of_huggingface(content: Mapping[str, Any]) -> Fields:
    size = content["size"]
    fields: Fields = {"interpolation": _PILLOW[int(content.get("resample", 2))]}
    if "height" in size:
        fields |= {"image_size": [size["height"], size["width"]], "resize": [size["height"], size["width"]]}
    elif "crop_pct" in content:  # ConvNext's processor, which ResNets have
        side = int(size["shortest_edge"])
        is_cropped = side < 384
        fields |= {"image_size": side, "resize": int(side / content["crop_pct"]) if is_cropped else [side, side]}
    else:
        fields |= {"image_size": int(size["shortest_edge"]), "resize": int(size["shortest_edge"])}
    if content.get("do_center_crop") and isinstance(crop := content.get("crop_size"), dict):
        fields["image_size"] = [crop["height"], crop["width"]]
    if not content.get("do_resize", True):
        fields["resize"] = "none"
    if not content.get("do_rescale", True):
        fields["scale"] = 255.0
    if content.get("do_normalize", True):
        return fields | {
            "mean": content.get("image_mean", IMAGENET[0]),
            "std": content.get("image_std", IMAGENET[1]),
        }
    return fields | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def make_pipeline(fields: Fields, size: tuple[int, int] | None) -> Pipeline:
    """Makes a pipeline of what was stated; torchvision's is what was not.

    Args:
        fields: Of `read_fields`.
        size: Height and width that the server takes, where they are fixed.

    Raises:
        DiagnoseError: A value is none of what its key allows, or the size is another than the server's.
    """
    stated = fields.get("image_size")
    pair = [stated, stated] if isinstance(stated, int) else stated
    height, width = _checked("image_size", _is_size, pair or size or (DEFAULT_SIZE, DEFAULT_SIZE))
    if size is not None and (height, width) != tuple(size):
        raise DiagnoseError(
            f"image_size: got {height} x {width}, and the server takes {size[0]} x {size[1]}; state what it takes"
        )
    values = {**_preset(fields.get("preset", "torchvision"), min(height, width)), **fields}
    resize = values["resize"]
    return Pipeline(
        height=int(height),
        width=int(width),
        resize=_checked("resize", _is_resize, tuple(resize) if isinstance(resize, list) else resize),
        interpolation=_checked("interpolation", lambda value: value in INTERPOLATIONS, values["interpolation"]),
        antialias=_checked("antialias", _is_bool, values.get("antialias", True)),
        upright=_checked("upright", _is_bool, values.get("upright", True)),
        colour=_checked("colour", lambda value: value in ("rgb", "bgr"), values.get("colour", "rgb")),
        scale=float(_checked("scale", _is_positive, values.get("scale", 1.0))),
        mean=_triple("mean", values.get("mean", IMAGENET[0]), _is_number),
        std=_triple("std", values.get("std", IMAGENET[1]), _is_positive),
    )


def _preset(name: str, side: int) -> Fields:
    if name == "torchvision":
        return {"resize": side * 256 // DEFAULT_SIZE, "interpolation": "bilinear"}
    return {"resize": math.floor(side / 0.875), "interpolation": "bicubic"}


def _checked(key: str, is_right: Callable[[Any], bool], value: Any) -> Any:
    if not is_right(value):
        expected = {
            "resize": 'an integer, [height, width], "cover", "pad" or "none"',
            "image_size": "pixels, or [height, width]",
            "interpolation": ", ".join(INTERPOLATIONS),
            "colour": '"rgb" or "bgr"',
            "mean": "three numbers",
            "std": "three numbers above 0",
            "scale": "a number above 0",
        }.get(key, "true or false")
        raise DiagnoseError(f"{key}: got {show(repr(value))}, expected {expected}")
    return value


def _triple(key: str, value: Any, is_right: Callable[[Any], bool]) -> Any:
    values = _checked(key, lambda found: isinstance(found, (list, tuple)) and len(found) == 3, value)
    return tuple(float(_checked(key, is_right, each)) for each in values)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_size(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_side(each) for each in value)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096


def _is_resize(value: Any) -> bool:
    return value in ("cover", "pad", "none") or _is_side(value) or _is_size(value)


def say_pipeline(how: Pipeline) -> str:
    """Says a pipeline in one line."""
    sized = {
        "cover": f"scaled until {how.height} x {how.width} is covered",
        "pad": f"scaled until it fits in {how.height} x {how.width}",
        "none": "not scaled",
    }.get(str(how.resize)) or (
        f"shorter side {how.resize}"
        if isinstance(how.resize, int)
        else f"exactly {how.resize[0]} x {how.resize[1]}"
    )
    filters = f"{how.interpolation}{'' if how.antialias else ' without antialiasing'}"
    mean, std = (", ".join(f"{value:g}" for value in each) for each in (how.mean, how.std))
    turned = "" if how.upright else ", not turned upright"
    return (
        f"{sized} ({filters}){turned}, centre {how.height} x {how.width}, {how.colour.upper()} "
        f"from 0 to {how.scale:g}, mean {mean}, std {std}"
    )
