"""The GPU benchmark, as far as it goes without a GPU: packing, resuming, load over shared memory, the table."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.gpu import carried, install, networks, pack, skeletons, table, training
from benchmarks.gpu.context import ROOT, Context, Results, read
from benchmarks.gpu.gpu_tests import count, find_files
from benchmarks.gpu.load import run_load
from benchmarks.gpu.processor import CpuMeter
from benchmarks.gpu.served import write_null
from benchmarks.gpu.shared_memory import Transport, requests
from builder.engines import EngineConfig, count_gpus, pick_engine
from builder.export import run_onnx
from client.client import Client
from temper.server import TritonServer

if TYPE_CHECKING:
    from builder.sample import Sample

without_gpu = pytest.mark.skipif(count_gpus() > 0, reason="this machine has an NVIDIA GPU")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    folders = {name: tmp_path / name for name in ("out", "work", "carried")}
    return Context(**folders, deadline=time.monotonic() + 3600, device="cpu", kind="openvino", image_size=32)


# The command line.


@without_gpu
def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    done = run("--out", tmp_path / "out", "--work", tmp_path / "work")
    assert done.returncode == 1
    assert done.stdout.startswith("no NVIDIA GPU: ")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "engines,speed"], "got speed, expected some of install, probe, tests, served, engines,"),
        (["--arch", "vgg16"], "--arch: got vgg16, expected some of resnet50, resnet18, resnet101"),
        (["--batch", "0"], "--batch: got 0, expected 1 or more"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_context_survives_the_way_to_a_child(context: Context) -> None:
    assert Context.from_json(context.to_json()) == context


@pytest.mark.slow
def test_parts_run_on_a_cpu_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    settings = "--device cpu --kind openvino --image-size 32 --arch resnet18 --precision fp32 --no-compile".split()
    settings += ["--rounds", "2", "--seconds", "0.05", "--out", tmp_path / "out", "--work", tmp_path / "work"]
    settings += ["--carried", tmp_path / "none"]
    done = run(*settings, "--only", "install,probe,engines,table", "--batch", 1)
    assert done.returncode == 0, done.stderr
    assert "probe: complete" in done.stdout
    first = json.loads((tmp_path / "out" / "engines.json").read_text())
    assert first["state"] == "complete"
    row = first["rows"]["resnet18 1"]
    assert set(row["contenders"]) == {"torch eager fp16", "fp32", "fp32 plugin"}
    assert all(figures["ips"] > 0 and len(figures["rounds"]) == 2 for figures in row["contenders"].values())
    assert row["errors"] == {}
    assert row["agreement"]["fp32"]["labels"] == 1.0
    assert (tmp_path / "out" / "table.md").read_text() in done.stdout
    probe = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert (probe["kind"], probe["rows"]["openvino"]["agreement"]) == ("openvino", 1.0)
    done = run(*settings, "--only", "engines", "--batch", 1, 2)
    assert done.returncode == 0, done.stderr
    second = json.loads((tmp_path / "out" / "engines.json").read_text())
    assert second["rows"]["resnet18 1"] == row
    assert set(second["rows"]) == {"resnet18 1", "resnet18 2"}


@pytest.mark.slow
def test_without_an_engine_pytorch_is_measured_alone(tmp_path: Path) -> None:
    settings = "--device cpu --image-size 32 --arch resnet18 --batch 2 --rounds 1 --seconds 0.02".split()
    settings += ["--out", tmp_path / "out", "--work", tmp_path / "work", "--carried", tmp_path / "none"]
    done = run(*settings, "--only", "engines,table")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "engines: complete: without engines: probe did not run"
    row = json.loads((tmp_path / "out" / "engines.json").read_text())["rows"]["resnet18 2"]
    eager = {"torch eager fp16", "torch eager fp16, folded", "torch eager bf16", "torch eager fp32"}
    compiled = {"torch.compile fp16 default", "torch.compile fp16", "AOTInductor fp16"}
    assert set(row["contenders"]) == eager | compiled
    assert set(row["errors"]) == {"int8"}
    for name in row["contenders"].keys() - {"torch eager fp16"}:
        agreement = row["agreement"][name]
        assert agreement["max_abs_diff"] < 0.05 * agreement["max_abs_logit"], name
    assert row["convolutions"]["fp16 conv2d"]["num_layers"] == 20
    assert "| resnet18 | 2 | AOTInductor fp16 | " in done.stdout
    again = run(*settings, "--only", "engines")
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""  # nothing is measured twice


def test_compiling_has_a_limit_that_no_compiler_can_catch() -> None:
    from benchmarks.gpu.torch_only import TimeUpError, limited

    begin = time.monotonic()
    with pytest.raises(TimeUpError), limited(1.0), contextlib.suppress(Exception):
        time.sleep(60)
    assert time.monotonic() - begin < 30


def test_group_that_ended_the_process_is_an_error_of_its_row(context: Context) -> None:
    from benchmarks.gpu import torch_only

    first = Results(context, "engines")
    first.begin()
    first.put("resnet18 2", torch_only._new_row() | {"contenders": {"torch eager fp16": {}}, "groups": ["plain"]})
    first.attempt("resnet18 2 ahead of time")
    first.end("failed", "the process ended with status -11")
    second = Results(context, "engines")
    second.begin()
    torch_only._name_crashed(second)
    row = second.content["rows"]["resnet18 2"]
    assert list(second.content["rows"]) == ["resnet18 2"]
    assert row["groups"] == ["plain", "ahead of time"]
    assert row["errors"]["ahead of time"].endswith("the process ended with status -11")


class FakeContender:
    """Gives the same logits whatever the images."""

    batch = 2

    def __init__(self, *logits: list[float]) -> None:
        """A row of logits for each image."""
        import torch

        self.logits, self.closed = torch.tensor(logits), False

    def time_device(self, count: int) -> float:
        return count * 1e-3

    def infer(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def measure_fakes(
    context: Context, monkeypatch: pytest.MonkeyPatch, fakes: dict[str, FakeContender], eager: Callable[..., Any]
) -> dict[str, Any]:
    from benchmarks.gpu import torch_only

    monkeypatch.setattr(torch_only, "_networks", lambda arch: (None, None))
    monkeypatch.setattr(torch_only, "Reference", lambda *_: SimpleNamespace(eager=eager))
    row = torch_only._new_row()
    makers = [(name, lambda fake=fake: fake) for name, fake in fakes.items()]
    settings = replace(context, rounds=1, seconds=0.001)
    assert torch_only._measure(lambda *_: iter(makers), settings, "resnet18", 2, row)
    return row


def test_contenders_whose_answers_are_wrong_are_errors(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "right": FakeContender([0.0, 9.1], [8.9, 0.0]),
        "tied": FakeContender([0.0, 9.0], [8.8, 8.9]),
        "not finite": FakeContender([0.0, 9.0], [9.0, float("nan")]),
        "wrong": FakeContender([9.0, 0.0], [9.0, 0.0]),
    }
    eager = FakeContender([0.0, 9.0], [9.0, 8.8])
    row = measure_fakes(context, monkeypatch, fakes, lambda *_: eager)
    del row["errors"]["int8"]
    assert row["errors"] == {
        "not finite": "its answers were not finite",
        "wrong": "its labels were eager's for 50 % of the images",
    }
    assert set(row["contenders"]) == {"torch eager fp16", "right", "tied"}
    assert set(row["agreement"]) == {"right", "tied"}
    assert all(fake.closed for fake in (eager, *fakes.values()))


def test_figures_of_the_others_are_kept_without_eager(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("out of memory")

    row = measure_fakes(context, monkeypatch, {"other": FakeContender([0.0, 9.0], [9.0, 0.0])}, refuse)
    assert row["errors"]["torch eager fp16"] == "RuntimeError: out of memory"
    assert row["contenders"]["other"]["ips"] > 0


def test_runner_of_the_stand_in_that_fails_is_closed_and_named(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import engine, probe

    closed: list[bool] = []
    # Without a description.
    runner = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(engine, "open_runner", lambda *_: runner)
    assert probe.try_stand_in(context)["error"].startswith("AttributeError: ")
    assert closed == [True]


def test_convolutions_are_found_with_their_number() -> None:
    import torch

    from benchmarks.gpu.convolutions import Layer, find_layers

    images = torch.from_numpy(networks.make_images(1, 32))
    layers = find_layers(networks.serve(networks.build_network("resnet18")), images)
    assert sum(layers.values()) == 20
    first = Layer(inputs=64, outputs=64, kernel=3, stride=1, padding=1, size=8)
    assert layers[first] == 4


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_every_kernel_runs_on_a_matrix_product() -> None:
    from torch import nn

    from benchmarks.gpu.convolutions import measure

    kernels = measure(networks.serve(nn.Conv2d(3, 16, 1)), 1, 16, "cpu")
    assert {name: kernel.get("num_layers", kernel) for name, kernel in kernels.items()} == dict.fromkeys(
        kernels, 1
    )
    assert len(kernels) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", training._STEPS)
def test_every_training_step_runs(context: Context, name: str) -> None:
    context = replace(context, rounds=2, seconds=0.001)
    row = training._measure(context, "resnet18", 32, 2, training._STEPS[name])
    assert row["ips"] > 0
    assert len(row["rounds"]) == 2


def test_training_goes_on_after_a_step_that_fails(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(trainer: training.Trainer) -> training.Step:
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setitem(training._STEPS, "as builder/train.py", refuse)
    monkeypatch.setattr(training, "_NAMES", (("as builder/train.py", "without waiting for the loss"),))
    monkeypatch.setattr(training, "_load", lambda *_: {"error": None, "ips": 1.0, "peak_mib": None})
    results = Results(replace(context, archs=("resnet18",), batches=(2,), seconds=0.001), "training")
    training.run(results._context, results)
    rows = results.content["rows"]
    assert rows["resnet18 32 2 as builder/train.py"] == {"error": "RuntimeError: no such kernel"}
    assert rows["resnet18 32 2 without waiting for the loss"]["ips"] > 0
    lines = table.render(context.out).splitlines()
    failed = "| resnet18 | 32 | 2 | as builder/train.py | not measured: RuntimeError: no such kernel |  |  |  |"
    assert failed in lines
    assert "| resnet18 | 32 | 2 | data loader alone | 1 |  |  |  |" in lines


def test_attack_stays_near_the_images_and_raises_the_loss() -> None:
    import torch

    # Fewer or smaller images leave batch normalisation too little to make a gradient that says anything.
    trainer = training.Trainer.create("resnet18", 64, 16, "cpu")
    images = trainer.attack(2, torch.Generator().manual_seed(0))
    assert (images - trainer.images).abs().max() <= 8
    assert (images.min() >= 0, images.max() <= 255) == (True, True)
    with torch.no_grad():
        assert trainer.loss(images, None) > trainer.loss(trainer.images, None) + 1


def test_training_by_fake_quantisation_has_int8_weights() -> None:
    trainer = training.Trainer.create("resnet18", 32, 2, "cpu")
    training._quantised(trainer)
    first = trainer.state.served.get_submodule("model.layer1.0.conv1")
    weight = first.weight.detach()
    assert all(len(output.unique()) <= 255 for output in weight)
    trainer.step()
    original = first.parametrizations.weight.original
    assert trainer.state.optimizer.state[original]["exp_avg"].abs().sum() > 0  # a gradient came through


def test_data_loader_delivers_images(context: Context) -> None:
    context.work.mkdir()
    row = training._load(replace(context, image_size=64), 2)
    assert row["ips"] > 0


def test_batches_that_were_ready_do_not_count(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader:
        num_workers, prefetch_factor = 3, 2

        def __iter__(self) -> Iterator[Any]:
            for number in range(100):
                time.sleep(0 if number < 6 else 0.005)
                yield None, [0, 1]

    monkeypatch.setattr(training.train, "_loader", lambda *_: Loader())
    assert training._load(context, 2)["ips"] <= 2 / 0.005


def test_training_measures_every_batch_that_is_asked_for(context: Context) -> None:
    keys = [key for key, _ in training._plan(replace(context, archs=("resnet18",), batches=(2, 4, 8)))]
    assert [key for key in keys if key.endswith("builder/train.py")] == [
        f"resnet18 32 {batch} as builder/train.py" for batch in (2, 4, 8)
    ]


def test_no_time_is_said_and_loses_nothing(tmp_path: Path) -> None:
    folders = ["--out", tmp_path / "out", "--work", tmp_path / "work"]
    done = run(*folders, "--device", "cpu", "--only", "engines,table", "--limit-s", "1")
    assert done.returncode == 0
    first, second, _ = done.stdout.split("\n", 2)
    assert first.startswith("engines, table: at most ")
    assert second == "engines: not run: no time left; run again to go on"
    assert "**In process**: not measured" in done.stdout


# Results.


def test_results_are_written_row_by_row_to_both_folders(context: Context) -> None:
    results = Results(context, "engines")
    results.begin(kind="openvino")
    results.put("resnet18 1", {"ips": 1.0})
    for folder in (context.out, context.work / "results"):
        content = json.loads((folder / "engines.json").read_text())
        assert (content["state"], content["rows"]) == ("running", {"resnet18 1": {"ips": 1.0}})
    assert Results(context, "engines").has("resnet18 1")


def test_figure_that_is_no_number_leaves_the_file_as_it_was(context: Context) -> None:
    results = Results(context, "engines")
    results.put("resnet18 1", {"ips": 1.0})
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        results.put("resnet18 2", {"ips": float("nan")})
    assert set(Results(context, "engines").content["rows"]) == {"resnet18 1"}


def test_row_that_ended_the_process_is_left_out_and_named(context: Context) -> None:
    first = Results(context, "engines")
    first.begin()
    first.attempt("resnet18 1")
    first.end("failed", "the process ended with status -11")
    second = Results(context, "engines")
    assert not second.has("resnet18 1")
    second.begin()
    assert second.has("resnet18 1")
    error = "the process ended in this row: the process ended with status -11"
    assert second.content["rows"]["resnet18 1"] == {"error": error, "crashed": True}


def test_row_that_was_cut_off_by_the_time_is_measured_again(context: Context) -> None:
    first = Results(context, "engines")
    first.begin()
    first.attempt("resnet18 1")
    first.end("stopped", "no time left")
    second = Results(context, "engines")
    second.begin()
    assert not second.has("resnet18 1")


# What is carried.


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for name, size in (("large.whl", 2500), ("small.whl", 300), ("empty-ish", 1)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(rng.bytes(size))
    return paths


def test_parts_are_within_the_limit_and_join_in_any_order(files: list[Path], tmp_path: Path) -> None:
    manifest = carried.deal_out(files, tmp_path / "parts", part_bytes=1000, piece_bytes=400)
    parts = sorted((tmp_path / "parts").iterdir())
    assert manifest["num_parts"] == len(parts) == 4
    for part in parts:
        assert sum(path.stat().st_size for path in part.iterdir() if path.name != carried.MANIFEST) <= 1000
    store = tmp_path / "store"
    for number, missing in ((3, [1, 2, 4]), (1, [2, 4]), (4, [2]), (2, [])):
        came = tmp_path / f"transfer{number}"
        came.mkdir()
        (tmp_path / "parts" / str(number)).rename(came / str(number))
        found = carried.collect(came, store)
        assert found is not None
        assert found["missing"] == missing
    joined = carried.join(found, store, tmp_path / "joined")
    assert [path.read_bytes() for path in joined] == [path.read_bytes() for path in files]


def test_nothing_carried_is_nothing(tmp_path: Path) -> None:
    assert carried.collect(tmp_path / "none", tmp_path / "store") is None


def test_damaged_piece_is_refused_by_its_part(files: list[Path], tmp_path: Path) -> None:
    carried.deal_out(files, tmp_path / "parts", part_bytes=1000, piece_bytes=400)
    (tmp_path / "parts" / "2" / "large.whl.03").write_bytes(b"damaged")
    with pytest.raises(
        carried.CarriedError, match=r"large.whl.03: not the piece that was packed .* carry part 2 again"
    ):
        carried.collect(tmp_path / "parts", tmp_path / "store")


def test_older_pack_ends_in_one_line(files: list[Path], context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(carried, "_FORMAT", 1)
        carried.deal_out(files, context.carried)
    results = Results(context, "install")
    install.run(context, results)
    manifest = context.carried / "1" / carried.MANIFEST
    reason = f"{manifest}: made by an older gpu-pack: pack again"
    assert (results.content["state"], results.content["reason"]) == ("failed", reason)


def test_pieces_of_an_earlier_packing_are_dropped(files: list[Path], tmp_path: Path) -> None:
    carried.deal_out(files, tmp_path / "parts", part_bytes=1000, piece_bytes=400)
    carried.collect(tmp_path / "parts", tmp_path / "store")
    files[1].write_bytes(b"a newer wheel")
    carried.deal_out(files, tmp_path / "parts", part_bytes=5000, piece_bytes=5000)
    found = carried.collect(tmp_path / "parts", tmp_path / "store")
    assert found is not None
    assert found["missing"] == []
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {carried.MANIFEST, "large.whl.00", "small.whl.00", "empty-ish.00"}


def test_every_packed_project_is_locked() -> None:
    locked = pack.read_lock(ROOT / "requirements.lock")
    wanted = {*pack._LOCKED, *pack._RTX, *pack._RTX_SOURCES}
    assert wanted <= locked.keys()
    assert locked["numpy"].startswith("1.26.")


def test_every_project_has_one_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_pip", lambda *_: None)
    monkeypatch.setattr(pack, "_LOCKED", ("numpy", "ml-dtypes"))
    locked = pack.read_lock(ROOT / "requirements.lock")
    numpy, ml_dtypes = f"numpy-{locked['numpy']}", f"ml_dtypes-{locked['ml-dtypes']}"
    names = (f"{numpy}-cp312-a.whl", f"{ml_dtypes}-cp312-a.whl", "numpy-0.1-cp312-a.whl")
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in pack.download(tmp_path, "3.12", rtx=False)} == set(names[:2])
    (tmp_path / f"{numpy}-cp312-b.whl").touch()
    with pytest.raises(SystemExit, match=f"got 2 wheels of {numpy}, expected 1; empty the folder and pack again"):
        pack.download(tmp_path, "3.12", rtx=False)
    (tmp_path / names[1]).unlink()
    with pytest.raises(SystemExit, match=f"got 0 wheels of {ml_dtypes}, expected 1"):
        pack.download(tmp_path, "3.12", rtx=False)


def test_archive_of_a_python_without_libpython_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no lib/libpython3.12.so.1.0; give a build .* --enable-shared"):
        pack.archive_python(tmp_path, "3.12", tmp_path / "python.tar.xz")


def test_interpreter_is_found_where_pyenv_and_uv_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    for folder, version in (
        ("pyenv/versions/3.11.10", "3.11"),
        ("pyenv/versions/3.11.7", "3.11"),
        ("pyenv/versions/own", "3.11"),
        ("uv/cpython-3.11-linux-x86_64-gnu", "3.11"),
        ("uv/cpython-3.13", "3.13"),
    ):
        (tmp_path / folder / "lib").mkdir(parents=True)
        (tmp_path / folder / "lib" / f"libpython{version}.so.1.0").touch()
    assert pack.find_interpreter("3.11") == tmp_path / "pyenv/versions/3.11.10"
    assert pack.find_interpreter("3.12") is None
    assert pack.find_interpreter("3.13") == tmp_path / "uv/cpython-3.13"


# Installing.


PYTHON = ".".join(platform.python_version_tuple()[:2])


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/entry_points.txt", f"[console_scripts]\n{name} = {name}:main\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


def test_archive_holds_only_what_this_python_needs(tmp_path: Path) -> None:
    server, libraries = "pytriton/tritonserver", "nvidia_pytriton.libs"
    needed = {f"{server}/bin/tritonserver", f"{server}/python_backend_stubs/{PYTHON}/stub", "tests.py"}
    needed |= {f"{libraries}/libtritonserver.so", "numpy/py.typed"}
    useless = {f"{server}/python_backend_stubs/3.8/stub", f"{libraries}/libpython3-4.13.so.1.0"}
    useless |= {"numpy/core/tests/test_all.py", "numpy/array.pyi"}
    wheel = make_wheel(tmp_path, "pytriton", "1.0", dict.fromkeys(needed | useless, ""))
    pack.archive_site([wheel], PYTHON, tmp_path / carried.SITE_ARCHIVE)
    with tarfile.open(tmp_path / carried.SITE_ARCHIVE) as archive:
        names = {info.name.removeprefix("site/") for info in archive if info.isfile()}
    assert {name for name in names if ".dist-info/" not in name} == needed


def test_environment_prefers_what_was_carried_and_knows_temper(tmp_path: Path) -> None:
    """A package of this Python that the environment sees as well gives way, as numpy 2 must."""
    names = ("iniconfig", "made_here")
    wheels = [make_wheel(tmp_path, name, "99.0", {f"{name}.py": "VERSION = 'carried'"}) for name in names]
    archive = pack.archive_site(wheels, PYTHON, tmp_path / carried.SITE_ARCHIVE)
    interpreter = install.make_environment(tmp_path / "work", archive, [])
    program = (
        "import iniconfig, made_here, numpy, importlib.metadata as m, builder\n"
        "print(iniconfig.VERSION, made_here.VERSION, numpy.__version__, m.version('temper'), builder.__file__)"
    )
    done = subprocess.run([interpreter, "-I", "-c", program], capture_output=True, text=True, check=True)
    expected = ["carried", "carried", np.__version__, importlib.metadata.version("temper")]
    assert done.stdout.split() == [*expected, str(ROOT / "builder" / "__init__.py")]


def test_environment_follows_a_newer_archive(tmp_path: Path) -> None:
    for name in ("first", "second"):
        wheel = make_wheel(tmp_path, name, "1.0", {f"{name}.py": ""})
        archive = pack.archive_site([wheel], PYTHON, tmp_path / carried.SITE_ARCHIVE)
        install.make_environment(tmp_path / "work", archive, [])
        site = tmp_path / "work" / "site"
        assert [path.name for path in site.glob("*.py")] == [f"{name}.py"]
        (site / "kept").touch()
        install.make_environment(tmp_path / "work", archive, [])
        assert (site / "kept").exists()


# Networks and their skeletons.


def test_weights_are_the_same_on_every_machine() -> None:
    weights = networks.make_weights("layer1.0.conv1.weight", (64, 64, 3, 3))
    assert weights.dtype == np.float32
    assert weights.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.01)
    assert hashlib.sha256(weights.tobytes()).hexdigest()[:16] == "1068578f820b147f"


@pytest.mark.slow
def test_skeleton_gives_the_graph_back_bit_for_bit(tmp_path: Path) -> None:
    shapes = {name: tuple(each.shape) for name, each in networks.build_network("resnet18").named_parameters()}
    names = skeletons.name_weights(networks.make_graph("resnet18", "fp32", tmp_path, 32), shapes)
    for precision in ("fp32", "fp16", "int8", "fp8"):
        graph = networks.make_graph("resnet18", precision, tmp_path, 32)
        quantized = networks.quantized_graph(graph)
        skeleton = tmp_path / f"{precision}{skeletons.SUFFIX}"
        skeletons.write_skeleton(graph, quantized if quantized.exists() else None, names, skeleton, shapes)
        assert skeleton.stat().st_size < 0.01 * graph.stat().st_size
        again = skeletons.read_skeleton(skeleton, tmp_path / "again.onnx")
        assert again.read_bytes() == graph.read_bytes(), precision


def test_skeleton_of_other_weights_is_refused(tmp_path: Path) -> None:
    shapes = {name: tuple(each.shape) for name, each in networks.build_network("resnet18").named_parameters()}
    graph = networks.make_graph("resnet18", "fp32", tmp_path, 32)
    names = skeletons.name_weights(graph, shapes)
    skeletons.write_skeleton(graph, None, names, tmp_path / "whole", shapes)
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "changed", "w") as changed:
        for name in whole.namelist():
            content = whole.read(name).replace(b"layer1.0.conv1.weight", b"layer1.0.conv2.weight")
            changed.writestr(name, whole.read(name) if name.endswith(".onnx") else content)
    with pytest.raises(ValueError, match=r"changed: the weights made here are not those it was written with"):
        skeletons.read_skeleton(tmp_path / "changed", tmp_path / "again.onnx")


def test_torch_contender_answers_as_the_exported_graph(tmp_path: Path) -> None:
    import torch

    from benchmarks.gpu.pytorch import Reference
    from benchmarks.gpu.timing import measure

    contender = Reference("resnet18", "cpu", torch.float32).eager(2, 32)
    contender.infer()
    expected = run_onnx(networks.make_graph("resnet18", "fp32", tmp_path, 32), networks.make_images(2, 32))
    np.testing.assert_allclose(contender.logits.numpy(), expected, rtol=1e-3, atol=1e-3)
    figures = measure(contender, 0.01)
    assert set(figures) == {"device_ips", "ips", "p50_ms", "p99_ms"}
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    contender.close()


# Load.


@pytest.mark.server
@pytest.mark.parametrize("transport", ["grpc", "system"])
def test_load_over_each_transport_is_answered(server: TritonServer, sample: Sample, transport: Transport) -> None:
    images = np.ascontiguousarray(sample.images[:8])
    with Client(server.grpc_url) as client:
        info = client.model_info("toy_fp32")
    with requests(server.grpc_url, transport, info, images, 4, server.key.grpc_headers) as messages:
        assert len(messages) == 2
        assert (len(messages[0]) > images[:4].nbytes) == (transport == "grpc")
        row = run_load(
            server.grpc_url,
            info,
            messages,
            batch=4,
            concurrency=8,
            num_processes=1,
            warmup_s=0.1,
            duration_s=0.5,
            server_pid=server.pid,
        )
    assert (row["errors"], row["interrupted"]) == ({}, None)
    assert row["requests"] > 0
    assert row["ips"] == row["requests"] * 4 / 0.5
    assert row["server"]["batch_size"] >= 4
    assert row["cores"]["stubs"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]


@pytest.mark.server
def test_images_in_shared_memory_are_those_that_are_answered(server: TritonServer, sample: Sample) -> None:
    from client import protocol, wire

    images = np.ascontiguousarray(sample.images[:8])
    with Client(server.grpc_url) as client, wire.open_channel(server.grpc_url) as channel:
        info, expected = client.model_info("toy_fp32"), client.infer("toy_fp32", images)
        with requests(server.grpc_url, "system", info, images, 4, server.key.grpc_headers) as messages:
            answers = [protocol.decode(info, wire.raw_infer(channel)(message), 4) for message in messages]
    np.testing.assert_array_equal(np.concatenate(answers), expected)


@pytest.mark.server
def test_model_that_computes_nothing_answers_every_batch(tmp_path: Path) -> None:
    model = write_null(tmp_path / "repository", 2, 32, 8, on_gpu=False)
    with TritonServer(tmp_path / "repository", only_published=False) as server, Client(server.grpc_url) as client:
        for batch in (1, 8):
            answer = client.infer(model, networks.make_images(batch, 32))
            assert answer.shape == (batch, networks.NUM_CLASSES)
            assert not answer.any()


def test_processor_time_of_children_is_the_clients() -> None:
    meter = CpuMeter(server_pid=0)
    meter.start()
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        cores = meter.stop()
        child.communicate(b"\n")
    assert cores["client"] > 0
    assert (cores["tritonserver"], cores["stubs"]) == (0.0, 0.0)


# The tests of the suite.


def test_files_with_gpu_tests_are_found() -> None:
    found = {str(path.relative_to(ROOT)) for path in find_files(ROOT / "tests")}
    assert {"tests/backends/test_tensorrt_runner.py", "tests/builder/test_engines.py"} <= found
    assert "tests/client/test_stats.py" not in found


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("...\n12 passed, 2 skipped, 40 deselected in 9.1s\n", {"passed": 12, "skipped": 2, "deselected": 40}),
        ("E\n1 failed, 1 passed, 3 errors in 2.0s\n", {"failed": 1, "passed": 1, "error": 3}),
        ("Segmentation fault\n", {}),
    ],
)
def test_pytests_last_line_is_read(output: str, expected: dict[str, int]) -> None:
    assert count(output) == expected


# The table, from numbers that are made up here.


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
    in_process = {"128": {"buffers": figures(9e6, 2e5), "plugin": figures(9e6, 5e4)}}
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
        "| 128 | 9,000,000/s | 200,000/s | 50,000/s |",
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


# With a GPU.


@pytest.mark.gpu("tensorrt", "tensorrt-rtx")
def test_contenders_on_the_gpu_agree(context: Context, tmp_path: Path) -> None:
    from benchmarks.gpu.engines import Network

    kind, _ = pick_engine(EngineConfig())
    settings = replace(
        context, device="cuda", kind=kind, batches=(1, 4), precisions=("fp32",), rounds=1, seconds=0.05
    )
    with Network(replace(settings, compiled=False), kind, "resnet18") as network:
        row = network.measure(4)
    assert row["errors"] == {}
    assert set(row["contenders"]) == {"torch eager fp16", "fp32", "fp32 plugin"}
    assert row["agreement"]["fp32"]["max_abs_diff"] < 0.05 * row["agreement"]["fp32"]["max_abs_logit"]
