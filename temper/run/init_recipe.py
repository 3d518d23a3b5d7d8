"""A first recipe for a user's images: what is looked at, what is chosen from it, and the text with the reasons.

The folder is read as a build reads it, so what a build would refuse is refused here, in the same words.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import textwrap
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.builder.data.config import DataConfig
from temper.builder.data.find import Kind, guess_kind
from temper.builder.data.prepare import describe_data
from temper.builder.names import MAX_NAME_LENGTH, is_printable, is_recipe_name
from temper.builder.network.train import TrainConfig
from temper.errors import RecipeError
from temper.imaging.errors import show
from temper.imaging.preprocess import Size, sides
from temper.run.init_weights import USUAL_SIZE, Weights, look_at_weights, order_of
from temper.terminal import escape_line

_SAMPLED = 48
_STRIDE = 32
"""How much a ResNet narrows an image: sizes are multiples of it."""
_MAX_TEST = 2000
# Of a network that starts from nothing: enough steps to learn something, on few images not too many of the same.
_STEPS = 300
_EPOCHS = (10, 60)
_SMALL_SIZE = 64
_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was seen in the folder and in the checkpoint."""

    source: Kind
    """What the images lie in."""
    described: str
    """The folder in one line: its images, its split, and what is left out."""
    class_names: list[str]
    """In order of their labels."""
    num_train: int
    """Training images."""
    num_test: int
    """Test images."""
    num_sampled: int
    """Images that were decoded to see their sizes."""
    shorter_sides: tuple[int, int, int]
    """The smallest, the median and the largest shorter side among them, in pixels."""
    weights: Weights
    """What the network starts from."""
    labels: str | None = None
    """A file that lists the classes in the order of the network's outputs; None where it is the images' own."""
    new_list: bool = False
    """Whether that file is still to be written."""

    @property
    def head_fits(self) -> bool:
        """Whether a file's head has as many classes as the images."""
        return self.weights.num_classes == len(self.class_names)

    @property
    def order_is_guessed(self) -> bool:
        """Whether nothing says in which order a file's head has the classes."""
        return self.head_fits and self.labels is None and self.weights.class_names is None


def look(images: Path, weights: str, labels: Path | None = None, new_list: Path | None = None) -> Found:
    """Looks at a folder of images and at a checkpoint.

    Args:
        images: A folder per class, with or without a split; a table, tar shards or a data set on disk.
        weights: A checkpoint's path, "torchvision" or "random".
        labels: A file that lists the classes in the order of the network's outputs.
        new_list: Where to write such a list when the checkpoint carries one that no file has.

    Raises:
        DataError: A build would refuse the folder, or one of the sampled images, or its classes are not those of
            the checkpoint.
        ModelError: A build would refuse the checkpoint, or it is of another family of networks.
    """
    from temper.builder.data.sources import open_source

    seen = look_at_weights(weights)
    kind = guess_kind(images)
    source = open_source(DataConfig(source=kind, path=str(images), labels=None if labels is None else str(labels)))
    listed = None if labels is None else str(labels)
    order = order_of(seen, source.class_names, labels)
    if order is not None:
        listed = seen.list_file or str(new_list)
    counts = {"num_train": len(source.train), "num_test": len(source.test)}
    num = len(source.labels)
    sampled = range(0, num, math.ceil(num / _SAMPLED))
    shorter = sorted(min(source.open_image(index).size) for index in sampled)
    return Found(
        source=kind,
        described=describe_data({**counts, **source.info}),
        class_names=list(order or source.class_names),
        num_sampled=len(shorter),
        shorter_sides=(shorter[0], statistics.median_low(shorter), shorter[-1]),
        weights=seen,
        labels=listed,
        new_list=order is not None and seen.list_file is None,
        **counts,
    )


def doubts(found: Found) -> list[str]:
    """Returns what was guessed, and whether a head is lost: at most three lines, none where all is known."""
    if not found.weights.is_file:
        return []
    weights, lines = found.weights, []
    if weights.pixels_open or not weights.pixels:
        guessed = " and ".join(weights.pixels_open) or "all of it"
        lines.append(f"preprocessing: {guessed} guessed, as the weights do not say; see [data]")
    if found.order_is_guessed:
        lines.append(f"classes: guessed to be in the order of {_names_of(found)}; --labels FILE gives another")
    if not found.head_fits:
        lines.append(f"head: a new one is trained, as the {weights.kind} has {_head_of(weights)}")
    return lines


