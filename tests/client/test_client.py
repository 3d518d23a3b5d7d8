"""The synchronous client against a real tritonserver."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from temper.client import (
    AsyncClient,
    Client,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerUnavailable,
)
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = pytest.mark.server

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as opened:
        yield opened


def run_async(url: str, use: Callable[[AsyncClient], Any]) -> Any:
    async def main() -> Any:
        async with AsyncClient(url) as client:
            return await use(client)

    return asyncio.run(main())


def test_model_info_is_learned_from_the_server(client: Client, sample: Sample) -> None:
    info = client.model_info("toy_fp32")
    assert (info.input_name, info.image_shape, info.input_dtype) == ("image", (32, 32, 3), "UINT8")
    assert (info.output_name, info.num_classes, info.output_dtype) == ("logits", 10, "FP32")
    assert (info.version, info.max_batch_size) == ("1", 32)
    assert info.labels == tuple(sample.class_names)
    assert (info.label(3), info.label(10)) == (sample.class_names[3], "10")
    assert client.model_info("toy_fp32") is info


def test_infer_splits_a_batch_and_keeps_its_order(client: Client, sample: Sample) -> None:
    images = np.concatenate([sample.images] * 2)[:101]
    logits = client.infer("toy_fp32", images)
    assert logits.shape == (101, 10) and logits.dtype == np.float32
    for index in (0, 31, 32, 64, 100):
        np.testing.assert_allclose(
            logits[index], client.infer("toy_fp32", images[index : index + 1])[0], atol=1e-3
        )


def test_stream_answers_every_batch_in_order(client: Client, sample: Sample) -> None:
    batches = [sample.images[:1], sample.images[:40], sample.images[5:9]] * 4
    answers = list(client.stream("toy_fp32", batches, max_in_flight=3))
    assert [len(answer) for answer in answers] == [len(batch) for batch in batches]
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, client.infer("toy_fp32", batch), atol=1e-3)


def test_stream_reads_no_further_than_its_answers_are_taken(client: Client, sample: Sample) -> None:
    read = 0

    def endless() -> Iterator[Any]:
        nonlocal read
        while True:
            read += 1
            yield sample.images[:1]

    stream = client.stream("toy_fp32", endless(), max_in_flight=4)
    for _ in range(10):
        next(stream)
    stream.close()  # type: ignore[attr-defined]  # the iterator is a generator
    assert read <= 10 + 4 + 1


def test_stream_raises_what_the_batches_raise(client: Client, sample: Sample) -> None:
    def broken() -> Iterator[Any]:
        yield sample.images[:1]
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        list(client.stream("toy_fp32", broken()))


def test_async_twin_gives_the_same_answers(server: TritonServer, client: Client, sample: Sample) -> None:
    images = sample.images[:70]

    async def use(twin: AsyncClient) -> Any:
        streamed = [
            answer async for answer in twin.stream("toy_fp32", [images[:50], images[50:]], max_in_flight=2)
        ]
        statistics = await twin.statistics("toy_fp32")
        return (
            await twin.server_ready(),
            await twin.model_info("toy_fp32"),
            await twin.infer("toy_fp32", images),
            np.concatenate(streamed),
            statistics,
        )

    ready, info, logits, streamed, statistics = run_async(server.grpc_url, use)
    assert ready and info == client.model_info("toy_fp32")
    np.testing.assert_allclose(logits, client.infer("toy_fp32", images), atol=1e-3)
    np.testing.assert_allclose(streamed, logits, atol=1e-3)
    assert statistics.num_inferences > 0


def test_statistics_count_what_was_sent(
    toy_repository: Path, sample: Sample, until: Callable[[Callable[[], object]], None]
) -> None:
    """On a server of its own: of a shared one the requests of the tests before may be counted only now."""
    with TritonServer(toy_repository) as running, Client(running.grpc_url) as client:
        _check_statistics(client, sample, until)


def _check_statistics(client: Client, sample: Sample, until: Callable[[Callable[[], object]], None]) -> None:
    client.model_info("toy_fp32")  # asks for the labels, with one image
    until(lambda: client.statistics("toy_fp32").num_inferences == 1)
    before = client.statistics("toy_fp32")
    client.infer("toy_fp32", sample.images[:40])
    # Triton counts a request a moment after it answered it.
    until(lambda: client.statistics("toy_fp32").since(before).num_inferences >= 40)
    after = client.statistics("toy_fp32").since(before)
    assert (after.num_success, after.num_fail, after.num_inferences) == (2, 0, 40)
    times = after.mean_ms()
    assert times["compute_infer_ms"] > 0 and times["queue_ms"] >= 0
    assert after.since(after).mean_ms() == {}


IMAGE = np.zeros((1, 32, 32, 3), np.uint8)
BAD_REQUESTS: list[tuple[str, Any, type[ClientError], str]] = [
    (
        "shape",
        IMAGE[:, :16],
        InvalidRequest,
        r"got UINT8 \[1, 16, 32, 3\], .*toy_fp32 expects UINT8 \[N, 32, 32, 3\]",
    ),
    (
        "no batch",
        IMAGE[0],
        InvalidRequest,
        r"got UINT8 \[32, 32, 3\], .*add the batch dimension with images\[None\]",
    ),
    ("no image", IMAGE[:0], InvalidRequest, r"got UINT8 \[0, 32, 32, 3\], .*expects at least one image"),
    ("dtype", IMAGE.astype(np.float32), InvalidRequest, r"got FP32 .*expects UINT8 .*convert with \.astype"),
    ("list", [[1]], InvalidRequest, r"got list, model toy_fp32 expects a numpy array UINT8 \[N, 32, 32, 3\]"),
]


@pytest.mark.parametrize(
    ("images", "error", "message"), [row[1:] for row in BAD_REQUESTS], ids=[r[0] for r in BAD_REQUESTS]
)
def test_bad_images_are_refused_before_sending(
    client: Client, server: TritonServer, images: Any, error: type[ClientError], message: str
) -> None:
    before = client.statistics("toy_fp32").num_fail
    with pytest.raises(error, match=message):
        client.infer("toy_fp32", images)
    with pytest.raises(error, match=message):
        next(client.stream("toy_fp32", [images]))
    with pytest.raises(error, match=message):
        run_async(server.grpc_url, lambda twin: twin.infer("toy_fp32", images))
    assert client.statistics("toy_fp32").num_fail == before
    assert client.server_ready()


def test_wrong_model_name_lists_what_is_served(client: Client, server: TritonServer) -> None:
    with pytest.raises(ModelNotFound, match=r"model 'toy_int8' is not on .*; it serves: .*toy_fp32") as caught:
        client.infer("toy_int8", IMAGE)
    assert caught.value.code == "NOT_FOUND"
    with pytest.raises(ModelNotFound, match=r"model 'toy_int8' is not on .*; it serves: .*toy_fp32"):
        run_async(server.grpc_url, lambda twin: twin.model_info("toy_int8"))


def test_wrong_version_lists_the_versions(client: Client) -> None:
    with pytest.raises(ModelNotFound, match=r"model 'toy_fp32' on .* has no version 9; it serves: 1"):
        client.model_info("toy_fp32", "9")


def test_deadline_is_named(client: Client, server: TritonServer) -> None:
    async def ask(twin: AsyncClient) -> None:
        while True:
            await twin.infer("toy_fp32", IMAGE, timeout_s=1e-5)

    with pytest.raises(DeadlineExceeded, match=r"no answer within 1e-05 s; raise the timeout"):
        while True:  # on a busy machine an answer may be there before anybody looked at the clock
            client.infer("toy_fp32", IMAGE, timeout_s=1e-5)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 1e-05 s; raise the timeout"):
        run_async(server.grpc_url, ask)


def test_no_server_is_one_line() -> None:
    with Client(NOBODY) as client:
        assert not client.server_ready()
        with pytest.raises(
            ServerUnavailable, match=r"^127\.0\.0\.1:1: no server answers there .*check that tritonserver runs"
        ):
            client.model_info("toy_fp32")
    assert not run_async(NOBODY, lambda twin: twin.server_ready())


@pytest.mark.parametrize("url", ["localhost", "http://localhost:8001", ":8001", "localhost:grpc", "grpc://a:1"])
def test_address_must_be_host_and_port(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequest, match=r"server address: got .*expected host:port"):
            kind(url)


def test_async_client_must_be_opened() -> None:
    with pytest.raises(RuntimeError, match="use it as `async with AsyncClient"):
        asyncio.run(AsyncClient(NOBODY).infer("toy_fp32", IMAGE))


def test_killed_server_ends_a_stream(toy_repository: Path, sample: Sample) -> None:
    with TritonServer(toy_repository) as running, Client(running.grpc_url) as client:
        stream = client.stream("toy_fp32", (sample.images[:4] for _ in range(100_000)))
        for _ in range(5):
            next(stream)
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(ServerUnavailable, match="the connection broke|no server answers"):
            for _ in stream:
                pass


def test_stream_whose_batches_end_after_the_last_answer(server: TritonServer, sample: Sample) -> None:
    def batches() -> Iterator[Any]:
        yield sample.images[:2]
        time.sleep(0.3)  # the only answer is here before the end is known

    with Client(server.grpc_url) as client:
        for _ in range(5):
            assert [len(logits) for logits in client.stream("toy_fp32", batches())] == [2]
