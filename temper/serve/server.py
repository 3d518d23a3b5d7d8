"""The embedded tritonserver: a real one, out of the nvidia-pytriton wheel, on loopback only.

It exists so that a recipe can be measured on a machine without containers. It predates Triton's security
fixes (first clean release: 26.06), so it never listens on anything but 127.0.0.1; production is the pinned
NGC container.

Its end is guaranteed: `_supervise.py` holds the server in a process group of its own and stops the group when
the pipe from this process closes, however this process dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from temper.builder.errors import PublishError
from temper.builder.publish.switch import settle
from temper.errors import ServerError
from temper.serve._stubs import has_dead_stub
from temper.serve._supervise import keep_log, remove_traces
from temper.serve.control import Key, open_control
from temper.serve.death import describe_death, is_ending
from temper.serve.ports import LOOPBACK, listens, take_ports
from temper.serve.run_folder import BACKENDS, LOG, VIEW, lay_out_view, make_run_folder
from temper.serve.runtime import environment, find_runtime, lay_out_backends
from temper.serve.temporary import explain, is_trouble
from temper.serve.verify import find_changed, model_names
from temper.terminal import echo

_POLL_S = 0.05
_SUPERVISE = "import sys; sys.path.insert(0, sys.argv[1]); from temper.serve._supervise import main; main()"
_KEY_VISIBLE = (
    "warning: the kernel forbids ptrace here, so other users of this machine can read the embedded server's key "
    "in its command line; with it they can change its log, its trace and its shared memory"
)
# What Triton logs once it has tried every model, and what it logs when they were named.
_GAVE_UP = re.compile(r'failed to load all models|tritonserver\.cc:\d+\] ".*load failed for model')
# Longer than the supervisor waits with its report, also while models load; only one that is stopped takes it.
_REPORT_S = 60.0
# Longer than the supervisor gives tritonserver.
_STOP_S = 30.0
# A restart tries its old ports so often before it gives up.
_PORT_TRIES = 5


class TritonServer:
    """A tritonserver process that serves a model repository on loopback while the context is open.

    Args:
        repository: Folder of Triton models.
        models: Models to load; None loads all. A model that is not named is not loaded, so a broken
            neighbour in the repository does no harm.
        versions: By model, the versions to load in the place of the served one, also of those that an ensemble is
            made of. A request that names no version goes to the highest that is loaded, so this is for a server
            that measures, never for one that others ask.
        log_file: Where the server's log goes; None puts it into the run folder that is deleted at the end. Only
            when the server ended by itself is it kept, at the place that `death` names.
        grpc_port: Port of the gRPC endpoint; None takes a free one. The metrics port likewise.
        http_port: Port of the HTTP endpoint; None leaves it off, 0 takes a free one.
        metrics_port: Port of the Prometheus endpoint.
        ready_timeout_s: How long loading may go on without a word in the server's log.
        strict: Raise when a model fails to load. False leaves the others served, as `failed` tells.
        only_published: Check before every start that the models are what was published; what is not counts as one
            that fails to load, and the server never sees it. False is for models written by hand.
        reloads: Let this process, which alone has the key, load models anew while the server runs, as
            `temper.serve.follow` does. Clients cannot ask such a server for its index.
        extra_args: Further tritonserver options, verbatim.

    Raises:
        ServerError: The server cannot be started here, a port is taken, or a model is not what was published or
            does not load; the message holds the reason.
    """

    def __init__(
        self,
        repository: Path | str,
        *,
        models: Sequence[str] | None = None,
        versions: Mapping[str, Sequence[int]] | None = None,
        log_file: Path | str | None = None,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        ready_timeout_s: float = 300.0,
        strict: bool = True,
        only_published: bool = True,
        reloads: bool = False,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Keep the options; `start` or the context manager starts the process."""
        self.repository = Path(repository).resolve()
        self.models = None if models is None else tuple(models)
        self.versions = dict(versions or {})
        self.ready_timeout_s = ready_timeout_s
        self.strict = strict
        self.only_published = only_published
        self.reloads = reloads
        self.extra_args = tuple(extra_args)
        self.failed: dict[str, str] = {}
        self.loaded: tuple[str, ...] = ()
        self.pid = 0
        self.log_file = None if log_file is None else Path(log_file).resolve()
        self.log = self.log_file or Path(LOG)
        self._ports = (grpc_port, http_port, metrics_port)
        self._folder: Path | None = None
        self._process: subprocess.Popen[str] | None = None
        self._death: str | None = None
        self._refused: dict[str, str] = {}
        self._log_start = 0
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
            limit = time.monotonic() + _REPORT_S
            # The supervisor ends a server whose stub is dead.
            while not told.poll(0) and time.monotonic() < limit:
                if not is_ending(self.pid) and not has_dead_stub(self.pid):
                    return None
                time.sleep(_POLL_S)
            report = json.loads(process.stdout.readline() or "{}") if told.poll(0) else None
            self.log = Path(report["log"]) if report else self.keep_log()
            self._death = describe_death(report, self.log)
            return self._death

    def keep_log(self) -> Path:
        """The server's log, at a place where it stays when the server has been stopped."""
        self.log = Path(keep_log(str(self.log), str(self._folder)))
        return self.log

    def restart(self) -> TritonServer:
        """Start again what has died, or is still running, with the same options on the same ports.

        Raises:
            ServerError: As `start`; a port may have been taken meanwhile.
        """
        self.stop()
        self._ports = (self.grpc_port, self.http_port, self.metrics_port)
        for _ in range(_PORT_TRIES - 1):
            try:
                return self.start()
            except ServerError as error:
                # A client that asks for the server meanwhile may connect from that very port, to itself.
                if "already in use" not in str(error):
                    raise
                time.sleep(1.0)
        return self.start()

    def start(self) -> TritonServer:
        """Start the process and return once every model is ready, or say why not."""
        if not self.repository.is_dir():
            raise ServerError(
                f"model repository {self.repository}: no such folder; publish a model first with `temper build`"
            )
        # A model and what takes image files for it may be of two versions after a kill, and not load together.
        with contextlib.suppress(PublishError):  # of a repository that may only be read
            settle(self.repository)
        self._check_models_exist()
        changed = self._find_changed()
        try:
            self._start(changed)
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def reload(self, model: str) -> None:
        """Load a model as its config.pbtxt says now, on a server that `reloads`; returns when the old one is gone.

        No request is lost: what was served answers until the other is ready, and ends what it has begun.

        Raises:
            ServerError: It is not what was published, or does not load. What was served is served on.
        """
        changed = find_changed(self.repository, [model]) if self.only_published else {}
        if model in changed:
            raise ServerError(changed[model])
        self._tell("loading")
        with open_control(self.grpc_url, self.key.grpc_headers) as control:
            failure = control.load(model)
            while self.alive and (control.index() or {}).get(model, ("", ""))[0] in ("LOADING", "UNLOADING"):
                time.sleep(_POLL_S)
        self._tell("serving")
        if failure is not None:
            reason = failure.partition(" is at UNAVAILABLE state: ")[2] or failure
            raise ServerError(self._name_paths(reason))
        self.failed.pop(model, None)

    def stop(self) -> None:
        """End the server: SIGTERM, then SIGKILL after its own exit timeout. Safe to call twice."""
        with self._asking:
            process, self._process, self._death = self._process, None, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
            # Only a supervisor that was killed has left this to do; else the number may be another group's by now.
            if self.pid and process.returncode != 0:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
        if self._folder is not None:
            remove_traces(str(self._folder))
            self._folder = None

    def _check_models_exist(self) -> None:
        known = model_names(self.repository)
        if self.models is None and not known:
            raise ServerError(
                f"model repository {self.repository} holds no model; publish one with `temper build`"
            )
        for model in (*(self.models or ()), *self.versions):
            if model not in known:
                raise ServerError(
                    f"model {model!r} is not in {self.repository}; it holds: {', '.join(known) or 'no model'}"
                )

    def _find_changed(self) -> dict[str, str]:
        """Why models may not be given to the server: the plugin never sees one that names another backend."""
        if not self.only_published:
            return {}
        changed = find_changed(self.repository, self.models, self.versions)
        lines = "; ".join(f"model {model}: {reason}" for model, reason in changed.items())
        if changed and self.strict:
            raise ServerError(lines)
        if changed.keys() >= set(model_names(self.repository) if self.models is None else self.models):
            raise ServerError(f"no model of {self.repository} is what was published: {lines}")
        return changed

    def _start(self, changed: dict[str, str]) -> None:
        runtime = find_runtime()
        self._folder, lock = make_run_folder()
        try:
            self.log = self.log_file or self._folder / LOG
            self.log.parent.mkdir(parents=True, exist_ok=True)
            lay_out_backends(runtime, self._folder / BACKENDS)
            view = self._folder / VIEW
            self._refused = changed | lay_out_view(self.repository, self.models, changed, view, self.versions)
            self.loaded = tuple(sorted(path.name for path in view.iterdir()))
            self._take_ports()
            self._launch(runtime, lock)
        except OSError as error:
            if is_trouble(error):
                raise ServerError(explain(error)) from error
            raise
        finally:
            os.close(lock)

    def _take_ports(self) -> None:
        grpc, http, metrics = self._ports
        wanted = [grpc or 0, metrics or 0, *([] if http is None else [http])]
        self.grpc_port, self.metrics_port, *others = take_ports(wanted)
        self.http_port = others[0] if others else None
        self.grpc_url = f"{LOOPBACK}:{self.grpc_port}"
        self.http_url = f"{LOOPBACK}:{self.http_port}" if others else None
        self.metrics_url = f"http://{LOOPBACK}:{self.metrics_port}/metrics"

    def _launch(self, runtime: Path, lock: int) -> None:
        self.key = Key()
        order = {
            "command": [str(runtime / "bin" / "tritonserver"), *self._arguments()],
            "secrets": self.key.arguments(http=self.http_port is not None, control=self.reloads),
            "environment": environment(runtime, staging=bool(self.versions)),
            "folder": str(self._folder),
            "log": str(self.log),
        }
        # What a model or an engine writes into its log is nobody else's.
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._log_start = os.fstat(log).st_size
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SUPERVISE, str(Path(__file__).resolve().parents[2])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                pass_fds=[lock],
            )
        finally:
            os.close(log)
        self._tell(json.dumps(order))
        assert self._process.stdout is not None
        begun = json.loads(self._process.stdout.readline() or "{}")
        self.pid = begun.get("pid", 0)
        if not begun.get("hidden", True):
            echo(_KEY_VISIBLE, err=True)

    def _tell(self, line: str) -> None:
        """Write to the supervisor; one that is gone shows as a death."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _arguments(self) -> list[str]:
        assert self._folder is not None
        http = ["--allow-http=false"]
        if self.http_port is not None:
            http = [f"--http-address={LOOPBACK}", f"--http-port={self.http_port}"]
        # Nobody else loads or unloads: a load with a config or files of one's own runs code.
        control = ["--model-control-mode=none"]
        if self.reloads:
            control = ["--model-control-mode=explicit", *(f"--load-model={model}" for model in self.loaded)]
            if self.only_published:
                # What was published says all; a process that asks for more costs half of a switch.
                control.append("--disable-auto-complete-config")
        return [
            # Relative to the run folder.
            f"--model-repository={VIEW}",
            f"--backend-directory={BACKENDS}",
            # Python-based backends, ours too, take the python backend's.
            f"--backend-config=python,shm-region-prefix-name={self._folder.name}-",
            *control,
            "--exit-on-error=false",
            # A strict one says that it is not ready while a model is loaded anew, though it answers all the time.
            f"--strict-readiness={'false' if self.reloads else 'true'}",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={self.grpc_port}",
            *http,
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            "--allow-sagemaker=false",
            "--allow-vertex-ai=false",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=10",
            *self.extra_args,
        ]

    def _wait_ready(self) -> None:
        patience = _Patience(self.log, self.ready_timeout_s)
        with open_control(self.grpc_url, self.key.grpc_headers) as control:
            while not control.live():
                self._check_alive(patience)
            while True:
                index = control.index()
                if index is None:
                    self._check_alive(patience)
                    continue
                wanted = self.models or (*index, *self._refused)
                states = {model: index.get(model, ("", self._refused.get(model, ""))) for model in wanted}
                if not any(state in ("LOADING", "") and not reason for state, reason in states.values()):
                    break
                if self._gave_up():
                    # An ensemble without one of its members stays without a state and without a reason.
                    states = {name: _settled(*each) for name, each in states.items()}
                    break
                self._check_alive(patience)
        for port in filter(None, (self.http_port, self.metrics_port)):
            while not listens(port):
                self._check_alive(patience)
        self._tell("serving")
        self.failed = {model: self._name_paths(why) for model, (state, why) in states.items() if state != "READY"}
        if self.failed and self.strict:
            lines = "; ".join(f"{model}: {reason}" for model, reason in self.failed.items())
            raise ServerError(f"tritonserver could not load {lines}")

    def _name_paths(self, reason: str) -> str:
        """Triton's reason with the paths that its user knows, and what to do about a backend that is not here."""
        named = _first_line(reason).replace(f"{VIEW}/", f"{self.repository}/")
        if "unable to find backend library for backend 'tensorrt'" not in named:
            return named
        return (
            f"{named.strip()}; the embedded server has none, serve it in the image of docker/, or build it with "
            "engine.server_backend = 'temper'"
        )

    def _gave_up(self) -> bool:
        """Whether Triton has tried every model and says that some did not load."""
        return bool(_GAVE_UP.search(self._logged()))

    def _logged(self) -> str:
        """What this life of the server wrote into its log, to which it was appended."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

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
        lines = self._logged().splitlines()
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
