"""The Triton backend, inside a real tritonserver: what it answers, what it refuses, what it fills in."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # ships none

from benchmarks.sample import Sample
from temper.builder.network.export import run_onnx
from temper.serve import runtime
from temper.serve.server import TritonServer

Until = Callable[[Callable[[], object]], None]
ShareServer = Callable[[pytest.FixtureRequest, TritonServer], AbstractContextManager[TritonServer]]

pytestmark = pytest.mark.server


def _infer(client: Any, images: np.ndarray[Any, Any], model: str = "toy_fp32", sender: str = "") -> Any:
    image = triton.InferInput("image", list(images.shape), triton_type(images))
    image.set_data_from_numpy(images)
    return client.infer(model, [image], parameters={"client": sender} if sender else None).as_numpy("logits")


def triton_type(images: np.ndarray[Any, Any]) -> str:
    return {"uint8": "UINT8", "float32": "FP32"}[str(images.dtype)]


@pytest.fixture
def client(server: TritonServer) -> Any:
    with triton.InferenceServerClient(server.grpc_url) as client:
        yield client


def test_answers_equal_the_model(client: Any, sample: Sample, toy_onnx: Path) -> None:
    expected = run_onnx(toy_onnx, sample.images[:64])
    served = np.concatenate([_infer(client, sample.images[start : start + 32]) for start in (0, 32)])
    np.testing.assert_allclose(served, expected, rtol=1e-3, atol=1e-3)


def test_requests_of_one_batch_get_their_own_answers(
    client: Any, sample: Sample, toy_onnx: Path, until: Until
) -> None:
    """Many small requests at once are gathered into few inferences, and none gets its neighbour's answer."""
    sizes = [1, 2, 3, 5, 1, 4, 7, 1] * 6
    starts = np.cumsum([0, *sizes])[:-1] % 400
    before = _statistics(client)
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda job: _infer(client, sample.images[job[0] : job[0] + job[1]]),
                zip(starts, sizes, strict=True),
            )
        )
    expected = run_onnx(toy_onnx, sample.images)
    for start, size, answer in zip(starts, sizes, answers, strict=True):
        np.testing.assert_allclose(answer, expected[start : start + size], rtol=1e-3, atol=1e-3)
    # Triton counts an execution a moment after it answered its requests.
    until(lambda: _statistics(client).inference_count - before.inference_count >= sum(sizes))
    assert _statistics(client).execution_count - before.execution_count < len(sizes)


def _statistics(client: Any) -> Any:
    return client.get_inference_statistics("toy_fp32").model_stats[0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.uint8), r"unexpected shape for input 'image'.*\[-1,32,32,3\].*\[1,16,16,3\]"),
        (np.zeros((1, 32, 32, 3), np.float32), r"inference input 'image' data-type is 'FP32'.*expects 'UINT8'"),
        (np.zeros((33, 32, 32, 3), np.uint8), r"batch-size must be <= 32"),
        (np.zeros((0, 32, 32, 3), np.uint8), r".+"),
    ],
)
def test_bad_request_is_refused_and_the_server_stays_ready(
    client: Any, images: np.ndarray[Any, Any], message: str
) -> None:
    with pytest.raises(triton.InferenceServerException, match=message) as refused:
        _infer(client, images)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert client.is_model_ready("toy_fp32")
    assert _infer(client, np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 10)


def test_published_queue_is_the_served_one(client: Any) -> None:
    """Completing the config must not take its bound away."""
    policy = client.get_model_config("toy_fp32").config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (128, 30_000_000)


def test_config_is_completed_from_the_artifact(
    toy_repository: Path, accept_config: Callable[[Path], None]
) -> None:
    config = toy_repository / "toy_fp32" / "config.pbtxt"
    config.write_text('name: "toy_fp32"\nbackend: "temper"\n')
    accept_config(config.parent)
    with (
        TritonServer(toy_repository, only_published=False) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        completed = client.get_model_config("toy_fp32").config
        assert completed.max_batch_size == 32
        assert completed.HasField("dynamic_batching")
        (image,) = completed.input
        (logits,) = completed.output
        assert (image.name, list(image.dims)) == ("image", [32, 32, 3])
        assert (logits.name, list(logits.dims)) == ("logits", [10])
        assert _infer(client, np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 10)


def _flip_a_byte(version: Path) -> None:
    engine = version / "model.onnx"
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)


