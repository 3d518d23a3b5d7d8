"""The runner of OpenVINO: on which CPUs it says that int8 saturates, which are those of `isa.py`."""

from __future__ import annotations

import pytest

from runners.openvino_runner import saturates
from temper.builder.engines.isa import AVX2_ONLY, instruction_set, is_exact

NEHALEM = {"sse2", "ssse3", "sse4_1"}
IVY_BRIDGE = {*NEHALEM, "avx"}
ZEN3 = {*IVY_BRIDGE, "avx2", "fma"}
SKYLAKE = {*ZEN3, "avx512f", "avx512bw"}
ALDER_LAKE = {*ZEN3, "avx_vnni"}
ZEN4 = {*SKYLAKE, "avx512_vnni", "avx512_bf16"}
SAPPHIRE_RAPIDS = {*ZEN4, "avx_vnni", "amx_tile", "amx_int8"}


@pytest.mark.parametrize(
    ("flags", "environment", "name", "exact"),
    [
        (ZEN3, {}, "avx2", False),
        (SKYLAKE, {}, "avx512", False),
        (ALDER_LAKE, {}, "avx_vnni", True),
        (ZEN4, {}, "avx512_vnni", True),
        (SAPPHIRE_RAPIDS, {}, "amx", True),
        (SAPPHIRE_RAPIDS, AVX2_ONLY, "avx2", False),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "avx512", False),
        (SAPPHIRE_RAPIDS, {"DNNL_MAX_CPU_ISA": "avx512_core_vnni"}, "avx512_vnni", True),
        (SAPPHIRE_RAPIDS, {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI_2"}, "avx_vnni", True),
        (ZEN3, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, "avx2", False),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "avx512_vnni", True),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "AVX2"}, "avx2", False),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, "avx2", False),  # it has AVX-512's VNNI only
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "AVX"}, "avx", False),
        (ALDER_LAKE, {"ONEDNN_MAX_CPU_ISA": "SSE41"}, "sse", False),
        (ALDER_LAKE, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, "avx2", False),
        (IVY_BRIDGE, {}, "avx", False),
        (NEHALEM, {}, "sse", False),
        ({"asimddp", "i8mm"}, {}, None, True),
        ({"asimddp", "i8mm"}, AVX2_ONLY, None, True),
    ],
)
def test_instruction_set_is_the_best_that_may_be_used_to_builder_and_plugin(
    flags: set[str], environment: dict[str, str], name: str | None, exact: bool
) -> None:
    assert instruction_set(flags, environment) == name
    assert is_exact(name) == exact
    assert saturates(flags, environment) != exact  # two tables, as the plugin imports nothing of ours
