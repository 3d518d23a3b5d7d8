#!/usr/bin/env python3
"""Starts tritonserver with everything closed that serving does not need; ends when it, a stub or a model does.

Nothing is started on a repository of which a model is not what was published: Triton would run whatever backend a
config.pbtxt names, and the plugin sees none but its own.

Further options are passed on, but for those that this and the health check depend on. What it can be told, in the
environment:

TEMPER_REPOSITORY           the model repository; /models/repository
TEMPER_ADMIN_KEY_FILE       file with the key of the restricted calls: 16 or more letters, digits, - and _; without
                            it the key is random and nobody is told
TEMPER_CLIENT_SHM           true: clients may send images through shared memory
TEMPER_REQUIRE_VERDICT      1: no engine is loaded without a SHIP verdict that a trusted key signed
TEMPER_TRUSTED_KEYS         the public keys that are trusted, a file or folder that lies outside the repository
TEMPER_VERSION_COMPATIBLE   true: plans that were built version compatible may run the host code they carry

Every model is asked for an answer now and then. One that answered once and now gives errors alone, as Triton's own
backends do for ever when a kernel's fault has ended CUDA's context, ends the container, too.

The key is in no command line and in no log: where it cannot be kept out, the server does not start with one that
it was told. A stub, the process of one model instance, that dies stays dead, and its instance fails every request
while the server calls itself live: whoever runs the container must start it anew.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from temper.backends.temper import artifact, verdict
from temper.serve._launch import CannotHideError, launch
from temper.serve._stubs import Stubs, read_stat

_POLL_S = 0.5
_PF_EXITING = 0x4  # include/linux/sched.h: this thread is on its way out
# More than --exit-timeout-secs: requests in flight are answered.
_GRACE_S = 40.0
_URL = "http://127.0.0.1:8000"
_LIVE = "/v2/health/live"
# Without the environment's proxies: they know nothing of this loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_OK, _FAILED = 200, 500
# Less than the image's limit for its health check.
_CHECK_S = 4.0
# Between two rounds of questions, and the longest wait for an answer.
_CANARY_S, _ANSWER_S = 10.0, 4.0
# In a row from one model, so many are no accident.
_ERRORS = 3
_BYTES = {"UINT8": 1, "FP32": 4}
# What a model that takes image files is asked, a black pixel: its length, as BYTES has it, and the file.
_FILE = b"\x0e\0\0\0" + b"P6 1 1 255\n" + bytes(3)
_STARTED = Path(tempfile.gettempdir()) / "temper-models.json"
# What would move that.
_FIXED = ("--allow-http", "--http-address", "--http-port")
# What would serve one that was not looked at.
_REPOSITORY = ("--model-repository", "--model-store")
# What would load one after the look, before anybody asks for its verdict.
_CONTROL = "--model-control-mode"


def options(environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Returns tritonserver's options, and those that hold the key.

    Raises:
        ValueError: The file of the key cannot be read, or holds none.
    """
    shared_memory = environment.get("TEMPER_CLIENT_SHM", "false")
    key_file = environment.get("TEMPER_ADMIN_KEY_FILE")
    key = _read_key(key_file) if key_file else secrets.token_hex(32)
    closed = [] if shared_memory == "true" else ["shared-memory"]
    restricted = ",".join([*closed, "model-repository", "trace", "logging"])
    plans = environment.get("TEMPER_VERSION_COMPATIBLE") == "true"
    # No polling and no loading by request: a repository that changes is served by a new container. One model that
    # does not load leaves the others served, and /v2/health/ready says no.
    plain = [
        f"--model-repository={_repository(environment)}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--strict-readiness=true",
        "--exit-timeout-secs=30",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--http-max-input-size=67108864",
        "--grpc-max-response-pool-size=1024",
        f"--allow-client-shm={shared_memory}",
        *(["--backend-config=tensorrt,version-compatible=true"] if plans else []),
    ]
    return plain, [
        f"--grpc-restricted-protocol={restricted}:admin-key={key}",
        f"--http-restricted-api={restricted}:admin-key={key}",
    ]


def _repository(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("TEMPER_REPOSITORY", "/models/repository"))


def _read_key(file: str) -> str:
    try:
        content = Path(file).read_bytes().decode("ascii", errors="replace").strip()
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    # What neither Triton's option nor a header takes for anything else.
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", content):
        raise ValueError(
            f"{file}: its {len(content)} characters are no key, expected 16 or more letters, digits, - and _; "
            "`openssl rand -hex 32` makes one"
        )
    return content


