"""Engines, built for real: OpenVINO runs here, TensorRT-RTX compiles without a GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from temper.builder.compress.cast import CastConfig, cast_onnx
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.engines.build import AgreementLimits, PickedEngine, build_engine, pick_engine
from temper.builder.engines.gpu import Driver, Gpu, compute_capability
from temper.builder.engines.isa import instruction_set
from temper.builder.engines.kind import ENGINES, AutoConfig, EngineConfig
from temper.builder.engines.library import Logger, load_library
from temper.builder.engines.openvino import OpenVinoConfig
from temper.builder.engines.tensorrt import TENSORRT, TensorRtConfig
from temper.builder.engines.tensorrt_rtx import TENSORRT_RTX, TensorRtRtxConfig
from temper.builder.engines.torch_tensorrt import export_module
from temper.builder.errors import EngineError
from temper.builder.network.export import run_onnx
from temper.builder.network.served import Served
from temper.builder.publish.plans import Binding
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from benchmarks.sample import Sample


@pytest.mark.int8
def test_openvino_keeps_the_graph_and_runs_it(sample: Sample, toy_reduced: Path, tmp_path: Path) -> None:
    info = build_engine(toy_reduced, tmp_path, OpenVinoConfig(), sample.images[:40])
    assert (info["kind"], info["file"], info["precision_hint"]) == ("openvino", "model.onnx", "f32")
    assert info["size_bytes"] == toy_reduced.stat().st_size
    assert info["runtime"].startswith("OpenVINO 20")
    assert (tmp_path / "model.onnx").read_bytes() == toy_reduced.read_bytes()
    assert info["isa"] == instruction_set()
    assert info["against_exact"]["num_images"] == 40
    assert info["against_exact"]["agreement"] == 1.0
    assert info["against_exact"]["relative_rms"] < 0.15


def test_openvino_refuses_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"engine openvino: cannot compile bad.onnx: \S") as caught:
        build_engine(tmp_path / "bad.onnx", tmp_path, OpenVinoConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_tensorrt_rtx_compiles_without_a_gpu(
    sample: Sample, toy_onnx: Path, toy_int8: Path, tmp_path: Path, precision: Any, capfd: Any
) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = {"fp32": toy_onnx, "int8": toy_int8}.get(precision, toy_onnx)
    if precision == "fp8":
        source = tmp_path / "fp8.onnx"
        quantize_onnx(toy_onnx, source, sample.calibration[:8], QuantizeConfig(precision="fp8", method="max"))
    if precision != "fp32":
        cast = CastConfig(precision="bf16" if precision == "bf16" else "fp16")
        cast_onnx(source, tmp_path / "cast.onnx", sample.calibration[:2], cast)
        source = tmp_path / "cast.onnx"
    config = TensorRtRtxConfig(opt_batch=4, max_batch=16)
    info = build_engine(source, tmp_path, config, sample.images[:4], precision=precision)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    engine = tmp_path / "model.rtx"
    assert info["file"] == "model.rtx"
    assert info["size_bytes"] == engine.stat().st_size
    assert 0.9 * source.stat().st_size < engine.stat().st_size < 1.5 * source.stat().st_size
    assert (info["opt_batch"], info["max_batch"]) == (4, 16)
    assert info["runtime"].startswith("TensorRT-RTX 1.")
    if compute_capability() is None:
        assert info["engine_audit"] == {
            "status": "not inspected",
            "reason": "no NVIDIA GPU; the Q/DQ audit stands alone",
        }


def test_fewer_compute_capabilities_make_another_engine(toy_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "one").mkdir()
    config = TensorRtRtxConfig(compute_capabilities=("8.9",))
    info = build_engine(toy_onnx, tmp_path / "one", config)
    assert info["compute_capabilities"] == ["8.9"]
    other = TensorRtRtxConfig(compute_capabilities=("9.9",))
    with pytest.raises(EngineError, match=r"compute_capabilities: got 9.9"):
        pick_engine(other)  # before anything is trained
    with pytest.raises(
        EngineError, match=r"compute_capabilities: got 9.9, expected some of 7.5, 8.0, .*'tensorrt' builds f"
    ):
        build_engine(toy_onnx, tmp_path, other)


def test_graph_with_a_fixed_batch_is_refused(toy_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(toy_onnx)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(EngineError, match=r"fixed.onnx has a fixed batch of 4, expected a free one"):
        build_engine(tmp_path / "fixed.onnx", tmp_path, TensorRtRtxConfig())


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_tensorrt_without_its_libraries_is_one_line(toy_onnx: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    with pytest.raises(EngineError, match=r"engine tensorrt: the package tensorrt is not installed; run `pip"):
        build_engine(toy_onnx, tmp_path, TensorRtConfig())


def test_sparse_kernels_are_allowed_on_request(toy_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    config = TensorRtRtxConfig()
    info = build_engine(toy_onnx, tmp_path, config, precision="fp32", sparse_weights=True)
    assert (info["sparse_weights"], info["precision"], info["timings_reused"]) == (True, "fp32", None)


def test_rtx_is_asked_whether_it_runs_and_gives_its_reason() -> None:
    pytest.importorskip("tensorrt_rtx")
    capability = compute_capability()
    if capability is None:
        message = (
            r"TensorRT-RTX 1\.\S+ does not run on compute capability 9.0 \(it names 7.5, 8.0, .*;.*\): \S.*CUDA"
        )
        assert re.fullmatch(message + ".*", TENSORRT_RTX.why_not_try(load_library(TENSORRT_RTX), "9.0") or "")
    else:
        reason = TENSORRT_RTX.why_not_library()
        assert reason is None or capability in reason


def test_engine_for_other_gpus_is_not_loaded_here() -> None:
    config = TensorRtRtxConfig(compute_capabilities=("8.9", "12.0"))
    reason = TENSORRT_RTX.why_not_load_here(config, "9.0")
    assert reason == "built for 8.9, 12.0, and this GPU is 9.0"


def test_library_under_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # As torch-tensorrt-rtx leaves it behind.
    monkeypatch.setitem(sys.modules, "tensorrt", pytest.importorskip("tensorrt_rtx"))
    with pytest.raises(
        EngineError, match=r"tensorrt cannot be used: it is tensorrt_rtx 1\.\S+ under another name;"
    ):
        load_library(TENSORRT)


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning")  # torch's own
@pytest.mark.slow
def test_torch_tensorrt_is_given_what_it_can_convert(sample: Sample) -> None:
    import torch

    served = Served(sample.model, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    config = TensorRtRtxConfig(frontend="torch-tensorrt")
    program = export_module(served, config, image_shape=sample.images.shape[1:], precision="fp16")
    program = program.run_decompositions()
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.convolution.default" in used
    assert not any("as_strided" in name for name in used)
    images = torch.from_numpy(sample.images[:5])  # another batch than the example's
    with torch.inference_mode():
        logits, expected = program.module()(images), served(images)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=0.1)
    # The caller's network is as it was.
    assert next(served.parameters()).dtype == torch.float32
    assert not served.model._forward_pre_hooks


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_torch_tensorrt_without_a_driver_is_one_line(toy_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    config = TensorRtRtxConfig(frontend="torch-tensorrt")
    with pytest.raises(EngineError, match=r"use engine.frontend = 'onnx'") as caught:
        build_engine(toy_onnx, tmp_path, config)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu("tensorrt", "tensorrt-rtx")
def test_tensorrt_engine_agrees_with_pytorch_on_the_gpu(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    config = pick_engine(AutoConfig()).config
    images = sample.images[:40]
    reference = run_onnx(toy_onnx, images)
    limits = AgreementLimits(min_agreement=1.0, max_logit_diff=0.5)
    info = build_engine(toy_onnx, tmp_path, config, images, reference=reference, limits=limits)
    assert info["against_pytorch"]["num_images"] == 40
    assert info["engine_audit"]["status"] == "inspected"
    assert sum(info["engine_audit"]["convs"].values()) >= 20


@pytest.mark.gpu("tensorrt", "tensorrt-rtx")
def test_torch_tensorrt_engine_agrees_with_pytorch_on_the_gpu(
    sample: Sample, toy_onnx: Path, tmp_path: Path
) -> None:
    kind = pick_engine(AutoConfig()).kind
    pytest.importorskip("torch_tensorrt")
    images = sample.images[:40]
    info = build_engine(
        toy_onnx,
        tmp_path,
        kind.config(frontend="torch-tensorrt"),
        images,
        reference=run_onnx(toy_onnx, images),
        limits=AgreementLimits(min_agreement=1.0, max_logit_diff=0.5),
        module=Served(sample.model, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )
    assert info["engine_audit"]["status"] == "inspected"


def test_engine_that_differs_from_pytorch_is_refused(sample: Sample, toy_onnx: Path, tmp_path: Path) -> None:
    images = sample.images[:40]
    reference = run_onnx(toy_onnx, images)

    def build(reference: Any, limits: AgreementLimits) -> dict[str, Any]:
        config = OpenVinoConfig()
        return build_engine(toy_onnx, tmp_path, config, images, reference=reference, limits=limits)

    figures = build(reference, AgreementLimits(min_agreement=1.0, max_logit_diff=0.01))["against_pytorch"]
    assert (figures["agreement"], figures["num_images"]) == (1.0, 40)
    wrong = reference.copy()
    wrong[:10] = -wrong[:10]
    message = r"gives PyTorch's label on 75.0 % of 40 images, expected at least 90.0 % \(min_agreement\)"
    with pytest.raises(EngineError, match=message):
        build(wrong, AgreementLimits(min_agreement=0.9))
    with pytest.raises(EngineError, match=r"a logit differs from PyTorch's by \d+.*, expected at most 0.5 \(max_"):
        build(reference + 1, AgreementLimits(max_logit_diff=0.5))


def test_tensorrt_rtx_refuses_what_is_no_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"engine tensorrt-rtx: cannot parse bad.onnx: \S") as caught:
        build_engine(tmp_path / "bad.onnx", tmp_path, TensorRtRtxConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_auto_takes_the_cpu_without_a_gpu() -> None:
    picked = pick_engine(AutoConfig(precision_hint="bf16", max_batch=4, max_reformats=3))
    config = OpenVinoConfig(precision_hint="bf16", max_batch=4)
    assert picked == PickedEngine(config=config, why="no NVIDIA GPU found, so the CPU")


def test_auto_without_any_engine_says_why_the_better_ones_were_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the builder's image, which has no OpenVINO, when no GPU was given to it."""
    monkeypatch.setattr("temper.builder.engines.build.read_driver", lambda: (None, "no NVIDIA driver"))
    monkeypatch.setattr("temper.builder.engines.kind.is_importable", lambda package: False)
    with pytest.raises(
        EngineError, match="engine auto: no NVIDIA driver; and engine openvino: the package openvino"
    ):
        pick_engine(AutoConfig())


