"""The packages that Temper is put together from: which are here, which load, and what installs the others.

A version comes from a package's metadata. Only where a package can be installed and yet not work is it imported,
in a process of its own with a limit, all of them at once: a broken library must neither end nor delay the answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PROBE_TIMEOUT_S = 120.0
"""How long the imports may take, all of them together: they run at once. Seconds, if the machine is not busy."""

# Prints one JSON object: a name that the real package has and its placeholder lacks, or why it does not load.
_PROBE = """
import importlib, json, sys
module, wanted = sys.argv[1:]
try:
    found = importlib.import_module(module)
    answer = {"version": str(getattr(found, "__version__", "")), "whole": hasattr(found, wanted)}
    capabilities = dir(getattr(found, "ComputeCapability", None))
    numbers = [name[2:] for name in capabilities if name.startswith("SM") and name[2:].isdigit()]
    answer["capabilities"] = [f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int)]
except BaseException as error:
    answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
print("\\n" + json.dumps(answer))
"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One package, or the server."""

    name: str
    """As NVIDIA, Intel or its project writes it."""
    state: Literal["ok", "missing", "broken"]
    version: str | None = None
    note: str = ""
    """What is wrong with it, or what else there is to say."""
    install: str | None = None
    """The command that mends it; None when nothing is to mend."""
    capabilities: tuple[str, ...] = ()
    """TensorRT-RTX: the compute capabilities that it builds for."""

    @property
    def ok(self) -> bool:
        """Whether it can be used."""
        return self.state == "ok"


@dataclass(frozen=True, kw_only=True)
class _Package:
    name: str
    project: str
    install: str
    module: str | None = None
    """Imported, to see whether it works; None trusts the metadata."""
    wanted: str = ""
    """What the module must have."""


_NVIDIA_INDEX = "pip install tensorrt, where pip reaches NVIDIA's own index; or build in docker/builder.Dockerfile"

_PACKAGES = (
    _Package(name="torch", project="torch", install="pip install 'temper[builder]'"),
    _Package(name="torchvision", project="torchvision", install="pip install 'temper[builder]'"),
    _Package(name="ModelOpt", project="nvidia-modelopt", install="pip install 'temper[builder]'"),
    _Package(name="ONNX", project="onnx", install="pip install 'temper[builder]'"),
    _Package(name="tritonclient", project="tritonclient", install="pip install 'temper[client]'"),
    _Package(
        name="OpenVINO",
        project="openvino",
        install="pip install 'temper[embedded]'",
        module="openvino",
        wanted="Core",
    ),
    _Package(
        name="TensorRT-RTX",
        project="tensorrt-rtx",
        install="pip install 'temper[rtx]'",
        module="tensorrt_rtx",
        wanted="Builder",
    ),
    _Package(name="TensorRT", project="tensorrt", install=_NVIDIA_INDEX, module="tensorrt", wanted="Builder"),
    _Package(name="torch-tensorrt", project="torch-tensorrt", install="pip install 'temper[tensorrt]'"),
    _Package(
        name="cuda-bindings",
        project="cuda-bindings",
        install="pip install 'cuda-bindings>=12.9,<14'",
        module="cuda.bindings.runtime",
        wanted="cudaGetDeviceCount",
    ),
    _Package(name="Ray", project="ray", install="pip install ray"),
)


def find_parts() -> dict[str, Part]:
    """Looks at every package, and at the embedded server; by name, in the order to show."""
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    probes = {each.name: _start(each) for each in _PACKAGES if each.module and _version(each.project)}
    parts = {each.name: _judge(each, probes.get(each.name), deadline) for each in _PACKAGES}
    if parts["torch"].ok:
        parts["torch"] = _with_cuda_build(parts["torch"])
    return {**parts, "tritonserver": find_server()}


def cuda_release(package: str) -> int | None:
    """Returns the CUDA major release that a package is built for, 12 or 13; None when its name does not say."""
    for major in (13, 12):
        if _version(f"{package}_cu{major}") is not None:
            return major
    return None


def find_server() -> Part:
    """Looks at the embedded tritonserver: its wheel, the stub for this Python, numpy and libpython."""
    install = "pip install 'temper[embedded]'"
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        return Part(name="tritonserver", state="missing", note="no nvidia-pytriton here", install=install)
    version = _version("nvidia-pytriton")
    runtime = Path(found.submodule_search_locations[0]) / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    numpy = _version("numpy") or "none"
    library = f"libpython{python}.so.1.0"
    faults = {
        f"no stub for Python {python}; it has them for {', '.join(_stubs(runtime)) or 'none'}": (
            python not in _stubs(runtime),
            "python3.11 -m venv .venv, and install Temper there",
        ),
        f"numpy {numpy} beside it, expected 1.26: with another one every answer is empty": (
            not numpy.startswith("1.26."),
            "pip install numpy==1.26.4",
        ),
        f"{library} is missing, which its stub is linked to": (
            not _loads(library),
            f"apt-get install {library.split('.so')[0]}",
        ),
    }
    for note, (wrong, command) in faults.items():
        if wrong:
            return Part(name="tritonserver", state="broken", version=version, note=note, install=command)
    note = f"embedded (nvidia-pytriton), numpy {numpy}, loopback only"
    return Part(name="tritonserver", state="ok", version=version, note=note)


def _stubs(runtime: Path) -> list[str]:
    return sorted(path.parent.name for path in runtime.glob("python_backend_stubs/*/triton_python_backend_stub"))


def _loads(library: str) -> bool:
    if Path(sysconfig.get_config_var("LIBDIR") or "", library).is_file():
        return True
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _version(project: str) -> str | None:
    try:
        return importlib.metadata.version(project)
    except importlib.metadata.PackageNotFoundError:
        return None


def _start(package: _Package) -> subprocess.Popen[str]:
    # -P: a file of the current folder must not pass for the package.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROBE, str(package.module), package.wanted],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _judge(package: _Package, probe: subprocess.Popen[str] | None, deadline: float) -> Part:
    version = _version(package.project)
    if version is None:
        return Part(name=package.name, state="missing", install=package.install)
    answer = {} if probe is None else _answer(probe, deadline)
    note = str(answer.get("error", ""))
    if answer.get("whole") is False:
        note = "only its placeholder is here, without the libraries"
    if note:
        return Part(name=package.name, state="broken", version=version, note=note, install=package.install)
    capabilities = tuple(answer.get("capabilities", ()))
    return Part(name=package.name, state="ok", version=version, capabilities=capabilities)


def _answer(probe: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
    try:
        output, _ = probe.communicate(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.communicate()
        return {"error": f"its import was not done after {PROBE_TIMEOUT_S:.0f} s"}
    try:
        answer: dict[str, Any] = json.loads((output.splitlines() or [""])[-1])
    except ValueError:
        return {"error": f"its import ended Python (exit status {probe.returncode})"}
    return answer


def _with_cuda_build(torch: Part) -> Part:
    """Says whether torch is built for CUDA, from its version file: importing it takes seconds."""
    note = "built for the CPU only"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        spec = importlib.util.find_spec("torch")
        text = Path(str(spec and spec.origin)).with_name("version.py").read_text()
        line = next((line for line in text.splitlines() if line.startswith("cuda")), "")
        cuda = line.partition("=")[2].strip().strip("'\"")
        if cuda and cuda != "None":
            note = f"built for CUDA {cuda}"
    return Part(name=torch.name, state="ok", version=torch.version, note=note)
