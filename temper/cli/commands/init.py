"""`temper init`."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path

import click

from temper.builder.network.resnet import ModelConfig
from temper.errors import RecipeError
from temper.run.init_recipe import doubts, look, name_for, render_recipe
from temper.run.recipe import load_recipe
from temper.terminal import echo


def init_command(
    images: Path,
    *,
    weights: str,
    labels: Path | None,
    out: Path,
    name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Looks at the images and the checkpoint, writes a recipe, and says what to run next.

    Raises:
        RecipeError: There is such a file already and `force` is false, or it cannot be written.
        DataError: A build would refuse the images.
        ModelError: A build would refuse the checkpoint.
    """
    try:
        ModelConfig(weights=weights)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error
    if not force and os.path.lexists(out):
        raise _exists(out)
    found = look(images, weights, labels, new_list=out.with_suffix(".classes.txt"))
    text = render_recipe(found, name=name_for(images) if name is None else name, images=images, folder=out.parent)
    try:
        with out.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
        if found.new_list and found.labels is not None:
            Path(found.labels).write_text("".join(f"{one}\n" for one in found.class_names), encoding="utf-8")
    except FileExistsError as error:  # since the look before
        raise _exists(out) from error
    except OSError as error:
        raise RecipeError(f"{out}: cannot be written: {error.strerror}; choose another --out") from error
    recipe = load_recipe(out)
    command = f"temper run {shlex.quote(str(out))}"
    if as_json:
        written = {
            "path": str(out),
            "found": asdict(found),
            "recipe": asdict(recipe),
            "doubts": doubts(found),
            "next": command,
        }
        echo(json.dumps(written, indent=2, ensure_ascii=False, allow_nan=False))
        return
    epochs = recipe.train.head_epochs + recipe.train.epochs
    trained = f"trained for {epochs} epochs" if epochs else "taken as they are"
    echo(f"{len(found.class_names)} classes; {found.described}")
    if found.weights.described:
        echo(f"{found.weights.kind}: {found.weights.described}")
    if found.weights.pixels_from:
        echo(f"preprocessing is from {found.weights.pixels_from}")
    for line in doubts(found):
        echo(line)
    arch = found.weights.arch or "ONNX"
    echo(f"{arch} at {recipe.data.image_size} pixels; weights: {recipe.model.weights}, {trained}")
    echo(f"wrote {out}; it says why, and what else there is. Next:\n\n    {command}")


def _exists(out: Path) -> RecipeError:
    return RecipeError(f"{out}: exists already; choose another --out, or overwrite it with --force")
