"""`make gpu-pack`: everything that `make gpu` needs on a machine without network, in one transfer.

Runs where there is a network, but no GPU: downloads the wheels for the target's Python, packs what is needed of
them as one archive, and writes it in parts with their manifest. TensorRT-RTX has no kernels for some GPUs, the
H100 among them, so it comes only when asked for, with the networks that it compiles (without their weights, see
skeletons.py): that takes ModelOpt here, and several parts.
"""

from __future__ import annotations

import argparse
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePath

from benchmarks.gpu import carried, networks, skeletons
from benchmarks.gpu.context import ARCHS, PRECISIONS, ROOT

FOLDER = ".gpu"
"""Where the parts are looked for and put, in the working tree; git shall ignore it."""
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
    "click",
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
# Of the standard library: not needed to run, and half of it.
_LEFT_OUT: tuple[str, ...] = ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3")
_LEFT_OUT += ("pydoc_data", "site-packages", "__pycache__", "config-*")
_LEFT_OUT += ("*.a", "_test*", "xxlimited*", "_tkinter*", "nis*")
# A large part is machine code, which gets smaller with its jumps made absolute.
_FILTERS = ({"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9})


def main() -> None:
    """Download, slim, compress and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.pack", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / FOLDER, help="receives the parts")
    parser.add_argument("--python", default=_PYTHON, help="the target's Python, as 3.12")
    parser.add_argument(
        "--part-mib", type=int, default=carried.PART_BYTES >> 20, help="the most that a part holds"
    )
    parser.add_argument("--tensorrt-rtx", action="store_true", help="TensorRT-RTX and the networks too")
    parser.add_argument(
        "--arch", nargs="*", choices=ARCHS, help="networks to carry; default: all with TensorRT-RTX, else none"
    )
    parser.add_argument(
        "--interpreter",
        type=Path,
        help="a shared build of that Python to carry, for a target without libpython; default: pyenv's or uv's",
    )
    parser.add_argument("--keep", type=Path, help="keeps the downloads and graphs here, for the next time")
    options = parser.parse_args()
    interpreter = options.interpreter or find_interpreter(options.python)
    archs = tuple(options.arch if options.arch is not None else ARCHS if options.tensorrt_rtx else ())
    print(_describe(options.python, interpreter, archs, rtx=options.tensorrt_rtx), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        files = []
        if interpreter is not None:
            files.append(archive_python(interpreter, options.python, Path(temporary) / carried.PYTHON_ARCHIVE))
        wheels = download(work / f"wheels-{options.python}", options.python, rtx=options.tensorrt_rtx)
        files.append(archive_site(wheels, options.python, Path(temporary) / carried.SITE_ARCHIVE))
        files += make_skeletons(work / "graphs", archs)
        manifest = carried.deal_out(files, options.folder, part_bytes=options.part_mib << 20)
    for number in range(1, manifest["num_parts"] + 1):
        pieces = [piece for piece in manifest["pieces"] if piece["part"] == number]
        mib = sum(piece["size_bytes"] for piece in pieces) / (1 << 20)
        print(f"part {number}: {mib:5.1f} MiB, {len(pieces)} pieces, {options.folder / str(number)}")
    print(f"there, in this tree with {FOLDER}/ in it: python3 -m benchmarks.gpu --limit-s 500")


def find_interpreter(python: str) -> Path | None:
    """Returns the newest shared build of a version that pyenv or uv keeps, None without one."""
    home = Path.home()
    folders = (
        Path(os.environ.get("PYENV_ROOT") or home / ".pyenv", "versions"),
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local" / "share" / "uv" / "python"),
    )
    name = f"libpython{python}.so.1.0"
    found = [path.parents[1] for folder in folders for path in folder.glob(f"*/lib/{name}")]
    return max(found, key=_version, default=None)


def _version(interpreter: Path) -> tuple[int, ...]:
    """Its folder's name says it, as 3.12.1 or cpython-3.12.1-linux-x86_64-gnu."""
    found = re.search(r"\d+(\.\d+)*", interpreter.name)
    return tuple(map(int, found[0].split("."))) if found else ()


def download(folder: Path, python: str, *, rtx: bool) -> list[Path]:
    """Downloads the wheels, in the locked versions.

    Args:
        folder: Receives them; what is there already is not downloaded again.
        python: The target's version, as "3.12".
        rtx: TensorRT-RTX too.

    Returns:
        The wheels, one per project.

    Raises:
        SystemExit: There is none of a project, or more than one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    locked = read_lock(ROOT / "requirements.lock")
    names: tuple[str, ...] = (*_LOCKED, *_RTX) if rtx else _LOCKED
    options = ["--quiet", "--no-deps", *_target(python), "--dest", str(folder)]
    _pip("download", *options, *(f"{name}=={locked[name]}" for name in names))
    if rtx:
        sources = [f"{name}=={locked[name]}" for name in _RTX_SOURCES]
        _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *sources)
        names += _RTX_SOURCES
    # The folder may hold other versions, and what another call was for.
    here = sorted(folder.glob("*.whl"))
    wheels = []
    for wanted in sorted(f"{name.replace('-', '_')}-{locked[name]}" for name in names):
        found = [path for path in here if path.name.lower().startswith(f"{wanted}-")]
        if len(found) != 1:
            sys.exit(f"{folder}: got {len(found)} wheels of {wanted}, expected 1; empty the folder and pack again")
        wheels += found
    return wheels


def archive_site(wheels: list[Path], python: str, target: Path) -> Path:
    """Installs wheels and packs what is needed of them, as `site/`.

    Args:
        wheels: One per project.
        python: The target's version, as "3.12".
        target: The archive to write.
    """
    with tempfile.TemporaryDirectory() as staging:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
        _pip("install", *options, *_target(python), "--target", staging, *map(str, wheels))

        def choose(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            return info if _is_needed(PurePath(info.name).relative_to("site"), python) else None

        _archive(Path(staging), "site", target, choose)
    return target


def _is_needed(path: PurePath, python: str) -> bool:
    """Leaves out tests, types, scripts for another machine, and what serves other versions of Python."""
    parts = path.parts
    if {"tests", "__pycache__"} & set(parts) or parts[:1] == ("bin",) or path.suffix in (".pyi", ".a"):
        return False
    # The wheel of tritonserver brings a stub for each version, and libpython for the newest of them.
    if parts[:3] == ("pytriton", "tritonserver", "python_backend_stubs"):
        return parts[3:4] in ((), (python,))
    return not (parts[:1] == ("nvidia_pytriton.libs",) and path.name.startswith("libpython"))


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
    """Packs an interpreter, its shared library, its headers and the standard library, as `python/`.

    A distribution's Python often comes without libpython, to which Triton's stub is linked. The headers are for
    torch.compile, which compiles against those of the Python that runs it.

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
    with tempfile.TemporaryDirectory() as staging:
        copy, leave_out = Path(staging, "python"), shutil.ignore_patterns(*_LEFT_OUT)
        for name in (f"lib/python{python}", f"include/python{python}"):
            shutil.copytree(prefix / name, copy / name, ignore=leave_out, symlinks=True)
        (copy / "bin").mkdir()
        for name in (f"bin/python{python}", f"lib/{library.name}"):
            shutil.copy(prefix / name, copy / name)
        if strip := shutil.which("strip"):
            for path in (copy / "lib").rglob("*.so*"):
                subprocess.run([strip, "--strip-unneeded", str(path)], check=True)
        _archive(copy, "python", target)
    return target


def _describe(python: str, interpreter: Path | None, archs: tuple[str, ...], *, rtx: bool) -> str:
    words = [f"packing {len(_LOCKED)} packages for Python {python}"]
    words.append(f"{interpreter.name} with libpython" if interpreter else "no libpython (see --interpreter)")
    words.append(f"{'TensorRT-RTX' if rtx else 'no TensorRT-RTX'}; {', '.join(archs) or 'no network'}")
    return "; ".join(words)


def _archive(
    folder: Path,
    name: str,
    target: Path,
    choose: Callable[[tarfile.TarInfo], tarfile.TarInfo | None] | None = None,
) -> None:
    with lzma.open(target, "wb", filters=_FILTERS) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        archive.add(folder, name, filter=choose)


def _target(python: str) -> list[str]:
    """Options of pip for another Python than the one that runs it."""
    platforms = [f"{name}_x86_64" for name in (*_PLATFORMS, *_OLD_PLATFORMS)]
    options = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    return options + [word for platform in platforms for word in ("--platform", platform)]


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        sys.exit(f"pip {arguments[0]}: {(lines or ['failed'])[-1]}")


if __name__ == "__main__":
    main()
