"""The runner of TensorRT engines: what it decides and refuses by itself, on any machine."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import artifact
import runners
from artifact import ArtifactError, Entry
from runners import cuda, tensorrt_engine
from runners.tensorrt_engine import LIBRARIES, check_built_for, explain_other_gpu, load_engine
from runners.tensorrt_runner import padded_batch, prepared_batches, signature
from temper.builder.publish.triton_config import graph_sizes

# What the runner decides by itself.


@pytest.mark.parametrize(
    ("text", "opt_batch", "max_batch", "expected"),
    [
        (None, 8, 32, [1, 8, 32]),
        (None, 1, 1, [1]),
        (None, 32, 16, [1, 16]),
        ("", 8, 32, []),
        ("32, 8,8", 8, 32, [8, 32]),
    ],
)
def test_prepared_batches(text: str | None, opt_batch: int, max_batch: int, expected: list[int]) -> None:
    assert prepared_batches(text, opt_batch, max_batch) == expected


@pytest.mark.parametrize("text", ["0,8", "8,64", "eight", "1;8", "-1"])
def test_prepared_batches_refuses_what_the_server_never_sends(text: str) -> None:
    with pytest.raises(ArtifactError, match=rf"graph_batches: got '{text}', expected sizes from 1 to 32"):
        prepared_batches(text, 8, 32)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(1, 1), (2, 2), (5, 5), (6, 8), (8, 8), (9, 9), (23, 23), (24, 32), (32, 32), (33, 33)],
)
def test_padded_batch_wastes_at_most_a_quarter(batch: int, expected: int) -> None:
    assert padded_batch(batch, [1, 8, 32]) == expected


@pytest.mark.parametrize("max_batch", [1, 7, 32, 128])
def test_plugin_pads_as_the_graphs_were_chosen(max_batch: int) -> None:
    """So that every batch of a plan runs in one: the builder has the same share of padding."""
    sizes = graph_sizes(None, 8, max_batch)
    assert all(padded_batch(batch, sizes) in sizes for batch in range(1, max_batch + 1))
    assert padded_batch(max_batch - max_batch // 4, [max_batch]) == max_batch


def test_padded_batch_without_prepared_sizes() -> None:
    assert padded_batch(7, []) == 7


# The artifact.


def _add_file(version: Path, name: str, content: bytes) -> None:
    (version / name).write_bytes(content)
    with (version / "SHA256SUMS").open("a") as sums:
        sums.write(f"{hashlib.sha256(content).hexdigest()}  {name}\n")


def _config(**more: Any) -> dict[str, Any]:
    return {"parameters": {"engine": {"string_value": "tensorrt"}, "file": {"string_value": "model.plan"}}, **more}


@pytest.fixture
def version(tmp_path: Path, publish_engine: Callable[..., Path]) -> Path:
    """A published version with plans for two kinds of GPU, which nothing here parses."""
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    folder = publish_engine(tmp_path / "repository", "plans", plan, parameters={"engine": "tensorrt"})
    for name in ("model_sm89.plan", "model_sm90.plan"):
        _add_file(folder, name, name.encode())
    return folder


CC_FILES = {"8.9": "model_sm89.plan", "9.0": "model_sm90.plan"}


def test_plan_is_chosen_by_compute_capability(version: Path) -> None:
    entry = artifact.verify(version, _config(cc_model_filenames=CC_FILES))
    assert entry.for_capability("9.0").read() == b"model_sm90.plan"
    assert entry.for_capability("8.9").read() == b"model_sm89.plan"
    assert entry.for_capability("8.0").read() == b"plan", "the default, as Triton's own backend takes it"


def test_without_a_plan_for_the_gpu_nothing_is_loaded(version: Path) -> None:
    config = _config(cc_model_filenames=CC_FILES)
    config["parameters"]["file"] = {"string_value": "model_sm90.plan"}
    with pytest.raises(
        ArtifactError, match=r"compute capability 8.0, expected one of 8.9, 9.0 .cc_model_filenames"
    ):
        artifact.verify(version, config).for_capability("8.0")


def test_plan_without_a_digest_is_not_chosen(version: Path) -> None:
    (version / "model_sm75.plan").write_bytes(b"smuggled in")
    with pytest.raises(ArtifactError, match=r"model_sm75.plan: is not named in SHA256SUMS, so nobody"):
        artifact.verify(version, _config(cc_model_filenames={"7.5": "model_sm75.plan"}))


def test_plan_changed_after_it_was_verified_is_not_read(version: Path) -> None:
    entry = artifact.verify(version, _config(cc_model_filenames=CC_FILES)).for_capability("9.0")
    (version / "model_sm90.plan").write_bytes(b"another one")
    with pytest.raises(ArtifactError, match=r"model_sm90.plan: SHA-256 is .* changed after it was published"):
        entry.read()


def _entry(engine: str, *, figures: dict[str, Any], **parameters: str) -> Entry:
    return Entry(
        file=Path("1/model.plan"),
        engine=engine,
        parameters=parameters,
        digests={},
        file_of_capability={},
        card={
            "stages": [{"name": "data", "figures": {"runtime": "0.0.0"}}, {"name": "engine", "figures": figures}]
        },
    )


@pytest.mark.parametrize(
    ("entry", "version", "capability", "message"),
    [
        (
            _entry("tensorrt-rtx", figures={"runtime": "TensorRT-RTX 1.6.0.10"}),
            "1.7.1.116",
            "9.0",
            r"was built with TensorRT-RTX 1.6.0.10, here is 1.7.1.116; install tensorrt-rtx==1.6.0.10",
        ),
        (
            _entry("tensorrt", figures={"runtime": "TensorRT 10.13.2.6"}),
            "11.1.0.1",
            "9.0",
            r"was built with TensorRT 10.13.2.6, here is 11.1.0.1; install tensorrt==10.13.2.6",
        ),
        (
            _entry("tensorrt", figures={"runtime": "TensorRT 11.1.0.1", "compute_capability": "8.9"}),
            "11.1.0.1",
            "9.0",
            r"was built for compute capability 8.9, this GPU has 9.0; build the recipe on this GPU",
        ),
        (
            _entry("tensorrt", figures={"compute_capability": "8.0", "hardware_compatibility": "ampere_plus"}),
            "11.1.0.1",
            "7.5",
            r"was built for compute capability 8.0, this GPU has 7.5",
        ),
    ],
)
def test_engine_for_another_machine_is_refused_unparsed(
    entry: Entry, version: str, capability: str, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        check_built_for(entry, version=version, capability=capability)


@pytest.mark.parametrize(
    "entry",
    [
        _entry("tensorrt", figures={}),
        _entry("tensorrt", figures={"runtime": "TensorRT 11.1.0.9", "compute_capability": "9.0"}),
        _entry("tensorrt", figures={"runtime": "TensorRT 10.13.2.6"}, version_compatible="true"),
        _entry("tensorrt", figures={"compute_capability": "8.0", "hardware_compatibility": "ampere_plus"}),
        _entry("tensorrt-rtx", figures={"runtime": "TensorRT-RTX 11.1.0.1", "compute_capability": "8.9"}),
    ],
)
def test_engine_for_this_machine_is_not_refused(entry: Entry) -> None:
    check_built_for(entry, version="11.1.0.1", capability="9.0")


def _bound(gpu: str | None) -> Entry:
    entry = _entry("tensorrt", figures={"compute_capability": "9.0"})
    plans = [{"name": "model.plan", "gpu": gpu}, {"name": "model_sm89.plan", "gpu": "NVIDIA L4"}]
    return dataclasses.replace(entry, card={**entry.card, "plans": plans})


@pytest.mark.parametrize(
    ("entry", "warns"),
    [
        (_bound("NVIDIA H100 PCIe"), True),
        (_bound("NVIDIA H200"), False),
        (_bound(None), False),
        (_entry("tensorrt", figures={"gpu": "NVIDIA H100 PCIe"}), False),
    ],
)
def test_plan_of_another_type_of_gpu_is_warned_of(entry: Entry, warns: bool) -> None:
    warning = explain_other_gpu(entry, "NVIDIA H200")
    expected = "1/model.plan was built on NVIDIA H100 PCIe, this is NVIDIA H200: it may be slower here, or fail; "
    assert (warning or "").startswith(expected) if warns else warning is None


@pytest.mark.parametrize(
    ("capability", "cause", "reason"),
    [
        (
            "9.0",
            "UNSUPPORTED_CC",
            r"version 1\.\S+ has no kernels for compute capability 9.0 \(NVIDIA H200\), only for",
        ),
        (
            "9.0",
            "UNSUPPORTED_CC",
            r"7.5, 8.0, 8.6, .*; build the recipe on this GPU with engine.kind = 'tensorrt'",
        ),
        (
            "8.9",
            "UNSUPPORTED_CC",
            r"it was not built for compute capability 8.9 .* \(engine.compute_capabilities\)",
        ),
        ("9.0", "CUDA_ERROR", r"CUDA's driver or runtime is not installed correctly; .* of NVIDIA H200"),
        ("9.0", "MALFORMED_ENGINE", r"it is no engine of this version of TensorRT-RTX"),
    ],
)
def test_every_verdict_of_rtx_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capability: str, cause: str, reason: str
) -> None:
    """The library's own enumerations, with a verdict that takes a GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    flags = int(getattr(trt.EngineInvalidityDiagnostics, cause))

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def get_engine_validity(self, content: bytes) -> tuple[Any, int]:
            return trt.EngineValidity.INVALID, flags

    monkeypatch.setattr(trt, "Runtime", Runtime)
    monkeypatch.setattr(Entry, "read", lambda self: b"engine")
    entry = _entry("tensorrt-rtx", figures={})
    tensor = runners.TensorSignature(name="t", data_type="TYPE_UINT8", dims=[1])
    instance = runners.Instance(
        signature=runners.Signature(input=tensor, output=tensor),
        max_batch=1,
        num_instances=1,
        device=0,
        log=lambda line: None,
    )
    device = cuda.Device(index=0, name="NVIDIA H200", capability=capability, driver_cuda=(13, 0))
    with pytest.raises(ArtifactError, match=rf"TensorRT-RTX refuses it: .*{reason}"):
        load_engine(entry, instance, device)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_bindings"])
