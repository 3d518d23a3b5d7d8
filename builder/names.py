"""Names and text from outside: what a model may be called, and which characters a class name may hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

MAX_NAME_LENGTH = 100
"""Of a recipe's and of a variant's name: both together, and what is put to them, must fit a file's name (255)."""
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,219}")
_RECIPE_NAME = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{MAX_NAME_LENGTH - 1}}}")
# Persian and Indian scripts need these two, and so do emoji.
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"


def is_model_name(name: str) -> bool:
    """Tells whether Triton and every file system take a model of this name."""
    return _MODEL_NAME.fullmatch(name) is not None


def is_recipe_name(name: str) -> bool:
    """Tells whether a recipe or a variant may have this name, which becomes part of a model's."""
    return _RECIPE_NAME.fullmatch(name) is not None


def is_printable(text: str) -> bool:
    """Tells whether text is one line that shows as it is.

    Control characters, line and paragraph separators, marks that turn the direction of writing, and bytes of a
    file's name that are not UTF-8 are not printable; every letter, sign and space of any script is.
    """
    return not any(
        unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in _JOINERS for char in text
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Layers as people call them: `/model/layer4/layer4.0/conv1/Conv` is `layer4.0.conv1`; each its own."""
    short = [_short(name) for name in names]
    return {name: each if short.count(each) == 1 else name for name, each in zip(names, short, strict=True)}


def _short(name: str) -> str:
    """An exported node's name repeats the outer module in the inner one's, and ends with the operator."""
    parts = name.strip("/").split("/")
    if len(parts) < 2:
        return name
    # An addition is no module: its operator is all that tells it from its block.
    parts = [each for each in parts[:-1] if each != "model"] + (["add"] if parts[-1] == "Add" else []) or parts[
        -1:
    ]
    kept = [each for each, inner in zip(parts, [*parts[1:], ""], strict=True) if not inner.startswith(f"{each}.")]
    return ".".join(kept).replace("downsample.0", "downsample")


def read_labels(path: Path) -> list[str]:
    """Reads a file of class names, one a line, each ended by a line feed and by nothing else."""
    return path.read_bytes().decode().removesuffix("\n").split("\n")


def render_labels(labels: Sequence[str]) -> bytes:
    """Returns the content of a file of class names, as `read_labels` reads it."""
    return "".join(f"{label}\n" for label in labels).encode()
