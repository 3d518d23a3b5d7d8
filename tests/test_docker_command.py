"""The command of the server image: what it starts, what it refuses, and when it ends.

Long because one process does all of it, and every test starts that one or a part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from temper.builder.publish.ensemble import publish_ensemble, publish_jpeg
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import EnsembleBackend, NativeBackend, PluginBackend, TritonConfig
from temper.gate.keys import public_key
from temper.serve.runtime import environment, find_runtime, lay_out_backends
from temper.serve.server import TritonServer
from tests import verdicts

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
# Options of tritonserver that came after the embedded release (2.51); the others are looked up in its --help.
LATER_OPTIONS = {"--allow-client-shm", "--http-max-input-size", "--grpc-max-response-pool-size"}


def load_command() -> ModuleType:
    """The image's command, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("serve", DOCKER / "serve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serve = load_command()


# The image's command, with a program in tritonserver's place that prints what it was given: the release that the
# command is for is not on this machine.


KEY = "0123456789_s3cret-KEY"
# The command where a seccomp profile forbids ptrace.
NO_PTRACE = """
import runpy, sys, temper.serve._launch
temper.serve._launch._libc.ptrace = lambda *_: -1
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def started(folder: Path, *options: str, ptrace: bool = True, **environment: str) -> list[str]:
    program = folder / "tritonserver"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, *(() if ptrace else ("-c", NO_PTRACE)), str(DOCKER / "serve.py"), *options],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_server_is_started_closed(tmp_path: Path) -> None:
    given = started(tmp_path)
    assert "--allow-client-shm=false" in given
    assert "--model-control-mode=none" in given
    assert not [option for option in given if option.startswith("--backend-config")]
    for option in ("--grpc-restricted-protocol=", "--http-restricted-api="):
        (value,) = [each.removeprefix(option) for each in given if each.startswith(option)]
        assert re.fullmatch(r"shared-memory,model-repository,trace,logging:admin-key=[0-9a-f]{64}", value)
    assert given != started(tmp_path), "a key that nobody was told is a new one each time"


def test_server_is_opened_by_what_it_is_told(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    given = started(
        tmp_path,
        "--log-verbose=1",
        TEMPER_CLIENT_SHM="true",
        TEMPER_VERSION_COMPATIBLE="true",
        TEMPER_ADMIN_KEY_FILE=str(key),
        TEMPER_REPOSITORY="/elsewhere",
    )
    assert "--model-repository=/elsewhere" in given
    assert "--allow-client-shm=true" in given
    assert f"--grpc-restricted-protocol=model-repository,trace,logging:admin-key={KEY}" in given
    assert "--backend-config=tensorrt,version-compatible=true" in given
    assert given[-3] == "--log-verbose=1"


def refused(folder: Path, *options: str, ptrace: bool = True, **environment: str) -> str:
    """The one line of a command that does not start the server."""
    with pytest.raises(subprocess.CalledProcessError) as failed:
        started(folder, *options, ptrace=ptrace, **environment)
    (line,) = failed.value.stderr.splitlines()
    return str(line)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "its 0 characters are no key, expected 16 or more letters, digits, - and _"),
        (b" \n\t\n", "its 0 characters are no key"),
        (b"s3cret", "its 6 characters are no key"),
        (b"0123456789\n0123456789", "its 21 characters are no key"),
        (b"0123456789,0123456789", "its 21 characters are no key"),
        (b"0123456789=0123456789", "its 21 characters are no key"),
        (b"0123456789\xff0123456789", "its 21 characters are no key"),
    ],
)
def test_key_that_is_none_does_not_open_the_server(tmp_path: Path, content: bytes | None, reason: str) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    line = refused(tmp_path, TEMPER_ADMIN_KEY_FILE=str(key))
    assert line.startswith(f"temper: TEMPER_ADMIN_KEY_FILE: {key}: {reason}")


def test_key_that_cannot_be_hidden_does_not_open_the_server(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    line = refused(tmp_path, ptrace=False, TEMPER_ADMIN_KEY_FILE=str(key))
    assert line.startswith(
        "temper: TEMPER_ADMIN_KEY_FILE: tritonserver's command line would show the key, as ptrace"
    )
    first, *given = started(tmp_path, ptrace=False)
    assert first == "temper: ptrace fails here: other users of this container can read the random key"
    assert len(given) == len(started(tmp_path))


@pytest.mark.parametrize("option", ["--http-port=9000", "--allow-http=false", "--http-address", "--http-po=9000"])
def test_option_that_moves_the_health_check_is_refused(tmp_path: Path, option: str) -> None:
    assert refused(tmp_path, "--log-verbose=1", option).startswith(
        f"temper: {option}: not passed on, as the health "
    )


@pytest.mark.parametrize("option", ["--model-control-mode=poll", "--model-con=explicit"])
def test_option_that_loads_what_nobody_looked_at_is_refused_where_verdicts_are_asked_for(
    tmp_path: Path, option: str
) -> None:
    line = f"temper: {option}: not passed on with TEMPER_REQUIRE_VERDICT, as what is loaded later is not looked at"
    assert refused(tmp_path, option, TEMPER_REQUIRE_VERDICT="1").startswith(line)
    assert option in started(tmp_path, option)


@pytest.mark.parametrize("option", ["--model-repository=/x", "--model-store", "--model-rep=/x"])
def test_option_that_names_another_repository_is_refused(tmp_path: Path, option: str) -> None:
    line = f"temper: {option}: not passed on; name the one repository in TEMPER_REPOSITORY"
    assert refused(tmp_path, option) == line


# As a Triton from 25.12 on: it reaps its stubs.
REAPS = """
import signal, subprocess
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
stub = ["/opt/triton_python_backend_stub", *"600 1 2 3 4 5 6 7".split()]
print(subprocess.Popen(stub, executable="/bin/sleep").pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize(("victim", "missed"), [("stub", "the stub of 7 died"), ("server", None)])
def test_stub_that_its_server_forgets_is_missed(
    monkeypatch: pytest.MonkeyPatch, until: Callable[..., None], victim: str, missed: str | None
) -> None:
    """But not one whose server was killed, and which another process has taken over by then."""
    with subprocess.Popen([sys.executable, "-c", REAPS], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        stub = int(server.stdout.readline())
        runs, asked = serve._runs, list[int]()

        def runs_and_dies(pid: int, parent: int) -> bool:
            asked.append(pid)
            if len(asked) == 2:  # the first time was when all models were loaded
                killed = stub if victim == "stub" else server.pid
                os.kill(killed, signal.SIGKILL)
                until(lambda: serve.read_stat(killed)[:1] in ([], ["Z"]))
            return bool(runs(pid, parent))

        monkeypatch.setattr(serve, "_runs", runs_and_dies)
        monkeypatch.setattr(serve, "_ask", lambda what, deadline: 200)
        try:
            assert serve._watch(server, "", [], serve.Canary([], "")) == missed
            assert (server.poll() is None) == (victim == "stub")
        finally:
            server.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(stub, signal.SIGKILL)


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    """One entry of every kind; nothing here parses their engines."""
    root = tmp_path / "repository"
    labels, ensemble = ["cat", "dog"], EnsembleBackend(members=("plugin", "native"))
    pair = TritonConfig(name="pair", image_size=32, num_classes=2, max_batch=8, backend=ensemble, in_ensemble=True)
    (tmp_path / "model.plan").write_bytes(b"engine")
    backends = {"plugin": PluginBackend(engine="tensorrt"), "native": NativeBackend()}
    for model, backend in backends.items():
        config = dataclasses.replace(pair, name=model, backend=backend)
        publish(root, config, engine_file=tmp_path / "model.plan", labels=labels, card={})
    publish_ensemble(root, pair, labels=labels, card={})
    return root


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        text = (model / name).read_text()
        assert old in text
        (model / name).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("model", "change", "reason"),
    [
        ("plugin", replace("config.pbtxt", '"temper"', '"python"'), "config.pbtxt: is not the one that was publ"),
        ("native", replace("1/labels.txt", "cat", "cow"), "1/labels.txt: SHA-256 is "),
        ("native", replace("config.pbtxt", "1/labels", "../labels"), "config.pbtxt: is not the one that was publ"),
        ("pair", replace("1/labels.txt", "cat", "cow"), "1/labels.txt: SHA-256 is "),
        ("pair_mean", lambda model: (model / "1" / "model.py").touch(), "1/model.py: is not named in SHA256SUMS"),
        ("pair", lambda model: (model / "model.py").touch(), "model.py: nobody published it; remove it"),
        ("native", lambda model: (model / "config.pbtxt").unlink(), "config.pbtxt cannot be read (No such file"),
        ("pair", replace("config.pbtxt", "versions: 1", ""), "config.pbtxt: names no version"),
    ],
)
def test_server_is_not_started_on_what_was_changed(
    entries: Path, tmp_path: Path, model: str, change: Callable[[Path], object], reason: str
) -> None:
    assert f"--model-repository={entries}" in started(tmp_path, TEMPER_REPOSITORY=str(entries))
    change(entries / model)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        started(tmp_path, TEMPER_REPOSITORY=str(entries))
    (line,) = failed.value.stderr.splitlines()
    assert failed.value.returncode == 1
    assert line.startswith(f"temper: model {model} is not what was published: {entries / model}/{reason}")


@pytest.mark.server
def test_options_are_tritonservers_own(tmp_path: Path) -> None:
    runtime = find_runtime()
    done = subprocess.run(
        [str(runtime / "bin" / "tritonserver"), "--help"],
        env=environment(runtime),
        capture_output=True,
        text=True,
    )
    known = set(re.findall(r"^\s*(--[a-z0-9-]+)", done.stdout + done.stderr, re.MULTILINE))
    assert len(known) > 50
    used = {option.partition("=")[0] for option in started(tmp_path, TEMPER_VERSION_COMPATIBLE="true")}
    assert used - known == LATER_OPTIONS


# The image's command on the embedded tritonserver, without the options that came later.

SHARED_MEMORY = f"temper-docker-test-{os.getpid()}-"
SUPERVISE = "import json, os, sys, serve; sys.exit(serve.supervise(*json.loads(os.environ['ORDER'])))"
# Asks models more often, for the test of that alone: elsewhere it might notice a dead stub first.
CANARY = SUPERVISE.replace("sys.exit", "serve._CANARY_S = 0.2; sys.exit")
# The plugin's runner, which fails as one whose GPU is lost and whose process goes on, once there is a file.
FAULTY_RUNNER = """

import os

import runners


class Runner(Runner):
    def infer(self, batches):
        if os.path.exists("{lost}"):
            raise runners.RunnerError("CUDA: an illegal memory access was encountered")
        return super().infer(batches)
"""


@pytest.fixture
def container(
    request: pytest.FixtureRequest, toy_repository: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command's process, under way, and the address of its HTTP endpoint."""
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    plain, _ = serve.options({"TEMPER_REPOSITORY": str(toy_repository)})
    _, hidden = serve.options({"TEMPER_ADMIN_KEY_FILE": str(key)})
    runtime = find_runtime()
    lay_out_backends(runtime, tmp_path / "backends")
    with (tmp_path / "backends" / "temper" / "runners" / "openvino_runner.py").open("a") as module:
        module.write(FAULTY_RUNNER.format(lost=tmp_path / "lost"))
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    command = [
        str(runtime / "bin" / "tritonserver"),
        *(option for option in plain if option.partition("=")[0] not in LATER_OPTIONS),
        f"--backend-directory={tmp_path / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={SHARED_MEMORY}",
        *(f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
        *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
    ]
    url = f"http://127.0.0.1:{ports[0]}"
    order = [command, hidden, serve.find_models(toy_repository), url]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", getattr(request, "param", SUPERVISE)],
            env={**environment(runtime), "PYTHONPATH": str(DOCKER), "ORDER": json.dumps(order)},
            stderr=log,
        )
    try:
        yield process, url
    finally:
        process.kill()
        process.wait()
        for region in Path("/dev/shm").glob(f"{SHARED_MEMORY}*"):
            region.unlink()


def children(pid: int) -> list[int]:
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in " ".join(texts).split()]


@pytest.mark.server
@pytest.mark.parametrize(
    ("victim", "number", "expected"),
    [("stub", signal.SIGKILL, 1), ("server", signal.SIGKILL, 137), ("container", signal.SIGTERM, 0)],
)
def test_container_ends_with_its_server_or_a_stub(
    container: tuple[subprocess.Popen[bytes], str],
    tmp_path: Path,
    until: Callable[..., None],
    ask_http: Callable[..., tuple[int, str]],
    victim: str,
    number: signal.Signals,
    expected: int,
) -> None:
    process, url = container
    index = ("POST", f"{url}/v2/repository/index", b"{}")
    until(lambda: ask_http(*index, **{"admin-key": KEY})[0] == 200)
    assert ask_http(*index)[0] == 403
    (server,) = children(process.pid)
    stubs = children(server)
    assert len(stubs) == 2
    for pid in (process.pid, server, *stubs):
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    os.kill({"stub": stubs[0], "server": server, "container": process.pid}[victim], number)
    process.wait()
    log = (tmp_path / "log").read_text()
    assert process.returncode == expected, log
    assert ("temper: the stub of toy_fp32_0_" in log) == (victim == "stub")
    assert KEY not in log
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (server, *stubs)))


