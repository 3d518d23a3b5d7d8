"""Part `install`: an environment for the other parts, out of what was carried. Needs no network and no GPU.

The environment is a venv that sees first what was carried, then the checkout, then the packages of the Python that
runs this. Triton's Python stub takes its packages from the first `python3` on PATH and ignores PYTHONPATH, so a
folder alone would not reach it; and it answers nothing with numpy 2, so the carried numpy stands before any other.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path
from typing import Any

from benchmarks.gpu import carried
from benchmarks.gpu.context import ROOT, Context, Results

_ARCHIVE = "python.tar.xz"
_CHECK = """
import importlib, importlib.util, json
# Its server is wanted, not its Python part, which asks for more.
found = {"pytriton": "yes" if importlib.util.find_spec("pytriton") else "no: not installed"}
for name in ("numpy", "grpc", "tritonclient.grpc", "tensorrt_rtx", "tensorrt", "cuda.bindings.runtime",
             "torch", "torchvision", "onnx", "pydantic", "temper", "pytest"):
    try:
        found[name] = getattr(importlib.import_module(name), "__version__", "") or "yes"
    except Exception as error:
        found[name] = f"no: {type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(found))
"""


def run(context: Context, results: Results) -> None:
    """Collect what came, and install once all of it is here."""
    results.begin(python=sys.version.split()[0])
    manifest = carried.collect(context.carried, context.work / "carried")
    if manifest is None:
        results.content |= {"interpreter": sys.executable, "libraries": []}
        results.end("complete", "nothing was carried: the packages of this Python are used")
        return
    if manifest["missing"]:
        parts = ", ".join(map(str, manifest["missing"]))
        results.end("incomplete", f"of {manifest['num_parts']} parts these are yet to come: {parts}")
        return
    files = carried.join(manifest, context.work / "carried", context.work / "files")
    wheels = [path for path in files if path.suffix == ".whl"]
    needed = [wheel for wheel in wheels if not is_installed(wheel)]
    libraries = _unpack_python(files, context.work)
    interpreter = make_environment(context.work, needed, libraries)
    results.content |= {
        "interpreter": str(interpreter),
        "libraries": [str(path) for path in libraries],
        "installed": [wheel.name for wheel in needed],
        "skipped": [wheel.name for wheel in wheels if wheel not in needed],
        "imports": check_imports(interpreter, libraries),
    }
    results.end("complete")


def is_installed(wheel: Path) -> bool:
    """Tell whether this Python has a wheel's project in its version already."""
    name, version = wheel.name.split("-")[:2]
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def make_environment(work: Path, wheels: list[Path], libraries: list[Path]) -> Path:
    """Make the venv, or take the one that is there from the same wheels.

    Args:
        work: Receives `venv`, and `site` with what was carried.
        wheels: To install.
        libraries: Of a carried Python, from which the venv is then made; else empty.

    Returns:
        The venv's interpreter.

    Raises:
        SystemExit: pip cannot install a wheel.
    """
    packages, folder = work / "site", work / "venv"
    marker, content = packages / ".complete", "\n".join(wheel.name for wheel in wheels)
    if not marker.exists() or marker.read_text() != content:
        shutil.rmtree(packages, ignore_errors=True)
        packages.mkdir(parents=True)
        if wheels:
            options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
            options += ["--no-warn-conflicts", "--target", str(packages)]
            command = [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"pip cannot install what was carried: {(done.stderr.splitlines() or ['?'])[-1]}")
        marker.write_text(content)
    _describe_checkout(packages)
    if libraries:
        program = next((libraries[0].parent / "bin").iterdir())
        command = [str(program), "-m", "venv", "--clear", "--without-pip", "--symlinks", str(folder)]
        subprocess.run(command, check=True, env=environment(folder, libraries))
    else:
        venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(folder)
    (own,) = folder.glob("lib/python3*/site-packages")
    paths = [str(packages), str(ROOT), *site.getsitepackages(), site.getusersitepackages()]
    # Imported packages of this Python may come from its own .pth files and PYTHONPATH, so all that it sees counts.
    paths += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (own / "temper-gpu.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
    return folder / "bin" / "python3"


def environment(folder: Path, libraries: list[Path]) -> dict[str, str]:
    """The variables with which the venv's programs run."""
    found = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', '')}"}
    for name in ("PYTHONPATH", "PYTHONHOME"):
        found.pop(name, None)
    if libraries:
        found["LD_LIBRARY_PATH"] = ":".join([*map(str, libraries), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(
            ":"
        )
    return found


def check_imports(interpreter: Path, libraries: list[Path]) -> dict[str, str]:
    """What the environment can import: version, or the error."""
    import json

    command = [str(interpreter), "-c", _CHECK]
    variables = environment(interpreter.parents[1], libraries)
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)
    if done.returncode != 0:
        return {"python": f"no: {(done.stderr.splitlines() or ['it ended without a word'])[-1]}"}
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _unpack_python(files: list[Path], work: Path) -> list[Path]:
    """The carried Python's library folder, where this machine has no libpython for Triton's stub."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    try:
        ctypes.CDLL(name)
        return []
    except OSError:
        pass
    archive = next((path for path in files if path.name == _ARCHIVE), None)
    if archive is None or _own_library(name):
        return []
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    library = work / "python" / "lib"
    return [library] if (library / name).is_file() else []


def _own_library(name: str) -> bool:
    import sysconfig

    return Path(sysconfig.get_config_var("LIBDIR") or "", name).is_file()


def _describe_checkout(packages: Path) -> None:
    """What an editable install leaves: the stages' keys hold the version of the installed `temper`."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = packages / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
