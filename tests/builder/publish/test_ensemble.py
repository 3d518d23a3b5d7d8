"""Ensembles: what is written, and what a real tritonserver answers with them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # ships none
from google.protobuf import text_format  # type: ignore[import-untyped]  # ships none
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]  # ships none

from temper.backends.temper_defence.defences import defend, read_defences
from temper.builder.errors import PublishError
from temper.builder.publish.defence import (
    BitDepthConfig,
    Defence,
    JpegConfig,
    RandomResizeConfig,
    render_defences,
)
from temper.builder.publish.ensemble import publish_ensemble, publish_jpeg, retract_jpeg
from temper.builder.publish.entry import Published, publish
from temper.builder.publish.serving import ServingConfig
from temper.builder.publish.triton_config import EnsembleBackend, PluginBackend, TritonConfig
from temper.client import Client
from temper.client.errors import ClientError
from temper.serve.server import TritonServer
from temper.serve.verify import verify_repository

if TYPE_CHECKING:
    from benchmarks.sample import Sample

LABELS = [f"digit {digit}" for digit in range(10)]
MEMBERS = ["toy_fp32", "toy_int8"]
SQUEEZE = (Defence(jpeg=JpegConfig(quality=30)), Defence(bit_depth=BitDepthConfig(bits=3)))
RESIZE = (Defence(random_resize=RandomResizeConfig(smallest=0.5)),)
CONFIG = TritonConfig(
    name="pair", image_size=32, num_classes=10, max_batch=16, backend=EnsembleBackend(members=tuple(MEMBERS))
)


def publish_member(repository: Path, model: str, engine: Path, **changes: Any) -> Published:
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    config = replace(CONFIG, name=model, backend=backend, in_ensemble=True)
    config = replace(config, **changes)
    return publish(repository, config, engine_file=engine, labels=LABELS[: config.num_classes], card={})


def publish_pair(repository: Path, **changes: Any) -> Published:
    labels = changes.pop("labels", LABELS)
    members, defend = (tuple(changes.pop(name, given)) for name, given in (("members", MEMBERS), ("defend", ())))
    config = replace(CONFIG, backend=EnsembleBackend(members=members, defend=defend))
    return publish_ensemble(repository, replace(config, **changes), labels=labels, card={"recipe": "toy"})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two members, which nothing here parses."""
    engine = tmp_path / "model.onnx"
    engine.write_bytes(b"engine")
    for member in MEMBERS:
        publish_member(tmp_path / "repository", member, engine)
    return tmp_path / "repository"


def read_config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())


def test_ensemble_is_published_with_its_mean(repository: Path) -> None:
    published = publish_pair(repository)
    assert published == Published(model="pair", version=1, path=repository / "pair" / "1", reused=False, served=1)
    for model in ("pair", "pair_mean"):
        folder = repository / model / "1"
        assert sorted(path.name for path in folder.iterdir()) == [
            "SHA256SUMS",
            "card.json",
            "config.pbtxt",
            "labels.txt",
        ]
        subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
        card = json.loads((folder / "card.json").read_text())
        assert card == {"model": model, "members": MEMBERS, "recipe": "toy"}


@pytest.mark.parametrize("taken", [None, "toy_fp32_jpeg", "toy_fp32_jpeg_decode"])
def test_what_took_files_is_removed_and_nothing_else(repository: Path, taken: str | None) -> None:
    (member,) = (replace(CONFIG, name=name, backend=PluginBackend(engine="openvino")) for name in MEMBERS[:1])
    publish_jpeg(repository, member, labels=LABELS, card={})
    names = ["toy_fp32_jpeg", "toy_fp32_jpeg_decode"]
    if taken is not None:  # another model, which has this name
        shutil.rmtree(repository / taken)
        shutil.copytree(repository / MEMBERS[1], repository / taken)
    gone = {None: names, names[0]: [], names[1]: names[:1]}[taken]  # whose step the decoder is stays with it
    assert retract_jpeg(repository, MEMBERS[0]) == gone
    left = sorted([*MEMBERS, *(name for name in names if name not in gone)])
    assert sorted(path.name for path in repository.iterdir()) == left
    assert retract_jpeg(repository, MEMBERS[0]) == []
    assert [path.name for path in repository.with_name(".repository-work").iterdir()] == ["lock"]


