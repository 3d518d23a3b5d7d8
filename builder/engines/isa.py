"""Which instructions a CPU has for int8, and how OpenVINO is kept from using all of them.

Without VNNI or AMX the products of unsigned activations and signed weights are added in pairs with saturation at
16 bits (vpmaddubsw), so 2 * 255 * 127 is cut off: with 8-bit weights answers depend on the CPU that serves.
Weights of at most 64 cannot saturate: 2 * 255 * 64 = 32640.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

MAX_SAFE_WEIGHT = 64
"""The largest int8 weight whose products cannot saturate."""
UNKNOWN = "unknown"
"""The instruction set of a machine that cannot be asked."""
AVX2_ONLY = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2"}
"""The environment of a process in which OpenVINO uses no more than AVX2, as every x86-64 server has it.

Two variables for two parts of OpenVINO 2026.4: oneDNN reads the first, the plugin's own kernels the second, and
they must say the same. Both are read once, when OpenVINO is loaded."""

# /proc/cpuinfo's flag, our name, and the caps of oneDNN that leave it in use; the plugin's openvino_runner.py,
# which imports nothing of ours, has the same caps.
_AMX = ("AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16", "AVX10_1_512_AMX", "AVX10_1_512_AMX_FP16")
_AVX512_VNNI = ("AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512", *_AMX)
_AVX2_VNNI = ("AVX2_VNNI", "AVX2_VNNI_2")
_AVX512 = ("AVX512_CORE", *_AVX512_VNNI)
_AVX2 = ("AVX2", *_AVX2_VNNI, *_AVX512)
_LEVELS = (
    ("amx_int8", "amx", _AMX),
    ("avx512_vnni", "avx512_vnni", _AVX512_VNNI),
    ("avx_vnni", "avx_vnni", _AVX2_VNNI),
    ("avx512bw", "avx512", _AVX512),
    ("avx2", "avx2", _AVX2),
    ("avx", "avx", ("AVX", *_AVX2)),
    ("sse2", "sse", ("SSE41", "AVX", *_AVX2)),  # every x86-64 CPU has it
)
_EXACT = ("amx", "avx512_vnni", "avx_vnni")


def instruction_set(
    flags: Collection[str] | None = None, environment: Mapping[str, str] | None = None
) -> str | None:
    """Returns the best instruction set that int8 runs on here.

    Args:
        flags: The CPU's, as /proc/cpuinfo names them; None reads them.
        environment: May cap it, as `AVX2_ONLY` does; None is this process's.

    Returns:
        `amx`, `avx512_vnni`, `avx_vnni`, `avx512`, `avx2`, `avx` or `sse`; None where the CPU is not x86-64.
    """
    flags = _read_flags() if flags is None else flags
    environment = os.environ if environment is None else environment
    cap = (environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or "").upper()
    if not any(cap in caps for _, _, caps in _LEVELS):
        cap = ""  # ALL, DEFAULT, or not a name that oneDNN knows
    return next((name for flag, name, caps in _LEVELS if flag in flags and (not cap or cap in caps)), None)


def is_exact(isa: str | None) -> bool:
    """Whether an instruction set multiplies int8 without saturation; what is not x86-64 is taken to do so."""
    return isa is None or isa in _EXACT


def why_inexact(isa: str | None, weight_bits: int | None) -> str | None:
    """Says what a CPU does to an int8 model; None when there is nothing to say.

    Args:
        isa: The serving CPU's, from `instruction_set`, or `UNKNOWN`.
        weight_bits: 8 for weights over the full range, 7 for the reduced one, None for a model that is not int8.
    """
    if weight_bits != 8 or is_exact(isa):
        return None
    if isa == UNKNOWN:
        return (
            "int8 weights of 8 bits saturate where the serving CPU, which is not known, has neither VNNI nor AMX; "
            "quantise with reduce_range = true"
        )
    return (
        f"the serving CPU has neither VNNI nor AMX (only {isa}), so int8 weights of 8 bits saturate and its "
        "answers may differ from other CPUs'; quantise with reduce_range = true"
    )


def _read_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