def find_changed(repository: Path) -> list[str]:
    """Returns a line for each model that is not what was published, or lacks the verdict that is asked of all.

    No repository is tritonserver's to name.
    """
    lines = []
    for model in sorted(path for path in repository.glob("*") if path.is_dir()):
        try:
            artifact.verify_entry(model)
        except (artifact.ArtifactError, OSError) as error:
            lines.append(f"temper: model {model.name} is not what was published: {error}")
            continue
        try:
            verdict.check_before(model)
        except (artifact.ArtifactError, OSError) as error:
            lines.append(f"temper: model {model.name} may not be served: {error}")
    return lines


def find_models(repository: Path) -> list[str]:
    """Returns the models of a repository, by name; none where there is no folder."""
    return sorted(path.name for path in repository.glob("*") if path.is_dir())


def why_unhealthy(models: Sequence[str], url: str) -> str | None:
    """Returns in a line which of the models a server does not answer for; None when it does for all.

    Triton itself calls a server without any model ready, and of several names none.
    """
    deadline = time.monotonic() + _CHECK_S
    if _ask(f"{url}{_LIVE}", deadline) != _OK:
        return (
            f"temper: no tritonserver answers at {url}, expected one that loads or serves; see the container's log"
        )
    missing = [model for model in models if _ask(f"{url}/v2/models/{quote(model)}/ready", deadline) != _OK]
    if missing:
        return f"temper: not ready: {', '.join(missing)}; the server's log says why"
    return None if models else "temper: the repository holds no model; publish one and start the container again"


