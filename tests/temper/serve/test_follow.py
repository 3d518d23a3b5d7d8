"""`temper serve` follows its repository: the server is a real one, and is asked all the time."""

from __future__ import annotations

import functools
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]  # ships none
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc  # type: ignore[import-untyped]  # ships none

from temper.builder.publish.switch import read_history, switch
from temper.builder.publish.versions import served_version
from temper.client import Client
from temper.errors import ServerError
from temper.serve import reload
from temper.serve.follow import Follower
from temper.serve.promote import promote, rollback
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = pytest.mark.server

Until = Callable[[Callable[[], object]], None]
Switch = Callable[[Path, int], None]
SHIFT = 1000.0
JPEG = ("toy_jpeg", "toy", "toy_jpeg_decode")


@pytest.fixture
def server(two_versions: Path, tmp_path: Path) -> Iterator[TritonServer]:
    server = TritonServer(two_versions, http_port=0, log_file=tmp_path / "log", strict=False, reloads=True)
    with server:
        yield server


@contextmanager
def asking(server: TritonServer, sample: Sample, *models: str) -> Iterator[list[bool]]:
    """Asks the models all the time, without an error; gives which answers were the new version's."""
    ended, seen, errors = threading.Event(), list[bool](), list[Exception]()
    file = io.BytesIO()
    Image.fromarray(sample.images[0]).save(file, "PNG")

    def ask(model: str) -> None:
        try:
            with Client(server.grpc_url) as client:
                while not ended.is_set():
                    if model.endswith("_jpeg"):
                        answer = client.infer_encoded(model, [file.getvalue()])
                    else:
                        answer = client.infer(model, sample.images[:1])
                    seen.append(bool(answer[0, 0] > SHIFT / 2))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(model,)) for model in models or ("toy", "toy", "squeezed")]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert errors == []


def _settled(seen: list[bool], begin: int, wanted: bool) -> bool:
    """Whether the last answers are of one version; Triton may answer some that it had begun half a second late."""
    return len(seen) > begin + 20 and set(seen[-20:]) == {wanted}


def test_switch_and_return_lose_no_request(
    server: TritonServer, sample: Sample, until: Until, switch: Switch
) -> None:
    said: list[str] = []
    follower = Follower(server, said.append)
    with asking(server, sample) as seen:
        for version in (2, 1):
            follower.look()
            switch(server.repository, version)
            follower.look()
            begin = len(seen)
            until(functools.partial(_settled, seen, begin, version == 2))
            with Client(server.grpc_url) as client:
                assert client.versions("toy") == (str(version),)
                assert client.server_ready()
    assert said == ["switched: toy is served as version 2", "switched: toy is served as version 1"]
    # A stub that dies is noticed as before.
    children = " ".join(path.read_text() for path in Path(f"/proc/{server.pid}/task").glob("*/children"))
    os.kill(int(children.split()[0]), signal.SIGKILL)
    until(server.death)
    switch(server.repository, 2)
    server.restart()
    with Client(server.grpc_url) as client:
        assert client.versions("toy") == ("2",)


def break_engine(model: Path) -> None:
    (model / "2" / "model.onnx").write_bytes(b"other")


def break_config(model: Path) -> None:
    path = model / "config.pbtxt"
    path.write_text(path.read_text().replace("count: 1", "count: 3"))


def no_engine(model: Path) -> None:
    (model / "2" / "model.onnx").write_bytes(b"no network")
    subprocess.run("sha256sum [!S]* > ../new && mv ../new SHA256SUMS", shell=True, cwd=model / "2", check=True)


BROKEN = {
    "engine": (break_engine, "toy/2/model.onnx: SHA-256 is "),
    "config": (break_config, "toy/config.pbtxt: is not the one that was published with version 2"),
    "no engine": (no_engine, "toy/2/model.onnx: OpenVINO cannot read it"),
}


def test_version_that_does_not_load_is_said_once_and_the_old_one_answers(
    server: TritonServer, sample: Sample, switch: Switch
) -> None:
    said: list[str] = []
    follower = Follower(server, said.append)
    model = server.repository / "toy"
    with asking(server, sample) as seen:
        for name, (damage, message) in BROKEN.items():
            switch(server.repository, 2)
            kept = {path: path.read_bytes() for path in (model / "2").iterdir()}
            damage(model)
            for _ in range(2):
                follower.look()
            assert len(said) == 1, name
            assert said[0].startswith(f"not switched: toy: version 2: {server.repository}/toy/"), said
            assert message in said[0]
            ending = "; what was served is served on, until a restart: `temper rollback toy` puts it back into "
            assert said.pop().endswith(f"{ending}the repository")
            with Client(server.grpc_url) as client:
                assert client.versions("toy") == ("1",)
            for path, content in kept.items():
                path.write_bytes(content)
        switch(server.repository, 1)
        follower.look()
    assert said == ["switched: toy is served as version 1"]
    assert not any(seen)