def test_asked_for_engine_is_taken() -> None:
    config = OpenVinoConfig(precision_hint="bf16")
    assert pick_engine(config) == PickedEngine(config=config, why="asked for in the recipe")


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if it were not installed: the import system's own way to say so.
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        EngineError, match=r"the package tensorrt_rtx is not installed; run `pip install 'temper\[rtx\]'`"
    ):
        pick_engine(TensorRtRtxConfig())


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (OpenVinoConfig, {"kind": "tensorrt"}, r"kind: got 'tensorrt', expected 'openvino'"),
        (OpenVinoConfig, {"max_batch": 0}, r"max_batch: got 0, expected 1 to 4096"),
        (AutoConfig, {"opt_batch": 64}, r"opt_batch: got 64, expected 1 to 32 \(max_batch\)"),
        (AutoConfig, {"precision_hint": "f16"}, r"precision_hint: got 'f16', expected 'f32' or 'bf16'"),
        (OpenVinoConfig, {"precision_hint": "f16"}, r"precision_hint: got 'f16', expected 'f32' or 'bf16'"),
        (AutoConfig, {"num_instances": 0}, r"num_instances: got 0, expected 1 to 256"),
        (AutoConfig, {"max_reformats": -1}, r"max_reformats: got -1, expected 0 or more"),
        (TensorRtConfig, {"max_high_precision_convs": -1}, r"max_high_precision_convs: got -1, expected 0 or"),
        (TensorRtRtxConfig, {"frontend": "ort"}, r"frontend: got 'ort', expected 'onnx' or 'torch-tensorrt'"),
        (TensorRtConfig, {"server_backend": "onnx"}, r"server_backend: got 'onnx', expected 'auto', 'temper' or"),
        (
            TensorRtConfig,
            {"frontend": "torch-tensorrt", "version_compatible": True},
            r"version_compatible: got True with frontend 'torch-tensorrt', expected frontend 'onnx'",
        ),
        (
            TensorRtConfig,
            {"frontend": "torch-tensorrt", "hardware_compatibility": "same_compute_capability"},
            r"hardware_compatibility: got 'same_compute_capability' with frontend 'torch-tensorrt', expected",
        ),
        (
            TensorRtRtxConfig,
            {"frontend": "torch-tensorrt", "compute_capabilities": ("8.9",)},
            r"compute_capabilities: got \('8.9',\) with frontend 'torch-tensorrt', expected frontend 'onnx'",
        ),
        (
            TensorRtRtxConfig,
            {"compute_capabilities": ("89",)},
            r"compute_capabilities: got '89', expected some such",
        ),
        (
            TensorRtConfig,
            {"triton_release": "26.6"},
            r"triton_release: got '26.6', expected a month such as '26.06'",
        ),
        (
            TensorRtConfig,
            {"triton_release": "99.01"},
            r"triton_release: the TensorRT of tritonserver 99.01 was not",
        ),
        (
            TensorRtConfig,
            {"hardware_compatibility": "all"},
            r"hardware_compatibility: got 'all', expected one",
        ),
    ],
)
def test_config_is_checked(config: type[EngineConfig], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("config", "changes", "builds"),
    [
        (OpenVinoConfig, {"num_instances": 3}, False),
        (OpenVinoConfig, {"opt_batch": 3}, False),
        (OpenVinoConfig, {"precision_hint": "bf16"}, True),
        (TensorRtConfig, {"num_instances": 3}, False),
        (TensorRtConfig, {"server_backend": "tensorrt"}, False),
        (TensorRtConfig, {"opt_batch": 3}, True),
        (TensorRtConfig, {"triton_release": "26.06"}, True),
        (TensorRtRtxConfig, {"num_instances": 3}, False),
        (TensorRtRtxConfig, {"compute_capabilities": ("8.9",)}, True),
    ],
)
def test_build_key_holds_what_the_build_reads(config: Any, changes: dict[str, Any], builds: bool) -> None:
    assert (config(**changes).build_key() != config().build_key()) == builds


