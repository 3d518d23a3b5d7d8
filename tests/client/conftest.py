"""A real classifier in numpy behind the endpoint seam, for what must hold without a server.

Digits at 16x16, linear, in whole numbers: its scores do not depend on the batch, so tests can demand equal results
to the last query.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from temper.client.errors import ServerUnavailable


class Endpoint:
    """Answers like a server and keeps what a test asks about: sizes, requests in flight, and the images seen."""

    def __init__(
        self, weights: npt.NDArray[np.int64], *, jitter: int | None = None, fail_after: int | None = None
    ) -> None:
        """Answer after a random wait (jitter is its seed), and break after some requests, when asked to."""
        self.weights = weights
        self.batch_sizes: list[int] = []
        self.requests: list[npt.NDArray[np.uint8]] = []
        self.most_in_flight = 0
        self.fail_after = fail_after
        self._in_flight = 0
        self._jitter = None if jitter is None else random.Random(jitter)

    @property
    def num_images(self) -> int:
        return sum(self.batch_sizes)

    def scores(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return (images.reshape(len(images), -1).astype(np.int64) @ self.weights).astype(np.float32)

    async def infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 3)
        if self.fail_after is not None and len(self.batch_sizes) >= self.fail_after:
            raise ServerUnavailable("127.0.0.1:1: the connection broke", code="UNAVAILABLE")
        self.batch_sizes.append(len(images))
        self.requests.append(images.copy())
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await asyncio.sleep(self._jitter.random() * 0.002 if self._jitter else 0)
        finally:
            self._in_flight -= 1
        return self.scores(images)


def write_classifier(path: Path, weights: npt.NDArray[Any], hidden: npt.NDArray[Any] | None = None) -> Path:
    """An ONNX classifier of uint8 [N, H, W, 3]: a matrix, behind a hidden layer when one is given."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Flatten", ["cast"], ["flat"]))
    constants, size = {"weights": weights}, round((len(weights if hidden is None else hidden) // 3) ** 0.5)
    if hidden is not None:
        constants["hidden"] = hidden
        nodes += [helper.make_node("MatMul", ["flat", "hidden"], ["h"]), helper.make_node("Sigmoid", ["h"], ["s"])]
    nodes.append(helper.make_node("MatMul", ["flat" if hidden is None else "s", "weights"], ["logits"]))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", weights.shape[1]])
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "net", [image], [logits], tensors)), path)
    return path


@pytest.fixture(scope="session")
def write_graph() -> Callable[..., Path]:
    """Writes classifiers; see `write_classifier`."""
    return write_classifier


@dataclass(frozen=True)
class Digits:
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]
    surrogates: dict[str, list[Path]]
    """The classifier as a graph, on a scale that saturates no softmax: the attacked model's own."""

    def endpoint(self, *, jitter: int | None = None, fail_after: int | None = None) -> Endpoint:
        return Endpoint(self.weights, jitter=jitter, fail_after=fail_after)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        right: npt.NDArray[np.bool_] = self.endpoint().scores(self.images).argmax(axis=1) == self.labels
        return right


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """160 test images, uint8 [160, 16, 16, 3], and weights fitted to the other images."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # ships none

    source = load_digits()
    images = np.kron(source.images * 15, np.ones((1, 2, 2))).astype(np.uint8)[..., None].repeat(3, axis=3)
    flat = images.reshape(len(images), -1).astype(np.float64)
    train, targets = flat[160:], np.eye(10)[source.target[160:]] - 0.1
    weights = np.linalg.solve(train.T @ train + 1e7 * np.eye(flat.shape[1]), train.T @ targets)
    weights = np.round(weights / np.abs(weights).max() * 127).astype(np.int64)
    graph = write_classifier(tmp_path_factory.mktemp("digits") / "own.onnx", weights / 1e5)
    return Digits(images[:160], source.target[:160].astype(np.int64), weights, {"own": [graph]})