@pytest.mark.parametrize("waits", [False, True], ids=["follower", "--url"])
def test_what_takes_image_files_is_switched_with_its_model_and_loses_no_request(
    two_with_jpeg: Path, sample: Sample, until: Until, waits: bool
) -> None:
    """The new version takes fewer images at once, so that the old ensemble fits it no more."""
    own = ("--model-control-mode=explicit", *(f"--load-model={name}" for name in JPEG))
    said: list[str] = []
    control = TritonServer(two_with_jpeg, extra_args=own) if waits else TritonServer(two_with_jpeg, reloads=True)
    with control as server, asking(server, sample, "toy", "toy_jpeg", "toy_jpeg") as seen:
        follower = Follower(server, said.append)
        url = server.grpc_url if waits else None
        for version in (2, 1):
            if version == 2:
                promote(two_with_jpeg, "toy", override=True, reason="a test", url=url)
            else:
                rollback(two_with_jpeg, "toy", url=url)
            if not waits:
                follower.look()
            assert {reload.served_version(server.grpc_url, name) for name in JPEG} == {version}
            begin = len(seen)
            until(functools.partial(_settled, seen, begin, version == 2))
        # A server that was not told is told later.
        switch(two_with_jpeg, "toy", 2, event="promoted")
        follower.look() if not waits else promote(two_with_jpeg, "toy", url=url)
        assert {reload.served_version(server.grpc_url, name) for name in JPEG} == {2}
    if not waits:
        lines = [f"switched: {name} is served as version {version}" for version in (2, 1, 2) for name in JPEG]
        assert said == lines


@pytest.mark.parametrize("waits", [False, True], ids=["follower", "promote --url"])
def test_what_was_promoted_and_does_not_load_is_taken_back(
    server: TritonServer, until: Until, waits: bool
) -> None:
    """Whoever promoted need not be there any more; one that waits is told why, and at once."""
    said: list[str] = []
    follower, repository = Follower(server, said.append), server.repository
    with ThreadPoolExecutor(1) as pool:
        url = server.grpc_url if waits else None
        promoted = pool.submit(promote, repository, "toy", 2, override=True, reason="a test", url=url)
        until(lambda: served_version(repository / "toy") == 2)
        (repository / "toy" / "2" / "model.onnx").write_bytes(b"other")
        follower.look()
        follower.look()
        if waits:
            with pytest.raises(
                ServerError, match=r"^toy: .*model.onnx: SHA-256 is .*; version 1 of toy is served again$"
            ):
                promoted.result()
        else:
            assert promoted.result().after == 2
    (line,) = said
    assert re.fullmatch(
        r"not switched: toy: version 2: .*; version 1 of toy is served on, in the repository, too", line
    )
    events = read_history(repository, "toy")
    assert [(one.event, one.before, one.after) for one in events] == [("promoted", 1, 2), ("taken back", 2, 1)]
    assert events[1].reason.removeprefix("toy: ") in line
    assert served_version(repository / "toy") == 1


def test_nobody_else_controls_the_models(server: TritonServer, ask_http: Callable[..., tuple[int, str]]) -> None:
    wrong = dict.fromkeys(server.key.grpc_headers, "0" * 64)
    requests: list[tuple[str, Any]] = [
        ("RepositoryIndex", service_pb2.RepositoryIndexRequest()),
        ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="toy")),
        ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name="toy")),
    ]
    with grpc.insecure_channel(server.grpc_url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        service = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for method, request in requests:
            for headers in ({}, wrong):
                with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
                    getattr(service, method)(request, metadata=tuple(headers.items()), timeout=60)
    for path in ("index", "models/toy/load", "models/toy/unload"):
        status, text = ask_http("POST", f"http://{server.http_url}/v2/repository/{path}", b"{}")
        assert (status, "restricted" in text) == (403, True), text
    with Client(server.grpc_url) as client:
        assert client.versions("toy") == ("1",)


def test_temper_serve_switches_by_itself(two_versions: Path, sample: Sample, switch: Switch) -> None:
    command = [sys.executable, "-m", "temper.cli.main", "serve", "--repository", str(two_versions)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            lines = [process.stdout.readline().split() for _ in range(4)]
            assert lines[3][0] == "models", process.stderr.read()
            switch(two_versions, 2)
            said = [process.stderr.readline() for _ in range(3)]
            assert said[2] == "switched: toy is served as version 2\n", said
            with Client(lines[0][1]) as client:
                assert client.infer("toy", sample.images[:1])[0, 0] > SHIFT / 2
        finally:
            process.send_signal(signal.SIGINT)
