"""The plugin's CUDA calls on a real GPU without TensorRT: the stand-in of benchmarks/standin runs as its engine.

Its answers are made of the images' own first bytes, so every comparison is to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # ships none
from numpy.typing import NDArray

import artifact
import runners
from benchmarks import standin
from benchmarks.gpu.networks import NUM_CLASSES, make_images
from benchmarks.gpu.shared_memory import TRANSPORTS, Transport, requests
from benchmarks.standin.exercise import count_wrong
from runners import cuda
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.client import protocol, wire
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


# In this process.


def _open_runner(repository: Path, model: str, *, graphs: str = GRAPHS, **more: Any) -> Any:
    version = _publish(repository, model, graphs=graphs, **more)
    given = {"engine": "tensorrt", "file": standin.ENGINE_FILE, "graph_batches": graphs}
    entry = artifact.verify(version, {"parameters": {key: {"string_value": it} for key, it in given.items()}})
    signature = runners.Signature(
        input=runners.TensorSignature(name="image", data_type="TYPE_UINT8", dims=[SIZE, SIZE, 3]),
        output=runners.TensorSignature(name="logits", data_type="TYPE_FP32", dims=[CLASSES]),
    )
    instance = runners.Instance(
        signature=signature, max_batch=MAX_BATCH, num_instances=1, device=0, log=lambda line: None
    )
    return runners.load("tensorrt").Runner(entry, instance)


@pytest.fixture
def make_runner(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes runners on the stand-in, and closes them."""
    made: list[Any] = []

    def make(**more: Any) -> Any:
        made.append(_open_runner(tmp_path / "repository", f"model{len(made)}", **more))
        return made[-1]

    with standin.importable():
        yield make
    for runner in made:
        runner.close()


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [GRAPHS, ""])
@pytest.mark.parametrize("work_bytes", [0, 1 << 20])
def test_every_batch_is_answered_with_and_without_graphs(
    make_runner: Callable[..., Any], graphs: str, work_bytes: int
) -> None:
    """Small batches after large ones too: what a padded batch held before reaches no answer."""
    runner = make_runner(graphs=graphs, work_bytes=work_bytes)
    assert "stand-in" in runner.description
    assert runner.description.endswith(f"batches of {graphs.replace(',', ', ')}" if graphs else "no batch")
    images = make_images(MAX_BATCH, SIZE)
    for batch in [*range(MAX_BATCH, 0, -1), *range(1, MAX_BATCH + 1)]:
        (answer,) = runner.infer([images[:batch]])
        _expect(answer, images[:batch])


@pytest.mark.gpu
def test_batches_on_host_and_gpu_are_one_inference(make_runner: Callable[..., Any]) -> None:
    import torch

    from runners.dlpack import DeviceTensor

    runner, images = make_runner(), make_images(9, SIZE)
    on_gpu = torch.from_numpy(images[2:6]).cuda()
    torch.cuda.synchronize()
    answers = runner.infer([images[:2], DeviceTensor(on_gpu.__dlpack__()), images[6:]])
    assert [len(answer) for answer in answers] == [2, 4, 3]
    _expect(np.concatenate(answers), images)


@pytest.mark.gpu
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


@pytest.mark.gpu
def test_closed_runners_give_the_memory_back(make_runner: Callable[..., Any], tmp_path: Path) -> None:
    make_runner().infer([make_images(1, SIZE)])  # CUDA's own memory comes with the first
    before, _ = cuda.free_memory()
    with closing(_open_runner(tmp_path / "repository", "closed", work_bytes=4 << 20)):
        assert cuda.free_memory()[0] < before - (64 << 20)
    assert cuda.free_memory()[0] >= before - (4 << 20)


@pytest.mark.gpu
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
def test_requests_that_triton_gathers_get_their_own_answers(server: TritonServer) -> None:
    """Many in flight, from which Triton makes batches of several requests for several instances."""
    images = make_images(64, SIZE)
    answers: SimpleQueue[tuple[int, Any, Any]] = SimpleQueue()
    with triton.InferenceServerClient(server.grpc_url) as client:
        for index in range(64):
            image = triton.InferInput("image", [1, SIZE, SIZE, 3], "UINT8")
            image.set_data_from_numpy(images[index : index + 1])
            client.async_infer("instances", [image], lambda *answer, index=index: answers.put((index, *answer)))
        for _ in range(64):
            index, result, error = answers.get()
            assert error is None
            _expect(result.as_numpy("logits"), images[index : index + 1])


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
