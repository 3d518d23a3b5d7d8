"""`temper doctor`: the truth about this machine, and about packages that are broken in the usual ways."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from temper.builder.engines.build import pick_engine
from temper.builder.engines.gpu import Driver, Gpu, read_driver
from temper.builder.engines.kind import ENGINES, AutoConfig, EngineKind
from temper.builder.engines.tensorrt import TENSORRT
from temper.builder.engines.tensorrt_rtx import TENSORRT_RTX
from temper.cli.commands.doctor import doctor_command
from temper.host import doctor, packages as parts
from temper.host.doctor import examine
from temper.host.packages import Part, Refusals, find_parts, find_server

H200 = Driver(
    version="580.95.05",
    cuda=(13, 0),
    gpus=(Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=150 << 30),),
)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return examine()


def by(found: dict[str, Any], table: str, key: str) -> dict[str, Any]:
    return {row[key]: row for row in found[table]}


def test_driver_is_the_drivers_own_answer(found: dict[str, Any]) -> None:
    driver, why = read_driver()
    assert (driver is None) == bool(why)
    if driver is None:
        assert found["driver"] is None
        assert found["no_gpu"] == why
    else:
        assert found["driver"]["gpus"][0]["memory_bytes"] > 1 << 30


@pytest.mark.gpu
def test_gpu_is_described_as_nvidia_smi_does() -> None:
    driver, _ = read_driver()
    assert driver is not None
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader", "--id=0"]
    told = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    assert told == [driver.gpus[0].name, driver.gpus[0].compute_capability, driver.version]


def test_versions_are_the_installed_ones(found: dict[str, Any]) -> None:
    told = by(found, "parts", "name")
    for name, project in (("torch", "torch"), ("OpenVINO", "openvino"), ("TensorRT-RTX", "tensorrt-rtx")):
        assert (told[name]["state"], told[name]["version"]) == ("ok", importlib.metadata.version(project))
        assert told[name]["install"] is None
    assert told["tritonserver"]["state"] == "ok"


@pytest.mark.slow
def test_torch_says_what_it_is_built_for(found: dict[str, Any]) -> None:
    import torch

    expected = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    assert by(found, "parts", "name")["torch"]["note"] == expected


@pytest.mark.skipif(read_driver()[0] is not None, reason="what is said where there is no GPU")
def test_engines_without_a_gpu(found: dict[str, Any]) -> None:
    engines = by(found, "engines", "kind")
    answers = {kind: (engine["build"], engine["run"]) for kind, engine in engines.items()}
    assert answers == {"openvino": (True, True), "tensorrt-rtx": (True, False), "tensorrt": (False, False)}
    assert "needs no GPU to build" in engines["tensorrt-rtx"]["build_why"]
    assert engines["tensorrt-rtx"]["run_why"] == found["no_gpu"]
    assert (found["ready"], found["why"]) == (True, "engine.kind = openvino")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_what_is_missing_comes_with_its_command(found: dict[str, Any]) -> None:
    part = by(found, "parts", "name")["TensorRT"]
    assert (part["state"], part["version"]) == ("missing", None)
    assert "docker/builder.Dockerfile" in part["install"]


def test_json_is_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    doctor_command(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["ready", "why", "machine", "int8", "driver", "no_gpu", "parts", "engines"]
    assert told["machine"]["disk_free_bytes"] > 0
    assert "gpu" not in told["machine"]


@pytest.mark.parametrize(
    ("isa", "warns"), [("avx2", True), ("avx512", True), ("avx512_vnni", False), (None, False)]
)
@pytest.mark.slow
def test_cpu_on_which_int8_saturates_is_told(
    isa: str | None, warns: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "instruction_set", lambda: isa)
    doctor_command(as_json=False)
    assert ("int8: this CPU has neither VNNI nor AMX" in capsys.readouterr().out) == warns
    found = examine()["int8"]
    assert (found["isa"], found["warning"] is not None) == (isa, warns)


def test_table_names_every_part_and_engine(capsys: pytest.CaptureFixture[str], found: dict[str, Any]) -> None:
    doctor_command(as_json=False)
    lines = capsys.readouterr().out.splitlines()
    firsts = [line.split()[0] for line in lines if line.strip()]
    assert {part["name"] for part in found["parts"]} | {engine["kind"] for engine in found["engines"]} <= {*firsts}
    assert lines[-1].startswith("ready: engine.kind = ")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from temper.host.doctor import examine; examine();"
        "print([name for name in ('torch', 'openvino', 'tensorrt_rtx', 'modelopt', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Packages that are installed and do not work, each a real one on the path of a real Python.


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, project: str, code: str) -> None:
    module = folder / f"{project.replace('-', '_')}.py"
    module.write_text(code)
    metadata = folder / f"{module.stem}-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("__version__ = '99.0'", "only its placeholder is here, without the libraries"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise OSError('libnvinfer.so.11: cannot open\\nmore')", "OSError: libnvinfer.so.11: cannot open"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("import os; os.abort()", "its import ended Python (exit status -6)"),
        ("print('a banner')\nBuilder = 1", ""),
        ("import time; time.sleep(600)", "its import was not done after 5 s"),
    ],
    ids=["placeholder", "import", "library", "exit", "abort", "whole", "hangs"],
)
def test_package_that_does_not_work_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, note: str
) -> None:
    install(tmp_path, monkeypatch, "tensorrt", code)
    if "sleep" in code:
        monkeypatch.setattr(parts, "PROBE_TIMEOUT_S", 5.0)
    found, refusals = find_parts([TENSORRT])
    part = found["TensorRT"]
    assert (TENSORRT.name in refusals) == part.ok
    assert (part.version, part.note) == ("99.0", note)
    assert part.state == ("broken" if note else "ok")
    assert (part.install is None) == part.ok


def test_old_numpy_beside_the_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "numpy-of-the-test", "")
    found = find_server()
    assert found.ok
    metadata = tmp_path / "numpy-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 99.0\n")
    broken = find_server()
    assert (broken.state, broken.install) == ("broken", "pip install numpy==1.26.4")
    assert broken.note == "numpy 99.0 beside it, expected 1.26: with another one every answer is empty"


def test_machine_that_cannot_serve_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch, "openvino", "raise OSError('libopenvino.so: gone')")
    with pytest.raises(SystemExit) as ended:
        doctor_command(as_json=False)
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "OSError: libopenvino.so: gone" in out
    assert "OpenVINO: pip install 'temper[embedded]'" in out
    if read_driver()[0] is None:
        assert out.splitlines()[-1] == "not ready: no kind of engine is both built and run here"


# What is concluded of a machine that this one is not.

RTX = Part(name="TensorRT-RTX", state="ok", version="1.7.1")
TRT = Part(name="TensorRT", state="ok", version="11.0.0.114")
BROKEN = Part(name="TensorRT", state="broken", version="99.0", note="OSError: gone")
SERVER = Part(name="tritonserver", state="ok", version="0.7.0")
NO_SERVER = Part(name="tritonserver", state="missing", note="no nvidia-pytriton here")
GOOD = Refusals(build=None, run=None)
NOT_RUN = Refusals(build=None, run="it does not")
NEITHER = Refusals(build="no GPU; a plan is", run="no GPU")


@pytest.mark.parametrize(
    ("kind", "part", "refusals", "server", "expected"),
    [
        (
            TENSORRT_RTX,
            RTX,
            GOOD,
            SERVER,
            (True, "TensorRT-RTX 1.7.1 on NVIDIA H", True, "TensorRT-RTX 1.7.1 o"),
        ),
        (TENSORRT_RTX, RTX, NOT_RUN, SERVER, (True, "TensorRT-RTX 1.7.1, which needs no G", False, "it does not")),
        (TENSORRT, TRT, NOT_RUN, SERVER, (True, "TensorRT 11.0.0.114", False, "it does not")),
        (TENSORRT, TRT, NEITHER, SERVER, (False, "no GPU; a plan is", False, "no GPU")),
        (TENSORRT, BROKEN, None, SERVER, (False, "TensorRT is broken: OSError: g", False, "TensorRT is broken")),
        (TENSORRT, TRT, GOOD, NO_SERVER, (True, "TensorRT 11.0.0.114 on NVIDIA", False, "tritonserver is missi")),
    ],
)
def test_what_is_concluded_of_a_kind(
    kind: EngineKind[Any],
    part: Part,
    refusals: Refusals | None,
    server: Part,
    expected: tuple[bool, str, bool, str],
) -> None:
    told = doctor.conclude(kind, part, refusals, server, H200)
    assert (told.build, told.run) == (expected[0], expected[2])
    assert told.build_why.startswith(expected[1])
    assert told.run_why.startswith(expected[3])


def test_auto_takes_what_doctor_says_runs_here(found: dict[str, Any]) -> None:
    engines = by(found, "engines", "kind")
    assert engines[pick_engine(AutoConfig()).config.kind]["run"]
    for name, kind in ENGINES.all().items():
        assert engines[name]["run"] == (kind.why_not_run() is None)
