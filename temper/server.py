"""The embedded tritonserver: a real one, out of the nvidia-pytriton wheel, on loopback only.

It exists so that a recipe can be measured on a machine without containers. It predates Triton's security
fixes (first clean release: 26.06), so it never listens on anything but 127.0.0.1; production is the pinned
NGC container.

Its end is guaranteed: `_supervise.py` holds the server in a process group of its own and stops the group when
the pipe from this process closes, however this process dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from temper.errors import ServerError

_LOOPBACK = "127.0.0.1"
_BACKENDS = Path(__file__).resolve().parent.parent / "backends"
_POLL_S = 0.05


class TritonServer:
    """A tritonserver process that serves a model repository on loopback while the context is open.

    Args:
        repository: Folder of Triton models.
        models: Models to load; None loads all. A model that is not named is not loaded, so a broken
            neighbour in the repository does no harm.
        log_file: Where the server's log goes; None puts it into the run folder that is deleted at the end. Only
            when the server ended by itself is it kept, at the place that `death` names.
        grpc_port: Port of the gRPC endpoint; None takes a free one. The HTTP and metrics ports likewise.
        http_port: Port of the HTTP endpoint.
        metrics_port: Port of the Prometheus endpoint.
        ready_timeout_s: How long loading may go on without a word in the server's log.
        strict: Raise when a model fails to load. False leaves the others served, as `failed` tells.
        extra_args: Further tritonserver options, verbatim.

    Raises:
        ServerError: The server cannot be started here, a port is taken, or a model does not load; the
            message holds Triton's reason and the log's path.
    """

    def __init__(
        self,
        repository: Path | str,
        *,
        models: Sequence[str] | None = None,
        log_file: Path | str | None = None,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        ready_timeout_s: float = 300.0,
        strict: bool = True,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Keep the options; `start` or the context manager starts the process."""
        self.repository = Path(repository).resolve()
        self.models = None if models is None else tuple(models)
        self.ready_timeout_s = ready_timeout_s
        self.strict = strict
        self.extra_args = tuple(extra_args)
        self.failed: dict[str, str] = {}
        self.pid = 0
        self.log_file = None if log_file is None else Path(log_file).resolve()
        self._ports = (grpc_port, http_port, metrics_port)
        self._folder: Path | None = None
        self._process: subprocess.Popen[str] | None = None
        self._death: str | None = None
        self._asking = threading.Lock()

    def __enter__(self) -> TritonServer:
        """Start the server and wait until its models answer."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the server process is running."""
        return self._process is not None and self.death() is None

    def death(self) -> str | None:
        """Why the server ended by itself, in one line; None while it runs, was not started or was stopped.

        It is known as soon as a client can see the death: a server that is about to be gone is waited for.
        """
        with self._asking:
            process = self._process
            if process is None or self._death is not None:
                return self._death
            assert process.stdout is not None
            told = select.poll()
            told.register(process.stdout, select.POLLIN)
            if not _exiting(self.pid) and not told.poll(0):
                return None
            report = process.stdout.readline()
            if report:
                self._log = Path(json.loads(report)["log"])
            self._death = _describe_death(report, self._log)
            return self._death

    def restart(self) -> TritonServer:
        """Start again what has died, or is still running, with the same options on the same ports.

        Raises:
            ServerError: As `start`; a port may have been taken meanwhile.
        """
        self.stop()
        self._ports = (self.grpc_port, self.http_port, self.metrics_port)
        return self.start()

    def start(self) -> TritonServer:
        """Start the process and return once every model is ready, or say why not."""
        if not self.repository.is_dir():
            raise ServerError(
                f"model repository {self.repository}: no such folder; publish a model first with `temper build`"
            )
        self._check_models_exist()
        try:
            self._start()
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server: SIGTERM, then SIGKILL after its own exit timeout. Safe to call twice."""
        with self._asking:
            process, self._process, self._death = self._process, None, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait()
            process.stdout.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _check_models_exist(self) -> None:
        if self.models is None and not any(self.repository.glob("*/*/")):
            raise ServerError(
                f"model repository {self.repository} holds no model; publish one with `temper build`"
            )
        for model in self.models or ():
            known = sorted(entry.name for entry in self.repository.iterdir() if entry.is_dir())
            if model not in known:
                raise ServerError(
                    f"model {model!r} is not in {self.repository}; it holds: {', '.join(known) or 'no model'}"
                )

    def _start(self) -> None:
        runtime = _find_runtime()
        self._folder = Path(tempfile.mkdtemp(prefix="temper-triton-"))
        self._log = self.log_file or self._folder / "tritonserver.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.grpc_port, self.http_port, self.metrics_port = _take_ports(self._ports)
        self.grpc_url = f"{_LOOPBACK}:{self.grpc_port}"
        self.http_url = f"{_LOOPBACK}:{self.http_port}"
        self.metrics_url = f"http://{_LOOPBACK}:{self.metrics_port}/metrics"
        backends = _lay_out_backends(runtime, self._folder / "backends")
        command = [str(runtime / "bin" / "tritonserver"), *self._arguments(backends)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("_supervise.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(runtime),
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"command": command, "folder": str(self._folder), "log": str(self._log)}
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        self.pid = int(self._process.stdout.readline() or 0)

    def _arguments(self, backends: Path) -> list[str]:
        selection = ["*"] if self.models is None else list(self.models)
        return [
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            # Explicit control keeps a load error from ending the server, and lets a test load and unload.
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in selection),
            "--exit-on-error=false",
            "--strict-readiness=true",
            f"--grpc-address={_LOOPBACK}",
            f"--grpc-port={self.grpc_port}",
            f"--http-address={_LOOPBACK}",
            f"--http-port={self.http_port}",
            f"--metrics-address={_LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            "--allow-sagemaker=false",
            "--allow-vertex-ai=false",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=10",
            *self.extra_args,
        ]

    def _wait_ready(self) -> None:
        patience = _Patience(self._log, self.ready_timeout_s)
        with _control(self.grpc_url) as ask:
            while not ask("live"):
                self._check_alive(patience)
            while True:
                index: dict[str, tuple[str, str]] | None = ask("index")
                if index is None:
                    self._check_alive(patience)
                    continue
                wanted = self.models or tuple(index)
                states = {model: index.get(model, ("", "")) for model in wanted}
                if not any(state in ("LOADING", "") and not reason for state, reason in states.values()):
                    break
                if self._gave_up():
                    # An ensemble without one of its members stays without a state and without a reason.
                    states = {name: _settled(*each) for name, each in states.items()}
                    break
                self._check_alive(patience)
        self.failed = {model: reason for model, (state, reason) in states.items() if state != "READY"}
        if self.failed and self.strict:
            lines = "; ".join(f"{model}: {_first_line(reason)}" for model, reason in self.failed.items())
            raise ServerError(f"tritonserver could not load {lines}")

    def _gave_up(self) -> bool:
        """Whether Triton has tried every model and says that some did not load."""
        return "failed to load all models" in self._log.read_text(errors="replace")

    def _check_alive(self, patience: _Patience) -> None:
        if not self.alive:
            raise ServerError(f"{self.death()}; while it started it said: {self._last_error()}")
        if patience.ended():
            raise ServerError(
                f"tritonserver is not ready and wrote nothing for {self.ready_timeout_s:.0f} s; the last it said: "
                f"{self._last_error()}"
            )
        time.sleep(_POLL_S)

    def _last_error(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        # Triton logs this error on every machine without a GPU.
        lines = [line for line in lines if "CudaDriverHelper" not in line]
        errors = [line for line in lines if line.startswith(("E", "error"))]
        return (errors or lines or ["its log is empty"])[-1][:400]


class _Patience:
    """Ends when a log has not grown for a while: a busy machine is slow, and only what hangs is silent."""

    def __init__(self, log: Path, limit_s: float) -> None:
        self._log = log
        self._limit_s = limit_s
        self._size = -1
        self._since = 0.0

    def ended(self) -> bool:
        size, now = self._log.stat().st_size, time.monotonic()
        if size != self._size:
            self._size, self._since = size, now
        return now - self._since > self._limit_s


def _exiting(pid: int) -> bool:
    """Whether a process has begun to end: the kernel marks it before it closes the process's connections."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & 0x4)  # PF_EXITING


