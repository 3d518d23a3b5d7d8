"""`temper promote --watch` on a real server: a good version stays, a bad one goes back by itself."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks.gate_served import plant
from temper.builder.publish.entry import publish
from temper.builder.publish.switch import read_history, switch
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.builder.publish.versions import served_version
from temper.cli.main import cli
from temper.client import Client
from temper.client.model import ModelInfo
from temper.serve import reload, watch
from temper.serve.follow import Follower
from temper.serve.probing import Prober
from temper.serve.promote import HeldError, promote
from temper.serve.server import TritonServer
from temper.serve.signs import Limits, Probe, Traffic, summarise
from temper.serve.watch import _limits

if TYPE_CHECKING:
    from benchmarks.sample import Sample

ANYWAY = ("--override", "--reason", "a test")
NO_SERVER = "127.0.0.1:9"


def run(repository: Path, url: str, *more: str, version: int = 2) -> Result:
    options = ["--repository", str(repository), "--url", url, "--version", str(version), *ANYWAY, *more]
    return CliRunner().invoke(cli, ["promote", "toy", *options])


@pytest.fixture
def three_versions(two_versions: Path, toy_onnx: Path, tmp_path: Path) -> Path:
    """A third version, which answers half of the images otherwise, and nobody's verdict allows any latency."""
    plant(toy_onnx, tmp_path / "bad.onnx", 0.5, 0)
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    config = TritonConfig(
        name="toy", image_size=32, num_classes=10, max_batch=8, backend=backend, in_ensemble=True
    )
    labels = [f"number {n}" for n in range(10)]
    publish(two_versions, config, engine_file=tmp_path / "bad.onnx", labels=labels, card={})
    for version in (2, 3):
        write_verdict(two_versions / "toy" / str(version), {"latency": {"p99_ms": 60_000}})
    return two_versions


def write_verdict(folder: Path, config: Any) -> None:
    folder.mkdir(exist_ok=True)
    verdict = {"format": 1, "answer": "HOLD", "candidate": {}, "config": config}
    (folder / "verdict.json").write_text(json.dumps(verdict))


@pytest.fixture
def server(three_versions: Path) -> Iterator[TritonServer]:
    """A server that follows its repository, as `temper serve` does."""
    ended = threading.Event()
    with TritonServer(three_versions, reloads=True) as server:
        follower = Follower(server, lambda line: None)

        def follow() -> None:
            while not ended.wait(0.1):
                follower.look()

        thread = threading.Thread(target=follow)
        thread.start()
        yield server
        ended.set()
        thread.join()