@pytest.mark.server
def test_health_is_that_of_every_model_and_names_those_that_are_not_ready(
    container: tuple[subprocess.Popen[bytes], str],
    toy_repository: Path,
    tmp_path: Path,
    until: Callable[..., None],
) -> None:
    _, url = container
    until(lambda: serve.why_unhealthy(serve.find_models(toy_repository), url) is None)
    line = serve.why_unhealthy(["broken", "other", "toy_fp32"], url)
    assert line == "temper: not ready: broken, other; the server's log says why"
    none = serve.find_models(tmp_path / "nothing")
    assert serve.why_unhealthy(none, url).startswith("temper: the repository holds no model; publish one")


@pytest.mark.server
@pytest.mark.parametrize("container", [CANARY], indirect=True, ids=["canary"])
def test_model_that_answered_and_fails_for_good_ends_the_container(
    container: tuple[subprocess.Popen[bytes], str],
    tmp_path: Path,
    until: Callable[..., None],
    ask_http: Callable[..., tuple[int, str]],
) -> None:
    """The server calls itself ready, and the model too."""
    process, url = container

    def num_answered() -> int:
        status, text = ask_http("GET", f"{url}/v2/models/toy_fp32/stats")
        return int(json.loads(text)["model_stats"][0]["inference_count"]) if status == 200 else 0

    until(lambda: num_answered() >= 2)  # nobody else asks, and the second comes after the first was seen
    (tmp_path / "lost").touch()
    process.wait()
    assert process.returncode == 1
    log = (tmp_path / "log").read_text()
    assert "temper: model toy_fp32 answers with errors alone; ending, to be started again" in log