def name_for(images: Path) -> str:
    """Returns a recipe's name that is like the folder's."""
    folder = unicodedata.normalize("NFKD", Path(os.path.abspath(images)).name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_-]+", "_", folder.lower()).strip("_-")[:MAX_NAME_LENGTH] or "recipe"


def render_recipe(found: Found, *, name: str, images: Path, folder: Path) -> str:
    """Writes the recipe's text: what was found and why it was chosen stands in its comments.

    Args:
        found: What `look` returned.
        name: The recipe's name.
        images: What the images lie in.
        folder: Where the recipe will lie; what is below it is named from there.

    Raises:
        RecipeError: The name or a path cannot stand in a recipe.
    """
    if not is_recipe_name(name):
        raise RecipeError(f"--name: got {show(name)}, expected up to {MAX_NAME_LENGTH} of a-z, 0-9, _ and -")
    pixels, why = _pixels(found)
    parts = [
        *_comment(_HEAD),
        f"\nname = {_quote(name)}\n",
        *_data(found, images, folder, pixels, why),
        *_model(found, folder),
        *_train(found),
        _VARIANTS,
        *_attack(found, min(sides(pixels["image_size"]))),
    ]
    return "\n".join(parts)


_TRAINERS = {None: "torchvision's", "timm": "timm's", "huggingface": "Hugging Face's"}

_HEAD = "Written by `temper init`. docs/recipe.md explains every key; `temper recipe FILE` checks a change."

_VARIANTS = """
# The first variant is what the others are compared with.
[[variants]]
name = "fp32"

# Weights and activations in 8 bits, calibrated on training images.
[[variants]]
name = "int8"
compress = [{ quantize = { precision = "int8", method = "entropy" } }]

# The best engine that this machine can run; `temper doctor` says which there are.
[engine]
kind = "auto"
max_batch = 32

# Throughput and latency with so many requests in flight, and once with random arrivals.
[load]
concurrencies = [1, 4, 16]
duration_s = 3.0
"""