def _describe_death(report: str, log: Path) -> str:
    """One line from what the supervisor reported; it reports nothing when it was killed itself."""
    if not report:
        return f"tritonserver ended with its supervisor, which was killed; its log is in {log}"
    status = json.loads(report)["status"]
    if status < 0:
        return f"tritonserver died by {signal.Signals(-status).name}; its backtrace is in {log}"
    return f"tritonserver ended with exit status {status}; its log is in {log}"


def _settled(state: str, reason: str) -> tuple[str, str]:
    if state in ("LOADING", ""):
        return "UNAVAILABLE", reason or "a model that it is made of did not load, or is not in the repository"
    return state, reason


def _first_line(reason: str) -> str:
    """Triton's reason without the stack that follows it."""
    text = reason.strip() or "no reason given"
    for noise in ("Internal: ", "TritonModelException: "):
        text = text.replace(noise, "")
    return text.splitlines()[0][:600]


def _find_runtime() -> Path:
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        raise ServerError(
            "no embedded tritonserver: the package nvidia-pytriton is missing; "
            "install temper[embedded], or name a running server with --url"
        )
    runtime = Path(found.submodule_search_locations[0]) / "tritonserver"
    import numpy as np

    if not np.__version__.startswith("1."):
        # With numpy 2 beside this stub every answer is a success with zero bytes, and nothing is logged.
        raise ServerError(
            f"numpy {np.__version__} beside the embedded tritonserver, expected 1.26; "
            "run `pip install numpy==1.26.4`, or name a running server with --url"
        )
    return runtime


