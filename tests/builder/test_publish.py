"""Publishing: what is in the repository afterwards, whatever happens in the middle."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from backends.temper import artifact
from builder.errors import PublishError
from builder.publish import Published, publish
from builder.serving import ServingConfig

Mount = Callable[[Path, str], list[str]]

# A terminal or a reader of lines takes these for more than text.
ODD = ["\x1b", "\0", "\r", "\x85", "\x9b", "\u2028", "\u202e", "\udc80"]
ALWAYS = ["SHA256SUMS", "card.json", "config.pbtxt", "labels.txt"]


def publish_bytes(folder: Path, content: bytes = b"engine 1", **changes: Any) -> Published:
    engine = folder / "model.onnx"
    engine.write_bytes(content)
    arguments: dict[str, Any] = {
        "model": "m_int8",
        "engine_file": engine,
        "labels": ["cat", "dog"],
        "card": {"recipe": {"name": "m"}},
        "image_size": 32,
        "num_classes": 2,
        "max_batch": 8,
        "parameters": {"engine": "openvino", "precision_hint": "f32"},
        "num_instances": 2,
    }
    return publish(folder / "repository", **{**arguments, **changes})


def read_config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def check_repository(repository: Path) -> list[tuple[str, int, str]]:
    """Fails when Triton could not load what is there; returns (model, version, engine's content) of each."""
    found = []
    for model in sorted(repository.iterdir()):
        config = read_config(model)
        assert config.name == model.name
        (version,) = config.version_policy.specific.versions
        folder = model / str(version)
        subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True
        )
        assert (folder / "config.pbtxt").read_bytes() == (model / "config.pbtxt").read_bytes()
        assert len((model / config.output[0].label_filename).read_text().split()) == config.output[0].dims[0]
        json.loads((folder / "card.json").read_text())
        found.append((model.name, version, (folder / config.parameters["file"].string_value).read_text()))
    return found


def test_new_model_has_everything(tmp_path: Path) -> None:
    published = publish_bytes(tmp_path)
    model = tmp_path / "repository" / "m_int8"
    assert published == Published(model="m_int8", version=1, path=model / "1", reused=False)
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
    settings = {"engine_file": plan, "compute_capability": capability, "graph_sha256": GRAPH, "card": card}
    return publish_bytes(folder, **{**settings, "parameters": {"engine": "tensorrt"}, **changes})


def test_plans_of_one_graph_are_served_together(tmp_path: Path) -> None:
    first = publish_plan(tmp_path, "9.0", b"for 9.0", runtime="TensorRT 10.16.0.72")
    assert sorted(path.name for path in first.path.iterdir()) == [*ALWAYS, "model_sm90.plan"]
    before = {path: path.read_bytes() for path in first.path.iterdir()}
    second = publish_plan(tmp_path, "8.9", b"for 8.9")
    assert (second.version, second.reused) == (2, False)
    assert before == {path: path.read_bytes() for path in first.path.iterdir()}
    assert (second.path / "model_sm90.plan").read_bytes() == b"for 9.0"
    assert check_repository(tmp_path / "repository") == [("m_int8", 2, "for 8.9")]
    config = read_config(tmp_path / "repository" / "m_int8")
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
    second = publish_plan(tmp_path, "8.9", b"of another graph", graph_sha256=graph)
    assert sorted(path.name for path in second.path.iterdir()) == [*ALWAYS, "model_sm89.plan"]
    config = read_config(tmp_path / "repository" / "m_int8")
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
    second = publish_plan(tmp_path, "9.0", b"for all", compute_capability=None)
    assert sorted(path.name for path in second.path.iterdir()) == [*ALWAYS, "model.plan"]
    assert not read_config(tmp_path / "repository" / "m_int8").cc_model_filenames


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
def test_change_is_a_new_version_beside_the_old(tmp_path: Path, change: dict[str, Any]) -> None:
    first = publish_bytes(tmp_path)
    before = {path: path.read_bytes() for path in first.path.iterdir()}
    second = publish_bytes(tmp_path, **change)
    assert (second.version, second.reused) == (2, False)
    assert before == {path: path.read_bytes() for path in first.path.iterdir()}
    assert check_repository(tmp_path / "repository")[0][1] == 2


def test_other_labels_and_classes_switch_with_the_version(tmp_path: Path) -> None:
    publish_bytes(tmp_path)
    publish_bytes(tmp_path, b"engine 2", labels=["a", "b", "c"], num_classes=3)
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
    check_repository(tmp_path / "repository")
    assert read_config(tmp_path / "repository" / "m_int8").instance_group[0].count == 4


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
    second = publish_bytes(tmp_path)
    assert (second.version, second.reused) == (2, False)
    check_repository(tmp_path / "repository")


