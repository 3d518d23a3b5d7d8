"""The results files of the benchmarks."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.common import write_results
from temper.host import machine


def test_results_of_another_kind_of_cpu_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.machine()
    kinds = (["avx2", "avx512_vnni"], ["avx2"], ["avx2", "avx_vnni"], ["avx2", "avx512_vnni", "avx_vnni"])
    for ips, flags in enumerate((*kinds, *kinds)):
        monkeypatch.setattr(machine, "machine", lambda flags=flags: {**here, "flags": flags})
        write_results("serving", {"measured": {"ips": ips}}, tmp_path)
    kept = {file.name: json.loads(file.read_text())["measured"]["ips"] for file in tmp_path.iterdir()}
    assert kept == {
        "serving.json": 4,
        "serving.avx2.json": 5,
        "serving.avx2-avx_vnni.json": 6,
        "serving.avx2-avx512_vnni-avx_vnni.json": 7,
    }


@pytest.mark.parametrize(
    ("module", "arguments", "command"),
    [
        ("benchmarks.startup", [], "make bench-startup"),
        ("benchmarks.compression", ["--only", "steps"], "make bench-compression ARGS='--only steps'"),
    ],
)
def test_results_name_the_command_that_gave_them(
    module: str, arguments: list[str], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    write_results("anything", {}, tmp_path)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["command"] == command
