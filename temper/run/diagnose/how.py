"""How images are prepared, as a user states it: a preset, a recipe, a library's own file, or keys of `[data]`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from temper.builder.data.pixels import PixelsConfig
from temper.client.model import ModelInfo
from temper.imaging.errors import show
from temper.imaging.preprocess import Preprocessing
from temper.run.diagnose.errors import DiagnoseError
from temper.run.diagnose.pipeline import Pipeline
from temper.run.recipe_errors import format_errors

Fields = dict[str, Any]
"""Keys of `[data]` that say what an image is made into, and their values; `resize` may be "cover" or "pad" too."""
PRESETS = ("torchvision", "timm", "huggingface")
_KEYS = tuple(field.name for field in fields(PixelsConfig))
_EXPECTED = (
    f"{', '.join(PRESETS)}, a recipe (.toml), a preprocessor_config.json, or keys of [data] such as "
    "'resize = 256, mean = [0.5, 0.5, 0.5]'"
)


def read_fields(texts: Sequence[str]) -> Fields:
    """Reads what a user states; later texts win.

    Raises:
        DiagnoseError: A text is none of what is expected.
        RecipeError: A recipe cannot be read.
        ModelError: A library's file cannot be, or states what `[data]` cannot.
    """
    stated: Fields = {}
    for text in texts:
        if text in PRESETS:
            stated["preset"] = text
        elif text.endswith(".toml"):
            stated |= _of_recipe(Path(text))
        elif text.endswith(".json"):
            stated |= _of_library(Path(text))
        else:
            stated |= _of_keys(text)
    return stated


def _of_recipe(path: Path) -> Fields:
    from temper.run.recipe import load_recipe

    return _of_preprocessing(load_recipe(path).data.preprocessing)


def _of_keys(text: str) -> Fields:
    try:
        stated: Fields = tomllib.loads(f"keys = {{{text}}}")["keys"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise DiagnoseError(f"preprocessing: got {show(text)}, expected {_EXPECTED}") from error
    if unknown := [key for key in stated if key not in _KEYS]:
        raise DiagnoseError(f"preprocessing: got the key {show(unknown[0])}, expected some of {', '.join(_KEYS)}")
    return stated


def _of_library(path: Path) -> Fields:
    from temper.builder.network.preprocessing import preprocessing_in

    if not path.is_file():
        raise DiagnoseError(f"{show(path)}: no such file, expected {_EXPECTED}")
    if not (stated := preprocessing_in(path)):
        raise DiagnoseError(f"{show(path)}: states no preprocessing, expected {_EXPECTED}")
    return stated


def fields_of_checkpoint(weights: Path) -> Fields:
    """What a library's file beside a checkpoint says, or timm's training script in it; or nothing.

    Raises:
        ModelError: It cannot be read, or states what `[data]` cannot.
    """
    from temper.builder.network.imported import open_checkpoint
    from temper.builder.network.preprocessing import preprocessing_of

    args = open_checkpoint(weights, prefer_averaged=True).timm_args if weights.is_file() else None
    return preprocessing_of(weights, args) or {}


def fields_of_server(info: ModelInfo) -> Fields:
    """What the served model itself says, as Temper's do."""
    return {} if info.preprocessing is None else _of_preprocessing(info.preprocessing)


def _of_preprocessing(how: Preprocessing) -> Fields:
    stated = asdict(how)
    size = [stated.pop("height"), stated.pop("width")]
    # The one thing of a preset that no key says.
    preset = "huggingface" if stated.pop("crop_margin") == "floor" else None
    return {"preset": preset, **stated, "image_size": size, "resize": how.resize or "cover"}


def make_pipeline(stated: Fields, size: tuple[int, int] | None) -> Pipeline:
    """Makes a pipeline of what was stated; what was not is as in a recipe's `[data]`.

    Args:
        stated: Of `read_fields`.
        size: Height and width that the server takes, where they are fixed.

    Raises:
        DiagnoseError: A value is none of what its key allows, or the size is another than the server's.
    """
    from pydantic import TypeAdapter, ValidationError

    # What `[data]` has no word for; "none" in its place, as a preset wants something there.
    own = stated.get("resize") if stated.get("resize") in ("cover", "pad") else None
    given = {**({} if size is None else {"image_size": size}), **stated, **({"resize": "none"} if own else {})}
    try:
        config = TypeAdapter(PixelsConfig).validate_json(json.dumps(given, default=str), strict=True)
    except ValidationError as error:
        raise DiagnoseError(format_errors(error.errors(include_url=False), PixelsConfig)[0]) from error
    how = config.preprocessing
    if size is not None and (how.height, how.width) != tuple(size):
        raise DiagnoseError(
            f"image_size: got {how.height} x {how.width}, and the server takes {size[0]} x {size[1]}; state "
            "what it takes"
        )
    return Pipeline(**{**asdict(how), "resize": own or how.resize or "cover"})


def say_pipeline(how: Pipeline, *, whole: bool = True) -> str:
    """Says a pipeline in one line; or up to the pixels, which is all that a client does for an input of UINT8."""
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
    pixels = f"{sized} ({filters}){turned}, centre {how.height} x {how.width}, {how.colour.upper()}"
    return f"{pixels} from 0 to {how.scale:g}, mean {mean}, std {std}" if whole else f"{pixels} from 0 to 255"
