"""What is said of an instruction set; which one a CPU has is in tests/backends/test_openvino_runner.py."""

from __future__ import annotations

from temper.builder.engines.isa import UNKNOWN, why_inexact


def test_only_full_range_int8_on_an_inexact_cpu_is_worth_a_word() -> None:
    assert "neither VNNI nor AMX (only avx2)" in (why_inexact("avx2", 8) or "")
    assert "which is not known, has neither VNNI" in (why_inexact(UNKNOWN, 8) or "")
    assert [why_inexact("avx2", 7), why_inexact("avx2", None), why_inexact("amx", 8), why_inexact(None, 8)] == [
        None
    ] * 4
