from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.accuracy import evaluate, evaluate_accuracy
from temper.client.errors import ModelNotFound, NonFiniteOutput, ServerUnavailable, ShortOutput
from temper.client.stats import wilson_interval
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from benchmarks.sample import Sample
    from temper.serve.server import TritonServer

Digits = Any  # the fixture's class in conftest.py


async def test_accuracy_equals_a_direct_count_whatever_the_order_of_answers(digits: Digits) -> None:
    endpoint = digits.endpoint(jitter=1)
    seen: list[tuple[int, int]] = []
    result = await evaluate(
        endpoint.infer,
        digits.images,
        digits.labels,
        batch_size=7,
        concurrency=3,
        progress=lambda *at: seen.append(at),
    )
    assert np.array_equal(result.correct, digits.correct)
    assert result.value == digits.correct.mean()
    assert (result.low, result.high) == wilson_interval(int(digits.correct.sum()), 160)
    assert endpoint.most_in_flight == 3
    assert endpoint.num_images == 160 and set(endpoint.batch_sizes) == {7, 160 % 7}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1] == (160, 160)


async def test_accuracy_per_class_adds_up(digits: Digits) -> None:
    result = await evaluate(digits.endpoint().infer, digits.images, digits.labels)
    assert sum(figures["num_images"] for figures in result.per_class.values()) == result.num_images == 160
    assert result.per_class[8]["value"] == digits.correct[digits.labels == 8].mean()
    document = result.to_json()
    assert set(document) == {"value", "low", "high", "num_images", "per_class", "errors", "retries"}
    assert document["per_class"]["8"]["num_images"] == (digits.labels == 8).sum()


async def test_accuracy_of_chosen_images_reads_only_those(digits: Digits) -> None:
    endpoint = digits.endpoint()
    chosen = np.array([3, 5, 150])
    result = await evaluate(endpoint.infer, digits.images, digits.labels, indices=chosen)
    assert np.array_equal(np.concatenate(endpoint.requests), digits.images[chosen])
    assert np.array_equal(result.correct, digits.correct[chosen])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i, t: (i.astype(np.float32), t),
            r"images: got float32 \[160, 16, 16, 3\], expected uint8 \[N, H, W, 3\]",
        ),
        (lambda i, t: (i[0], t), r"images: got uint8 \[16, 16, 3\], expected uint8 \[N, H, W, 3\]"),
        (lambda i, t: (i[:0], t[:0]), r"images: got uint8 \[0, 16, 16, 3\]"),
        (lambda i, t: (i, t[:5]), r"labels: got int64 \[5\], expected one integer for each of 160 images"),
        (lambda i, t: (i, t.astype(float)), r"labels: got float64 \[160\], expected one integer for each"),
        (lambda i, t: (i, t - 1), "labels: got -1, expected class indices of at least 0"),
        (lambda i, t: (i, t + 1), "labels: got class 10, expected 0 to 9, the model's classes"),
    ],
)
async def test_accuracy_refuses_what_it_cannot_judge(
    digits: Digits, change: Callable[..., tuple[Any, Any]], message: str
) -> None:
    images, labels = change(digits.images, digits.labels)
    with pytest.raises(ValueError, match=message):
        await evaluate(digits.endpoint().infer, images, labels)


async def test_accuracy_refuses_answers_that_are_no_scores(digits: Digits) -> None:
    async def short(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.zeros((len(images) - 1, 10), dtype=np.float32)

    async def empty(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.zeros((len(images), 0), dtype=np.float32)

    with pytest.raises(ShortOutput, match=r"answer: got scores of shape \[32, 0\], expected \[32, classes\]"):
        await evaluate(empty, digits.images, digits.labels)
    with pytest.raises(ShortOutput, match=r"answer: got scores of shape \[31, 10\], expected \[32, classes\]"):
        await evaluate(short, digits.images, digits.labels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_answer_that_is_no_number_is_wrong_and_counted(digits: Digits, value: float) -> None:
    endpoint = digits.endpoint()

    async def infer(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = await endpoint.infer(images)
        if len(endpoint.batch_sizes) == 2:
            rows = np.arange(len(images))[::2]
            scores[rows, scores[rows].argmax(axis=1)] = value
        return scores

    result = await evaluate(infer, digits.images, digits.labels, batch_size=8, concurrency=1)
    assert result.errors == {"nonfinite_output": 4} == result.to_json()["errors"]
    expected = digits.correct.copy()
    expected[8:16:2] = False
    assert expected.sum() < digits.correct.sum()
    assert np.array_equal(result.correct, expected)


async def test_no_answer_of_numbers_is_an_error_and_no_accuracy(digits: Digits) -> None:
    async def infer(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.full((len(images), 10), np.inf, dtype=np.float32)

    with pytest.raises(NonFiniteOutput, match="not one answer to 160 images is free of NaN and infinities; check"):
        await evaluate(infer, digits.images, digits.labels)


async def test_accuracy_ends_with_the_first_error(digits: Digits) -> None:
    endpoint = digits.endpoint(fail_after=2)
    with pytest.raises(ServerUnavailable, match="the connection broke"):
        await evaluate(endpoint.infer, digits.images, digits.labels, batch_size=8)
    assert len(endpoint.batch_sizes) == 2


@pytest.mark.server
def test_accuracy_through_the_server_equals_the_model_in_process(server: TritonServer, sample: Sample) -> None:
    import torch

    from temper.builder.network.served import Served

    images, labels = sample.images[:200], sample.labels[:200]
    result = evaluate_accuracy(server.grpc_url, "toy_fp32", images, labels, 16)
    with torch.inference_mode():
        model = Served(sample.model, mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
        answers = model(torch.from_numpy(images)).argmax(1).numpy()
    assert np.array_equal(result.correct, answers == labels)
    assert result.value > 0.9 and result.num_images == 200


@pytest.mark.server
def test_accuracy_of_an_unknown_model_names_it(server: TritonServer, sample: Sample) -> None:
    with pytest.raises(ModelNotFound, match="toy_int3"):
        evaluate_accuracy(server.grpc_url, "toy_int3", sample.images[:4], sample.labels[:4])
