"""A run that says what it found: an accuracy at chance, and models that take image files as they are."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from temper.cli.main import cli

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_untrained_network_is_at_chance_and_answers_files_as_pixels(quick_recipe: Path, tmp_path: Path) -> None:
    text = quick_recipe.read_text()
    head, _, rest = text.replace("epochs = 1", "epochs = 0").partition('[[variants]]\nname = "int8"')
    rest = rest[rest.index("[engine]") : rest.index("[[attacks]]")]
    recipe = tmp_path / "quick.toml"
    recipe.write_text(f"{head}{rest}[serving]\njpeg = true\n")
    repository, runs = tmp_path / "a repository", tmp_path / "runs"
    words = ["run", str(recipe), "--repository", str(repository), "--runs", str(runs)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output

    report = json.loads((runs / "quick" / "report.json").read_text())
    (warning,) = report["warnings"]
    assert warning.startswith("fp32: the accuracy, ") and "is not clearly above chance" in warning
    assert f"warning: {warning}" in result.stderr.splitlines() and warning in result.stdout.splitlines()
    _, _, command = warning.partition("; to learn why: ")
    (temper, diagnose, model, *options) = shlex.split(command)
    assert (temper, diagnose, model) == ("temper", "diagnose", "quick_fp32")
    named = dict(zip(options[::2], options[1::2], strict=True))
    assert named.keys() == {"--repository", "--weights", "--images"} and named["--images"] == "FOLDER"
    assert named["--repository"] == str(repository) and Path(named["--weights"]).is_file()

    assert "quick_fp32 version 1; quick_fp32_jpeg version 1 takes image files" in result.stderr
    (variant,) = report["variants"]
    assert variant["encoded_model"] == "quick_fp32_jpeg"
    assert variant["parity"]["num_same_encoded"] == variant["parity"]["num_images"] == 60
    assert "60 of 60 files as they are the same to the bit" in result.stderr
