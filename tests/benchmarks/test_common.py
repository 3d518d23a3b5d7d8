"""The results files of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import temper.machine
from benchmarks.common import write_results


def test_results_of_another_kind_of_cpu_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = temper.machine.machine()
    for ips, flags in ((1, ["avx2", "avx512_vnni"]), (2, ["avx2"]), (3, ["avx2", "avx512_vnni"]), (4, ["avx2"])):
        monkeypatch.setattr(temper.machine, "machine", lambda flags=flags: {**here, "flags": flags})
        write_results("serving", {"measured": {"ips": ips}}, tmp_path)
    kept = {file.name: json.loads(file.read_text())["measured"]["ips"] for file in tmp_path.iterdir()}
    assert kept == {"serving.json": 3, "serving.avx2.json": 4}