def _pixels(found: Found) -> tuple[dict[str, Any], str]:
    """What an image is made into, as keys of `[data]`, the fewest that say it; and why."""
    low, median, high = found.shorter_sides
    seen = f"Shorter sides are {median} pixels as a rule ({low} to {high} in {found.num_sampled} images)."
    if stated := found.weights.pixels:
        return _fewest(stated), f"{seen} What they are made into is from {found.weights.pixels_from}."
    size = min(USUAL_SIZE, max(_STRIDE, median // _STRIDE * _STRIDE))
    why = f"{seen} {size} is {'the usual size' if size == USUAL_SIZE else 'what few must be enlarged to'}"
    wanted: Size = size
    if fixed := found.weights.size:
        wanted = fixed[0] if fixed[0] == fixed[1] else fixed
        why = f"{seen} The ONNX file takes {fixed[0]} x {fixed[1]}"
    preset = found.weights.library
    if found.weights.given == "random" or (low == high == size and preset is None):
        return {"image_size": wanted}, f"{why}."
    trained = " If the network was evaluated in another way, say so here." if found.weights.is_file else ""
    if not isinstance(wanted, int):
        return {"image_size": wanted}, f"{why}, which images are resized to cover.{trained}"
    why += f". Images are made what {_TRAINERS[preset]} evaluation makes of them.{trained}"
    return {"preset": preset or "torchvision", "image_size": wanted}, why


def _fewest(pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out the keys that say what would be so without them."""
    left = dict(pixels)
    whole = DataConfig(**left).preprocessing
    for key in [key for key in left if key not in ("preset", "image_size")]:
        fewer: dict[str, Any] = {other: value for other, value in left.items() if other != key}
        with suppress(ValueError):  # a preset that needs its resize
            if DataConfig(**fewer).preprocessing == whole:
                left = fewer
    return left


def _data(found: Found, images: Path, folder: Path, pixels: Mapping[str, Any], why: str) -> list[str]:
    lines = [
        *_comment(f"{len(found.class_names)} classes; {found.described}."),
        "[data]",
        f"source = {_quote(found.source)}",
        f"path = {_quote(_path_from(folder, images))}",
    ]
    if found.labels is not None:
        lines += [
            *_comment("The classes in the order of the network's outputs, which is not that of their names."),
            f"labels = {_quote(_path_from(folder, Path(found.labels)))}",
        ]
    lines += [*_comment(why), *(f"{key} = {_value(value)}" for key, value in pixels.items())]
    if found.num_test > _MAX_TEST:
        lines += [
            *_comment(f"Of {found.num_test:,}, drawn by the seed: every variant answers each of them."),
            f"num_test = {_MAX_TEST}",
        ]
    return lines


def _model(found: Found, folder: Path) -> list[str]:
    weights = found.weights
    named = _path_from(folder, Path(weights.given)) if weights.is_file else weights.given
    if Path(weights.given).is_dir() and "/" not in named:
        named = f"./{named}"  # as a recipe names a folder
    arch = [] if weights.arch is None else [f"arch = {_quote(weights.arch)}"]
    keys = ["[model]", *arch, f"weights = {_quote(named)}"]
    if weights.has_averaged:
        keys += [
            *_comment("It has averaged weights beside those as trained; false takes the latter."),
            "averaged = true",
        ]
    if weights.is_file and not found.head_fits:
        keys.append("replace_head = true")
    about = _comment(f"{weights.described}.") if weights.described else []
    return ["", *about, *_comment(_reason(found)), *keys]


def _reason(found: Found) -> str:
    weights, names, num = found.weights, found.class_names, len(found.class_names)
    if weights.given == "torchvision":
        return 'ImageNet\'s weights, downloaded once; "random" starts from nothing and needs no download.'
    if not weights.is_file:
        return (
            'From nothing. On few images "torchvision", ImageNet\'s weights, is far better, but is downloaded; or '
            "give the path of a checkpoint."
        )
    layers = "It has" if weights.arch is None else f"The checkpoint has the layers of {weights.arch} and"
    norm = (
        "" if weights.pixels else " If its input was not normalised as ImageNet's, add `mean` and `std` to [data]."
    )
    if found.head_fits and not found.order_is_guessed:
        return f"{layers} {num} classes, from {_quote(names[0])} to {_quote(names[-1])}.{norm}"
    if found.head_fits:
        return (
            f"{layers} {num} classes, taken in the order of {_names_of(found)}, from {_quote(names[0])} to "
            f"{_quote(names[-1])}: an accuracy near chance means that it was trained in another order.{norm}"
        )
    has = f"the {'folder' if found.source == 'folder' else 'data'} has {num} classes"
    return f"{layers} {_head_of(weights)}, {has}: a new head is trained.{norm}"


def _head_of(weights: Weights) -> str:
    return "no head" if weights.num_classes is None else f"a head of {weights.num_classes} classes"


def _names_of(found: Found) -> str:
    return "the folders' names" if found.source == "folder" else "the data's own labels"


def _train(found: Found) -> list[str]:
    if found.weights.is_file and found.head_fits:
        return ["", *_comment("The checkpoint is taken as it is."), "[train]", "epochs = 0"]
    if found.weights.given != "random":
        return [
            "",
            *_comment("The new head alone first, then all layers, with a smaller rate than from nothing."),
            "[train]",
            "head_epochs = 2",
            "epochs = 5",
            "learning_rate = 3e-4",
        ]
    epochs = min(_EPOCHS[1], max(_EPOCHS[0], math.ceil(_STEPS * TrainConfig().batch_size / found.num_train)))
    text = f"From nothing: {epochs} times {found.num_train:,} images. More of either makes it better."
    return ["", *_comment(text), "[train]", f"epochs = {epochs}"]


def _attack(found: Found, size: int) -> list[str]:
    small = size <= _SMALL_SIZE
    num, queries = min(200 if small else 100, found.num_test), 200
    epsilon, steps = (8, 50) if small else (4, 20)
    most = num * queries
    return [
        *_comment(
            f"Changes of up to {epsilon} of 255 in every channel, which few people see. Along the gradients of "
            "the variant's own graph and of the float32 network first; more budgets: curve = [2, 4, 16]."
        ),
        "[[attacks]]",
        'name = "apgd-ce"',
        f"epsilon = {epsilon}",
        'surrogates = ["own", "fp32"]',
        f"steps = {steps}",
        f"num_images = {num}",
        "",
        *_comment(f"Then by the endpoint's scores alone; at most {most:,} queries a variant."),
        "[[attacks]]",
        'name = "square"',
        f"epsilon = {epsilon}",
        f"num_images = {num}",
        f"max_queries = {queries}",
        "",
    ]


def _path_from(folder: Path, path: Path) -> str:
    """A path as the recipe names it: from its own folder where it lies below, else in full."""
    full, base = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    if not is_printable(str(full)):
        raise RecipeError(f"{show(full)}: got a path that does not print as UTF-8 text, expected one; rename it")
    return str(full.relative_to(base) if full.is_relative_to(base) else full)


def _quote(text: str) -> str:
    """Printable text as a TOML string, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _value(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(escape_line(text), _WIDTH, break_on_hyphens=False)]