class Canary:
    """Asks models for an answer to an empty image, or to the file of one.

    One that never answered is left alone: a model that cannot work is no reason to start the others anew for ever.
    """

    def __init__(self, models: Sequence[str], url: str) -> None:
        """Ask nothing yet."""
        self._models, self._url = models, url
        self._errors: dict[str, int] = {}
        self._requests: dict[str, urllib.request.Request | None] = {}

    def look(self) -> str | None:
        """Asks every model; returns the name of one that answered once and gave errors alone of late."""
        for model in self._models:
            request = self._requests.get(model) or self._write(model)
            self._requests[model] = request
            status = None if request is None else _ask(request, time.monotonic() + _ANSWER_S)
            if status == _OK:
                self._errors[model] = 0
            elif status == _FAILED and model in self._errors:  # not what a full queue says, nor a slow server
                self._errors[model] += 1
            if self._errors.get(model, 0) >= _ERRORS:
                return model
        return None

    def _write(self, model: str) -> urllib.request.Request | None:
        """A request of zeros, or of a file, with what the model's config says of its inputs; None without it."""
        url = f"{self._url}/v2/models/{quote(model)}"
        try:
            with _OPENER.open(f"{url}/config", timeout=_ANSWER_S) as answer:
                config = json.load(answer)
            batch = [1] if config["max_batch_size"] else []
            inputs, body = [], b""
            for tensor in config["input"]:
                kind = tensor["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES")
                shape = [*batch, *map(int, tensor["dims"])]
                content = math.prod(shape) * (_FILE if kind == "BYTES" else bytes(_BYTES[kind]))
                body += content
                about = {"name": tensor["name"], "datatype": kind, "shape": shape}
                inputs.append({**about, "parameters": {"binary_data_size": len(content)}})
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return None
        head = json.dumps({"inputs": inputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        return urllib.request.Request(f"{url}/infer", head + body, headers)


def supervise(command: Sequence[str], hidden: Sequence[str], models: Sequence[str], url: str = _URL) -> int:
    """Runs tritonserver until it ends, a stub dies or a model fails for good, and returns the exit status.

    Args:
        command: The program and its options.
        hidden: Further options, which no other user can read.
        models: What it serves.
        url: Of its HTTP endpoint.
    """
    process = _launch(list(command), list(hidden))
    told: list[int] = []

    def forward(number: int, frame: object) -> None:
        told.append(number)
        process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    reason = _watch(process, url, told, Canary(models, url))
    if reason is not None:
        sys.stderr.write(f"temper: {reason}; ending, to be started again\n")
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return 1
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _launch(command: list[str], hidden: list[str]) -> subprocess.Popen[bytes]:
    environment, folder = dict(os.environ), os.getcwd()
    try:
        return launch(command, hidden, environment, folder)
    except CannotHideError as error:
        if environment.get("TEMPER_ADMIN_KEY_FILE"):
            sys.exit(
                f"temper: TEMPER_ADMIN_KEY_FILE: tritonserver's command line would show the key, as ptrace fails "
                f"here ({error}); allow ptrace in the container's seccomp profile, or start it without a key"
            )
    sys.stderr.write("temper: ptrace fails here: other users of this container can read the random key\n")
    return launch([*command, *hidden], [], environment, folder)


def _watch(process: subprocess.Popen[bytes], url: str, told: Sequence[int], canary: Canary) -> str | None:
    """Waits for the end of tritonserver; returns why it must end when it does not by itself.

    A Triton from before 25.12 leaves a dead stub as a zombie; a later one forgets it as soon as it is asked for
    anything, so the stubs that run when all models are loaded are remembered.
    """
    stubs = Stubs(process.pid)
    loaded: dict[int, str] | None = None
    asked = -math.inf  # at once when all are loaded, so that a later fault is told from a model that never worked
    while True:
        try:
            process.wait(_POLL_S)
            return None
        except subprocess.TimeoutExpired:
            pass
        dead = stubs.look()
        gone = [dead["instance"]] if dead else []
        gone += [name for pid, name in (loaded or {}).items() if not _runs(pid, process.pid)]
        # While it ends, it takes its stubs down by itself; killed, it leaves them to another parent.
        if gone and not told and not _ends(process.pid):
            return f"the stub of {gone[0]} died"
        if loaded is not None and not told and time.monotonic() > asked + _CANARY_S:
            asked = time.monotonic()
            if (model := canary.look()) is not None:
                return f"model {model} answers with errors alone"
        if loaded is None and _ask(f"{url}{_LIVE}", time.monotonic() + _CHECK_S) == _OK:
            loaded = {pid: name for pid, name in stubs.names.items() if _runs(pid, process.pid)}


def _runs(pid: int, parent: int) -> bool:
    fields = read_stat(pid)
    return bool(fields) and fields[0] != "Z" and fields[1] == str(parent)


def _ends(pid: int) -> bool:
    fields = read_stat(pid)
    return bool(fields) and bool(int(fields[6]) & _PF_EXITING)


def _ask(what: str | urllib.request.Request, deadline: float) -> int | None:
    """The status of an HTTP answer; None without one in time."""
    left_s = deadline - time.monotonic()
    try:
        with _OPENER.open(what, timeout=left_s) if left_s > 0 else contextlib.nullcontext() as answer:
            return None if answer is None else int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None


def _read_started() -> list[str] | None:
    """The models that were there when the server was started: it loads no others."""
    try:
        return [str(model) for model in json.loads(_STARTED.read_text())]
    except (OSError, ValueError, TypeError):
        return None


def main() -> None:
    """The image's command; with `--check` its health check."""
    if sys.argv[1:] == ["--check"]:
        sys.exit(why_unhealthy(_read_started() or find_models(_repository(os.environ)), _URL))
    for option in sys.argv[1:]:
        name = option.partition("=")[0]
        # Triton takes an option's beginning, too.
        if len(name) > 2 and any(fixed.startswith(name) for fixed in _FIXED):
            sys.exit(
                f"temper: {option}: not passed on, as the health check asks {_URL}; "
                "publish the container's port 8000 elsewhere instead"
            )
        if len(name) > 2 and any(other.startswith(name) for other in _REPOSITORY):
            sys.exit(f"temper: {option}: not passed on; name the one repository in TEMPER_REPOSITORY")
        if len(name) > 2 and _CONTROL.startswith(name) and os.environ.get(verdict.REQUIRE, "0") not in ("", "0"):
            sys.exit(
                f"temper: {option}: not passed on with {verdict.REQUIRE}, as what is loaded later is not looked "
                "at before; start a new container instead"
            )
    try:
        plain, hidden = options(os.environ)
    except ValueError as error:
        sys.exit(f"temper: TEMPER_ADMIN_KEY_FILE: {error}")
    if lines := find_changed(_repository(os.environ)):
        sys.exit("\n".join(lines))
    models = find_models(_repository(os.environ))
    with contextlib.suppress(OSError):  # without it the health check asks for what is there then
        _STARTED.write_text(json.dumps(models))
    sys.exit(supervise(["tritonserver", *plain, *sys.argv[1:]], hidden, models))


if __name__ == "__main__":
    main()