@pytest.mark.server
def test_bad_version_goes_back_by_itself_and_a_good_one_stays(
    server: TritonServer, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BEFORE_S", 3.0)
    np.save(tmp_path / "images.npy", sample.images[:60])
    more = ("--watch", "5s", "--images", str(tmp_path / "images.npy"))
    repository = server.repository

    def served() -> tuple[int | None, int | None]:
        return served_version(repository / "toy"), reload.served_version(server.grpc_url, "toy")

    good = run(repository, server.grpc_url, *more)
    assert (good.exit_code, served()) == (0, (2, 2)), good.output
    said, seen = good.stdout.splitlines()
    assert said == "toy: version 2 is served, version 1 before"
    assert re.fullmatch(
        r"toy: version 2 stays: 0 of \d\d+ probes failed, median \S+ ms \(limit 6e\+04 ms\), "
        r"0 of [3-6]\d images answered otherwise, 0 of all \d\d+ requests failed",
        seen,
    )
    worse = run(repository, server.grpc_url, *more, version=3)
    assert (worse.exit_code, served()) == (3, (2, 2)), worse.output
    assert re.fullmatch(
        r"toy: version 3 is not switched to: on a server of its own \d+ of \d+ images are answered otherwise than "
        r"before, expected at most 10 %\n",
        worse.stdout,
    )
    bad = run(repository, server.grpc_url, *more, "--no-rehearsal", "--json", version=3)
    assert (bad.exit_code, served()) == (3, (2, 2)), bad.output
    found = json.loads(bad.stdout)
    assert (found["switched"]["after"], found["back"]["before"], found["back"]["after"]) == (3, 3, 2)
    assert re.fullmatch(
        r"\d+ of \d+ images are answered otherwise than before, expected at most 10 %", found["reason"]
    )
    assert found["line"].endswith(f" s after the first sign: {found['reason']}")
    events = read_history(repository, "toy")
    assert [(event.event, event.after) for event in events] == [
        ("promoted", 2),
        ("promoted", 3),
        ("rolled back", 2),
    ]
    assert events[-1].reason == f"watched: {found['reason']}"
    again = run(repository, server.grpc_url, *more)
    assert again.stdout.endswith("already\ntoy: not watched, as it was served already\n")


@pytest.mark.server
def test_what_cannot_be_watched_is_not_switched(
    server: TritonServer, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "few.npy", sample.images[:2])
    few = run(server.repository, server.grpc_url, "--watch", "60s", "--images", str(tmp_path / "few.npy"))
    assert (
        "error: 2 images to ask about: expected at least 3, as fewer never tell that more than 10 %" in few.stderr
    )
    monkeypatch.setattr(watch, "BEFORE_S", 0.5)
    other = np.zeros((4, 8, 8, 3), np.uint8)  # which the model does not take
    options: dict[str, Any] = {"url": server.grpc_url, "images": other, "seconds": 5.0, "real": False}
    options |= {"override": True, "reason": "a test"}
    with pytest.raises(watch.WatchError, match=r"toy: version 1, which is served, answers none of \d+ probes \("):
        watch.watch(server.repository, "toy", 2, **options)
    assert read_history(server.repository, "toy") == []


@pytest.mark.server
def test_server_that_answers_with_another_version_than_the_repository_names(
    three_versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a version would be held against one that it does not take the place of."""
    monkeypatch.setattr(watch, "FOLLOWS_S", 0.2)
    images = np.zeros((60, 32, 32, 3), np.uint8)
    with TritonServer(three_versions, models=["toy"]) as server:
        switch(three_versions, "toy", 2, event="promoted")
        match = f"toy: {server.grpc_url} answers with version 1, expected version 2, which the repository serves"
        options: dict[str, Any] = {"override": True, "reason": "a test"}
        with pytest.raises(watch.WatchError, match=match):
            watch.watch(
                three_versions, "toy", 3, url=server.grpc_url, images=images, seconds=5.0, real=False, **options
            )
        assert served_version(three_versions / "toy") == 2


@pytest.mark.server
def test_what_its_verdict_holds_is_not_asked_first(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "Prober", None)
    images = np.zeros((60, 32, 32, 3), np.uint8)
    with pytest.raises(HeldError, match="; --override --reason TEXT promotes it all the same"):
        watch.watch(server.repository, "toy", 3, url=server.grpc_url, images=images, seconds=5.0, real=False)


@pytest.mark.server
def test_interrupted_watch_leaves_the_new_version(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "BEFORE_S", 1.0)
    monkeypatch.setattr(watch._Watcher, "look_for", interrupt)
    result = run(server.repository, server.grpc_url, "--watch", "1m")
    assert result.exit_code == 130
    assert "toy: watched by errors and latency alone, as there are no --images to compare" in result.stderr
    assert result.stderr.endswith("interrupted: version 2 of toy is served on, and watched no more\n")
    assert served_version(server.repository / "toy") == 2
    with Client(server.grpc_url) as client:
        assert client.versions("toy") == ("2",)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--watch", "60s"),
            "--watch asks a running server, expected its --url, which `temper serve` prints as gRPC",
        ),
        (("--images", "x"), "--images and --max-changed say how it is watched, expected --watch with them"),
        (
            ("--watch", "60s", "--max-changed", "5"),
            "--max-changed: expected --images with it, as answers to noise",
        ),
        *(
            (("--watch", value), f"got '{value}', expected seconds or minutes such as 60s or 5m, from 5s to 60m")
            for value in ("60", "1h", "4s", "61m", "-5s", "1.5m", "")
        ),
    ],
)
def test_wrong_option_is_refused(tmp_path: Path, options: tuple[str, ...], line: str) -> None:
    result = CliRunner().invoke(cli, ["promote", "toy", "--repository", str(tmp_path), *options])
    assert result.exit_code == 2
    assert line in " ".join(result.stderr.split())


def test_nothing_is_switched_without_a_server(two_versions: Path) -> None:
    result = run(two_versions, NO_SERVER, "--watch", "60s")
    assert (result.exit_code, NO_SERVER in result.stderr, result.stderr.count("\n")) == (1, True, 1)
    assert served_version(two_versions / "toy") == 1


def test_server_that_died_begins_with_the_old_version(two_versions: Path) -> None:
    switched = promote(two_versions, "toy", 2, override=True, reason="a test")
    before = summarise([Probe(image=0, due_s=0.0, latency_s=0.1, answer=1)] * 100, Traffic())
    with Prober(NO_SERVER, "toy", np.zeros((1, 32, 32, 3), np.uint8)) as prober:
        watcher = watch._Watcher(
            two_versions, NO_SERVER, prober, before, switched, Limits(changed=None, num_looks=10)
        )
        sign = watcher.look_for(5.0)
        assert sign is not None
        found = watcher.end(sign)
        assert served_version(two_versions / "toy") == 1
        gone = watcher.end(sign)
    assert re.search(r"\d+ of \d+ probes failed, 0 of 100 before: .*127.0.0.1:9", sign.reason)
    assert re.search(r"back to version 1, \S+ s after the first sign; 127.0.0.1:9 does not answer", found.line)
    assert gone.line == "toy: version 2 is watched no more: another was switched to meanwhile"
    assert (gone.back, read_history(two_versions, "toy")[-1].after) == (None, 1)


@pytest.mark.parametrize(
    ("config", "given", "changed", "p99_ms"),
    [
        ({}, None, 0.1, None),
        ({"flips": {"max": 20.0}, "latency": {"p99_ms": 15}}, None, 0.2, 15.0),
        ({"flips": {"max": 20.0}}, 5.0, 0.05, None),
        ({"flips": {"max": 1.0}}, None, 0.1, None),
        ({"flips": {"max": 100.0}}, None, 0.5, None),
        ({"flips": {"max": "many"}, "latency": {"p99_ms": True}}, None, 0.1, None),
        ({"flips": None, "latency": [15]}, None, 0.1, None),
        ("none", None, 0.1, None),
    ],
)
def test_limits_are_those_of_the_verdict(
    tmp_path: Path, config: Any, given: float | None, changed: float, p99_ms: float | None
) -> None:
    write_verdict(tmp_path / "2", config)
    limits = _limits(tmp_path / "2", 60.0, given, real=True)
    assert (limits.changed, limits.p99_ms, limits.num_looks) == (changed, p99_ms, 121)
    assert _limits(tmp_path / "2", 60.0, None, real=False).changed is None


def test_images_are_of_the_whole_folder(tmp_path: Path) -> None:
    from temper.cli.commands.promote import _spread
    from temper.progress import Display

    info = ModelInfo(
        name="m",
        version="1",
        input_name="image",
        image_shape=(1, 1, 3),
        output_name="logits",
        num_classes=2,
        max_batch_size=8,
    )
    np.save(tmp_path / "images.npy", np.arange(250, dtype=np.uint8)[:, None, None, None].repeat(3, 3))
    found = _spread(tmp_path / "images.npy", info, Display(quiet=True))[:, 0, 0, 0]
    assert (len(found), found[0], found[-1], set(np.diff(found))) == (100, 0, 249, {2, 3})
