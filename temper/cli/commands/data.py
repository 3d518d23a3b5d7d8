"""`temper data check`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from temper.builder.data.check import DataCheck, check_data, describe_finding
from temper.builder.data.config import DataConfig
from temper.builder.data.find import KINDS, guess_kind
from temper.cli.failures import EXIT_FAILED
from temper.errors import RecipeError
from temper.imaging.errors import show
from temper.imaging.folder import NUM_NAMED
from temper.progress import Display
from temper.run.recipe import load_recipe
from temper.terminal import echo


def check_data_command(path: Path, *, as_json: bool) -> None:
    """Looks at every image of a source and prints what is wrong; exits 1 when any of it is an error.

    Raises:
        RecipeError: `path` is a recipe that is not fine, or of images that do not lie on disk.
        DataError: There is nothing to look at.
    """
    config = _config(path)
    with Display() as display, display.stage("images") as stage:
        found = check_data(config, stage)
        stage.note = f"{found.num_images:,} looked at"
    if as_json:
        written = {**asdict(found), "ok": not found.num_errors}
        echo(json.dumps(written, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        _print(found)
    if found.num_errors:
        sys.exit(EXIT_FAILED)


def _config(path: Path) -> DataConfig:
    if path.suffix.lower() != ".toml":
        return DataConfig(source=guess_kind(path), path=str(path))
    config = load_recipe(path).data
    if config.source not in KINDS:
        names = ", ".join(KINDS)
        raise RecipeError(f"{show(path)}: data.source: got {config.source!r}, expected one on disk: {names}")
    return config


def _print(found: DataCheck) -> None:
    echo(
        f"{found.path}: {found.num_train:,} train, {found.num_test:,} test images of {found.num_classes:,} classes"
    )
    if found.sizes:
        shown = {name: "{:,} / {:,} / {:,}".format(*sides) for name, sides in found.sizes.items()}
        echo("smallest / median / largest: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in shown.items()))
    for note in found.notes:
        echo(f"note: {note}")
    for finding in found.findings:
        echo(describe_finding(finding))
    levels = [finding.level for finding in found.findings]
    what = ", ".join(_count(levels.count(level), level) for level in ("error", "warning"))
    more = "; --json lists every name" if any(len(finding.names) > NUM_NAMED for finding in found.findings) else ""
    echo(f"{what}{more}")


def _count(num: int, noun: str) -> str:
    return f"{num or 'no'} {noun}{'' if num == 1 else 's'}"