def test_ensemble_says_its_steps(repository: Path) -> None:
    publish_pair(repository)
    config = read_config(repository / "pair")
    assert (config.platform, config.backend, config.max_batch_size) == ("ensemble", "", 16)
    assert not config.instance_group
    assert not config.HasField("dynamic_batching")
    steps = [
        (step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))
        for step in config.ensemble_scheduling.step
    ]
    assert steps == [
        ("toy_fp32", -1, {"image": "image"}, {"logits": "logits_0"}),
        ("toy_int8", -1, {"image": "image"}, {"logits": "logits_1"}),
        ("pair_mean", -1, {"logits_0": "logits_0", "logits_1": "logits_1"}, {"logits": "logits"}),
    ]
    mean = read_config(repository / "pair_mean")
    assert mean.backend == "temper_mean"
    assert [(each.name, each.data_type, list(each.dims)) for each in mean.input] == [
        ("logits_0", pb.TYPE_FP32, [10]),
        ("logits_1", pb.TYPE_FP32, [10]),
    ]
    assert mean.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
    policy = mean.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (0, 30_000_000)


@pytest.mark.parametrize("members", [MEMBERS[:1], MEMBERS], ids=len)
def test_defence_is_the_first_step(repository: Path, members: list[str]) -> None:
    published = publish_pair(repository, members=members, defend=SQUEEZE)
    several = len(members) > 1
    names = ["pair", "pair_defence", *(["pair_mean"] if several else [])]
    assert sorted(path.name for path in repository.glob("pair*")) == names
    assert [one.reason for one in verify_repository(repository, names)] == [None] * (len(names) + len(members))
    steps = [
        (step.model_name, dict(step.input_map), dict(step.output_map))
        for step in read_config(repository / "pair").ensemble_scheduling.step
    ]
    assert steps[: len(members) + 1] == [
        ("pair_defence", {"image": "image"}, {"defended": "defended"}),
        *(
            (member, {"image": "defended"}, {"logits": f"logits_{index}" if several else "logits"})
            for index, member in enumerate(members)
        ),
    ]
    assert [name for name, _, _ in steps[len(members) + 1 :]] == names[2:]
    defence = read_config(repository / "pair_defence")
    assert (defence.backend, defence.max_batch_size) == ("temper_defence", 16)
    ((given,), (answer,)) = (defence.input, defence.output)
    assert [(one.name, one.data_type, list(one.dims)) for one in (given, answer)] == [
        ("image", pb.TYPE_UINT8, [32, 32, 3]),
        ("defended", pb.TYPE_UINT8, [32, 32, 3]),
    ]
    wanted = [{"jpeg": {"quality": 30}}, {"bit_depth": {"bits": 3}}]
    assert json.loads(defence.parameters["defend"].string_value) == wanted
    policy = defence.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (0, 30_000_000)
    assert json.loads((published.path / "card.json").read_text())["defend"] == wanted
    assert publish_pair(repository, members=members, defend=SQUEEZE).reused
    assert publish_pair(repository, members=members, defend=SQUEEZE[:1]).version == 2


