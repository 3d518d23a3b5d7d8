"""A real TensorRT-RTX engine in a real tritonserver: refused without a GPU, and what it answers on one."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # ships none
from numpy.typing import NDArray

import artifact
import runners
from artifact import ArtifactError
from benchmarks.sample import Sample
from runners import cuda
from runners.dlpack import DeviceTensor
from runners.tensorrt_engine import make_logger
from runners.tensorrt_runner import Runner
from temper.builder.engines.build import build_engine
from temper.builder.engines.gpu import compute_capability
from temper.builder.engines.tensorrt_rtx import TensorRtRtxConfig
from temper.builder.network.export import run_onnx
from temper.serve.server import TritonServer

PublishEngine = Callable[..., Path]
MAX_BATCH = 16
without_gpu = pytest.mark.skipif(compute_capability() is not None, reason="this machine has an NVIDIA GPU")


# On a machine without a GPU.


@pytest.fixture(scope="module")
def rtx(toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """model.rtx of the sample model, and what its card says of it."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("rtx")
    info = build_engine(toy_onnx, folder, TensorRtRtxConfig(opt_batch=8, max_batch=MAX_BATCH))
    return folder / info["file"], {"recipe": "toy", "stages": [{"name": "engine", "figures": info}]}


@without_gpu
def test_refusal_is_the_librarys_first_error(rtx: tuple[Path, dict[str, Any]]) -> None:
    """A deserialising that fails gives None; why is only in what the library logs."""
    import tensorrt_rtx as trt  # type: ignore[import-untyped]  # ships none

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
    publish_engine: PublishEngine,
    publish_model: Callable[[Path, str], None],
    accept_config: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Why a server without a GPU refused each engine; the OpenVINO model beside them must be served."""
    repository = tmp_path_factory.mktemp("without_gpu")
    publish_model(repository, "good")
    publish_engine(repository, "as_published", rtx[0], card=rtx[1])
    for name, (spoil, _) in WITHOUT_GPU.items():
        version = publish_engine(repository, name, rtx[0], card=rtx[1])
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
    publish_engine: PublishEngine,
    publish_model: Callable[[Path, str], None],
    cache_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """A server with the sample model as TensorRT-RTX engine, in every way that this file asks for."""
    folder = tmp_path_factory.mktemp("gpu")
    repository = folder / "repository"
    engine, card = rtx
    publish_model(repository, "good")
    publish_engine(repository, "rtx", engine, card=card)
    publish_engine(repository, "no_graphs", engine, card=card, parameters={"graph_batches": ""})
    publish_engine(
        repository, "device", engine, card=card, parameters={"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}, num_instances=2
    )
    publish_engine(repository, "too_large", engine, card=card, max_batch=2 * MAX_BATCH)
    publish_engine(repository, "wrong_graphs", engine, card=card, parameters={"graph_batches": "1,64"})
    publish_engine(repository, "wrong_library", engine, card=card, parameters={"engine": "tensorrt"})
    other = json.loads(json.dumps(card).replace("TensorRT-RTX 1.", "TensorRT-RTX 0."))
    publish_engine(repository, "wrong_version", engine, card=other)
    _flip_a_byte(publish_engine(repository, "corrupted", engine, card=card))
    no_engine = folder / "model.rtx"
    no_engine.write_bytes(b"no engine" * 100)
    publish_engine(repository, "no_engine", no_engine, card=card)
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
    publish_engine: PublishEngine,
    sample: Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a damaged cache is ignored with a line, then written again."""
    monkeypatch.setenv("TEMPER_CACHE_DIR", str(tmp_path / "cache"))
    publish_engine(tmp_path / "repository", "rtx", rtx[0], card=rtx[1])

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
    rtx: tuple[Path, dict[str, Any]], publish_engine: PublishEngine, cache_dir: Path, tmp_path: Path
) -> Iterator[Callable[..., Runner]]:
    """Makes runners in this process, and closes them."""
    made: list[Runner] = []
    version = publish_engine(tmp_path / "repository", "rtx", rtx[0], card=rtx[1])
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
    batches: list[Any] = [images[:2], DeviceTensor(on_gpu.__dlpack__()), images[6:]]
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
    held, stream = list[cuda.DeviceBuffer](), cuda.Stream()
    try:
        for nbytes in (1 << 30, 64 << 20, 4 << 20):
            with contextlib.suppress(cuda.CudaError):
                while True:
                    held.append(cuda.DeviceBuffer(nbytes, stream))
        with pytest.raises(ArtifactError, match=r"memory is exhausted.* MiB of \d+ are free"):
            make_runner()
    finally:
        stream.synchronize()
        for buffer in held:
            buffer.close()
        stream.close()
    assert make_runner().infer([np.zeros((1, 32, 32, 3), np.uint8)])[0].shape == (1, 10)