@pytest.mark.server
def test_canary_is_answered_by_what_takes_files(toy_onnx: Path, tmp_path: Path) -> None:
    root, labels = tmp_path / "repository", list("0123456789")
    toy = TritonConfig(
        name="toy",
        image_size=32,
        num_classes=10,
        max_batch=8,
        backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"}),
        in_ensemble=True,
    )
    publish(root, toy, engine_file=toy_onnx, labels=labels, card={})
    publish_jpeg(root, toy, labels=labels, card={})
    models = serve.find_models(root)
    assert models == ["toy", "toy_jpeg", "toy_jpeg_decode"]
    with TritonServer(root, http_port=0) as server:
        canary = serve.Canary(models, f"http://{server.http_url}")
        assert canary.look() is None
    assert canary._errors == dict.fromkeys(models, 0), "each answered"


def test_canary_minds_neither_a_model_that_never_answered_nor_a_busy_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([500, 500, 500, 500, 200, 503, None, 500, 500, 200, 500, 500, 500])
    monkeypatch.setattr(serve, "_ask", lambda what, deadline: next(answers))
    monkeypatch.setattr(serve.Canary, "_write", lambda self, model: "a request")
    canary = serve.Canary(["m"], "")
    assert [canary.look() for _ in range(13)] == [None] * 12 + ["m"]