def test_every_kind_describes_itself() -> None:
    for name, kind in ENGINES.all().items():
        assert (kind.name, kind.config().kind) == (name, name)
        assert kind.install.startswith("pip install ")
        assert kind.backend(kind.config(), None).name in ("temper", "tensorrt")
    ranks = [kind.rank for kind in ENGINES.all().values()]
    assert len(set(ranks)) == len(ranks)


@pytest.mark.parametrize(
    ("server_backend", "embedded", "expected"),
    [
        ("auto", True, "temper"),
        ("auto", False, "tensorrt"),
        ("temper", False, "temper"),
        ("tensorrt", True, "tensorrt"),
    ],
)
def test_plans_are_served_by_tritons_own_backend_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, server_backend: Any, embedded: bool, expected: str
) -> None:
    monkeypatch.setattr(type(TENSORRT), "needs_plugin", embedded)
    backend = TENSORRT.backend(TensorRtConfig(server_backend=server_backend), None)
    assert backend.name == expected


@pytest.mark.parametrize("package", ["pytriton", None])
def test_embedded_server_needs_the_plugin(monkeypatch: pytest.MonkeyPatch, package: str | None) -> None:
    monkeypatch.setattr("temper.builder.engines.tensorrt.is_importable", lambda name: name == package)
    assert TENSORRT.needs_plugin == (package is not None)


