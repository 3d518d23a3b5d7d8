"""What is shipped, and which part may import which: the wheel, the order of the rooms, the client alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("backends", "builder", "client", "imaging", "recipes")
"""The folders beside `temper/` that it links to, so that a checkout imports as what is installed does."""

# From the ground up: a room may import itself and what stands before it in its line.
ROOMS = (
    "contract",
    "names",
    "errors",
    "estimate",
    "quiet",
    "store",
    "data",
    "network",
    "publish",
    "engines",
    "compress",
    "explain",
)
BUILDER = (*ROOMS, "built", "build")
ORDERS = (
    ("imaging", *(f"builder.{room}" for room in BUILDER)),
    ("imaging", "client"),
    ("errors", "terminal", "progress", "host", "serve", "report", "gate", "run", "cli"),
)
GROUND = ("lazy", "plugins", "imaging", "builder", "client", "backends")
"""What `temper`'s own rooms stand on; of these only the backends import nothing of ours at all."""


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Every module of ours and those of ours that it imports: at the top, in a function, or for types alone."""
    modules = {_name(path): path for path in _sources()}
    return {module: set(_imported(module, path, modules)) for module, path in modules.items()}


def _sources() -> Iterator[Path]:
    for folder, folders, files in os.walk(ROOT / "temper", followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(folder, file) for file in files if file.endswith(".py"))


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported(module: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            place = f"{module.rpartition('.')[0]}." if node.level else ""  # imaging's own: from beside it
            inner = [f"{place}{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in modules else f"{place}{node.module}" for name in inner]
            yield from (name for name in found if name in modules and name != module)


def test_no_module_imports_itself_by_a_detour(imports: dict[str, set[str]]) -> None:
    reach = {module: set(found) for module, found in imports.items()}
    while True:
        wider = {module: found.union(*(reach[each] for each in found)) for module, found in reach.items()}
        if wider == reach:
            break
        reach = wider
    circles = [f"{module} <- {', '.join(sorted(imports[module]))}" for module in reach if module in reach[module]]
    assert circles == []


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[-1])
def test_no_room_imports_one_above_it(imports: dict[str, set[str]], order: tuple[str, ...]) -> None:
    def rank(module: str) -> int | None:
        inner = module.removeprefix("temper.")
        found = [index for index, room in enumerate(order) if inner == room or inner.startswith(f"{room}.")]
        return found[-1] if found else None

    upward = [
        f"{module} imports {found}"
        for module in imports
        for found in imports[module]
        if (mine := rank(module)) is not None and (other := rank(found)) is not None and other > mine
    ]
    assert upward == []


def test_packages_do_not_look_over_their_walls(imports: dict[str, set[str]]) -> None:
    """Neither of builder and client knows the other, nor the rooms that join them; the backends know nothing."""

    def part(module: str) -> str:
        inner = module.removeprefix("temper.").split(".")[0]
        return inner if inner in GROUND else "temper"

    shared = {"imaging", "lazy", "plugins"}
    allowed = {
        "backends": {"backends"},  # temper_decode's imaging, by its link
        "imaging": {"imaging"},
        "builder": {"builder", *shared},
        "client": {"client", *shared},
    }
    over = [
        f"{module} imports {found}"
        for module in imports
        for found in imports[module]
        if part(found) not in allowed.get(part(module), {part(found)} if part(module) == "temper" else set())
        and found != "temper"
    ]
    assert over == []


def test_parts_are_imported_by_one_name_only() -> None:
    """`import builder` works in the root of a checkout, and would make a second copy of every class."""
    wrong = []
    for folder in (*PARTS, "temper", "tests", "benchmarks", "docker"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                if path.parent.name == "temper_decode":  # which has a folder of that name first on its path
                    names = [name for name in names if name.split(".")[0] != "imaging"]
                wrong += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.split(".")[0] in PARTS]
    assert wrong == []


@pytest.mark.slow
def test_wheel_holds_every_file_and_takes_one_name(tmp_path: Path) -> None:
    subprocess.run(
        [*f"{sys.executable} -m pip wheel -q --no-deps --no-build-isolation -w".split(), tmp_path, "."],
        cwd=_copy_of_sources(tmp_path / "sources"),
        check=True,
    )
    (wheel,) = tmp_path.glob("temper-*.whl")
    with zipfile.ZipFile(wheel) as content:
        shipped = {name for name in content.namelist() if ".dist-info/" not in name}
    ours = {
        os.path.relpath(Path(folder, file), ROOT)
        for folder, _, files in os.walk(ROOT / "temper", followlinks=True)
        for file in files
        if not file.endswith(".pyc")
    }
    assert shipped == ours
    assert {name.split("/")[0] for name in shipped} == {"temper"}
    assert {f"temper/{name}" for name in ("py.typed", "recipes/digits.toml", "backends/temper/model.py")} < shipped
    assert {f"temper/backends/temper_decode/{name}.py" for name in ("model", "imaging/batch")} < shipped
    assert {f"temper/report/schema/{name}.json" for name in ("report", "explain", "card")} < shipped


def _copy_of_sources(target: Path) -> Path:
    """A copy, so that the build leaves nothing in the checkout."""
    target.mkdir()
    tracked = [*PARTS, "temper", "pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in tracked), target], check=True)
    return target


def test_client_needs_neither_torch_nor_builder() -> None:
    absent = ["torch", "torchvision", "modelopt", "onnx", "openvino", "pydantic", "sklearn", "scipy"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({[*absent, 'temper.builder']!r}))\n"
        "from temper.client import Client, accuracy, images, load, robustness, stats\n"
        "from temper.client.robustness.base import ATTACKS; ATTACKS.all()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
