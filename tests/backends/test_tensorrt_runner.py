"""The runner of TensorRT engines: what it decides and refuses anywhere, and what it answers on a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray

import artifact
import runners
from artifact import ArtifactError, Entry
from builder.engines import EngineConfig, build_engine, count_gpus
from builder.export import run_onnx
from builder.publish import publish
from builder.sample import Sample
from runners import cuda
from runners.dlpack import DeviceTensor
from runners.runtime_cache import CacheFile, cache_folder, cache_key
from runners.tensorrt_engine import check_built_for, make_logger
from runners.tensorrt_runner import Runner, padded_batch, prepared_batches, signature
from temper.server import TritonServer

MAX_BATCH = 16
without_gpu = pytest.mark.skipif(count_gpus() > 0, reason="this machine has an NVIDIA GPU")


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


def test_padded_batch_without_prepared_sizes() -> None:
    assert padded_batch(7, []) == 7


# DLPack.


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_device_tensor_describes_the_memory(dtype: str) -> None:
    array = np.arange(2 * 4 * 4 * 3).astype(dtype).reshape(2, 4, 4, 3)
    tensor = DeviceTensor(array.__dlpack__())
    assert (tensor.shape, tensor.dtype, len(tensor)) == ((2, 4, 4, 3), array.dtype, 2)
    assert (tensor.pointer, tensor.nbytes) == (array.ctypes.data, array.nbytes)


def test_device_tensor_points_behind_an_offset() -> None:
    array = np.arange(10 * 12, dtype=np.uint8).reshape(10, 2, 2, 3)
    assert DeviceTensor(array[3:5].__dlpack__()).pointer == array.ctypes.data + 3 * 12


def test_device_tensor_takes_rows_of_one_image() -> None:
    """The stride of a dimension of size 1 means nothing."""
    assert len(DeviceTensor(np.zeros((8, 2, 2, 3), np.uint8)[::8].__dlpack__())) == 1


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[:, ::2], np.s_[..., :2]])
def test_device_tensor_refuses_gaps(cut: Any) -> None:
    array = np.zeros((8, 4, 4, 3), np.uint8)[cut]
    with pytest.raises(runners.RunnerError, match=r"got a GPU tensor \[.*\] with gaps, expected a contiguous one"):
        DeviceTensor(array.__dlpack__())


def test_device_tensor_refuses_a_type_that_numpy_lacks() -> None:
    with pytest.raises(runners.RunnerError, match="got a GPU tensor of DLPack type 5/64, expected uint8"):
        DeviceTensor(np.zeros((1, 2), np.complex64).__dlpack__())


def test_device_tensor_gives_the_memory_back() -> None:
    import weakref

    class Watched(np.ndarray):  # type: ignore[type-arg]  # an array that can be watched
        pass

    array = np.zeros((2, 3), np.uint8).view(Watched)
    watch = weakref.ref(array)
    tensor = DeviceTensor(array.__dlpack__())
    del array
    assert watch() is not None, "the tensor keeps the memory that it points to"
    del tensor
    assert watch() is None, "and gives it back"


# The artifact.


def _publish(repository: Path, model: str, engine: Path, **more: Any) -> Path:
    """Publishes an engine, and returns the version's folder."""
    settings: dict[str, Any] = {"card": {"recipe": "toy"}, "max_batch": MAX_BATCH, "num_instances": 1, **more}
    settings["parameters"] = {"engine": "tensorrt-rtx", **settings.get("parameters", {})}
    labels = [str(digit) for digit in range(10)]
    return publish(
        repository, model=model, engine_file=engine, labels=labels, image_size=32, num_classes=10, **settings
    ).path


def _add_file(version: Path, name: str, content: bytes) -> None:
    (version / name).write_bytes(content)
    with (version / "SHA256SUMS").open("a") as sums:
        sums.write(f"{hashlib.sha256(content).hexdigest()}  {name}\n")


