"""The plugin's CUDA calls without TensorRT: the stand-in of benchmarks/standin runs as its engine.

Its answers are made of the images' own first bytes, so every comparison is to the bit.
"""

from __future__ import annotations

import asyncio
import importlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import artifact
import runners
from benchmarks import standin
from benchmarks.gpu.networks import NUM_CLASSES, make_images
from benchmarks.gpu.shared_memory import TRANSPORTS, Transport, requests
from benchmarks.standin.exercise import count_wrong
from benchmarks.standin.host_cuda import HostCuda
from runners import cuda
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.client import protocol, wire
from temper.client.aio import AsyncClient
from temper.client.client import Client
from temper.client.errors import ClientError
from temper.serve.server import TritonServer

SIZE, CLASSES, MAX_BATCH, FAULT = 32, 10, 16, 5
"""A batch of FAULT images is not padded to a prepared size, and ends the context of the model `faulty`."""
GRAPHS = "1,8,16"


def _publish(repository: Path, model: str, *, num_instances: int = 1, graphs: str = GRAPHS, **more: Any) -> Path:
    about = standin.write_engine(
        repository.parent / f"engine_{model}", (SIZE, SIZE, 3), CLASSES, max_batch=MAX_BATCH, opt_batch=8, **more
    )
    published = publish(
        repository,
        TritonConfig(
            name=model,
            image_size=SIZE,
            num_classes=CLASSES,
            max_batch=MAX_BATCH,
            backend=PluginBackend(
                engine="tensorrt",
                opt_batch=8,
                graph_batches=tuple(int(size) for size in graphs.split(",") if size),
            ),
            num_instances=num_instances,
        ),
        engine_file=repository.parent / f"engine_{model}" / about["file"],
        labels=[str(number) for number in range(CLASSES)],
        card={"recipe": "stand-in", "stages": [{"name": "engine", "figures": about}]},
    )
    return published.path


def _expect(answer: NDArray[np.float32], images: NDArray[np.uint8]) -> None:
    expected = standin.expected_logits(images, CLASSES)
    np.testing.assert_array_equal(np.ascontiguousarray(answer).view(np.uint32), expected.view(np.uint32))


# In this process: on a GPU, and on any machine in host memory, with the order that a GPU might take.


def _open_runner(
    repository: Path, model: str, *, engine: str = "tensorrt", graphs: str = GRAPHS, **more: Any
) -> Any:
    log = more.pop("log", lambda line: None)
    version = _publish(repository, model, graphs=graphs, **more)
    given = {"engine": engine, "file": standin.ENGINE_FILE, "graph_batches": graphs}
    entry = artifact.verify(version, {"parameters": {key: {"string_value": it} for key, it in given.items()}})
    signature = runners.Signature(
        input=runners.TensorSignature(name="image", data_type="TYPE_UINT8", dims=[SIZE, SIZE, 3]),
        output=runners.TensorSignature(name="logits", data_type="TYPE_FP32", dims=[CLASSES]),
    )
    instance = runners.Instance(signature=signature, max_batch=MAX_BATCH, num_instances=1, device=0, log=log)
    return runners.load(engine).Runner(entry, instance)


@pytest.fixture(params=[pytest.param("gpu", marks=pytest.mark.gpu), "host"])
def host(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HostCuda | None]:
    """Where CUDA's calls go: to a GPU (None), or to this process's memory."""
    monkeypatch.setenv("TEMPER_CACHE_DIR", str(tmp_path / "cache"))
    with standin.importable():
        if request.param == "gpu":
            yield None
            return
        host = HostCuda()
        for module in (cuda, importlib.import_module("tensorrt"), importlib.import_module("tensorrt_rtx")):
            monkeypatch.setattr(module, "runtime", host)
        yield host


