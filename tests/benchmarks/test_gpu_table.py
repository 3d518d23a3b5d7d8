"""The table of the GPU benchmark, from numbers that are made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import table
from benchmarks.gpu.context import Context, read

if TYPE_CHECKING:
    pass


def figures(device_ips: float, ips: float) -> dict[str, Any]:
    return {"device_ips": device_ips, "ips": ips, "p50_ms": 1.0, "p99_ms": 2.0, "gpu_mib": 100, "rounds": []}


def load_row(model: str, transport: str, ips: float) -> dict[str, Any]:
    cores = {"client": 1.5, "tritonserver": 2.0, "stubs": 0.5}
    about = {"model": model, "transport": transport, "batch": 128, "concurrency": 4, "error": None}
    server = {"batch_size": 128.0}
    memory = {"before": {"gpu": 9, "host": 3}, "after": {"gpu": 9, "host": 4}}
    about |= {"ips": ips, "p50_ms": 3.0, "p99_ms": 4.0, "cores": cores, "server": server}
    return about | {"memory_mib": memory}


def write_made_up_results(folder: Path) -> None:
    contenders = {
        "torch eager fp16": figures(1000, 900),
        "torch.compile fp16": figures(2000, 1600),
        "int8": figures(5000, 4000),
        "int8 plugin": figures(5000, 3000),
        "fp8": figures(4000, 3500),
    }
    built = {"size_bytes": 26_000_000, "ready_s": 7.5, "engine_audit": {"convs": {"int8": 53}}}
    agreement = {"labels": 0.97, "max_abs_diff": 0.25, "max_abs_logit": 9.0}
    engine_row = {
        "contenders": contenders,
        "engines": {"int8": built, "fp16": {"error": "no"}},
        "agreement": {"int8": agreement},
        "errors": {"fp16": "EngineError: refused"},
    }
    served = {
        "a": load_row("resnet50 int8 x2", "cuda", 3800.0),
        "b": load_row("resnet50 int8 x2", "system", 3400.0),
        "c": load_row("resnet50 int8 x2", "grpc", 1000.0),
        "d": load_row("null x2", "grpc", 1100.0),
        "e": {"error": "the server died"},
        "f": load_row("stand-in null x2", "cuda", 123_456.0),
        "g": load_row("stand-in null x4", "cuda", 99_000.0),
    }
    row = {"agreement": 1.0, "max_abs_diff": 0.01, "max_abs_logit": 9.0, "plugin": "TensorRT-RTX on a card"}
    gpu = {"name": "NVIDIA Invented", "memory_bytes": 80 << 30, "compute_capability": "9.9", "driver": "999.1"}
    in_process = {"128": {"buffers": figures(9e6, 2e5), "plugin": figures(9e6, 5e4), "shared": figures(9e6, 1e5)}}
    stand_in = {"error": None, "plugin": "TensorRT 0.0.0.stand-in", "equal": True, "in_process": in_process}
    rows = {"tensorrt-rtx": row | {"error": None}, "stand-in": stand_in}
    probe = {"gpu": gpu, "machine": {"cpu": "A CPU", "cores": 16}, "rows": rows}
    contents = {
        "probe": probe | {"versions": {"torch": "9.9"}, "date": "2000-01-01", "commit": "abc"},
        "engines": {"rounds": 3, "rows": {"resnet50 128": engine_row}, "state": "complete", "reason": None},
        "served": {"rows": served, "state": "complete", "reason": None},
        "tests": {"rows": {"pytest": {"counts": {"passed": 9, "skipped": 1, "deselected": 40}, "error": None}}},
        "sanitizer": {"rows": {"memcheck": {"error": None}, "initcheck": {"error": "status 1"}}},
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_table_has_the_figures_that_were_asked_for(tmp_path: Path) -> None:
    write_made_up_results(tmp_path)
    lines = table.render(tmp_path).splitlines()
    for line in (
        "| served over CUDA shared memory / in process with transfers | >= 0.9 | 0.95 (int8 x2, 4 in flight) |",
        "| served over CUDA shared memory / in process, GPU alone |  | 0.76 (int8 x2, 4 in flight) |",
        "| served over system shared memory / in process with transfers | >= 0.9 | 0.85 (int8 x2, 4 in flight) |",
        "| served over gRPC uint8 / in process with transfers | >= 0.5 | 0.25 (int8 x2, 4 in flight) |",
        "| int8 or fp8 engine / torch.compile fp16, GPU alone | >= 2 | 2.50 (int8) |",
        "| int8 or fp8 engine / torch.compile fp16, with transfers |  | 2.50 (int8) |",
        "| resnet50 | 128 | int8 | 5,000 | 4,000 | 1.00 | 2.00 | 100 |",
        "| resnet50 | 128 | int8 plugin |  | 3,000 | 1.00 | 2.00 |  |",
        "| resnet50 | 128 | fp16 | not measured: EngineError: refused | | | | |",
        "| resnet50 | int8 | 26.0 | 7.5 | 53 int8 | 97 % | 0.25 of 9 |",
        "| resnet50 int8 x2 | grpc | 128 | 4 | 1,000 | 0.25 | 3.00 | 4.00 | 128 | 1.5 | 2.0 | 0.5 | 9, 9 | 3, 4 |",
        "| null x2 | grpc | 128 | 4 | 1,100 |  | 3.00 | 4.00 | 128 | 1.5 | 2.0 | 0.5 | 9, 9 | 3, 4 |",
        "- e: not measured: the server died",
        "**`pytest -m gpu`**: 9 passed, 1 skipped.",
        "| 128 | 9,000,000/s | 200,000/s | 50,000/s | 100,000/s |",
        "| plugin without a network, over CUDA shared memory | >= 100,000/s | 123,456/s (stand-in null x2) |",
        "| plugin without a network, over gRPC uint8 | >= 20,000/s | not measured |",
        "**compute-sanitizer** over the plugin on the stand-in: memcheck: clean, initcheck: status 1.",
    ):
        assert line in lines, line
    assert lines[0].startswith("**Machine**: NVIDIA Invented (80 GiB, compute capability 9.9), driver 999.1")


def test_table_without_results_holds_no_number(tmp_path: Path) -> None:
    text = table.render(tmp_path)
    measured = [line.split("|")[3].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    assert set(measured) == {"not measured"}
    for part in ("**Machine**", "**In process**", "**Training**", "**Served**", "**`pytest -m gpu`**"):
        assert f"{part}: not measured" in text


def test_table_repeats_the_librarys_refusal(tmp_path: Path) -> None:
    write_made_up_results(tmp_path)
    probe = json.loads((tmp_path / "probe.json").read_text())
    refused = {"error": "model.rtx: refused", "library": "no kernels", "built_for_this_gpu": "unsupported"}
    reason = "no engine runs here: tensorrt-rtx: model.rtx: refused"
    (tmp_path / "probe.json").write_text(json.dumps(probe | {"rows": {"tensorrt-rtx": refused}}))
    (tmp_path / "served.json").write_text(json.dumps({"rows": {}, "state": "complete", "reason": reason}))
    lines = table.render(tmp_path).splitlines()
    start = lines.index("- tensorrt-rtx does not run: model.rtx: refused")
    expected = ["    - loading it: no kernels", "    - built for this very GPU: unsupported"]
    assert lines[start + 1 : start + 3] == expected
    assert f"**Served**: not measured ({reason})." in lines


def test_table_names_the_group_in_which_a_process_ended(tmp_path: Path) -> None:
    """`Results.begin` writes such a row, and it stays when the time is up before the part runs again."""
    write_made_up_results(tmp_path)
    engines = json.loads((tmp_path / "engines.json").read_text())
    engines["rows"]["resnet50 128 ahead of time"] = {"error": "status -11", "crashed": True}
    (tmp_path / "engines.json").write_text(json.dumps(engines))
    lines = table.render(tmp_path).splitlines()
    assert "| resnet50 | 128 | ahead of time | not measured: status -11 | | | | |" in lines
    assert "| resnet50 | 128 | int8 | 5,000 | 4,000 | 1.00 | 2.00 | 100 |" in lines


def test_part_that_never_ran_has_no_results(context: Context) -> None:
    assert read(context, "engines") is None