def test_health_check_asks_for_the_models_that_were_there_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server in control mode none loads no others."""
    monkeypatch.setattr(serve, "_STARTED", tmp_path / "models.json")
    assert serve._read_started() is None
    serve._STARTED.write_text('["a", "b"]')
    assert serve._read_started() == ["a", "b"]


def test_health_check_of_the_image_is_the_commands_own(tmp_path: Path) -> None:
    (check,) = [line for line in (DOCKER / "server.Dockerfile").read_text().splitlines() if "--check" in line]
    arguments = json.loads(check.strip().removeprefix("CMD "))
    assert arguments[1] == "/opt/temper/serve.py"
    command = [sys.executable, str(DOCKER / "serve.py"), *arguments[2:]]
    done = subprocess.run(command, env={"TEMPER_REPOSITORY": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1, "nothing serves here"
    assert re.fullmatch(r"temper: .*\n", done.stderr)


def test_engine_of_tritons_own_backend_needs_the_verdict_that_is_asked_of_all(
    entries: Path, tmp_path: Path
) -> None:
    """The plugin asks for itself, and of an ensemble's ends, which have no engine, nobody does."""
    keys = tmp_path / "release.pub"
    keys.write_text(f"ed25519 {public_key(verdicts.KEY)}\n")

    def start() -> list[str]:
        return started(
            tmp_path,
            TEMPER_REPOSITORY=str(entries),
            TEMPER_REQUIRE_VERDICT="1",
            TEMPER_TRUSTED_KEYS=str(keys),
        )

    with pytest.raises(subprocess.CalledProcessError) as failed:
        start()
    (line,) = failed.value.stderr.splitlines()
    assert line.startswith(
        f"temper: model native may not be served: {entries}/native/1/verdict.json: no such file"
    )
    verdicts.judge(entries / "native" / "1")
    assert f"--model-repository={entries}" in start()


