"""The GPU benchmark, as far as it goes without a GPU: resuming, measuring, load over shared memory."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.gpu import gradients, networks, table, training
from benchmarks.gpu.context import ROOT, Context, Results
from benchmarks.gpu.gpu_tests import count, find_files
from benchmarks.gpu.load import run_load
from benchmarks.gpu.processor import CpuMeter
from benchmarks.gpu.served import write_null
from benchmarks.gpu.shared_memory import Transport, requests
from temper.builder.engines.build import pick_engine
from temper.builder.engines.gpu import compute_capability
from temper.builder.engines.kind import AutoConfig
from temper.builder.network.adversarial import AdversarialConfig
from temper.client.client import Client
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

without_gpu = pytest.mark.skipif(compute_capability() is not None, reason="this machine has an NVIDIA GPU")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# The command line.


@without_gpu
def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    done = run("--out", tmp_path / "out", "--work", tmp_path / "work")
    assert done.returncode == 1
    assert done.stdout.startswith("no NVIDIA GPU: ")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_it_starts_without_any_package(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-E", "-m", "benchmarks.gpu", "--only", "table", "--device", "cpu"]
    command += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not measured" in done.stdout


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
    settings: list[object] = [
        *"--device cpu --kind openvino --image-size 32 --arch resnet18 --precision fp32 --no-compile".split()
    ]
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
    settings: list[object] = [
        *"--device cpu --image-size 32 --arch resnet18 --batch 2 --rounds 1 --seconds 0.02".split()
    ]
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_training_goes_on_after_a_step_that_fails(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(trainer: training.Trainer) -> training.Step:
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setitem(training._STEPS, "as builder/network/train.py", refuse)
    monkeypatch.setattr(training, "_NAMES", (("as builder/network/train.py", "fp32, channels last"),))
    monkeypatch.setattr(training, "_load", lambda *_: {"error": None, "ips": 1.0, "peak_mib": None})
    results = Results(replace(context, archs=("resnet18",), batches=(2,), seconds=0.001), "training")
    training.run(results._context, results)
    rows = results.content["rows"]
    assert rows["resnet18 32 2 as builder/network/train.py"] == {"error": "RuntimeError: no such kernel"}
    assert rows["resnet18 32 2 fp32, channels last"]["ips"] > 0
    lines = table.render(context.out).splitlines()
    failed = (
        "| resnet18 | 32 | 2 | as builder/network/train.py | not measured: RuntimeError: no such kernel |  |  |  |"
    )
    assert failed in lines
    assert "| resnet18 | 32 | 2 | data loader alone | 1 |  |  |  |" in lines


def test_adversarial_steps_are_the_projects_own() -> None:
    trainer = training.Trainer.create("resnet18", 32, 2, "cpu")
    training._adversarial("pgd", trainer)()
    losses: Any = trainer.state.losses
    assert losses.__self__._config == AdversarialConfig(method="pgd") and trainer.state.step == 1


def test_gradients_of_each_graph_are_a_row_of_the_table(context: Context) -> None:
    settings = replace(context, archs=("resnet18",), batches=(2,), precisions=("fp32",), rounds=1)
    gradients.run(settings, Results(settings, "gradients"))
    rows = Results(settings, "gradients").content["rows"]
    assert rows["resnet18 32 2 fp32"]["error"] is None and rows["resnet18 32 2 fp32"]["ips"] > 0
    assert "| resnet18 | 32 | 2 | fp32 |" in table.render(context.out)


def test_training_by_fake_quantisation_has_int8_weights() -> None:
    trainer = training.Trainer.create("resnet18", 32, 2, "cpu")
    training._quantised(trainer)
    first = trainer.state.served.get_submodule("model.layer1.0.conv1")
    weight: Any = first.weight
    assert all(len(output.unique()) <= 255 for output in weight.detach())
    trainer.step()
    original = first.get_parameter("parametrizations.weight.original")
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

    monkeypatch.setattr("temper.builder.network.train._loader", lambda *_: Loader())
    assert training._load(context, 2)["ips"] <= 2 / 0.005


def test_training_measures_every_batch_that_is_asked_for(context: Context) -> None:
    keys = [key for key, _ in training._plan(replace(context, archs=("resnet18",), batches=(2, 4, 8)))]
    assert [key for key in keys if key.endswith("builder/network/train.py")] == [
        f"resnet18 32 {batch} as builder/network/train.py" for batch in (2, 4, 8)
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
            duration_s=2.0,
            server_pid=server.pid,
        )
    assert (row["errors"], row["interrupted"]) == ({}, None)
    assert row["requests"] > 0
    assert row["ips"] == row["requests"] * 4 / 2.0
    assert row["server"]["batch_size"] >= 4
    assert row["cores"]["stubs"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]


@pytest.mark.server
def test_images_in_shared_memory_are_those_that_are_answered(server: TritonServer, sample: Sample) -> None:
    from temper.client import protocol, wire

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
    assert {"tests/backends/test_tensorrt_served.py", "tests/builder/engines/test_engines.py"} <= found
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


# With a GPU.


@pytest.mark.gpu("tensorrt", "tensorrt-rtx")
def test_contenders_on_the_gpu_agree(context: Context, tmp_path: Path) -> None:
    from benchmarks.gpu.engines import Network

    kind = pick_engine(AutoConfig()).config.kind
    settings = replace(
        context, device="cuda", kind=kind, batches=(1, 4), precisions=("fp32",), rounds=1, seconds=0.05
    )
    with Network(replace(settings, compiled=False), kind, "resnet18") as network:
        row = network.measure(4)
    assert row["errors"] == {}
    assert set(row["contenders"]) == {"torch eager fp16", "fp32", "fp32 plugin"}
    assert row["agreement"]["fp32"]["max_abs_diff"] < 0.05 * row["agreement"]["fp32"]["max_abs_logit"]
