"""A step of another package, as docs/extend.md shows it: installed and used from a recipe, or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from temper.builder.compress.step import REGISTRY

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "examples"

RECIPE = """
name = "toy"
[data]
source = "digits"
image_size = 32
num_test = 60
[train]
epochs = 0
[[variants]]
name = "fp32"
[[variants]]
name = "clipped"
compress = [{ clip = { deviations = 2.0 } }]
[engine]
kind = "openvino"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of a step and of an attack, installed into a folder of their own."""
    folder = tmp_path_factory.mktemp("plugins")
    command = [sys.executable, *"-m pip install -q --no-deps --no-build-isolation --target".split(), str(folder)]
    for name in ("step", "attack"):
        sources = shutil.copytree(
            EXAMPLES / name, tmp_path_factory.mktemp("sources") / name
        )  # the build writes there
        subprocess.run([*command, str(sources)], check=True)
    return folder


def temper(*arguments: object, site: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command where the packages of a folder are installed as well."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    command = [sys.executable, "-m", "temper.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=variables, capture_output=True, text=True)


def test_step_of_another_package_is_built(site: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "toy.toml"
    recipe.write_text(RECIPE)
    places = ["--repository", tmp_path / "repository", "--runs", tmp_path / "runs"]
    built = temper("build", recipe, *places, "--json", site=site)
    assert built.returncode == 0, built.stderr
    _, clipped = json.loads(built.stdout)
    (figures,) = [stage["figures"] for stage in clipped["stages"] if stage["name"] == "clip"]
    assert figures["num_cut"] > 0
    card = json.loads((Path(clipped["path"]) / "card.json").read_text())
    assert card["recipe"]["variant"]["compress"] == [{"clip": {"deviations": 2.0}}]


CODE = (EXAMPLES / "step" / "temper_example_step.py").read_text()
Packages = dict[str, tuple[str, dict[str, str]]]
"""The text and the entry points of each package that is installed."""


@pytest.mark.parametrize(
    ("packages", "old", "new", "message"),
    [
        (
            {"broken": ("import nowhere", {"clip": "STEP"})},
            "",
            "",
            "error: temper.steps 'clip' of broken (broken:STEP) does not load: ModuleNotFoundError: "
            "No module named 'nowhere'; mend or uninstall it",
        ),
        (
            {"one": (CODE, {"clip": "STEP"}), "two": (CODE, {"clip": "STEP"})},
            "",
            "",
            "has the name of temper.steps 'clip' of ",
        ),
        (
            {"greedy": (CODE, {"prune": "STEP"})},
            "",
            "",
            "error: temper.steps 'prune' of greedy (greedy:STEP) has the name of one of Temper's own; rename it",
        ),
        (
            {"odd": ("STEP = 5", {"clip": "STEP"})},
            "",
            "",
            "error: temper.steps 'clip' of odd (odd:STEP) is int, expected Step; see docs/extend.md",
        ),
        (
            {},
            "",
            "",
            "variants[1].compress[0].clip: no such key, expected one of prune, select, low_rank, sparsify,",
        ),
        (
            {"good": (CODE, {"clip": "STEP"})},
            "deviations = 2.0",
            "deviations = -2.0",
            "variants[1].compress[0].clip.deviations: got -2.0, expected a positive number",
        ),
        (
            {"good": (CODE, {"clip": "STEP"})},
            "{ clip",
            "{ quantize = {} }, { clip",
            "compress[1]: got clip after quantize, expected prune, select, low_rank, sparsify, clip, quantize,",
        ),
    ],
    ids=["broken", "two of one name", "name of ours", "no step", "not installed", "bad config", "bad order"],
)
def test_bad_step_is_one_line(
    tmp_path: Path, install: Callable[..., Path], packages: Packages, old: str, new: str, message: str
) -> None:
    site = tmp_path
    for name, (text, points) in packages.items():
        site = install(REGISTRY, name, text, points)
    recipe = tmp_path / "toy.toml"
    recipe.write_text(RECIPE.replace(old, new, 1))
    done = temper("recipe", recipe, site=site)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
