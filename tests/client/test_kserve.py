"""A KServe v2 server that is no Triton: it knows the protocol's own calls alone, and sends typed contents."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import numpy as np
import pytest
from tritonclient.grpc import (  # type: ignore[import-untyped]  # ships no types
    service_pb2 as pb,
    service_pb2_grpc,
)

from temper.client.accuracy import evaluate_accuracy
from temper.client.client import Client


class KServe(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers, of images [N, 2, 2, 3], the shares of the mean that are dark and light."""

    def __init__(self, first: int) -> None:
        """Keep the first size of the shapes."""
        self.first = first

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's
        found = pb.ModelMetadataResponse(name=request.name)
        found.inputs.add(name="image", datatype="UINT8", shape=[self.first, 2, 2, 3])
        found.outputs.add(name="shares", datatype="FP32", shape=[self.first, 2])
        return found

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        shape = list(request.inputs[0].shape)
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(-1, 2, 2, 3)
        light = images.mean(axis=(1, 2, 3)) / 255
        found = pb.ModelInferResponse(model_name=request.model_name)
        output = found.outputs.add(name="shares", datatype="FP32", shape=[shape[0], 2])
        output.contents.fp32_contents.extend(np.stack([1 - light, light], axis=1).ravel().tolist())
        return found


@pytest.fixture
def kserve(request: pytest.FixtureRequest) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(KServe(request.param), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize("kserve", [-1], indirect=True)
def test_server_without_triton_s_own_calls_is_asked(kserve: str) -> None:
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (0, 51, 204, 255)])
    with Client(kserve) as client:
        info = client.model_info("shades")
        assert (info.image_shape, info.num_classes, info.labels) == ((2, 2, 3), 2, ())
        assert client.infer("shades", images)[:, 1] == pytest.approx([0, 0.2, 0.8, 1])
    found = evaluate_accuracy(kserve, "shades", images, [0, 0, 1, 0], batch_size=3)
    assert found.answers.tolist() == [0, 0, 1, 1]
    assert found.confidence == pytest.approx([1, 0.8, 0.8, 1])  # shares are no logits