def test_bindings_alone_are_tensorrt_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What can be installed beside the libraries of Triton's image."""
    for module in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    del sys.modules[name]
    (tmp_path / f"{name}.py").write_text("__version__ = '11.0.0.114'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tensorrt_engine._import(LIBRARIES["tensorrt"], "tensorrt").__version__ == "11.0.0.114"


def test_without_tensorrt_the_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(tensorrt_engine, "find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match="engine tensorrt needs the package tensorrt in the python3 of triton"):
        tensorrt_engine._import(LIBRARIES["tensorrt"], "tensorrt")


def test_old_driver_is_refused_with_the_version_that_is_needed() -> None:
    cuda.require_driver((12, 4), 12, "cuda-bindings")
    cuda.require_driver((13, 0), 12, "cuda-bindings")
    with pytest.raises(
        ArtifactError,
        match=r"driver serves CUDA 12.4, tensorrt-rtx needs CUDA 13; install driver 580.65.06 or later",
    ):
        cuda.require_driver((12, 4), 13, "tensorrt-rtx")


def test_signature_is_what_the_config_states() -> None:
    config = {
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": ["32", "32", "3"]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}],
    }
    stated = signature(_entry("tensorrt", figures={}), config)
    assert (stated.input.dims, stated.output.dims) == ([32, 32, 3], [10])
    with pytest.raises(ArtifactError, match="config.pbtxt states no input or no output"):
        signature(_entry("tensorrt", figures={}), {**config, "output": []})