def test_config_changed_by_hand_is_put_back(tmp_path: Path) -> None:
    publish_bytes(tmp_path)
    with (tmp_path / "repository" / "m_int8" / "config.pbtxt").open("a") as config:
        config.write('backend: "python"')
    published = publish_bytes(tmp_path)
    assert (published.version, published.reused) == (1, False)
    check_repository(tmp_path / "repository")


@pytest.mark.parametrize("card", ["[" * 100_000, "7", '{"stages": 7, "plans": 7}', "[]", "\xff"])
def test_card_that_is_none_is_published_over(tmp_path: Path, card: str) -> None:
    first = publish_plan(tmp_path, "9.0", b"for 9.0")
    (first.path / "card.json").write_bytes(card.encode("latin-1"))
    second = publish_plan(tmp_path, "8.9", b"for 8.9")
    assert (second.version, second.reused) == (2, False)
    check_repository(tmp_path / "repository")


def test_only_the_newest_versions_are_kept(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "m_int8"
    serving = ServingConfig(keep_versions=2)
    publish_bytes(tmp_path)
    (model / "7").mkdir()  # not ours
    for number in range(8, 12):
        assert publish_bytes(tmp_path, f"engine {number}".encode(), serving=serving).version == number
    kept = {path.name for path in model.iterdir()} - {"config.pbtxt", "labels.txt"}
    assert kept == {"7", "10", "11"}
    # Rolled back by hand: what a server may have open stays until the version after it is replaced.
    (model / "config.pbtxt").write_bytes((model / "10" / "config.pbtxt").read_bytes())
    publish_bytes(tmp_path, b"engine 12", serving=ServingConfig(keep_versions=1))
    assert {path.name for path in model.iterdir()} - {"config.pbtxt", "labels.txt"} == {"7", "10", "12"}
    assert check_repository(tmp_path / "repository") == [("m_int8", 12, "engine 12")]
    assert [path.name for path in (tmp_path / ".repository-work").iterdir()] == ["lock"]


def test_version_whose_config_is_just_being_replaced_is_right(tmp_path: Path) -> None:
    """Triton reads config.pbtxt long before the plugin looks at it."""
    first = publish_bytes(tmp_path)
    read = {"parameters": {"engine": {"string_value": "openvino"}}, "output": [{"label_filename": "1/labels.txt"}]}
    second = publish_bytes(tmp_path, b"engine 2")
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


def test_old_version_that_cannot_be_removed_is_no_error(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from tests_publish import check_repository, publish_bytes
        from builder.serving import ServingConfig

        folder = Path(sys.argv[1])
        for number in (3, 4):
            done = publish_bytes(folder, f"engine {number}".encode(), serving=ServingConfig(keep_versions=1))
            print(done.note)
        print(check_repository(folder / "repository"))
    """
    for number in (1, 2):
        old = publish_bytes(tmp_path, f"engine {number}".encode())
    mounts = f'mount --bind {old.path.parent / "1"} {old.path.parent / "1"} && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounts, "sh"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system lets nobody mount a folder")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env=_with_this_module(tmp_path),
        capture_output=True,
        text=True,
    )
    why = "the old version 1 cannot be removed (Device or resource busy)"
    assert done.stdout.splitlines() == [
        f"m_int8 version 3; {why}",
        f"m_int8 version 4; {why}",
        "[('m_int8', 4, 'engine 4')]",
    ], done.stderr
    assert sorted(path.name for path in old.path.parent.iterdir()) == ["1", "3", "4", "config.pbtxt", "labels.txt"]


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
        ({"model": "../x"}, r"model name: got '../x', expected up to 220 letters, digits, '_', '.', '-'"),
        ({"model": ".x"}, r"model name: got '.x'"),
        ({"model": "x" * 300}, r"model name: got 'xxx.*', expected up to 220 letters, digits"),
        *(({"labels": ["cat", f"d{odd}og"]}, "got the label .*, expected one line of printable") for odd in ODD),
        ({"compute_capability": "sm90"}, r"compute capability: got 'sm90', expected one such as '9.0'"),
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


def test_concurrent_publishers_take_turns(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from tests_publish import publish_bytes
        folder, number = Path(sys.argv[1]), sys.argv[2]
        (folder / number).mkdir()
        (folder / number / "repository").symlink_to(folder / "repository")
        publish_bytes(folder / number, f"engine {number}".encode())
    """
    (tmp_path / "repository").mkdir()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(number)],
            env=_with_this_module(tmp_path),
            stderr=subprocess.PIPE,
        )
        for number in range(6)
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 6, errors
    ((_, version, _),) = check_repository(tmp_path / "repository")
    assert version == 6


