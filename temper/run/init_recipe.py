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
from dataclasses import dataclass
from pathlib import Path

from temper.builder.data.config import DataConfig
from temper.builder.data.find import Kind, guess_kind
from temper.builder.data.prepare import describe_data
from temper.builder.names import MAX_NAME_LENGTH, is_printable, is_recipe_name
from temper.builder.network.imported import open_checkpoint
from temper.builder.network.resnet import ModelConfig
from temper.builder.network.train import TrainConfig
from temper.errors import RecipeError
from temper.imaging.errors import show
from temper.terminal import escape_line

_SAMPLED = 48
_STRIDE = 32
"""How much a ResNet narrows an image: sizes are multiples of it."""
_USUAL_SIZE = 224
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
    arch: str
    """The checkpoint's architecture; without a checkpoint the one to start with."""
    head_classes: int | None
    """Length of the checkpoint's output; None without a checkpoint or a head in it."""
    checkpoint: str = ""
    """What the checkpoint is, in one line."""
    has_averaged: bool = False
    """Whether the checkpoint has averaged weights beside those as trained."""

    @property
    def head_fits(self) -> bool:
        """Whether the checkpoint's head has as many classes as the folder."""
        return self.head_classes == len(self.class_names)


def look(images: Path, weights: str) -> Found:
    """Looks at a folder of images and at a checkpoint.

    Args:
        images: A folder per class, with or without a split; a table, tar shards or a data set on disk.
        weights: A checkpoint's path, "torchvision" or "random".

    Raises:
        DataError: A build would refuse the folder, or one of the sampled images.
        ModelError: A build would refuse the checkpoint, or it is of another family of networks.
    """
    from temper.builder.data.sources import open_source

    path = ModelConfig(weights=weights).checkpoint
    checkpoint = None if path is None else open_checkpoint(path, prefer_averaged=True)
    kind = guess_kind(images)
    source = open_source(DataConfig(source=kind, path=str(images)))
    counts = {"num_train": len(source.train), "num_test": len(source.test)}
    num = len(source.labels)
    sampled = range(0, num, math.ceil(num / _SAMPLED))
    sides = sorted(min(source.open_image(index).size) for index in sampled)
    return Found(
        source=kind,
        described=describe_data({**counts, **source.info}),
        class_names=source.class_names,
        num_sampled=len(sides),
        shorter_sides=(sides[0], statistics.median_low(sides), sides[-1]),
        arch=ModelConfig().arch if checkpoint is None else checkpoint.arch,
        head_classes=None if checkpoint is None else checkpoint.num_classes,
        checkpoint="" if checkpoint is None else checkpoint.description,
        has_averaged=checkpoint is not None and checkpoint.has_both,
        **counts,
    )


def name_for(images: Path) -> str:
    """Returns a recipe's name that is like the folder's."""
    folder = unicodedata.normalize("NFKD", Path(os.path.abspath(images)).name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_-]+", "_", folder.lower()).strip("_-")[:MAX_NAME_LENGTH] or "recipe"


def render_recipe(found: Found, *, name: str, images: Path, weights: str, folder: Path) -> str:
    """Writes the recipe's text: what was found and why it was chosen stands in its comments.

    Args:
        found: What `look` returned.
        name: The recipe's name.
        images: What the images lie in.
        weights: As for `look`.
        folder: Where the recipe will lie; what is below it is named from there.

    Raises:
        RecipeError: The name or a path cannot stand in a recipe.
    """
    if not is_recipe_name(name):
        raise RecipeError(f"--name: got {show(name)}, expected up to {MAX_NAME_LENGTH} of a-z, 0-9, _ and -")
    size = min(_USUAL_SIZE, max(_STRIDE, found.shorter_sides[1] // _STRIDE * _STRIDE))
    is_file = ModelConfig(weights=weights).checkpoint is not None
    named = _path_from(folder, Path(weights)) if is_file else weights
    if Path(weights).is_dir() and "/" not in named:
        named = f"./{named}"  # as a recipe names a folder
    parts = [
        *_comment(_HEAD),
        f"\nname = {_quote(name)}\n",
        *_data(found, _path_from(folder, images), size, is_file),
        *_model(found, named, is_file),
        *_train(found, weights, is_file),
        _VARIANTS,
        *_attack(found, size),
    ]
    return "\n".join(parts)


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


def _data(found: Found, path: str, size: int, is_file: bool) -> list[str]:
    low, median, high = found.shorter_sides
    sizes = f"Shorter sides are {median} pixels as a rule ({low} to {high} in {found.num_sampled} images)."
    why = "the usual size" if size == _USUAL_SIZE else "what few must be enlarged to"
    trained = " If the checkpoint was trained at another size, take that one." if is_file else ""
    lines = [
        *_comment(f"{len(found.class_names)} classes; {found.described}."),
        "[data]",
        f"source = {_quote(found.source)}",
        f"path = {_quote(path)}",
        *_comment(f"{sizes} {size} is {why}.{trained}"),
        f"image_size = {size}",
    ]
    if found.num_test > _MAX_TEST:
        lines += [
            *_comment(f"Of {found.num_test:,}, drawn by the seed: every variant answers each of them."),
            f"num_test = {_MAX_TEST}",
        ]
    return lines


def _model(found: Found, weights: str, is_file: bool) -> list[str]:
    keys = ["[model]", f"arch = {_quote(found.arch)}", f"weights = {_quote(weights)}"]
    if found.has_averaged:
        keys += [
            *_comment("It has averaged weights beside those as trained; false takes the latter."),
            "averaged = true",
        ]
    if is_file and not found.head_fits:
        keys.append("replace_head = true")
    about = _comment(f"{found.checkpoint}.") if found.checkpoint else []
    return ["", *about, *_comment(_reason(found, weights, is_file)), *keys]


def _reason(found: Found, weights: str, is_file: bool) -> str:
    names, num = found.class_names, len(found.class_names)
    if weights == "torchvision":
        return 'ImageNet\'s weights, downloaded once; "random" starts from nothing and needs no download.'
    if not is_file:
        return (
            'From nothing. On few images "torchvision", ImageNet\'s weights, is far better, but is downloaded; or '
            "give the path of a checkpoint."
        )
    is_folder = found.source == "folder"
    order = "the folders' names" if is_folder else "the data's own labels"
    layers = f"The checkpoint has the layers of {found.arch}"
    norm = "If its input was not normalised as ImageNet's, add `mean` and `std`."
    if found.head_fits:
        return (
            f"{layers} and {num} classes, taken in the order of {order}, from {_quote(names[0])} to "
            f"{_quote(names[-1])}: an accuracy near chance means that it was trained in another order. {norm}"
        )
    head = "no head" if found.head_classes is None else f"a head of {found.head_classes} classes"
    has = f"the {'folder' if is_folder else 'data'} has {num} classes"
    return f"{layers} and {head}, {has}: a new head is trained. {norm}"


def _train(found: Found, weights: str, is_file: bool) -> list[str]:
    if is_file and found.head_fits:
        return ["", *_comment("The checkpoint is taken as it is."), "[train]", "epochs = 0"]
    if weights != "random":
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


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(escape_line(text), _WIDTH, break_on_hyphens=False)]