def test_rtx_engines_can_be_captured_in_graphs() -> None:
    """The library allocates nothing by itself then, wherever the engine is for."""
    trt = pytest.importorskip("tensorrt_rtx")
    for config in (TensorRtRtxConfig(), TensorRtRtxConfig(compute_capabilities=("8.9",))):
        log = Logger(trt)
        settings = trt.Builder(log.native).create_builder_config()
        TENSORRT_RTX.configure(trt, settings, config)
        assert settings.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


@pytest.mark.parametrize(
    ("needs_plugin", "expected"),
    [(True, "cuda-bindings is missing, with which the plugin drives the GPU"), (False, None)],
)
def test_plugins_own_packages_are_asked_for_where_it_serves(
    monkeypatch: pytest.MonkeyPatch, needs_plugin: bool, expected: str | None
) -> None:
    monkeypatch.setattr(type(TENSORRT), "needs_plugin", needs_plugin)
    monkeypatch.setattr(type(TENSORRT), "why_not_library", lambda self: None)
    monkeypatch.setattr("temper.builder.engines.nvidia.is_importable", lambda package: False)
    assert TENSORRT.why_not_run() == expected


@pytest.mark.parametrize(
    ("compatibility", "expected"),
    [
        ("none", Binding(compute_capability="9.0", gpu="NVIDIA H200")),
        ("same_compute_capability", Binding(compute_capability="9.0")),
        ("ampere_plus", None),
    ],
)
def test_plan_is_bound_as_tensorrt_promises(compatibility: Any, expected: Binding | None) -> None:
    config = TensorRtConfig(hardware_compatibility=compatibility)
    assert TENSORRT.binding(config, {"compute_capability": "9.0", "gpu": "NVIDIA H200"}) == expected


# What is told of a driver that this machine has not.

GPUS = (Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=150 << 30),)
NEW = Driver(version="580.95.05", cuda=(13, 0), gpus=GPUS)
OLD = Driver(version="550.54.15", cuda=(11, 4), gpus=GPUS)


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (NEW, None),
        (OLD, "the NVIDIA driver 550.54.15 knows CUDA 11.4, TensorRT-RTX needs 1"),
        (None, "no driver"),
    ],
)
def test_driver_that_is_too_old_is_told(driver: Driver | None, why: str | None) -> None:
    pytest.importorskip("tensorrt_rtx")
    told = TENSORRT_RTX.why_not_driver(driver, "no driver")
    assert told is None if why is None else (told or "").startswith(why)


SIGNALLED = """
import gc, os, signal, sys
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD
from temper.builder.engines.openvino import open_core

signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first = open_core().compile_model(sys.argv[1], "CPU")
second = open_core().compile_model(sys.argv[1], "CPU")
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_openvino_ran(toy_onnx: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(toy_onnx)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