def _config(**more: Any) -> dict[str, Any]:
    return {"parameters": {"engine": {"string_value": "tensorrt"}, "file": {"string_value": "model.plan"}}, **more}


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A published version with plans for two kinds of GPU, which nothing here parses."""
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    folder = _publish(tmp_path / "repository", "plans", plan, parameters={"engine": "tensorrt"})
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


# TensorRT-RTX's compiled kernels.


@pytest.fixture
def cache(tmp_path: Path) -> tuple[CacheFile, list[str]]:
    lines: list[str] = []
    return CacheFile(tmp_path / "rtx" / "key.rtxcache", lines.append), lines


KEY = {"digest": "ab" * 32, "version": "1.7.1.116", "capability": "9.0", "gpu": "NVIDIA H200"}


def test_cache_key_differs_with_whatever_makes_other_kernels() -> None:
    assert cache_key(**KEY).endswith("-rtx1.7.1.116-sm90-nvidia-h200.rtxcache")
    others = {"digest": "cd" * 32, "version": "1.8.0.1", "capability": "8.9", "gpu": "NVIDIA L40S"}
    assert len({cache_key(**{**KEY, name: value}) for name, value in others.items()} | {cache_key(**KEY)}) == 5


def test_cache_folder_is_the_given_one_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEMPER_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == tmp_path / "rtx"
    monkeypatch.delenv("TEMPER_CACHE_DIR")
    assert cache_folder() == Path("/xdg/temper/rtx")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/users/me")
    assert cache_folder() == Path("/users/me/.cache/temper/rtx")
    monkeypatch.delenv("HOME")
    assert cache_folder().name == "rtx"


def test_cache_is_read_by_the_next_start(cache: tuple[CacheFile, list[str]]) -> None:
    file, lines = cache
    assert file.read() is None
    file.write(b"kernels")
    assert CacheFile(file.path, lines.append).read() == b"kernels"
    assert [path.name for path in file.path.parent.iterdir()] == ["key.rtxcache"]
    assert lines == []


def test_cache_that_did_not_change_is_not_written_again(cache: tuple[CacheFile, list[str]]) -> None:
    file, _ = cache
    file.write(b"kernels")
    before = file.path.stat().st_ino
    file.write(b"kernels")
    assert file.path.stat().st_ino == before
    file.write(b"more kernels")
    assert file.path.stat().st_ino != before


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"x"]
)
def test_damaged_cache_is_ignored_with_a_line(
    cache: tuple[CacheFile, list[str]], spoil: Callable[[bytes], bytes]
) -> None:
    file, lines = cache
    file.write(b"kernels")
    file.path.write_bytes(spoil(file.path.read_bytes()))
    assert file.read() is None
    (line,) = lines
    assert re.search(r"runtime cache .*key.rtxcache is damaged and is not used", line)


def test_cache_that_others_may_write_is_not_used(cache: tuple[CacheFile, list[str]]) -> None:
    """It is code: who writes it decides what runs on the GPU."""
    file, lines = cache
    file.write(b"kernels")
    file.path.parent.chmod(0o777)
    assert file.read() is None
    file.write(b"other kernels")
    assert len(lines) == 2
    assert all("can be written by others; name a folder of your own in TEMPER_CACHE_DIR" in line for line in lines)


def test_cache_that_cannot_be_written_costs_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    CacheFile(tmp_path / "file" / "key.rtxcache", lines.append).write(b"kernels")
    (line,) = lines
    assert "is not written: " in line


# A real engine on a machine without a GPU, in a real tritonserver.


@pytest.fixture(scope="module")
def rtx(toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """model.rtx of the sample model, and what its card says of it."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("rtx")
    info = build_engine("tensorrt-rtx", toy_onnx, folder, EngineConfig(opt_batch=8, max_batch=MAX_BATCH))
    return folder / info["file"], {"recipe": "toy", "stages": [{"name": "engine", "figures": info}]}


@without_gpu
def test_refusal_is_the_librarys_first_error(rtx: tuple[Path, dict[str, Any]]) -> None:
    """A deserialising that fails gives None; why is only in what the library logs."""
    import tensorrt_rtx as trt

    signature = runners.Signature(
        input=runners.TensorSignature(name="image", data_type="TYPE_UINT8", dims=[32, 32, 3]),
        output=runners.TensorSignature(name="logits", data_type="TYPE_FP32", dims=[10]),
    )
    instance = runners.Instance(signature=signature, max_batch=1, num_instances=1, device=0, log=lambda line: None)
    logger = make_logger(trt, instance)
    assert trt.Runtime(logger).deserialize_cuda_engine(rtx[0].read_bytes()) is None
    assert "CUDA driver version is insufficient" in logger.reason()
    assert logger.reason() == "it gives no reason"


def _let_triton_choose(version: Path) -> None:
    """Without a GPU Triton refuses KIND_GPU itself; with KIND_AUTO it asks the plugin."""
    config = version.parent / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_GPU", "KIND_AUTO"))


