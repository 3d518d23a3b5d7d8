"""docs/examples/engine, installed: a recipe names its engine kind, and a real server runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "engine"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what this one has, and the example."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    packages = folder / "venv" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    # tritonserver's stub reads no PYTHONPATH, but this.
    (packages / "ours.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    shutil.copytree(EXAMPLE, folder / "sources")  # what is built leaves its traces
    pip = f"{sys.executable} -m pip install -q --no-deps --no-build-isolation --no-warn-conflicts --target".split()
    subprocess.run([*pip, packages, folder / "sources"], check=True, env={**os.environ, "PYTHONPATH": ""})
    return folder / "venv" / "bin" / "python"


def temper(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from temper.cli.main import main; main()"
    command = [str(python), "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.server
def test_recipe_is_built_served_and_measured_in_it(python: Path, quick_recipe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "quick.toml"
    text = quick_recipe.read_text().replace('kind = "openvino"', 'kind = "ort"\noptimize = false')
    recipe.write_text(text.partition("[[attacks]]")[0])
    folders = ("--repository", tmp_path / "models", "--runs", tmp_path / "runs")
    done = temper(python, "run", recipe, *folders)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "runs" / "quick" / "report.json").read_text())
    for row in report["variants"]:
        assert (row["engine"], row["engine_reason"]) == ("ort", "asked for in the recipe")
        assert row["accuracy"]["num_images"] == 60
        assert row["throughput_ips"] > 0
    assert report["config"]["engine"] == {
        "kind": "ort",
        "opt_batch": 8,
        "max_batch": 32,
        "num_instances": 2,
        "optimize": False,
    }
    assert "ms in ONNX Runtime" in done.stderr  # the audit of the steps
    config = (tmp_path / "models" / "quick_int8" / "config.pbtxt").read_text()
    assert re.search(r'key: "optimize"\s+value \{\s+string_value: "no"', config)
    assert temper(python, "verify", tmp_path / "models").returncode == 0


def test_doctor_asks_it(python: Path) -> None:
    told = json.loads(temper(python, "doctor", "--json").stdout)
    (engine,) = (row for row in told["engines"] if row["kind"] == "ort")
    assert (engine["build"], engine["run"]) == (True, True)
    assert re.fullmatch(r"ONNX Runtime 1\.\S+ on the CPU", engine["run_why"])


RECIPE = '[data]\nsource = "digits"\nimage_size = 32\n[[variants]]\nname = "fp32"\n[engine]\n'


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        (
            'kind = "ort2"',
            'engine.kind: got "ort2", expected one of "auto", "openvino", "tensorrt-rtx", "tensorrt", "ort"',
        ),
        ('kind = "ort"\noptimize = 3', "engine.optimize: got 3, expected true or false"),
        (
            'kind = "openvino"\noptimize = true',
            'engine.optimize: no such key with kind "openvino", expected "ort"',
        ),
        ('kind = "ort"\nmax_batch = 0', "engine.max_batch: got 0, expected 1 to 4096"),
    ],
)
def test_its_keys_are_checked_as_ours(python: Path, tmp_path: Path, engine: str, line: str) -> None:
    recipe = tmp_path / "x.toml"
    recipe.write_text(f'name = "x"\n{RECIPE}{engine}\n')
    done = temper(python, "build", recipe)
    assert (done.returncode, done.stderr) == (1, f"error: {recipe}: {line}\n")


BROKEN = {
    "code": ("import no_such_thing", "does not load: ModuleNotFoundError: No module named 'no_such_thing'; mend"),
    "object": ("ENGINE = 3", "is int, expected EngineKind; see docs/extend.md"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_kind_that_does_not_load_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, reason = BROKEN[name]
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[temper.engines]\nbroken = broken_engine:ENGINE\n")
    (tmp_path / "broken_engine.py").write_text(code)
    (tmp_path / "x.toml").write_text(f'name = "x"\n{RECIPE}')
    program = "from temper.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    line = f"temper.engines 'broken' of broken (broken_engine:ENGINE) {reason}"
    done = run("build", str(tmp_path / "x.toml"))
    assert done.returncode == 1
    assert re.fullmatch(f"error: {re.escape(line)}.*\n", done.stderr)
    (engine,) = (row for row in json.loads(run("doctor", "--json").stdout)["engines"] if row["kind"] == "broken")
    assert (engine["build"], engine["run"]) == (False, False)
    assert engine["build_why"].startswith(line)
