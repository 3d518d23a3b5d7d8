"""Which instruction set int8 runs on, from a CPU's flags and what caps OpenVINO; and which of them are exact."""

from __future__ import annotations

import pytest

from builder.isa import AVX2_ONLY, UNKNOWN, instruction_set, is_exact, why_inexact

ZEN3 = {"avx", "avx2", "fma"}
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
        ({"asimddp", "i8mm"}, {}, None, True),
    ],
)
def test_instruction_set_is_the_best_that_may_be_used(
    flags: set[str], environment: dict[str, str], name: str | None, exact: bool
) -> None:
    assert instruction_set(flags, environment) == name
    assert is_exact(name) == exact


def test_only_full_range_int8_on_an_inexact_cpu_is_worth_a_word() -> None:
    assert "neither VNNI nor AMX (only avx2)" in (why_inexact("avx2", 8) or "")
    assert "which is not known, has neither VNNI" in (why_inexact(UNKNOWN, 8) or "")
    assert [why_inexact("avx2", 7), why_inexact("avx2", None), why_inexact("amx", 8), why_inexact(None, 8)] == [
        None
    ] * 4
