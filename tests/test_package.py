"""What is shipped: the wheel's content, and that the client stands alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_wheel_holds_every_source_file(tmp_path: Path) -> None:
    subprocess.run(
        [*f"{sys.executable} -m pip wheel -q --no-deps --no-build-isolation -w".split(), tmp_path, "."],
        cwd=_copy_of_sources(tmp_path / "sources"),
        check=True,
    )
    (wheel,) = tmp_path.glob("temper-*.whl")
    with zipfile.ZipFile(wheel) as content:
        shipped = {name for name in content.namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(ROOT))
        for folder in ("backends", "builder", "client", "imaging", "temper")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert shipped == ours


def _copy_of_sources(target: Path) -> Path:
    """A copy, so that the build leaves nothing in the checkout."""
    target.mkdir()
    tracked = ["backends", "builder", "client", "imaging", "temper", "pyproject.toml", "README.md"]
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in tracked), target], check=True)
    return target


def test_client_needs_neither_torch_nor_builder() -> None:
    absent = ["torch", "torchvision", "modelopt", "onnx", "openvino", "pydantic", "sklearn", "scipy", "builder"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "import temper.client\n"
        "from temper.client import accuracy, images, load, robustness, stats"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_packages_do_not_look_over_their_walls() -> None:
    forbidden = {
        "builder": ("client", "temper"),
        "client": ("builder", "temper"),
        "imaging": ("builder", "client", "temper", "torch"),
    }
    for package, others in forbidden.items():
        for source in (ROOT / package).rglob("*.py"):
            for line in source.read_text().splitlines():
                words = line.split()
                if words[:1] in (["import"], ["from"]):
                    assert words[1].split(".")[0] not in others, f"{source.relative_to(ROOT)}: {line}"