def _flip_a_byte(version: Path) -> None:
    engine = version / "model.rtx"
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)


def _leave_out_the_tensors(version: Path) -> None:
    config = version.parent / "config.pbtxt"
    config.write_text(
        re.sub(r"^(input|output) \{.*?^\}\n", "", config.read_text(), flags=re.DOTALL | re.MULTILINE)
    )


WITHOUT_GPU: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no_gpu": (lambda version: None, r"^no NVIDIA (driver on this machine|GPU)|GPU 0 cannot be used"),
    "corrupted": (_flip_a_byte, r"model.rtx: SHA-256 is \w+\.\.\., .* is not loaded; publish this version again"),
    "unstated": (_leave_out_the_tensors, r"config.pbtxt states no input or no output"),
}


@pytest.fixture(scope="module")
def refusals(
    rtx: tuple[Path, dict[str, Any]],
    publish_model: Callable[[Path, str], None],
    accept_config: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Why a server without a GPU refused each engine; the OpenVINO model beside them must be served."""
    repository = tmp_path_factory.mktemp("without_gpu")
    publish_model(repository, "good")
    _publish(repository, "as_published", rtx[0], card=rtx[1])
    for name, (spoil, _) in WITHOUT_GPU.items():
        version = _publish(repository, name, rtx[0], card=rtx[1])
        _let_triton_choose(version)
        spoil(version)
        if name != "corrupted":
            accept_config(version.parent)
    with TritonServer(repository, strict=False, only_published=False) as server:
        assert _infer(server, np.zeros((1, 32, 32, 3), np.uint8), "good").shape == (1, 10)
        return {
            model: reason.replace("Internal: TritonModelException: ", "")
            for model, reason in server.failed.items()
        }


def _infer(server: TritonServer, images: NDArray[np.uint8], model: str) -> NDArray[np.float32]:
    with triton.InferenceServerClient(server.grpc_url) as client:
        image = triton.InferInput("image", list(images.shape), "UINT8")
        image.set_data_from_numpy(images)
        answer: NDArray[np.float32] = client.infer(model, [image]).as_numpy("logits")
        return answer


@without_gpu
@pytest.mark.server
@pytest.mark.parametrize("name", WITHOUT_GPU)
def test_engine_is_refused_in_one_line_without_a_gpu(refusals: dict[str, str], name: str) -> None:
    assert re.search(WITHOUT_GPU[name][1], refusals[name].splitlines()[0])


@without_gpu
@pytest.mark.server
def test_entry_as_published_is_refused_without_a_gpu(refusals: dict[str, str]) -> None:
    assert re.search(r"no GPUs are available|no NVIDIA driver on this machine", refusals["as_published"])
    assert set(refusals) == {"as_published", *WITHOUT_GPU}


@pytest.mark.server
def test_gpu_tensors_for_an_engine_on_the_host_are_refused(
    toy_repository: Path, accept_config: Callable[[Path], None]
) -> None:
    config = toy_repository / "toy_fp32" / "config.pbtxt"
    forced = 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }\n'
    config.write_text(config.read_text() + forced)
    accept_config(config.parent)
    with TritonServer(toy_repository, strict=False) as server:
        assert re.search(
            r"FORCE_CPU_ONLY_INPUT_TENSORS: got 'no', expected 'yes' or nothing with engine openvino",
            server.failed["toy_fp32"],
        )


# On a GPU.


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the servers of this module keep compiled kernels."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TEMPER_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def gpu_server(
    request: pytest.FixtureRequest,
    share_server: Callable[..., AbstractContextManager[TritonServer]],
    rtx: tuple[Path, dict[str, Any]],
    publish_model: Callable[[Path, str], None],
    cache_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """A server with the sample model as TensorRT-RTX engine, in every way that this file asks for."""
    folder = tmp_path_factory.mktemp("gpu")
    repository = folder / "repository"
    engine, card = rtx
    publish_model(repository, "good")
    _publish(repository, "rtx", engine, card=card)
    _publish(repository, "no_graphs", engine, card=card, parameters={"graph_batches": ""})
    _publish(
        repository, "device", engine, card=card, parameters={"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}, num_instances=2
    )
    _publish(repository, "too_large", engine, card=card, max_batch=2 * MAX_BATCH)
    _publish(repository, "wrong_graphs", engine, card=card, parameters={"graph_batches": "1,64"})
    _publish(repository, "wrong_library", engine, card=card, parameters={"engine": "tensorrt"})
    other = json.loads(json.dumps(card).replace("TensorRT-RTX 1.", "TensorRT-RTX 0."))
    _publish(repository, "wrong_version", engine, card=other)
    _flip_a_byte(_publish(repository, "corrupted", engine, card=card))
    no_engine = folder / "model.rtx"
    no_engine.write_bytes(b"no engine" * 100)
    _publish(repository, "no_engine", no_engine, card=card)
    with share_server(
        request, TritonServer(repository, strict=False, only_published=False, log_file=folder / "log")
    ) as server:
        yield server


GPU_REFUSES = {
    "too_large": rf"max_batch_size in config.pbtxt is {2 * MAX_BATCH}, .* takes batches of 1 to {MAX_BATCH}",
    "wrong_graphs": r"graph_batches: got '1,64', expected sizes from 1 to 16",
    "wrong_library": r"engine tensorrt needs the package tensorrt|was built with TensorRT|TensorRT cannot load it",
    "wrong_version": r"was built with TensorRT-RTX 0\..*, here is 1\.",
    "corrupted": r"model.rtx: SHA-256 is \w+\.\.\., .* is not loaded",
    "no_engine": r"TensorRT-RTX refuses it: it is no engine of this version",
}


@pytest.mark.gpu("tensorrt-rtx")
@pytest.mark.server
@pytest.mark.parametrize("model", ["rtx", "no_graphs", "device"])
def test_answers_equal_onnxruntime_at_every_batch(
    gpu_server: TritonServer, sample: Sample, toy_onnx: Path, model: str
) -> None:
    """Small batches after large ones too: what a padded batch held before reaches no answer."""
    expected = run_onnx(toy_onnx, sample.images[:MAX_BATCH])
    for batch in [*range(MAX_BATCH, 0, -1), *range(1, MAX_BATCH + 1)]:
        answer = _infer(gpu_server, sample.images[:batch], model)
        # TensorFloat-32 keeps 10 bits of each factor.
        np.testing.assert_allclose(answer, expected[:batch], rtol=2e-2, atol=5e-2)
        assert (answer.argmax(1) == expected[:batch].argmax(1)).all()


@pytest.mark.gpu("tensorrt-rtx")
@pytest.mark.server
def test_images_in_gpu_memory_are_answered(gpu_server: TritonServer, sample: Sample, toy_onnx: Path) -> None:
    """Over CUDA shared memory, with a model that takes GPU tensors as they are."""
    shared = pytest.importorskip("tritonclient.utils.cuda_shared_memory")
    images = np.ascontiguousarray(sample.images[:7])
    handle = shared.create_shared_memory_region("images", images.nbytes, 0)
    try:
        shared.set_shared_memory_region(handle, [images])
        with triton.InferenceServerClient(gpu_server.grpc_url) as client:
            headers = gpu_server.key.grpc_headers
            raw = shared.get_raw_handle(handle)
            client.register_cuda_shared_memory("images", raw, 0, images.nbytes, headers=headers)
            image = triton.InferInput("image", list(images.shape), "UINT8")
            image.set_shared_memory("images", images.nbytes)
            answer = client.infer("device", [image]).as_numpy("logits")
            client.unregister_cuda_shared_memory("images", headers=headers)
    finally:
        shared.destroy_shared_memory_region(handle)
    np.testing.assert_allclose(answer, run_onnx(toy_onnx, images), rtol=2e-2, atol=5e-2)


@pytest.mark.gpu("tensorrt-rtx")
@pytest.mark.server
@pytest.mark.parametrize("model", GPU_REFUSES)
def test_engine_that_does_not_fit_is_refused_in_one_line(gpu_server: TritonServer, model: str) -> None:
    reason = gpu_server.failed[model].replace("Internal: TritonModelException: ", "")
    assert re.search(GPU_REFUSES[model], reason.splitlines()[0])


@pytest.mark.gpu("tensorrt-rtx")
@pytest.mark.server
def test_only_what_does_not_fit_is_refused(gpu_server: TritonServer) -> None:
    assert set(gpu_server.failed) == set(GPU_REFUSES)
    assert _infer(gpu_server, np.zeros((1, 32, 32, 3), np.uint8), "good").shape == (1, 10)


@pytest.mark.gpu("tensorrt-rtx")
@pytest.mark.server
@pytest.mark.slow
def test_second_start_takes_the_kernels_of_the_first(
    rtx: tuple[Path, dict[str, Any]],
    sample: Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a damaged cache is ignored with a line, then written again."""
    monkeypatch.setenv("TEMPER_CACHE_DIR", str(tmp_path / "cache"))
    _publish(tmp_path / "repository", "rtx", rtx[0], card=rtx[1])

    def start() -> str:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        with TritonServer(tmp_path / "repository", log_file=log) as server:
            assert _infer(server, sample.images[:5], "rtx").shape == (5, 10)
        return log.read_text()

    ignored = f"runtime cache {tmp_path}"
    assert ignored not in start()
    (cache,) = (tmp_path / "cache" / "rtx").iterdir()
    assert ignored not in start()
    cache.write_bytes(b"damaged")
    assert "is damaged and is not used" in start()
    assert cache.stat().st_size > 1000


@pytest.fixture
def make_runner(
    rtx: tuple[Path, dict[str, Any]], cache_dir: Path, tmp_path: Path
) -> Iterator[Callable[..., Runner]]:
    """Makes runners in this process, and closes them."""
    made: list[Runner] = []
    version = _publish(tmp_path / "repository", "rtx", rtx[0], card=rtx[1])
    parameters = {"engine": {"string_value": "tensorrt-rtx"}, "file": {"string_value": "model.rtx"}}

    def make(**more: str) -> Runner:
        given = {name: {"string_value": value} for name, value in more.items()}
        entry = artifact.verify(version, {"parameters": {**parameters, **given}})
        runner = Runner(
            entry,
            runners.Instance(
                signature=runners.Signature(
                    input=runners.TensorSignature(name="image", data_type="TYPE_UINT8", dims=[32, 32, 3]),
                    output=runners.TensorSignature(name="logits", data_type="TYPE_FP32", dims=[10]),
                ),
                max_batch=MAX_BATCH,
                num_instances=1,
                device=0,
                log=lambda line: None,
            ),
        )
        made.append(runner)
        return runner

    yield make
    for runner in made:
        runner.close()


@pytest.mark.gpu("tensorrt-rtx")
def test_batches_on_host_and_gpu_are_one_inference(
    make_runner: Callable[..., Runner], sample: Sample, toy_onnx: Path
) -> None:
    import torch

    runner = make_runner()
    images = sample.images[:9]
    on_gpu = torch.from_numpy(images[2:6]).cuda()
    torch.cuda.synchronize()
    batches = [images[:2], DeviceTensor(on_gpu.__dlpack__()), images[6:]]
    answers = runner.infer(batches)
    assert [len(answer) for answer in answers] == [2, 4, 3]
    np.testing.assert_allclose(np.concatenate(answers), run_onnx(toy_onnx, images), rtol=2e-2, atol=5e-2)


@pytest.mark.gpu("tensorrt-rtx")
def test_failed_batch_leaves_the_runner_usable(make_runner: Callable[..., Runner], sample: Sample) -> None:
    """The library itself refuses a batch beyond the profile, and the runner is made to ask for one."""
    runner = make_runner()
    prepared, runner._prepared = runner._prepared, [MAX_BATCH + 1]
    with pytest.raises(runners.RunnerError, match=rf"a batch of {MAX_BATCH} failed: .+"):
        runner.infer([sample.images[:MAX_BATCH]])
    runner._prepared = prepared
    with pytest.raises(runners.RunnerError, match=rf"got {MAX_BATCH + 1} images, expected at most {MAX_BATCH}"):
        runner.infer([sample.images[:MAX_BATCH], sample.images[:1]])
    (answer,) = runner.infer([sample.images[:3]])
    assert np.isfinite(answer).all()


@pytest.mark.gpu("tensorrt-rtx")
def test_exhausted_memory_is_one_line_with_the_bytes(make_runner: Callable[..., Runner]) -> None:
    cuda.open_device(0)
    held: list[cuda.DeviceBuffer] = []
    try:
        for nbytes in (1 << 30, 64 << 20, 4 << 20):
            with contextlib.suppress(cuda.CudaError):
                while True:
                    held.append(cuda.DeviceBuffer(nbytes))
        with pytest.raises(ArtifactError, match=r"memory is exhausted.* MiB of \d+ are free"):
            make_runner()
    finally:
        for buffer in held:
            buffer.close()
    assert make_runner().infer([np.zeros((1, 32, 32, 3), np.uint8)])[0].shape == (1, 10)