def _corrupt_with_matching_digest(version: Path) -> None:
    """Digests cannot tell a bad export; the engine's own reader must, without taking the server along."""
    (version / "model.onnx").write_bytes(b"not an ONNX file")
    _match_digest(version)


def _match_digest(version: Path) -> None:
    engine = version / "model.onnx"
    sums = re.sub(
        r"[0-9a-f]{64}(?=  model.onnx)",
        hashlib.sha256(engine.read_bytes()).hexdigest(),
        (version / "SHA256SUMS").read_text(),
    )
    (version / "SHA256SUMS").write_text(sums)


def _point_outside(version: Path) -> None:
    sums = version / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("  model.onnx", "  ../../model.onnx"))


def _keep_weights_outside(version: Path) -> None:
    """What OpenVINO would read without a digest, in a graph whose own digest is right."""
    model = onnx.load(version / "model.onnx")
    onnx.save(model, version / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (version / "weights").unlink()  # a file beside is refused for itself
    _match_digest(version)


def _name_other_labels(version: Path) -> None:
    (version.parent.parent / "passwords").write_text("secret\n" * 10)
    config = version.parent / "config.pbtxt"
    config.write_text(config.read_text().replace('"1/labels.txt"', '"../passwords"'))


def _make_older(version: Path) -> None:
    digests = version / "SHA256SUMS"
    digests.write_text(re.sub(".*config.pbtxt\n", "", digests.read_text()))
    (version / "config.pbtxt").unlink()


def _set_parameter(key: str, old: str, new: str) -> Callable[[Path], None]:
    def change(version: Path) -> None:
        config = version.parent / "config.pbtxt"
        text = config.read_text()
        assert f'"{old}"' in text, key
        config.write_text(text.replace(f'"{old}"', f'"{new}"'))

    return change


def _watch_wrongly(version: Path) -> None:
    with (version.parent / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "watch_queries" value { string_value: "many" } }')


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped_byte": (
        _flip_a_byte,
        r"model.onnx: SHA-256 is \w+\.\.\., SHA256SUMS says .* is not loaded; publish this version again",
    ),
    "no_engine": (
        lambda version: (version / "model.onnx").unlink(),
        r"model.onnx is named in SHA256SUMS but missing",
    ),
    "no_digests": (
        lambda version: (version / "SHA256SUMS").unlink(),
        r"SHA256SUMS cannot be read .No such file",
    ),
    "empty_digests": (
        lambda version: (version / "SHA256SUMS").write_text(""),
        r"SHA256SUMS: got the line '', expected `<sha256>  <file>`; publish again",
    ),
    "odd_digests": (
        lambda version: (version / "SHA256SUMS").write_bytes(b"\xff\xfe"),
        r"SHA256SUMS: got no UTF-8 text .byte 0.; publish again",
    ),
    "changed_card": (lambda version: (version / "card.json").write_text("{}"), r"card.json: SHA-256 is"),
    "changed_labels": (lambda version: (version / "labels.txt").write_text("a\n" * 10), r"labels.txt: SHA-256 is"),
    "changed_config": (
        lambda version: (version.parent / "config.pbtxt").write_text('backend: "temper"\n'),
        r"config.pbtxt: is not the one that was published with version 1; set what it shall say in the recipe and "
        r"publish again, or put the published one back: cp .*/1/config.pbtxt .*/changed_config/config.pbtxt",
    ),
    "older_format": (
        _make_older,
        r"SHA256SUMS has no digest of config.pbtxt, as an older temper wrote it; publish this version again",
    ),
    "file_of_nobody": (
        lambda version: (version / "weights").write_bytes(b""),
        r"1/weights: is not named in SHA256SUMS, so nobody published it; remove it",
    ),
    "weights_outside": (_keep_weights_outside, r"model.onnx: keeps weights in another file, which has no digest"),
    "labels_outside": (_name_other_labels, r"takes its class names from \.\./passwords, expected a file of .*/1;"),
    "deep_card": (
        lambda version: (version / "card.json").write_text("[" * 100_000),
        r"card.json: got no JSON .maximum recursion depth",
    ),
    "card_of_a_list": (
        lambda version: (version / "card.json").write_text("[]"),
        r"card.json: got list, expected an object; publish this version again",
    ),
    "not_onnx": (_corrupt_with_matching_digest, r"model.onnx: OpenVINO cannot read it"),
    "digest_outside": (_point_outside, r"got the line .*expected `<sha256>  <file>`"),
    "unknown_engine": (
        _set_parameter("engine", "openvino", "tensorflow"),
        r"engine: got 'tensorflow', expected one of openvino",
    ),
    "unknown_precision": (
        _set_parameter("precision_hint", "f32", "int3"),
        r"precision_hint: got 'int3', expected one of f32, bf16",
    ),
    "unknown_watch": (_watch_wrongly, r"watch_queries: got 'many', expected a number of images from 2; set it"),
}