def rewrite(model: Path, old: str = "", new: str = "", file: str = "") -> None:
    """Changes an entry as who may write the repository can: with digests that fit."""
    folder = model / "1"
    for path in (model / "config.pbtxt", folder / "config.pbtxt"):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new) if old else text + new)
    if file:
        (folder / file).touch()
    files = [path for path in sorted(folder.iterdir()) if path.name not in ("SHA256SUMS", "verdict.json")]
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(sums))


PYTHON = 'parameters {\n  key: "EXECUTION_ENV_PATH"\n  value {\n    string_value: "/evil.tar.gz"\n  }\n}\n'


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("plugin", {"file": "libtriton_temper.so"}),
        ("plugin", {"file": "model.py"}),
        ("plugin", {"new": PYTHON}),
        ("plugin", {"new": PYTHON.replace("_PATH", '" "_PATH')}),
        ("plugin", {"new": PYTHON.replace("_PATH", "\\x5fPATH")}),
        ("plugin", {"new": 'runtime: "libtriton_temper.so"\n'}),
        ("plugin", {"new": 'default_model_filename: "x"\n'}),
        ("plugin", {"old": 'backend: "temper"\n', "new": '# backend: "temper"\nbackend: "python"\n'}),
        ("plugin", {"new": 'model_repository_agents {\n  agents {\n    name: "../x"\n  }\n}\n'}),
        ("plugin", {"file": "cryptography.pyc"}),
        ("plugin", {"old": 'backend: "temper"\n', "new": 'backend: "temper"\n"/../x"\n'}),
        ("plugin", {"old": "  specific {\n    versions: 1\n  }", "new": "  all {} # specific { versions: 1 }"}),
        (
            "plugin",
            {
                "old": "specific {\n    versions: 1\n",
                "new": "specific {\n    versions: [2] # specific { versions: 1 }\n",
            },
        ),
        ("plugin", {"old": "versions: 1\n", "new": "versions: 01\n"}),
        ("pair", {"file": "model.onnx"}),
        ("pair", {"old": 'platform: "ensemble"\n', "new": 'backend: "onnxruntime"\n'}),
        ("pair_mean", {"file": "libtriton_temper_mean.so"}),
        ("pair_mean", {"new": PYTHON.replace("EXECUTION_ENV_PATH", "TRITON_BATCH_STRATEGY_PATH")}),
    ],
)
def test_what_brings_code_of_its_own_needs_a_verdict(
    entries: Path, monkeypatch: pytest.MonkeyPatch, model: str, change: dict[str, str]
) -> None:
    """The plugin would ask too late: Triton runs such code before it."""
    monkeypatch.setenv("TEMPER_REQUIRE_VERDICT", "1")
    verdicts.judge(entries / "native" / "1")
    keys = entries.parent / "release.pub"
    keys.write_text(f"ed25519 {public_key(verdicts.KEY)}\n")
    monkeypatch.setenv("TEMPER_TRUSTED_KEYS", str(keys))
    assert serve.find_changed(entries) == []
    rewrite(entries / model, **change)
    (line,) = serve.find_changed(entries)
    assert line.startswith(
        f"temper: model {model} may not be served: {entries}/{model}/1/verdict.json: no such file"
    )