@pytest.fixture
def make_runner(host: HostCuda | None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes runners on the stand-in, and closes them."""
    made: list[Any] = []

    def make(**more: Any) -> Any:
        made.append(_open_runner(tmp_path / "repository", f"model{len(made)}", **more))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("graphs", [GRAPHS, ""])
@pytest.mark.parametrize("work_bytes", [0, 1 << 16])
def test_every_batch_is_answered_with_and_without_graphs(
    make_runner: Callable[..., Any], engine: str, graphs: str, work_bytes: int
) -> None:
    """Small batches after large ones too: what a padded batch held before reaches no answer."""
    runner = make_runner(engine=engine, graphs=graphs, work_bytes=work_bytes)
    assert "stand-in" in runner.description
    assert runner.description.endswith(f"batches of {graphs.replace(',', ', ')}" if graphs else "no batch")
    images = make_images(MAX_BATCH, SIZE)
    for batch in [*range(MAX_BATCH, 0, -1), *range(1, MAX_BATCH + 1)]:
        (answer,) = runner.infer([images[:batch]])
        _expect(answer, images[:batch])


def test_first_images_are_not_overwritten_by_zeros(make_runner: Callable[..., Any]) -> None:
    """New memory is zeroed on the stream that uses it: one without graphs is waited for by nothing before."""
    runner, images = make_runner(graphs=""), make_images(MAX_BATCH, SIZE)
    (answer,) = runner.infer([images])
    _expect(answer, images)


def test_rtx_replays_a_graph_per_prepared_size_from_the_first_request_on(make_runner: Callable[..., Any]) -> None:
    runner, images = make_runner(engine="tensorrt-rtx"), make_images(MAX_BATCH, SIZE)
    contexts = runner._contexts
    assert {size: context.replays for size, context in contexts.items()} == {1: 1, 8: 1, 16: 1}
    for batch in (1, 16, 7, 3, 8, 1):  # 7 is padded to 8, and 3 runs without a graph
        runner.infer([images[:batch]])
    assert {size: context.replays for size, context in contexts.items()} == {1: 3, 8: 3, 16: 2}


def test_rtx_contexts_share_one_piece_of_memory(make_runner: Callable[..., Any], tmp_path: Path) -> None:
    make_runner(engine="tensorrt-rtx").infer([make_images(1, SIZE)])
    before, _ = cuda.free_memory()
    work_bytes = 1 << 20
    with closing(_open_runner(tmp_path / "repository", "m", engine="tensorrt-rtx", work_bytes=work_bytes)):
        assert before - cuda.free_memory()[0] < 1.5 * (2 * work_bytes * MAX_BATCH)
    assert cuda.free_memory()[0] >= before - (4 << 20)


def test_rtx_without_graphs_pads_nothing(make_runner: Callable[..., Any]) -> None:
    told = list[str]()
    runner, images = make_runner(engine="tensorrt-rtx", fault_batch=-1, log=told.append), make_images(7, SIZE)
    assert told == [
        f"no CUDA graph for batches of {size}: TensorRT-RTX says that they cannot be captured"
        for size in (1, 8, 16)
    ]
    assert runner.description.endswith("CUDA graphs for batches of no batch")
    (answer,) = runner.infer([images])
    _expect(answer, images)


def test_rtx_compiles_once_and_keeps_the_kernels(make_runner: Callable[..., Any]) -> None:
    first = make_runner(engine="tensorrt-rtx")
    assert {size: context.compiled for size, context in first._contexts.items()} == {1: 1, 8: 1, 16: 1}
    again = make_runner(engine="tensorrt-rtx")
    assert {size: context.compiled for size, context in again._contexts.items()} == {1: 0, 8: 0, 16: 0}


def test_batches_on_host_and_gpu_are_one_inference(make_runner: Callable[..., Any], host: HostCuda | None) -> None:
    import torch

    from runners.dlpack import DeviceTensor

    runner, images = make_runner(), make_images(9, SIZE)
    on_gpu = torch.from_numpy(images[2:6])
    if host is None:
        on_gpu = on_gpu.cuda()
        torch.cuda.synchronize()
    answers = runner.infer([images[:2], DeviceTensor(on_gpu.__dlpack__()), images[6:]])
    assert [len(answer) for answer in answers] == [2, 4, 3]
    _expect(np.concatenate(answers), images)


class Region:
    """Shared memory as Triton's Python backend has it: mapped anew when it grows, and never unmapped."""

    def __init__(self) -> None:
        """An empty file."""
        self._file = Path(f"/dev/shm/temper-test-{os.getpid()}").open("w+b")  # noqa: SIM115  # closed with the test
        self._maps: list[mmap.mmap] = []

    def put(self, images: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
        """The images, at an offset of the newest mapping, which is made when they lie behind the last one."""
        if not self._maps or at + images.nbytes > len(self._maps[-1]):
            self._file.truncate(at + images.nbytes)
            self._maps.append(mmap.mmap(self._file.fileno(), at + images.nbytes))
        array = np.frombuffer(self._maps[-1], np.uint8, images.nbytes, at).reshape(images.shape)
        array[:] = images
        return array

    def close(self) -> None:
        """Remove the file."""
        Path(self._file.name).unlink()
        self._file.close()


@pytest.fixture
def region() -> Iterator[Region]:
    """One region, removed at the end."""
    with closing(Region()) as made:
        yield made


def test_gpu_reads_a_request_where_triton_has_it(
    make_runner: Callable[..., Any], region: Region, host: HostCuda | None
) -> None:
    """No copy on the host goes before; what lies elsewhere is copied into pinned memory."""
    runner, images = make_runner(), make_images(MAX_BATCH, SIZE)
    runner._images.array[:] = 0
    for round_ in range(1, 4):  # the region grows in between
        shared = [region.put(images[:5], 1000 * round_), region.put(images[5:], 100_000 * round_)]
        answers = runner.infer(shared)
        _expect(np.concatenate(answers), images)
        assert len(runner._request_memory._pinned) == 1, "only the newest mapping"
    assert not runner._images.array.any()
    (answer,) = runner.infer([images])
    _expect(answer, images)
    assert runner._images.array.any()
    if host is not None:
        assert host.pageable_bytes == 0
        runner._request_memory.close()
        assert not host.pinned


def test_memory_that_cannot_be_pinned_is_copied(
    make_runner: Callable[..., Any], region: Region, host: HostCuda | None
) -> None:
    if host is None:
        pytest.skip("a GPU's driver pins it")
    host.refuses_to_pin, told = True, list[str]()
    runner, images = make_runner(log=told.append), make_images(MAX_BATCH, SIZE)
    for _ in range(2):
        (answer,) = runner.infer([region.put(images, 0)])
        _expect(answer, images)
    assert host.pageable_bytes == 0
    (line,) = told
    assert "shared memory is not pinned, so images are copied on the host first: cudaHostRegister" in line


def test_refused_batch_leaves_the_runner_usable(make_runner: Callable[..., Any]) -> None:
    """The library refuses a batch beyond the profile, and the runner is made to ask for one."""
    runner, images = make_runner(), make_images(MAX_BATCH, SIZE)
    prepared, runner._prepared = runner._prepared, [MAX_BATCH + 1]
    with pytest.raises(
        runners.RunnerError, match=rf"a batch of {MAX_BATCH} failed: stand-in: image: got"
    ) as caught:
        runner.infer([images])
    assert not isinstance(caught.value, runners.ContextLostError)
    runner._prepared = prepared
    (answer,) = runner.infer([images[:3]])
    _expect(answer, images[:3])


def test_closed_runners_give_the_memory_back(make_runner: Callable[..., Any], tmp_path: Path) -> None:
    make_runner().infer([make_images(1, SIZE)])  # CUDA's own memory comes with the first
    before, _ = cuda.free_memory()
    with closing(_open_runner(tmp_path / "repository", "closed", work_bytes=4 << 20)):
        assert cuda.free_memory()[0] < before - (64 << 20)
    assert cuda.free_memory()[0] >= before - (4 << 20)


def test_engine_larger_than_the_gpu_is_one_line_with_the_bytes(make_runner: Callable[..., Any]) -> None:
    cuda.open_device(0)
    _, total = cuda.free_memory()
    with pytest.raises(artifact.ArtifactError, match=r"memory is exhausted: \d+ MiB of \d+ are free, .* need \d+"):
        make_runner(work_bytes=total // MAX_BATCH)


# In a real tritonserver.


MODELS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "no_graphs": {"graphs": ""},
    "working": {"work_bytes": 1 << 20},
    "instances": {"num_instances": 3},
}


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest,
    share_server: Callable[..., AbstractContextManager[TritonServer]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """A server whose plugin finds the stand-in, with a model of every kind."""
    folder = tmp_path_factory.mktemp("cuda_path")
    for model, more in MODELS.items():
        _publish(folder / "repository", model, **more)
    with (
        standin.plugin(folder / "backends"),
        share_server(request, TritonServer(folder / "repository", log_file=folder / "log")) as running,
    ):
        yield running


@pytest.mark.gpu
@pytest.mark.server
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_served_answers_are_right_to_the_bit(server: TritonServer, transport: Transport, model: str) -> None:
    headers = server.key.grpc_headers
    with Client(server.grpc_url) as client, wire.open_channel(server.grpc_url) as channel:
        info = client.model_info(model)
        for batch in (MAX_BATCH, 1, 7, 8, 3):
            images = make_images(MAX_BATCH, SIZE)[-batch:]
            with requests(server.grpc_url, transport, info, images, batch, headers) as (message,):
                _expect(protocol.decode(info, wire.raw_infer(channel)(message), batch), images)


@pytest.mark.gpu
@pytest.mark.server
async def test_requests_that_triton_gathers_get_their_own_answers(server: TritonServer) -> None:
    """Many in flight, from which Triton makes batches of several requests for several instances."""
    images = make_images(64, SIZE)
    async with AsyncClient(server.grpc_url) as client:
        answers = await asyncio.gather(*(client.infer("instances", image[None]) for image in images))
    _expect(np.concatenate(answers), images)


@pytest.mark.gpu
@pytest.mark.server
def test_lost_context_is_answered_and_ends_the_process(tmp_path: Path, until: Callable[..., None]) -> None:
    """Only a new process can use the GPU again; the server says whose process ended."""
    _publish(tmp_path / "repository", "faulty", graphs="1,16", fault_batch=FAULT)
    images = make_images(MAX_BATCH, SIZE)
    with (
        standin.plugin(tmp_path / "backends"),
        TritonServer(tmp_path / "repository", log_file=tmp_path / "log") as server,
        Client(server.grpc_url) as client,
    ):
        _expect(client.infer("faulty", images[:3]), images[:3])
        with pytest.raises(ClientError, match=r"a batch of 5 failed: .*(IllegalAddress|700)"):
            client.infer("faulty", images[:FAULT])
        until(lambda: server.death() is not None)
        assert "faulty" in str(server.death())
    assert "this process ends, as its GPU context is lost" in (tmp_path / "log").read_text()


def test_stand_in_gives_the_bytes_of_the_images() -> None:
    images = make_images(3, SIZE)
    expected = standin.expected_logits(images, CLASSES)
    assert expected.shape == (3, CLASSES)
    assert bytes(expected[2])[::4] == images[2].tobytes()[: 4 * CLASSES : 4]
    assert np.isfinite(expected).all()


class _FakeRunner:
    """Answers in one buffer as the plugin does, but takes, or answers wrongly, what it is told to."""

    def __init__(self, *, largest: int, wrong: Callable[[Sequence[Any]], bool] = lambda batches: False) -> None:
        self._largest, self._wrong = largest, wrong
        self._buffer = np.zeros((40, NUM_CLASSES), np.float32)

    def infer(self, batches: Sequence[Any]) -> list[NDArray[np.float32]]:
        images = np.concatenate(batches)
        if len(images) > self._largest:
            raise runners.RunnerError("too many images")
        answer = self._buffer[: len(images)]
        answer[:] = 0 if self._wrong(batches) else standin.expected_logits(images, NUM_CLASSES)
        return [answer]


@pytest.mark.parametrize(
    ("runner", "num_wrong"),
    [
        (_FakeRunner(largest=32), 0),
        (_FakeRunner(largest=33), 7),
        (_FakeRunner(largest=32, wrong=lambda batches: len(batches) == 1), 14),
        (_FakeRunner(largest=32, wrong=lambda batches: len(batches) == 2), 6),
    ],
    ids=["right", "refuses nothing", "whole batches", "mixed batches"],
)
def test_every_wrong_answer_to_the_sanitizers_exercise_counts(runner: _FakeRunner, num_wrong: int) -> None:
    images = make_images(33, 64)
    assert count_wrong(runner, images, lambda start, stop: images[start:stop]) == num_wrong
