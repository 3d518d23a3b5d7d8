"""Steps, attacks and engines of other packages: the code of docs/extend.md, installed and used from a recipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
    """The examples, installed into a folder of their own."""
    folder = tmp_path_factory.mktemp("plugins")
    command = [sys.executable, *"-m pip install -q --no-deps --no-build-isolation --target".split(), str(folder)]
    for name in sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")):
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


def install(folder: Path, package: str, group: str, points: dict[str, str], code: str) -> None:
    """Puts a package there as pip leaves it."""
    (folder / f"{package}.py").write_text(code)
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {place}\n" for name, place in points.items())
    (about / "entry_points.txt").write_text(f"[{group}]\n{lines}")


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


STEP = EXAMPLES / "step" / "temper_example_step.py"


@pytest.mark.parametrize(
    ("fill", "change", "message"),
    [
        (
            lambda folder: install(folder, "broken", "temper.steps", {"clip": "broken:STEP"}, "import nowhere"),
            str,
            "error: temper.steps 'clip' of broken (broken:STEP) does not load: ModuleNotFoundError: "
            "No module named 'nowhere'; mend or uninstall it",
        ),
        (
            lambda folder: [
                install(folder, name, "temper.steps", {"clip": f"{name}:STEP"}, STEP.read_text())
                for name in ("one", "two")
            ],
            str,
            "has the name of temper.steps 'clip' of ",
        ),
        (
            lambda folder: install(folder, "greedy", "temper.steps", {"prune": "greedy:STEP"}, STEP.read_text()),
            str,
            "error: temper.steps 'prune' of greedy (greedy:STEP) has the name of one of Temper's own; rename it",
        ),
        (
            lambda folder: install(folder, "odd", "temper.steps", {"clip": "odd:STEP"}, "STEP = 5"),
            str,
            "error: temper.steps 'clip' of odd (odd:STEP) is int, expected Step; see docs/extend.md",
        ),
        (
            lambda folder: None,
            str,
            "variants[1].compress[0].clip: no such key, expected one of prune, low_rank, sparsify, distil,",
        ),
        (
            lambda folder: install(folder, "good", "temper.steps", {"clip": "good:STEP"}, STEP.read_text()),
            lambda text: text.replace("deviations = 2.0", "deviations = -2.0"),
            "variants[1].compress[0].clip.deviations: got -2.0, expected a positive number",
        ),
        (
            lambda folder: install(folder, "good", "temper.steps", {"clip": "good:STEP"}, STEP.read_text()),
            lambda text: text.replace("{ clip", "{ quantize = {} }, { clip"),
            "compress[1]: got clip after quantize, expected prune, low_rank, sparsify, clip, quantize, cast in",
        ),
    ],
    ids=["broken", "two of one name", "name of ours", "no step", "not installed", "bad config", "bad order"],
)
def test_bad_plugin_is_one_line(
    tmp_path: Path, fill: Callable[[Path], object], change: Callable[[str], str], message: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    fill(site)
    recipe = tmp_path / "toy.toml"
    recipe.write_text(change(RECIPE))
    done = temper("build", recipe, "--runs", tmp_path / "runs", site=site)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
