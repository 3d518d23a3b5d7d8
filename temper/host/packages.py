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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from temper.builder.engines.kind import EngineKind

PROBE_TIMEOUT_S = 120.0
"""How long the imports may take, all of them together: they run at once. Seconds, if the machine is not busy."""

# Prints one JSON object: whether the package is whole (a name that its placeholder lacks is there) or why it does
# not load, and what an engine kind says of this machine.
_PROBE = """
import importlib, json, sys
module, symbol, root, kind = sys.argv[1:]
try:
    found = importlib.import_module(module)
    answer = {"version": str(getattr(found, "__version__", "")), "whole": hasattr(found, symbol)}
    if kind and answer["whole"]:
        sys.path.insert(0, root)
        from temper.builder.engines.kind import ENGINES
        engine = ENGINES.get(kind)
        answer |= {"build": engine.why_not_build(), "run": engine.why_not_run()}
except BaseException as error:
    answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
print("\\n" + json.dumps(answer))
"""
_ROOT = str(Path(__file__).resolve().parents[2])


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

    @property
    def ok(self) -> bool:
        """Whether it can be used."""
        return self.state == "ok"


@dataclass(frozen=True, kw_only=True)
class Refusals:
    """What an engine kind says of this machine, asked in a process of its own."""

    build: str | None
    """Why no engine is built here; None when it is."""
    run: str | None
    """Why its engines do not run here; None when they do: what `engine.kind = "auto"` asks as well."""


@dataclass(frozen=True, kw_only=True)
class _Package:
    name: str
    project: str
    install: str
    module: str | None = None
    """Imported, to see whether it works; None trusts the metadata."""
    symbol: str = ""
    """What the module must have."""
    kind: EngineKind[Any] | None = None
    """The engine kind that it is the library of."""

    @property
    def is_here(self) -> bool:
        """Whether pip or Python knows it."""
        return _version(self.project) is not None or (self.kind is not None and self.kind.is_installed)


_PACKAGES = (
    _Package(name="torch", project="torch", install="pip install 'temper[builder]'"),
    _Package(name="torchvision", project="torchvision", install="pip install 'temper[builder]'"),
    _Package(name="ModelOpt", project="nvidia-modelopt", install="pip install 'temper[builder]'"),
    _Package(name="ONNX", project="onnx", install="pip install 'temper[builder]'"),
    _Package(name="tritonclient", project="tritonclient", install="pip install 'temper[client]'"),
)

_MORE = (
    _Package(name="torch-tensorrt", project="torch-tensorrt", install="pip install 'temper[tensorrt]'"),
    _Package(
        name="cuda-bindings",
        project="cuda-bindings",
        install="pip install 'cuda-bindings>=12.9,<14'",
        module="cuda.bindings.runtime",
        symbol="cudaGetDeviceCount",
    ),
    _Package(name="Ray", project="ray", install="pip install ray"),
)


def find_parts(kinds: Iterable[EngineKind[Any]]) -> tuple[dict[str, Part], dict[str, Refusals]]:
    """Looks at every package, and at the embedded server.

    Args:
        kinds: The engine kinds.

    Returns:
        The parts by name, in the order to show; and what each kind says whose package works, by the kind's name.
    """
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    packages = (*_PACKAGES, *map(_package_of, kinds), *_MORE)
    probes = {each.name: _start(each) for each in packages if each.module and each.is_here}
    answers = {name: _answer(probe, deadline) for name, probe in probes.items()}
    parts = {each.name: _judge(each, answers.get(each.name, {})) for each in packages}
    if parts["torch"].ok:
        parts["torch"] = _with_cuda_build(parts["torch"])
    refusals = {
        each.kind.name: Refusals(build=answers[each.name]["build"], run=answers[each.name]["run"])
        for each in packages
        if each.kind and parts[each.name].ok
    }
    return {**parts, "tritonserver": find_server()}, refusals


def _package_of(kind: EngineKind[Any]) -> _Package:
    return _Package(
        name=kind.title,
        project=kind.project,
        install=", ".join(filter(None, (kind.install, kind.install_note))),
        module=kind.package,
        symbol=kind.symbol,
        kind=kind,
    )


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
    kind = package.kind.name if package.kind is not None else ""
    # -P: a file of the current folder must not pass for the package.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROBE, str(package.module), package.symbol, _ROOT, kind],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _judge(package: _Package, answer: Mapping[str, Any]) -> Part:
    version = _version(package.project) or answer.get("version") or None
    if not package.is_here:
        return Part(name=package.name, state="missing", install=package.install)
    note = str(answer.get("error", ""))
    if answer.get("whole") is False:
        note = "only its placeholder is here, without the libraries"
    if note:
        return Part(name=package.name, state="broken", version=version, note=note, install=package.install)
    return Part(name=package.name, state="ok", version=version)


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
