"""`temper recipe`: whether a recipe is fine, and the JSON Schema of one."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from temper.cli.failures import EXIT_FAILED
from temper.errors import RecipeError
from temper.run.recipe import Recipe, load_recipe
from temper.terminal import echo


def schema_command() -> None:
    """Prints the JSON Schema of a recipe."""
    from temper.run.schema import recipe_schema

    echo(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


def check_command(recipe_file: Path, *, as_json: bool) -> None:
    """Prints what a recipe asks for when it is fine; with `as_json` also what is wrong with it, and then exits 1.

    Raises:
        RecipeError: It is not, and `as_json` is false; a line for each mistake.
    """
    try:
        recipe = load_recipe(recipe_file)
    except RecipeError as error:
        if not as_json:
            raise
        _print_json(recipe_file, None, str(error).split("\n"))
        sys.exit(EXIT_FAILED)
    if as_json:
        _print_json(recipe_file, recipe, [])
    else:
        names = ", ".join(variant.name for variant in recipe.variants)
        echo(f"{recipe_file}: fine: {recipe.name}, variants {names}, attacks: {len(recipe.attacks) or 'none'}")


def _print_json(recipe_file: Path, recipe: Recipe | None, errors: list[str]) -> None:
    config = None if recipe is None else asdict(recipe)
    found = {"path": str(recipe_file), "ok": recipe is not None, "errors": errors, "recipe": config}
    echo(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