def _lay_out_backends(runtime: Path, folder: Path) -> Path:
    """Make the backend folder Triton wants, with the stub of this Python beside the python backend."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = runtime / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in (runtime / "python_backend_stubs").iterdir()))
        raise ServerError(f"the embedded tritonserver has no stub for Python {version}; use one of {known}")
    # Copies: Triton refuses a backend library that a link takes out of its folder.
    python = shutil.copytree(runtime / "backends" / "python", folder / "python")
    shutil.copy(stub, python / stub.name)
    # Some installers drop the execute bit.
    (python / stub.name).chmod(0o755)
    for own in ("temper", "temper_mean"):
        shutil.copytree(_BACKENDS / own, folder / own, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _environment(runtime: Path) -> dict[str, str]:
    libraries = [
        str(runtime.parents[1] / "nvidia_pytriton.libs"),
        *_find_libpython(),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        # The stub ignores PYTHONPATH and takes its packages from the first python3 on PATH.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _find_libpython() -> list[str]:
    """The folder to add for libpython, which the stub links to; none when the system's loader finds it."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folder = sysconfig.get_config_var("LIBDIR") or ""
    if Path(folder, name).is_file():
        return [folder]
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise ServerError(
            f"the embedded tritonserver needs {name}, which this machine lacks; "
            f"install it (Debian: apt-get install {name.split('.so')[0]}), or name a running server with --url"
        ) from error
    return []


def _take_ports(wanted: Sequence[int | None]) -> list[int]:
    """Ports that are free now: the wanted ones, or any."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in wanted:
            probe = stack.enter_context(socket.socket())
            # As Triton does: a port that is only waiting out old connections counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_LOOPBACK, port or 0))
            except OSError as error:
                raise ServerError(
                    f"port {port} is in use ({error.strerror}); choose another, or stop what listens there"
                ) from error
            ports.append(probe.getsockname()[1])
    return ports


@contextlib.contextmanager
def _control(url: str) -> Iterator[Callable[[str], Any]]:
    """A small client of Triton's control calls; a server that cannot be reached, or is too busy, answers None."""
    import grpc  # type: ignore[import-untyped]  # no stubs
    from tritonclient.grpc import service_pb2, service_pb2_grpc  # type: ignore[import-untyped]  # no stubs

    # Before the server listens every attempt fails; gRPC's own wait between attempts starts at a second.
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
    with grpc.insecure_channel(url, options=options) as channel:
        service = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def ask(what: str) -> Any:
            try:
                if what == "live":
                    return service.ServerLive(service_pb2.ServerLiveRequest(), timeout=2).live
                answer = service.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return None
                raise
            return {model.name: (model.state, model.reason) for model in answer.models}

        yield ask
