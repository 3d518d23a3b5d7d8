"""The machine and the library versions that a number was measured with.

No library is imported to find them: versions come from the installed packages' metadata, the rest from `/proc`.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from temper.builder.engines.gpu import read_driver
from temper.builder.engines.kind import ENGINES

_PACKAGES = (
    "temper",
    "numpy",
    "torch",
    "torchvision",
    "nvidia-modelopt",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "nvidia-pytriton",
    "tritonclient",
    "grpcio",
    "adversarial-robustness-toolbox",
    "imagecorruptions-imaug",
    "opencv-python",
    "scikit-image",
    "scikit-learn",
    "captum",
)
"""The packages, beside the engines' own, whose version can change a measurement."""

_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""The instruction sets that decide how fast f32, bf16 and int8 run (x86 and Arm names of /proc/cpuinfo)."""

_MEASURING = ("nvidia-pytriton", "tritonclient", "grpcio", "numpy")
"""The engines' packages are not here: card.json names what made a version, and its digest is in the key too."""


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """The CPU's model name, and those of its flags that matter here."""
    fields: dict[str, str] = {}
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, [flag for flag in _FLAGS if flag in present]


def _ram_bytes() -> int:
    """The memory this process may use, in bytes: the machine's, or its control group's limit when smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


_GIT_TIMEOUT_S = 120
"""How long git may take: only one that hangs reaches it."""


def _gpu() -> dict[str, str] | None:
    """The first NVIDIA GPU's name, memory and driver, or None when there is none."""
    driver, _ = read_driver()
    if driver is None:
        return None
    first = driver.gpus[0]
    memory = f"{first.memory_bytes >> 20} MiB"
    return {"name": first.name, "memory": memory, "driver": driver.version or "of unknown version"}


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


@functools.cache
def machine() -> dict[str, Any]:
    """Describe the machine: cpu, flags, cores (that this process may use), ram_bytes, gpu (or None), os."""
    cpu, flags = _cpuinfo()
    return {
        "cpu": cpu,
        "flags": flags,
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": _ram_bytes(),
        "gpu": _gpu(),
        "os": _os_name(),
        "kernel": platform.release(),
    }


@functools.cache
def versions() -> dict[str, str]:
    """The versions of Python and of the installed libraries that a measurement depends on.

    Raises:
        PluginError: Another package's engine kind does not load.
    """
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *(kind.project for kind in ENGINES.all().values())):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout this package runs from (with "+changes" when edited), or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed else "")


def _git(root: Path, *args: str) -> str:
    command = ["git", "-C", str(root), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)
    return done.stdout.strip()


def machine_id() -> str:
    """A digest of whatever makes a measured speed or answer this machine's: CPU, cores, GPU, runtimes."""
    here = machine()
    parts = [here["cpu"], *here["flags"], str(here["cores"]), str(here["gpu"])]
    parts += [f"{name}={versions().get(name)}" for name in _MEASURING]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
