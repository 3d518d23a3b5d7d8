"""Messages: what leaves, what a wrong answer is called, and every gRPC status as one of our errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import grpc  # type: ignore[import-untyped]  # ships none
import numpy as np
import pytest

from temper import client
from temper.client import (
    ClientError,
    InvalidRequest,
    ModelInfo,
    NonFiniteOutput,
    Overloaded,
    ServerError,
    ServerStatistics,
    ServerUnavailable,
    ShortOutput,
    VersionChanged,
    protocol,
    wire,
)
from temper.client.model import DTYPES
from temper.client.wire import pb

INFO = ModelInfo(
    name="m",
    version="1",
    input_name="image",
    image_shape=(4, 4, 3),
    output_name="logits",
    num_classes=3,
    max_batch_size=8,
    output_shape=(3,),
)


def _answer(shape: tuple[int, ...], raw: bytes, name: str = "logits", dtype: str = "FP32") -> bytes:
    response = pb.ModelInferResponse(model_name="m", model_version="1")
    response.outputs.add(name=name, datatype=dtype, shape=shape)
    response.raw_output_contents.append(raw)
    return bytes(response.SerializeToString())


def test_decode_returns_the_sent_rows() -> None:
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(protocol.decode(INFO, _answer((2, 3), logits.tobytes()), 2), logits)
    half = _answer((2, 3), logits.astype(np.float16).tobytes(), dtype="FP16")
    np.testing.assert_array_equal(protocol.decode(INFO, half, 2), logits)


SHORT = [
    ("no bytes", _answer((2, 3), b"")),
    ("half the bytes", _answer((2, 3), bytes(12))),
    ("too many bytes", _answer((2, 3), bytes(48))),
    ("a row missing", _answer((1, 3), bytes(12))),
    ("a class missing", _answer((2, 2), bytes(16))),
    ("no batch dimension", _answer((6,), bytes(24))),
    ("no class", _answer((2, 0), b"")),
]


@pytest.mark.parametrize("message", [row[1] for row in SHORT], ids=[row[0] for row in SHORT])
def test_output_shorter_than_its_shape_is_an_error(message: bytes) -> None:
    with pytest.raises(
        ShortOutput, match=r"model m: output logits holds \d+ bytes .*expected \d+ bytes and \[2, 3\]"
    ):
        protocol.decode(INFO, message, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["FP16", "FP32", "FP64"])
def test_output_that_is_no_number_is_an_error_that_keeps_the_answer(value: float, dtype: str) -> None:
    logits = np.array([[1, 2, 3], [4, value, 6]], np.float32)
    answer = _answer((2, 3), logits.astype(DTYPES[dtype]).tobytes(), dtype=dtype)
    with pytest.raises(NonFiniteOutput, match="logits holds NaN or an infinity for 1 of 2 images .*number 1") as e:
        protocol.check_finite(INFO, protocol.decode(INFO, answer, 2))
    assert e.value.scores is not None
    np.testing.assert_array_equal(e.value.scores, logits)


def test_answer_of_another_version_is_an_error_before_its_shape_is_looked_at() -> None:
    other = ModelInfo(**(vars(INFO) | {"version": "2", "output_shape": (7,)}))
    with pytest.raises(VersionChanged, match="model m: version 1 answered, expected version 2, whose labels and"):
        protocol.decode(other, _answer((2, 3), bytes(24)), 2)


CHANGES = [
    (VersionChanged("other"), "", True),
    (VersionChanged("other"), "1", False),
    (ShortOutput("other classes"), "1", True),
    (InvalidRequest("smaller max_batch", code="INVALID_ARGUMENT"), "", True),
    (InvalidRequest("found before sending"), "", False),
    (ServerUnavailable("gone", code="UNAVAILABLE"), "", False),
]


@pytest.mark.parametrize(("error", "version", "expected"), CHANGES)
def test_error_that_may_tell_of_another_model(error: ClientError, version: str, expected: bool) -> None:
    assert protocol.tells_of_change(error, version) is expected


def test_other_output_is_an_error() -> None:
    with pytest.raises(ServerError, match="model m: the answer has no output logits"):
        protocol.decode(INFO, _answer((2, 3), bytes(24), name="scores"), 2)


def test_encode_drops_the_batch_dimension_where_the_model_has_none() -> None:
    images = np.zeros((1, 4, 4, 3), np.uint8)
    request = pb.ModelInferRequest.FromString(protocol.encode(INFO, images, version="1", request_id="7"))
    assert (list(request.inputs[0].shape), request.id, request.model_version) == ([1, 4, 4, 3], "7", "1")
    plain = ModelInfo(**(vars(INFO) | {"max_batch_size": 0}))
    assert list(pb.ModelInferRequest.FromString(protocol.encode(plain, images)).inputs[0].shape) == [4, 4, 3]
    assert [piece.stop - piece.start for piece in protocol.split(plain, 3)] == [1, 1, 1]
    assert [piece.stop - piece.start for piece in protocol.split(INFO, 17)] == [8, 8, 1]


def _labels(*texts: str) -> bytes:
    raw = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)
    return _answer((1, len(texts)), raw, dtype="BYTES")


def test_labels_are_read_by_index() -> None:
    assert protocol.with_labels(INFO, _labels("0.9:2:dog: big", "0.1:0:cat", "0:1:ant")).labels == (
        "cat",
        "ant",
        "dog: big",
    )
    assert protocol.with_labels(INFO, _labels("0.9:2", "0.1:0", "0:1")).labels == ()


@pytest.mark.parametrize(("dtype", "is_asked"), [("FP32", True), ("FP16", False), ("INT64", False)])
def test_labels_are_asked_for_only_where_triton_names_classes(dtype: str, is_asked: bool) -> None:
    info = replace(INFO, output_dtype=dtype)
    assert (protocol.label_request(info, "1") is not None) is is_asked


def _metadata(inputs: int = 1, datatype: str = "UINT8") -> object:
    metadata = pb.ModelMetadataResponse(name="m", versions=["9", "10"])
    for number in range(inputs):
        metadata.inputs.add(name=f"in{number}", datatype=datatype, shape=[-1, 4, 4, 3])
    metadata.outputs.add(name="logits", datatype="FP32", shape=[-1, 3])
    return metadata


def test_newest_version_is_the_largest_number() -> None:
    config = pb.ModelConfigResponse(config={"max_batch_size": 8}).config
    assert protocol.model_info("m", "", _metadata(), config).version == "10"


PREPROCESSING = [
    ("", None, None),
    ("imagenet", None, None),  # what somebody else's model means by it
    ('["resize", 256]', None, None),
    ('{"height": 4, "width": 5, "resize": [6, 7]}', (6, 7), None),
    ('{"height": 4}', None, "missing 1 required keyword-only argument: 'width'"),
    ('{"height": 4, "width": 5, "resize": 1e9}', None, "resize: got 1000000000.0, expected 1 to 4096 pixels"),
    ('{"height": 4', None, "expected what Temper writes .*delimiter"),
    ('{"a":' * 100_000, None, "maximum recursion depth exceeded"),
]


@pytest.mark.parametrize(
    ("stated", "resize", "message"), PREPROCESSING, ids=[row[0][:20] for row in PREPROCESSING]
)
def test_preprocessing_is_read_where_it_is_temper_s(
    stated: str, resize: tuple[int, int] | None, message: str | None
) -> None:
    config = pb.ModelConfigResponse(config={"max_batch_size": 8}).config
    config.parameters["preprocessing"].string_value = stated
    if message is not None:
        with pytest.raises(InvalidRequest, match=f"^model m: its config.pbtxt's .*{message}.*; publish it again$"):
            protocol.model_info("m", "", _metadata(), config)
        return
    info = protocol.model_info("m", "", _metadata(), config)
    assert (info.preprocessing is None) == (resize is None)
    assert info.preprocessing is None or info.preprocessing.resize == resize


def test_models_that_are_no_classifiers_are_refused() -> None:
    config = pb.ModelConfigResponse(config={"max_batch_size": 8}).config
    with pytest.raises(InvalidRequest, match=r"model m: got 2 inputs \(in0, in1\) .*expected one image input"):
        protocol.model_info("m", "", _metadata(2), config)
    with pytest.raises(InvalidRequest, match="model m: tensor in0 is BYTES, expected a numeric type"):
        protocol.model_info("m", "", _metadata(1, "BYTES"), config)


class _Broken(grpc.RpcError):  # type: ignore[misc]  # grpc is untyped
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__()
        self._code, self._text = code, text

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text


NAMES = {
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "INVALID_ARGUMENT": "InvalidRequest",
    "NOT_FOUND": "ModelNotFound",
    "UNAVAILABLE": "ServerUnavailable",
}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_grpc_status_becomes_one_of_our_errors(code: grpc.StatusCode) -> None:
    error = wire.translate(_Broken(code, "why\nso"), "host:1", 2.0)
    assert isinstance(error, ClientError)
    assert type(error).__name__ == NAMES.get(code.name, "ServerError")
    assert error.code == code.name
    assert "\n" not in str(error) and "host:1" in str(error)


LOST = [
    ("Socket closed", True, True),
    ("recvmsg:Connection reset by peer", True, True),
    ("failed to connect to all addresses; last error: Connection refused", False, True),
    ("Exceeds maximum queue size", False, False),
    ("in ensemble 'm', Request timeout expired", False, False),
]


@pytest.mark.parametrize(("text", "lost", "connection"), LOST)
def test_a_full_queue_is_told_from_a_broken_connection(text: str, lost: bool, connection: bool) -> None:
    error = _Broken(grpc.StatusCode.UNAVAILABLE, text)
    assert wire.was_shed(error) is not connection
    assert isinstance(wire.translate(error, "host:1", 2.0), ServerUnavailable if connection else Overloaded)
    assert wire.was_lost(error) is lost
    assert wire.is_connection_failure(error) is connection


def test_statistics_are_summed_over_versions() -> None:
    response = pb.ModelStatisticsResponse()
    for _ in range(2):
        model = response.model_stats.add(inference_count=8, execution_count=2)
        model.inference_stats.success.count = 4
        model.inference_stats.queue.ns = 6_000_000
    total = protocol.statistics(response)
    assert (total.num_inferences, total.num_executions, total.num_success) == (16, 4, 8)
    assert total.mean_ms()["queue_ms"] == 1.5 and total.mean_ms()["batch_size"] == 4
    assert ServerStatistics().since(total).mean_ms() == {}


def test_missing_model_tells_tritons_reason() -> None:
    index = pb.RepositoryIndexResponse()
    index.models.add(name="m", version="1", state="UNAVAILABLE", reason="bad digest")
    assert (
        str(protocol.explain_missing("m", index, "u:1", None))
        == "model 'm' on u:1 is not ready: version 1 is UNAVAILABLE bad digest"
    )
    assert str(protocol.explain_missing("n", index, "u:1", None)) == "model 'n' is not on u:1; it serves: no model"


def test_import_needs_neither_grpc_nor_torch() -> None:
    code = (
        "import sys; from temper import client\n"
        "print([n for n in ('grpc', 'torch', 'numpy') if n in sys.modules]); client.Client\n"
        "from temper.client import load\n"
        "print([n for n in ('torch', 'temper.builder', 'temper.run') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
    with pytest.raises(AttributeError, match="module 'temper.client' has no attribute 'Klient'"):
        client.Klient  # noqa: B018 - the access is the test