# Forks a publisher for every number of file operations, each killed by SIGKILL just before its n-th one.
KILLED = """
import os, signal, sys
from pathlib import Path
from builder.serving import ServingConfig
from tests_publish import check_repository, publish_bytes

EVENTS = {
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile", "tempfile.mkdtemp", "fcntl.flock"
}

def publish_until(folder, limit, content, **changes):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
    pid = os.fork()
    if pid == 0:
        sys.addaudithook(hook)
        publish_bytes(folder, content, **changes)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

import google.protobuf.text_format, tritonclient.grpc  # or their files count as ours
root, old = Path(sys.argv[1]), sys.argv[2] == "old"
last = 4 if old else 1
for limit in range(1, 200):
    folder = root / str(limit)
    folder.mkdir()
    for version in range(1, last):
        publish_bytes(folder, f"engine {version}".encode())
    changes = {"labels": ["a", "b", "c"], "num_classes": 3, "serving": ServingConfig(keep_versions=1)}
    status = publish_until(folder, limit, b"newest", **changes)
    repository = folder / "repository"
    left = check_repository(repository) if repository.exists() else []
    expected = [("m_int8", last, "newest")]
    assert left in ([("m_int8", 3, "engine 3")] if old else [], expected), (limit, left)
    publish_bytes(folder, b"newest", **changes)
    assert check_repository(repository) == expected, limit
    assert len(list((repository / "m_int8").iterdir())) <= 4, limit
    work = folder / ".repository-work"
    assert [path.name for path in work.iterdir()] == ["lock"], (limit, list(work.iterdir()))
    print(limit, status, left)
    if status == 0:
        break
"""


@pytest.mark.parametrize("start", ["new", "old"])
def test_kill_at_any_moment_leaves_a_repository_that_loads(tmp_path: Path, start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), start],
        env=_with_this_module(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = [line.split()[1] for line in done.stdout.splitlines()]
    assert statuses[-1] == "0", "the last one was not killed"
    assert set(statuses[:-1]) == {"9"}
    assert len(statuses) > 20, done.stdout


def test_full_disk_is_one_line_and_leaves_the_old_version(tmp_path: Path, mount: Mount) -> None:
    code = """
        import sys
        from pathlib import Path
        from tests_publish import check_repository, publish_bytes
        from builder.errors import PublishError

        folder = Path(sys.argv[1])
        publish_bytes(folder, b"engine 1")
        (folder / "model.onnx").unlink()
        outside = Path(sys.argv[2]) / "model.onnx"
        outside.write_bytes(bytes(3_000_000))
        try:
            publish_bytes(folder, b"", engine_file=outside)
        except PublishError as error:
            print(error)
        print(check_repository(folder / "repository"))
        print([path.name for path in (folder / ".repository-work").iterdir()])
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [*mount(disk, "size=1m"), sys.executable, "-c", textwrap.dedent(code), str(disk), str(tmp_path)],
        env=_with_this_module(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        f"model m_int8: cannot publish into {disk}/repository: "
        "no space left on the disk; free some and run it again",
        "[('m_int8', 1, 'engine 1')]",
        "['lock']",
    ], done.stderr


def test_file_over_the_limit_is_one_line(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from pathlib import Path
        from tests_publish import publish_bytes
        from builder.errors import PublishError

        folder = Path(sys.argv[1])
        engine = folder / "big.onnx"
        engine.write_bytes(bytes(2_000_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            publish_bytes(folder, engine_file=engine)
        except PublishError as error:
            print(error)
        print(list((folder / "repository").iterdir()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env=_with_this_module(tmp_path),
        capture_output=True,
        text=True,
    )
    assert "the file is larger than this process may write (see `ulimit -f`)\n[]\n" in done.stdout, done.stderr


def test_root_of_a_file_system_is_refused() -> None:
    with pytest.raises(
        PublishError, match="repository /proc: is the root of its file system.*use a folder inside it"
    ):
        publish(
            Path("/proc"),
            model="m",
            engine_file=Path(__file__),
            labels=["a", "b"],
            card={},
            image_size=32,
            num_classes=2,
            max_batch=1,
            parameters={"engine": "openvino"},
        )


def _with_this_module(folder: Path) -> dict[str, str]:
    """An environment where this file imports as `tests_publish`; pytest gives it a name of its own."""
    import os

    link = folder / "tests_publish.py"
    if not link.exists():
        link.symlink_to(__file__)
    return {**os.environ, "PYTHONPATH": str(folder)}
