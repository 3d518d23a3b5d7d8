"""A stage's key follows the code that makes its result, at any depth, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from temper.builder.store.artifacts import stage_digest
from temper.builder.store.code import find_sources

FILES = {
    "__init__.py": "",
    "step.py": (
        "from __future__ import annotations\n"
        "import json\nfrom typing import TYPE_CHECKING\n"
        "from room import helper as other, constants\n"
        "if TYPE_CHECKING:\n    from room.types_only import Thing\n\n"
        "def run():\n    from room.late import (\n        work,\n    )\n"
    ),
    "helper.py": "import room.deep\n",
    "constants.py": "X = 1\n",
    "late.py": "from . import near\nfrom .deep import Y\nimport room.second, room.third\n\ndef work(): ...\n",
    "near.py": "V = 1\n",
    "second.py": "V = 1\n",
    "third.py": "V = 1\n",
    "deep.py": "Y = 2\n",
    "types_only.py": "class Thing: ...\n",
    "unrelated.py": "Z = 3\n",
}


def digest(folder: Path) -> str:
    program = "from temper.builder.store.code import code_digest; print(code_digest('room.step'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "room").mkdir()
    for name, text in FILES.items():
        (folder / "room" / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("step.py", True),
        ("helper.py", True),
        ("constants.py", True),
        ("late.py", True),
        ("deep.py", True),
        ("near.py", True),
        ("second.py", True),
        ("third.py", True),
        ("types_only.py", False),
        ("unrelated.py", False),
    ],
)
def test_what_the_result_depends_on_counts(room: Path, file: str, counts: bool) -> None:
    before = digest(room)
    path = room / "room" / file
    path.write_text(FILES[file] + "W = 4\n")
    try:
        assert (digest(room) != before) == counts
    finally:
        path.write_text(FILES[file])
    assert digest(room) == before


def test_key_holds_the_versions_of_its_libraries() -> None:
    keys = {stage_digest("one", {}, [], code=(), libraries=names) for names in ((), ("numpy",), ("no-such",))}
    assert len(keys) == 3
    twice = stage_digest("one", {}, [], code=(), libraries=("numpy", "numpy"))
    assert twice == stage_digest("one", {}, [], code=(), libraries=("numpy",))


@pytest.mark.parametrize(
    ("module", "depends", "does_not"),
    [
        ("data.prepare", "data.sources", ["network", "compress", "engines"]),
        ("network.stage_weights", "network.train", ["network.export", "compress", "engines"]),
        ("network.stage_export", "network.export", ["network.train", "data", "compress", "engines"]),
        ("engines.build", "network.export", ["network.train", "data", "compress"]),
    ],
)
def test_edit_that_cannot_change_a_stage_leaves_it(module: str, depends: str, does_not: list[str]) -> None:
    found = {source.removeprefix("temper.builder.") for source in find_sources(f"temper.builder.{module}")}
    assert {module, depends} <= found
    assert [source for source in found if any(source.startswith(name) for name in does_not)] == []