def test_same_again_is_reused_and_other_members_are_a_new_version(repository: Path) -> None:
    publish_pair(repository)
    assert publish_pair(repository).reused
    second = publish_pair(repository, members=MEMBERS[::-1])
    assert (second.version, second.reused) == (2, False)
    for model in ("pair", "pair_mean"):
        assert list(read_config(repository / model).version_policy.specific.versions) == [1]
        assert list(read_config(repository / model / "2").version_policy.specific.versions) == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ["toy_fp32"]}, r"ensemble pair: got the members \['toy_fp32'\], expected two or more"),
        ({"members": ["toy_fp32", "toy_fp32"]}, r"expected two or more, each once"),
        ({"members": [], "defend": SQUEEZE}, r"got the members \[\], expected one or more, each once"),
        (
            {"members": ["toy_fp32", "gone"]},
            r"ensemble pair: its member gone is not a model of .*; publish it first",
        ),
        (
            {"members": ["toy_fp32", "large"]},
            r"its member large takes images of \[64, 64\] .* expected \[32, 32\]",
        ),
        (
            {"members": ["toy_fp32", "few"]},
            r"its member few .* \[3\] classes, expected \[32, 32\] and \[10\]",
        ),
        ({"max_batch": 32}, r"its member toy_fp32 takes batches of up to 16, expected 32; lower max_batch"),
        ({"members": ["toy_fp32", "alone"]}, r"its member alone bounds its queue by number, .* with in_ensemble"),
        ({"labels": LABELS[:2]}, r"model pair: got 2 labels, expected one for each of 10 classes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_members_that_do_not_fit_are_refused(
    repository: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    publish_member(repository, "large", tmp_path / "model.onnx", image_size=64)
    publish_member(repository, "few", tmp_path / "model.onnx", num_classes=3)
    publish_member(repository, "alone", tmp_path / "model.onnx", in_ensemble=False)
    with pytest.raises(PublishError, match=message):
        publish_pair(repository, **changes)
    assert not (repository / "pair").exists()
    assert not (repository / "pair_mean").exists()


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest,
    share_server: Callable[..., AbstractContextManager[TritonServer]],
    toy_onnx: Path,
    toy_int8: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """A server of a good ensemble, and of one whose member went away after it was published."""
    folder = tmp_path_factory.mktemp("ensemble")
    repository = folder / "repository"
    for member, engine in (("toy_fp32", toy_onnx), ("toy_int8", toy_int8), ("gone", toy_onnx)):
        publish_member(repository, member, engine)
    publish_member(repository, "narrow", toy_onnx, serving=ServingConfig(max_queue=1), in_ensemble=False)
    hasty = ServingConfig(queue_timeout_ms=50)
    publish_member(repository, "hasty_1", toy_onnx, serving=hasty)
    publish_member(repository, "hasty_2", toy_onnx, serving=hasty)
    publish_pair(repository, name="bounded", members=["hasty_1", "hasty_2"])
    publish_pair(repository)
    publish_pair(repository, name="squeezed", members=["toy_fp32"], defend=SQUEEZE)
    publish_pair(repository, name="resized", members=["toy_fp32"], defend=RESIZE)
    publish_pair(repository, name="orphan", members=["toy_fp32", "gone"])
    shutil.rmtree(repository / "gone")
    # The mean of vectors of any length, which Triton does not compare.
    shutil.copytree(repository / "pair_mean", repository / "loose")
    config = (repository / "loose" / "config.pbtxt").read_text()
    (repository / "loose" / "config.pbtxt").write_text(
        config.replace('"pair_mean"', '"loose"').replace("dims: 10", "dims: -1")
    )
    # Triton loads an ensemble's members with it.
    models = ["pair", "narrow", "bounded", "squeezed", "resized", "orphan", "loose"]
    log = folder / "tritonserver.log"
    server = TritonServer(
        repository, models=models, log_file=log, strict=False, only_published=False, reloads=True
    )
    with share_server(request, server) as running:
        yield running


@pytest.mark.server
@pytest.mark.parametrize("batch", [1, 5, 16])
def test_answers_are_the_mean_of_the_members(served: TritonServer, sample: Sample, batch: int) -> None:
    images = sample.images[:batch]
    with Client(served.grpc_url) as client:
        answers = [client.infer(member, images) for member in MEMBERS]
        logits = client.infer("pair", images)
    assert not np.allclose(answers[0], answers[1], atol=1e-4), "two members that agree prove nothing"
    np.testing.assert_allclose(logits, np.mean(answers, axis=0), rtol=0, atol=1e-6)


@pytest.mark.server
def test_defended_ensemble_answers_to_the_image_behind_the_defence(served: TritonServer, sample: Sample) -> None:
    images = sample.images[:16]
    behind = defend(images, read_defences(render_defences(SQUEEZE)), np.random.default_rng())
    with Client(served.grpc_url) as client:
        expected, found = client.infer("toy_fp32", behind), client.infer("squeezed", images)
        plain = client.infer("toy_fp32", images)
        draws = [client.infer("resized", images) for _ in range(2)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert not np.allclose(found, plain, atol=0.1)
    # Every image of every request is drawn for anew.
    differences = np.abs(draws[0] - draws[1]).max(axis=1)
    assert (differences > 1e-3).sum() > 12


@pytest.mark.server
@pytest.mark.parametrize(
    ("model", "reason"), [("narrow", "Exceeds maximum queue size"), ("bounded", "Request timeout expired")]
)
def test_full_queue_refuses_and_answers_the_rest(
    served: TritonServer, sample: Sample, model: str, reason: str
) -> None:
    """An ensemble is bounded by its members' queues."""
    images = sample.images[:16]

    def ask(number: int) -> Any:
        try:
            return client.infer(model, images)
        except ClientError as error:
            return error

    def ask_alone() -> Any:
        while isinstance(answer := ask(0), ClientError):
            assert reason in str(answer)  # a busy machine lets even a single request wait
        return answer

    with Client(served.grpc_url) as client, ThreadPoolExecutor(96) as pool:
        expected = ask_alone()
        answers = list(pool.map(ask, range(192)))
        refused = [answer for answer in answers if isinstance(answer, ClientError)]
        assert refused
        assert {error.code for error in refused} == {"UNAVAILABLE"}
        assert all(reason in str(error) for error in refused)
        for answer in answers:
            if not isinstance(answer, ClientError):
                np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ask_alone(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.server
def test_members_of_two_shapes_fail_their_own_request_alone(served: TritonServer) -> None:
    def ask(*lengths: int) -> Any:
        inputs = [
            triton.InferInput(f"logits_{index}", [1, length], "FP32") for index, length in enumerate(lengths)
        ]
        for index, (tensor, length) in enumerate(zip(inputs, lengths, strict=True)):
            tensor.set_data_from_numpy(np.full((1, length), index, np.float32))
        with triton.InferenceServerClient(served.grpc_url) as raw:
            return raw.infer("loose", inputs).as_numpy("logits")

    expected = (
        r"the mean's inputs have the shapes \[\[1, 3\], \[1, 4\]\], expected one; publish the ensemble again"
    )
    with pytest.raises(InferenceServerException, match=expected) as caught:
        ask(3, 4)
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    assert ask(3, 3).tolist() == [[0.5, 0.5, 0.5]]


@pytest.mark.server
def test_ensemble_answers_with_labels(served: TritonServer, sample: Sample) -> None:
    with Client(served.grpc_url) as client:
        info = client.model_info("pair")
        expected = LABELS[int(client.infer("pair", sample.images[:1]).argmax())]
    assert (list(info.labels), info.max_batch_size) == (LABELS, 16)
    image = triton.InferInput("image", [1, 32, 32, 3], "UINT8")
    image.set_data_from_numpy(sample.images[:1])
    output = triton.InferRequestedOutput("logits", class_count=1)
    with triton.InferenceServerClient(served.grpc_url) as raw:
        answer = raw.infer("pair", [image], outputs=[output]).as_numpy("logits")
    assert answer.ravel()[0].decode().split(":")[2] == expected


@pytest.mark.server
def test_missing_member_is_one_line_and_the_others_are_served(served: TritonServer, sample: Sample) -> None:
    assert list(served.failed) == ["orphan"]
    assert re.search("ensemble orphan contains models that .*: gone", served.log.read_text())
    with triton.InferenceServerClient(served.grpc_url) as raw:
        assert not raw.is_model_ready("orphan")
    with Client(served.grpc_url) as client:
        assert client.infer("pair", sample.images[:2]).shape == (2, 10)
