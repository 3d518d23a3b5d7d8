"""Part `install`: an environment for the other parts, out of what was carried. Needs no network and no GPU.

The environment is a venv that sees first what was carried, then the checkout, then the packages of the Python that
runs this. Triton's Python stub takes its packages from the first `python3` on PATH and ignores PYTHONPATH, so a
folder alone would not reach it; and it answers nothing with numpy 2, so the carried numpy stands before any other.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
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

# Of what a machine reads for the first time, torch alone takes long.
_IMPORTS_S = 60.0
# What the standard library takes from the system's own libraries.
_STANDARD = "import bz2, ctypes, hashlib, lzma, zlib"
_CHECK = """
import importlib, importlib.util, json
# Its server is wanted, not its Python part, which asks for more.
found = {"pytriton": "yes" if importlib.util.find_spec("pytriton") else "no: not installed"}
for name in ("numpy", "grpc", "tritonclient.grpc", "tritonclient.utils.cuda_shared_memory", "tensorrt_rtx",
             "tensorrt", "cuda.bindings.runtime", "torch", "torchvision", "onnx", "onnxruntime", "pydantic",
             "rich", "PIL", "sklearn.datasets", "pytest", "pytest_asyncio", "pytest_timeout", "click", "temper",
             "temper.client.client", "temper.builder.publish.entry", "temper.builder.engines"):
    try:
        found[name] = getattr(importlib.import_module(name), "__version__", "") or "yes"
    except Exception as error:
        found[name] = f"no: {type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(found))
"""


def run(context: Context, results: Results) -> None:
    """Collect what came, and install once all of it is here."""
    results.begin(python=sys.version.split()[0])
    try:
        manifest = carried.collect(context.carried, context.work / "carried")
    except carried.CarriedError as error:
        results.end("failed", str(error))
        return
    if manifest is None:
        results.content |= {"interpreter": sys.executable, "libraries": []}
        results.end("complete", "nothing was carried: the packages of this Python are used")
        return
    if manifest["missing"]:
        parts = ", ".join(map(str, manifest["missing"]))
        results.end("incomplete", f"of {manifest['num_parts']} parts these are yet to come: {parts}")
        return
    files = {path.name: path for path in carried.join(manifest, context.work / "carried", context.work / "files")}
    libraries = _unpack_python(files.get(carried.PYTHON_ARCHIVE), context.work)
    try:
        interpreter = make_environment(context.work, files[carried.SITE_ARCHIVE], libraries)
    except carried.CarriedError as error:
        results.end("failed", str(error))
        return
    # Before the imports are tried: the other parts can run without the answer.
    results.content |= {"interpreter": str(interpreter), "libraries": [str(path) for path in libraries]}
    results.write()
    results.content["imports"] = check_imports(interpreter, libraries)
    results.end("complete")


def make_environment(work: Path, archive: Path, libraries: list[Path]) -> Path:
    """Make the venv, or take the one that is there from the same archive.

    Args:
        work: Receives `venv`, and `site` with what was carried.
        archive: Holds `site`.
        libraries: Of a carried Python, from which the venv is then made; else empty.

    Returns:
        The venv's interpreter.

    Raises:
        CarriedError: It was packed for another Python.
    """
    packages, folder = work / "site", work / "venv"
    marker = packages / ".complete"
    with archive.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    if not marker.exists() or marker.read_text() != content:
        shutil.rmtree(packages, ignore_errors=True)
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
        marker.write_text(content)
    stubs = packages / "pytriton" / "tritonserver" / "python_backend_stubs"
    packed_for, here = sorted(path.name for path in stubs.glob("3.*")), "{}.{}".format(*sys.version_info)
    if packed_for and here not in packed_for:
        raise carried.CarriedError(
            f"the pack is for Python {packed_for[0]}, this is {here}: start python{packed_for[0]} -m "
            f"benchmarks.gpu, or pack with make gpu-pack ARGS='--python {here}'"
        )
    _describe_checkout(packages)
    if libraries:
        command = [str(_program(libraries)), "-m", "venv", "--clear", "--without-pip", "--symlinks", str(folder)]
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
    command = [str(interpreter), "-c", _CHECK]
    variables = environment(interpreter.parents[1], libraries)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT, timeout=_IMPORTS_S)
    except subprocess.TimeoutExpired:
        return {"python": f"no: not done within {_IMPORTS_S:.0f} s"}
    if done.returncode != 0:
        return {"python": f"no: {(done.stderr.splitlines() or ['it ended without a word'])[-1]}"}
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _unpack_python(archive: Path | None, work: Path) -> list[Path]:
    """The carried Python's library folder, where this machine has no libpython for Triton's stub."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    try:
        ctypes.CDLL(name)
        return []
    except OSError:
        pass
    if archive is None or _own_library(name):
        return []
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    libraries = [work / "python" / "lib"]
    if not (libraries[0] / name).is_file():
        return []
    # Without a server the other parts can still be measured, in this machine's own Python.
    command = [str(_program(libraries)), "-c", _STANDARD]
    done = subprocess.run(command, env=environment(work / "venv", libraries), capture_output=True, text=True)
    if done.returncode != 0:
        print(f"the carried Python does not run here: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return []
    return libraries


def _program(libraries: list[Path]) -> Path:
    return next((libraries[0].parent / "bin").iterdir())


def _own_library(name: str) -> bool:
    import sysconfig

    return Path(sysconfig.get_config_var("LIBDIR") or "", name).is_file()


def _describe_checkout(packages: Path) -> None:
    """What an editable install leaves: report and card hold the version of the installed `temper`."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = packages / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
