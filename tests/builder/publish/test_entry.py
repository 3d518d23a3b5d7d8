"""Publishing: what is in the repository afterwards, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper
from publishing import CONFIG, check_repository, publish_bytes, read_config, serve_bytes
from tritonclient.grpc import model_config_pb2  # type: ignore[import-untyped]  # ships none

from temper.backends.temper import artifact
from temper.builder.errors import PublishError
from temper.builder.publish.entry import Published, publish
from temper.builder.publish.plans import Binding
from temper.builder.publish.serving import ServingConfig
from temper.builder.publish.switch import switch
from temper.builder.publish.triton_config import PluginBackend

# A terminal or a reader of lines takes these for more than text.
ODD = ["\x1b", "\0", "\r", "\x85", "\x9b", "\u2028", "\u202e", "\udc80"]
ALWAYS = ["SHA256SUMS", "card.json", "config.pbtxt", "labels.txt"]


def test_new_model_has_everything(tmp_path: Path) -> None:
    published = publish_bytes(tmp_path)
    model = tmp_path / "repository" / "m_int8"
    assert published == Published(model="m_int8", version=1, path=model / "1", reused=False, served=1)
    assert published.note == "m_int8 version 1"
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt", "labels.txt"]
    assert sorted(path.name for path in published.path.iterdir()) == [*ALWAYS, "model.onnx"]
    assert (model / "1" / "labels.txt").read_text() == (model / "labels.txt").read_text() == "cat\ndog\n"
    digest = hashlib.sha256(b"engine 1").hexdigest()
    assert f"{digest}  model.onnx\n" in (published.path / "SHA256SUMS").read_text()
    card = json.loads((published.path / "card.json").read_text())
    assert card["recipe"] == {"name": "m"}
    assert card["engine_file"] == {"name": "model.onnx", "sha256": digest, "size_bytes": 8}
    assert check_repository(tmp_path / "repository") == [("m_int8", 1, "engine 1")]


def test_config_says_what_the_wire_is(tmp_path: Path) -> None:
    publish_bytes(tmp_path)
    config = read_config(tmp_path / "repository" / "m_int8")
    assert (config.name, config.backend, config.max_batch_size) == ("m_int8", "temper", 8)
    (image,), (logits,) = config.input, config.output
    assert (image.name, image.data_type, list(image.dims)) == ("image", model_config_pb2.TYPE_UINT8, [32, 32, 3])
    assert (logits.name, logits.data_type, list(logits.dims)) == ("logits", model_config_pb2.TYPE_FP32, [2])
    assert logits.label_filename == "1/labels.txt"
    assert config.HasField("dynamic_batching")
    assert not config.default_model_filename
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_CPU, 2)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters == {"engine": "openvino", "precision_hint": "f32", "file": "model.onnx"}


@pytest.mark.parametrize("name", ["graph.onnx", "graph.bin"])
def test_weights_in_another_file_are_refused(tmp_path: Path, name: str) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    weights.data_location = TensorProto.EXTERNAL
    node = helper.make_node("Constant", [], ["y"], value=weights)
    inner = helper.make_graph([node], "inner", [], [])
    branch = helper.make_node("If", ["x"], ["z"], then_branch=inner)
    engine = tmp_path / name
    engine.write_bytes(helper.make_model(helper.make_graph([branch], "g", [], [])).SerializeToString())
    with pytest.raises(PublishError, match=f"engine .*{name}: keeps weights in another file; export one file"):
        publish_bytes(tmp_path, engine_file=engine)
    assert not (tmp_path / "repository").exists()


# A plan per compute capability.

GRAPH = "a" * 64


def publish_plan(folder: Path, capability: str, content: bytes, **changes: Any) -> Published:
    plan = folder / "model.plan"
    plan.write_bytes(content)
    runtime = changes.pop("runtime", "TensorRT 11.0.0.114")
    card = {"stages": [{"name": "engine", "figures": {"runtime": runtime}}]}
    settings = {"engine_file": plan, "binding": Binding(compute_capability=capability, graph_sha256=GRAPH)}
    backend = PluginBackend(engine="tensorrt")
    return publish_bytes(folder, **{**settings, "card": card, "backend": backend, **changes})


def test_plans_of_one_graph_are_served_together(tmp_path: Path) -> None:
    first = publish_plan(tmp_path, "9.0", b"for 9.0", runtime="TensorRT 10.16.0.72")
    assert sorted(path.name for path in first.path.iterdir()) == [*ALWAYS, "model_sm90.plan"]
    before = {path: path.read_bytes() for path in first.path.iterdir()}
    second = publish_plan(tmp_path, "8.9", b"for 8.9")
    assert (second.version, second.reused) == (2, False)
    assert before == {path: path.read_bytes() for path in first.path.iterdir()}
    assert (second.path / "model_sm90.plan").read_bytes() == b"for 9.0"
    config = read_config(second.path)
    assert dict(config.cc_model_filenames) == {"8.9": "model_sm89.plan", "9.0": "model_sm90.plan"}
    card = json.loads((second.path / "card.json").read_text())
    assert card["graph_sha256"] == GRAPH
    plans = [(each["name"], each["compute_capability"], each["runtime"]) for each in card["plans"]]
    assert plans == [
        ("model_sm89.plan", "8.9", "TensorRT 11.0.0.114"),
        ("model_sm90.plan", "9.0", "TensorRT 10.16.0.72"),
    ]
    again = publish_plan(tmp_path, "8.9", b"for 8.9")
    assert (again.version, again.reused) == (2, True)


def test_new_plan_replaces_the_one_of_its_compute_capability(tmp_path: Path) -> None:
    publish_plan(tmp_path, "9.0", b"for 9.0")
    publish_plan(tmp_path, "12.0", b"for 12.0")
    third = publish_plan(tmp_path, "9.0", b"better for 9.0")
    assert (third.path / "model_sm90.plan").read_bytes() == b"better for 9.0"
    assert (third.path / "model_sm120.plan").read_bytes() == b"for 12.0"


@pytest.mark.parametrize("graph", ["b" * 64, None], ids=["another", "unknown"])
def test_plans_of_another_graph_are_left_behind(tmp_path: Path, graph: str | None) -> None:
    publish_plan(tmp_path, "9.0", b"for 9.0")
    binding = Binding(compute_capability="8.9", graph_sha256=graph)
    second = publish_plan(tmp_path, "8.9", b"of another graph", binding=binding)
    assert sorted(path.name for path in second.path.iterdir()) == [*ALWAYS, "model_sm89.plan"]
    config = read_config(second.path)
    assert dict(config.cc_model_filenames) == {"8.9": "model_sm89.plan"}


@pytest.mark.parametrize("change", [b"tampered", None], ids=["tampered", "missing"])
def test_changed_plan_is_not_taken_over(tmp_path: Path, change: bytes | None) -> None:
    plan = publish_plan(tmp_path, "9.0", b"for 9.0").path / "model_sm90.plan"
    plan.unlink() if change is None else plan.write_bytes(change)
    with pytest.raises(
        PublishError, match="model_sm90.plan: is not what was published .* remove the folder .*/1 "
    ):
        publish_plan(tmp_path, "8.9", b"for 8.9")
    assert not (tmp_path / "repository" / "m_int8" / "2").exists()


def test_changed_plan_with_its_digest_in_the_card_is_not_taken_over(tmp_path: Path) -> None:
    version = publish_plan(tmp_path, "9.0", b"for 9.0").path
    digest = hashlib.sha256((version / "model_sm90.plan").read_bytes()).hexdigest()
    (version / "model_sm90.plan").write_bytes(b"tampered")
    card = (version / "card.json").read_text()
    assert digest in card
    (version / "card.json").write_text(card.replace(digest, hashlib.sha256(b"tampered").hexdigest()))
    with pytest.raises(
        PublishError, match=r"card.json: is not what was published .SHA256SUMS has another SHA-256"
    ):
        publish_plan(tmp_path, "8.9", b"for 8.9")
    sums = (version / "SHA256SUMS").read_text()
    now = hashlib.sha256((version / "card.json").read_bytes()).hexdigest()
    (version / "SHA256SUMS").write_text(re.sub("[0-9a-f]{64}(?=  card.json)", now, sums))
    with pytest.raises(PublishError, match=r"model_sm90.plan: is not what was published .SHA256SUMS has another"):
        publish_plan(tmp_path, "8.9", b"for 8.9")


def test_edited_list_of_plans_is_one_line(tmp_path: Path) -> None:
    path = publish_plan(tmp_path, "9.0", b"for 9.0").path / "card.json"
    path.write_text(json.dumps({"graph_sha256": GRAPH, "plans": [7]}))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "SHA256SUMS").write_text(f"{digest}  card.json\n")
    with pytest.raises(
        PublishError, match="got a list of plans that is none .*; remove the folder .*/1 and publish"
    ):
        publish_plan(tmp_path, "8.9", b"for 8.9")


def test_plan_for_any_compute_capability_has_no_list(tmp_path: Path) -> None:
    publish_plan(tmp_path, "9.0", b"for 9.0")
    second = publish_plan(tmp_path, "9.0", b"for all", binding=None)
    assert sorted(path.name for path in second.path.iterdir()) == [*ALWAYS, "model.plan"]
    assert not read_config(second.path).cc_model_filenames


def test_same_again_is_reused(tmp_path: Path) -> None:
    publish_bytes(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "repository").rglob("*")}
    published = publish_bytes(tmp_path)
    assert (published.version, published.reused) == (1, True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "repository").rglob("*")}


@pytest.mark.parametrize(
    "change",
    [{"content": b"engine 2"}, {"card": {"recipe": {"name": "other"}}}],
    ids=["engine", "card"],
)
def test_change_is_a_candidate_beside_what_is_served(tmp_path: Path, change: dict[str, Any]) -> None:
    model = publish_bytes(tmp_path).path.parent
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    for reused in (False, True):  # a candidate that is the same again is the same candidate
        second = publish_bytes(tmp_path, **change)
        assert second.note == "m_int8 version 2, a candidate: version 1 is served"
        assert (second.version, second.reused, second.served) == (2, reused, 1)
        assert before == {path: path.read_bytes() for path in before}
        assert check_repository(tmp_path / "repository") == [("m_int8", 1, "engine 1")]


def test_verdict_makes_no_version_another(tmp_path: Path) -> None:
    published = publish_bytes(tmp_path)
    (published.path / "verdict.json").write_text("{}")
    assert publish_bytes(tmp_path).reused


def test_other_labels_and_classes_switch_with_the_version(tmp_path: Path) -> None:
    publish_bytes(tmp_path)
    serve_bytes(tmp_path, b"engine 2", labels=["a", "b", "c"], num_classes=3)
    model = tmp_path / "repository" / "m_int8"
    assert (model / "1" / "labels.txt").read_text() == "cat\ndog\n"
    config = read_config(model)
    assert (config.output[0].dims[0], config.output[0].label_filename) == (3, "2/labels.txt")
    assert (model / "2" / "labels.txt").read_text() == (model / "labels.txt").read_text() == "a\nb\nc\n"


def test_change_of_config_alone_is_a_new_version(tmp_path: Path) -> None:
    """A version and its config belong together: the digests of the one name the other."""
    publish_bytes(tmp_path)
    published = publish_bytes(tmp_path, num_instances=4)
    assert (published.version, published.reused) == (2, False)
    assert read_config(published.path).instance_group[0].count == 4


@pytest.mark.parametrize("stray", [".DS_Store", "model.py"])
def test_version_with_a_file_of_nobody_is_not_reused(tmp_path: Path, stray: str) -> None:
    """The plugin refuses it."""
    first = publish_bytes(tmp_path)
    (first.path / stray).write_bytes(b"")
    second = publish_bytes(tmp_path)
    assert (second.version, second.reused) == (2, False)


@pytest.mark.parametrize("name", ["model.onnx", *ALWAYS])
def test_tampered_version_is_not_reused(tmp_path: Path, name: str) -> None:
    first = publish_bytes(tmp_path)
    (first.path / name).write_bytes(b"{}")
    served = (first.path.parent / "config.pbtxt").read_bytes()
    second = publish_bytes(tmp_path)
    assert (second.version, second.reused, second.served) == (2, False, 1)
    assert (first.path.parent / "config.pbtxt").read_bytes() == served


@pytest.mark.parametrize("change", ['backend: "python"', "", None], ids=["added", "empty", "removed"])
def test_config_changed_by_hand_is_put_back(tmp_path: Path, change: str | None) -> None:
    model = publish_bytes(tmp_path).path.parent
    config = model / "config.pbtxt"
    if change is None:
        config.unlink()
    else:
        config.write_text(config.read_text() + change if change else "")
    (model / "labels.txt").write_text("dog\ncat\n")
    published = publish_bytes(tmp_path, b"engine 2")
    assert (published.version, published.served) == (2, 1)
    assert (model / "labels.txt").read_text() == "cat\ndog\n"
    assert check_repository(tmp_path / "repository") == [("m_int8", 1, "engine 1")]


def test_first_version_that_can_be_served_is(tmp_path: Path) -> None:
    shutil.rmtree(publish_bytes(tmp_path).path)
    published = publish_bytes(tmp_path, b"engine 2")
    assert (published.version, published.served) == (1, 1)
    assert check_repository(tmp_path / "repository") == [("m_int8", 1, "engine 2")]


@pytest.mark.parametrize("card", ["[" * 100_000, "7", '{"stages": 7, "plans": 7}', "[]", "\xff"])
def test_card_that_is_none_is_published_over(tmp_path: Path, card: str) -> None:
    first = publish_plan(tmp_path, "9.0", b"for 9.0")
    (first.path / "card.json").write_bytes(card.encode("latin-1"))
    second = publish_plan(tmp_path, "8.9", b"for 8.9")
    assert (second.version, second.reused) == (2, False)


def test_newest_versions_are_kept_and_what_one_may_go_back_to(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "m_int8"

    def kept() -> set[int]:
        return {int(path.name) for path in model.iterdir() if path.is_dir()}

    serving = ServingConfig(keep_versions=2)
    publish_bytes(tmp_path)
    (model / "7").mkdir()  # not ours
    for number in range(8, 12):
        assert publish_bytes(tmp_path, f"engine {number}".encode(), serving=serving).version == number
    assert kept() == {1, 7, 10, 11}
    switch(tmp_path / "repository", "m_int8", 10, event="promoted")
    for number in range(12, 15):
        publish_bytes(tmp_path, f"engine {number}".encode(), serving=serving)
    assert kept() == {1, 7, 10, 13, 14}
    # By hand: what a server may have open stays, and what was served before it.
    (model / "config.pbtxt").write_bytes((model / "13" / "config.pbtxt").read_bytes())
    publish_bytes(tmp_path, b"engine 15", serving=ServingConfig(keep_versions=1))
    assert kept() == {7, 10, 13, 15}
    assert check_repository(tmp_path / "repository") == [("m_int8", 13, "engine 13")]
    assert [path.name for path in (tmp_path / ".repository-work").iterdir()] == ["lock"]


def test_version_whose_config_is_just_being_replaced_is_right(tmp_path: Path) -> None:
    """Triton reads config.pbtxt long before the plugin looks at it."""
    first = publish_bytes(tmp_path)
    read = {"parameters": {"engine": {"string_value": "openvino"}}, "output": [{"label_filename": "1/labels.txt"}]}
    second = serve_bytes(tmp_path, b"engine 2")
    assert artifact.verify(first.path, read).file == first.path / "model.onnx"
    config = first.path.parent / "config.pbtxt"
    for changed in (config, second.path / "config.pbtxt", second.path / "SHA256SUMS"):
        content = changed.read_bytes()
        changed.write_bytes(
            content.replace(b"count: 2", b"count: 9") if changed != second.path / "SHA256SUMS" else b""
        )
        with pytest.raises(
            artifact.ArtifactError, match="config.pbtxt: is not the one that was published with ver"
        ):
            artifact.verify(first.path, read)
        changed.write_bytes(content)
    assert artifact.verify(first.path, read)


@pytest.mark.parametrize("link", [".repository-work", ".repository-work/lock"])
def test_link_in_the_place_of_the_work_folder_is_refused(tmp_path: Path, link: str) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(
        PublishError, match=f"{link}: is a link, expected a place of the publisher's own; remove it"
    ):
        publish_bytes(tmp_path)
    assert (target / "thesis.txt").read_text() == "years of work"


def test_files_of_others_in_the_work_folder_stay(tmp_path: Path) -> None:
    work = tmp_path / ".repository-work"
    (work / "notes").mkdir(parents=True)
    (work / "notes" / "thesis.txt").write_text("years of work")
    (work / "letter.txt").write_text("dear")
    (work / "publish-notes").mkdir()
    Path(tempfile.mkdtemp(prefix="publish-", dir=work), "of a killed one").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("years of work")
    (work / "publish-link").symlink_to(outside)
    publish_bytes(tmp_path)
    assert sorted(path.name for path in work.iterdir()) == [
        "letter.txt",
        "lock",
        "notes",
        "publish-link",
        "publish-notes",
    ]
    assert (work / "notes" / "thesis.txt").exists()
    assert (outside / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, r"model name: got '../x', expected up to 220 letters, digits, '_', '.', '-'"),
        ({"name": ".x"}, r"model name: got '.x'"),
        ({"name": "x" * 300}, r"model name: got 'xxx.*', expected up to 220 letters, digits"),
        *(({"labels": ["cat", f"d{odd}og"]}, "got the label .*, expected one line of printable") for odd in ODD),
        (
            {"binding": Binding(compute_capability="sm90")},
            r"compute capability: got 'sm90', expected one such as",
        ),
        ({"labels": ["cat"]}, r"model m_int8: got 1 labels, expected one for each of 2 classes"),
        (
            {"labels": ["cat", "d\nog"]},
            r"model m_int8: got the label 'd\\nog', expected one line of printable text",
        ),
        (
            {"engine_file": Path("/nowhere/model.onnx")},
            r"engine /nowhere/model.onnx: cannot be read: No such file",
        ),
    ],
)
def test_bad_argument_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PublishError, match=message):
        publish_bytes(tmp_path, **changes)
    assert not (tmp_path / "repository").exists()


def test_root_of_a_file_system_is_refused() -> None:
    with pytest.raises(
        PublishError, match="repository /proc: is the root of its file system.*use a folder inside it"
    ):
        publish(Path("/proc"), CONFIG, engine_file=Path(__file__), labels=["a", "b"], card={})
