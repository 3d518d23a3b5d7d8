"""`make gpu-pack`: everything that `make gpu` needs on a machine without network, in parts of one transfer each.

Runs where there is a network and ModelOpt, but no GPU: downloads the wheels for the target's Python, exports and
quantises the networks, leaves their weights out (skeletons.py), and writes the parts with their manifest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.gpu import carried, networks, skeletons
from benchmarks.gpu.context import ARCHS, PRECISIONS, ROOT

FOLDER = ".gpu"
"""Where the parts are looked for and put, in the working tree; git shall ignore it."""
PYTHON_ARCHIVE = "python.tar.xz"
_PYTHON = "3.12"
# pip takes a platform by its exact name, so the older ones are listed too.
_PLATFORMS = ("manylinux_2_35", "manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_24")
_OLD_PLATFORMS = ("manylinux_2_17", "manylinux2014", "manylinux1")
# In the versions of requirements.lock, so that what is measured is what is tested.
_LOCKED = (
    "nvidia-pytriton",
    "numpy",
    "tritonclient",
    "python-rapidjson",
    "grpcio",
    "protobuf",
    "urllib3",
    "packaging",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "ml-dtypes",
    "typing-inspection",
    "typing-extensions",
    "iniconfig",
    "pluggy",
    "pygments",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
)
_RTX = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")
# On PyPI as source only, of a few kilobytes; made into wheels here.
_RTX_SOURCES = ("tensorrt-rtx-cu13", "tensorrt-rtx")
# Not needed to run, and half of the standard library.
_LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "__pycache__")


def main() -> None:
    """Download, export, cut and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.pack", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / FOLDER, help="receives the parts")
    parser.add_argument("--python", default=_PYTHON, help="the target's Python, as 3.12")
    parser.add_argument(
        "--part-mib", type=int, default=carried.PART_BYTES >> 20, help="the most that a part holds"
    )
    parser.add_argument("--arch", nargs="*", default=ARCHS, choices=ARCHS)
    parser.add_argument(
        "--interpreter", type=Path, help="a shared build of that Python to carry, for a target without libpython"
    )
    parser.add_argument("--keep", type=Path, help="keeps the downloads and graphs here, for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        files = download(work / f"wheels-{options.python}", options.python)
        files += make_skeletons(work / "graphs", options.arch)
        if options.interpreter is not None:
            files.append(archive_python(options.interpreter, options.python, work / PYTHON_ARCHIVE))
        manifest = carried.deal_out(files, options.folder, part_bytes=options.part_mib << 20)
    for number in range(1, manifest["num_parts"] + 1):
        pieces = [piece for piece in manifest["pieces"] if piece["part"] == number]
        mib = sum(piece["size_bytes"] for piece in pieces) / (1 << 20)
        print(f"part {number}: {mib:5.1f} MiB, {len(pieces)} pieces, {options.folder / str(number)}")


def download(folder: Path, python: str) -> list[Path]:
    """Downloads the wheels, in the locked versions.

    Args:
        folder: Receives them; what is there is kept.
        python: The target's version, as "3.12".

    Returns:
        The wheels, the largest first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    locked = read_lock(ROOT / "requirements.lock")
    version = locked["tensorrt-rtx"]
    platforms = [f"{name}_x86_64" for name in (*_PLATFORMS, *_OLD_PLATFORMS)]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    options += [word for platform in platforms for word in ("--platform", platform)]
    wanted = [f"{name}=={locked[name]}" for name in _LOCKED] + [f"{name}=={version}" for name in _RTX]
    _pip("download", *options, "--dest", str(folder), *wanted)
    sources = [f"{name}=={version}" for name in _RTX_SOURCES]
    _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *sources)
    return sorted(folder.glob("*.whl"), key=lambda path: -path.stat().st_size)


def read_lock(path: Path) -> dict[str, str]:
    """Returns the pinned version of each project in a file of `name==version` lines."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def make_skeletons(folder: Path, archs: tuple[str, ...]) -> list[Path]:
    """Makes every network in every precision, and returns their graphs without the weights."""
    paths = []
    for arch in archs:
        shapes = {name: tuple(each.shape) for name, each in networks.build_network(arch).named_parameters()}
        names = skeletons.name_weights(networks.make_graph(arch, "fp32", folder), shapes)
        for precision in PRECISIONS:
            graph = networks.make_graph(arch, precision, folder)
            quantized = networks.quantized_graph(graph)
            path = folder / f"{arch}-{precision}{skeletons.SUFFIX}"
            skeletons.write_skeleton(graph, quantized if quantized.exists() else None, names, path, shapes)
            paths.append(path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", file=sys.stderr, flush=True)
    return paths


def archive_python(prefix: Path, python: str, target: Path) -> Path:
    """Packs an interpreter, its shared library and the standard library.

    A distribution's Python often comes without libpython, to which Triton's stub is linked.

    Args:
        prefix: Its folder, with `lib/libpython3.12.so.1.0` in it.
        python: Its version, as "3.12".
        target: The archive to write.

    Raises:
        SystemExit: It is no shared build of that version.
    """
    library = prefix / "lib" / f"libpython{python}.so.1.0"
    if not library.is_file():
        sys.exit(f"{prefix}: has no lib/{library.name}; give a build of Python {python} with --enable-shared")

    def choose(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(info.name).parts
        left_out = any(part in _LEFT_OUT or part.startswith("config-") for part in parts)
        return None if left_out or info.name.endswith((".a", ".pyc")) else info

    with tarfile.open(target, "w:xz") as archive:
        for name in (f"bin/python{python}", f"lib/{library.name}", f"lib/python{python}"):
            archive.add(prefix / name, f"python/{name}", filter=choose)
    return target


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        sys.exit(f"pip {arguments[0]}: {(lines or ['failed'])[-1]}")


if __name__ == "__main__":
    main()