# Their digests are made right again, as whoever may write the repository can.
ACCEPTED = (
    "unknown_engine",
    "unknown_precision",
    "unknown_watch",
    "labels_outside",
    "deep_card",
    "card_of_a_list",
)


WATCH_QUERIES = 10


@pytest.fixture(scope="module")
def spoilt_server(
    request: pytest.FixtureRequest,
    share_server: ShareServer,
    publish_model: Callable[..., None],
    accept_config: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """Serves what is not spoilt: `watched`, whose queries are."""
    repository = tmp_path_factory.mktemp("spoilt")
    publish_model(repository, "watched", num_instances=1, watch_queries=WATCH_QUERIES)
    for name, (spoil, _) in SPOILT.items():
        publish_model(repository, name)
        spoil(repository / name / "1")
        if name in ACCEPTED:
            accept_config(repository / name)
    log = tmp_path_factory.mktemp("log") / "log"
    with share_server(
        request, TritonServer(repository, log_file=log, strict=False, only_published=False)
    ) as server:
        yield server


@pytest.fixture(scope="module")
def refusals(spoilt_server: TritonServer) -> dict[str, str]:
    """Why the server refused each spoilt model."""
    return dict(spoilt_server.failed)


def test_runs_of_near_identical_images_are_counted(
    spoilt_server: TritonServer, sample: Sample, ask_http: Callable[..., tuple[int, str]]
) -> None:
    rng = np.random.default_rng(0)
    sent = 0

    def near(image: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
        # One level on a tenth of the values: what the plugin sees of more depends on the secret that it drew.
        noise = rng.choice([-1, 0, 1], (count, *image.shape), p=[0.05, 0.9, 0.05])
        images: np.ndarray[Any, Any] = np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)
        return images

    def send(images: np.ndarray[Any, Any], sender: str = "") -> None:
        nonlocal sent
        for start in range(0, len(images), 4):
            assert len(_infer(client, images[start : start + 4], "watched", sender)) == 4
        sent += len(images)

    def read() -> dict[str, float]:
        text = ask_http("GET", spoilt_server.metrics_url)[1]
        pattern = r'^temper_(\w+)\{model="watched",process="\d+",version="1"\} (\S+)$'
        return {name: float(value) for name, value in re.findall(pattern, text, re.MULTILINE)}

    def counted() -> dict[str, float]:
        """The metrics with all images in them: these come at the latest with a request a second later."""
        nonlocal sent
        while (metrics := read())["watched_queries_total"] < sent:
            _infer(client, sample.images[:1], "watched")
            sent += 1
            time.sleep(0.1)
        return metrics

    with triton.InferenceServerClient(spoilt_server.grpc_url) as client:
        assert read() == {"watched_queries_total": 0, "flagged_queries_total": 0, "longest_run_queries": 0}
        send(sample.images[:200])
        send(sample.images[:200])
        for name in ("a", "b"):
            send(near(sample.images[300], 8), name)
        ordinary = counted()
        assert (ordinary["flagged_queries_total"], ordinary["longest_run_queries"]) == (0, 8)
        send(near(sample.images[301], 40), "c")
        attacked = counted()
        assert attacked["flagged_queries_total"] >= 40 - WATCH_QUERIES
        assert attacked["longest_run_queries"] == 40
        assert client.is_model_ready("watched")
    (line,) = [line for line in spoilt_server.log.read_text().splitlines() if "query monitor" in line]
    assert "model watched: the query monitor counts 10 near-identical images from client 'c'" in line


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_artifact_is_not_loaded(refusals: dict[str, str], name: str) -> None:
    assert re.search(SPOILT[name][1], refusals[name])


def test_only_spoilt_artifacts_are_refused(refusals: dict[str, str]) -> None:
    assert set(refusals) == set(SPOILT)


# A plugin that tells where images lie, for what the runners of GPU engines make of it.
MAPPED_RUNNER = """

from runners.request_memory import _shared_mapping


class Runner(Runner):
    accepts_device_tensors = True

    def __init__(self, entry, instance):
        super().__init__(entry, instance)
        self._log, self._seen, self._held = instance.log, [], []

    def infer(self, batches):
        for images in batches:
            found = _shared_mapping(images.__array_interface__["data"][0])
            self._seen += [found] if found not in self._seen else []
            kept = [each for each in self._seen if each and _shared_mapping(each[0]) == each]
            writeable = images.flags.writeable  # those to warm up with
            self._log(f"images {writeable} {found is not None} {len(self._seen) - 1} {len(kept)}")
        self._held += batches  # so that the region must grow
        return super().infer([images.copy() for images in batches])
"""


def test_images_lie_in_shared_memory_that_stays_mapped(
    toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    """As it grows: what `runners.request_memory` lets a GPU read directly."""
    backends, log = tmp_path / "backends", tmp_path / "log"
    shutil.copytree(runtime.BACKENDS, backends, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runtime, "BACKENDS", backends)
    with (backends / "temper" / "runners" / "openvino_runner.py").open("a") as module:
        module.write(MAPPED_RUNNER)
    images = np.zeros((32, 32, 32, 3), np.uint8)
    with (
        TritonServer(toy_repository, log_file=log) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        for _ in range(40):
            assert len(_infer(client, images)) == len(images)
        until(lambda: log.read_text().count("images False") == 40)
    found = re.findall(r"images False (\w+) (\d+) (\d+)", log.read_text())
    assert len(found) == 40
    assert {shared for shared, _, _ in found} == {"True"}
    assert max(int(mappings) for _, mappings, _ in found) > 1, "it did not grow"
    assert all(mappings == kept for _, mappings, kept in found), "one was unmapped"


# A plugin whose engine loses a GPU's context: what the runner of a real one then raises, on any machine.
FAULTY_RUNNER = """

import runners


class Runner(Runner):
    def infer(self, batches):
        if sum(len(batch) for batch in batches) == 5:
            raise runners.ContextLostError("a batch of 5 failed: the context is lost")
        return super().infer(batches)
"""


def test_lost_context_is_answered_and_ends_the_process(
    toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    """Only a new process can use the GPU again: the server ends with it, and the next one answers."""
    backends = tmp_path / "backends"
    shutil.copytree(runtime.BACKENDS, backends, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runtime, "BACKENDS", backends)
    with (backends / "temper" / "runners" / "openvino_runner.py").open("a") as module:
        module.write(FAULTY_RUNNER)
    plugin = backends / "temper" / "model.py"
    patient = re.sub("^_GRACE_S = .*$", "_GRACE_S = 5.0", plugin.read_text(), flags=re.MULTILINE)
    plugin.write_text(patient)  # a busy machine takes a while to pass the answer on
    images = np.zeros((6, 32, 32, 3), np.uint8)
    with TritonServer(toy_repository, log_file=tmp_path / "log") as server:
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert _infer(client, images[:3]).shape == (3, 10)
            with pytest.raises(triton.InferenceServerException, match="a batch of 5 failed: the context is lost"):
                _infer(client, images[:5])
        until(lambda: server.death() is not None)
        assert re.search("model instance toy_fp32_0_[01], which ended with exit status 1", str(server.death()))
        until(lambda: "this process ends, as its GPU context is lost" in (tmp_path / "log").read_text())
        server.restart()
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert _infer(client, images).shape == (6, 10)
