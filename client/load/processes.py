"""The lives of a run's load processes: started, begun together, watched, and ended whatever happens here.

`child.py` says what a process is. Ctrl-C reaches only the parent, which then keeps what was measured.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType

from temper.client.child import start_child
from temper.client.errors import ClientError
from temper.client.load.tally import Tally
from temper.client.load.worker import Job

# By default grpcio's own threads wait for the socket and wake ours: five times the context switches and some 40 us
# more per call (measured on grpcio 1.85). A version that does not know the switch ignores it.
_ENVIRONMENT = {"GRPC_EXPERIMENTS": "-event_engine_client", "GRPC_VERBOSITY": "NONE"}
# Only a process that hangs takes that long: one that ends is seen at once, and a busy machine is no reason.
_START_S = 300.0
_TICK_S = 0.1
# After "stop" a process has this long to hand over its counts.
_STOP_S = 60.0


class LoadProcesses:
    """One process for each job; a context manager that leaves none behind.

    Args:
        jobs: One share of the run each.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        """Keep the jobs; `with` starts them."""
        self._jobs = jobs
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        self._waiting: set[Connection] = set()
        self.tally = Tally()
        self.stopped_by_user = False

    def __enter__(self) -> LoadProcesses:
        """Start the processes and wait until each has its connection."""
        try:
            for _ in self._jobs:
                self._start()
            for pipe, job in zip(self._pipes, self._jobs, strict=True):
                pipe.send(job)
            self._wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process."""
        self._end()

    def run(self, begin: float, tick: Callable[[bool], str | None]) -> str | None:
        """Begin at the clock `begin`, gather the counts into `tally`, and return why the run was cut short, if so.

        Ctrl-C is such a reason, and sets `stopped_by_user`.

        Args:
            begin: When the load starts (`time.monotonic`).
            tick: Called ten times a second with whether a process told of a failing connection; a text it returns
                stops the run.
        """
        self._waiting = set(self._pipes)
        reason: str | None = None
        try:
            for pipe in self._pipes:
                pipe.send(("go", begin))
            while self._waiting and reason is None:
                trouble = self._gather(_TICK_S)
                reason = self._lost_process() or tick(trouble)
        except KeyboardInterrupt:
            self.stopped_by_user = True
            reason = "stopped by Ctrl-C"
        if reason is not None:
            self._stop()
        return reason

    def _start(self) -> None:
        process, pipe = start_child("temper.client.load.worker", _ENVIRONMENT)
        self._processes.append(process)
        self._pipes.append(pipe)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _START_S + self._jobs[0].timeout_s
        for pipe in self._pipes:
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise ClientError(
                    f"a load process did not start within {_START_S:g} s; is the machine out of memory?"
                )
            try:
                message = pipe.recv()
            except EOFError:
                raise ClientError("a load process ended while starting; see its lines above") from None
            if message != "ready":
                raise RuntimeError(f"a load process failed:\n{message}")

    def _gather(self, timeout_s: float) -> bool:
        """Take what the processes sent; tell whether one of them is in trouble with the connection."""
        trouble = False
        for pipe in wait(self._waiting, timeout_s):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except EOFError:
                continue  # _lost_process finds it
            if isinstance(message, Tally):
                self.tally.merge(message)
                self._waiting.discard(pipe)
            elif message == "trouble":
                trouble = True
            else:
                raise RuntimeError(f"a load process failed:\n{message}")
        return trouble

    def _lost_process(self) -> str | None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if pipe in self._waiting and process.poll() is not None and not pipe.poll():
                self._waiting.discard(pipe)
                return f"a load process died (exit status {process.returncode}), its counts are lost"
        return None

    def _stop(self) -> None:
        for pipe in self._waiting:
            try:
                pipe.send("stop")
            except OSError:
                pass  # it has just ended; its counts, if any, are in the pipe
        deadline = time.monotonic() + _STOP_S
        while self._waiting and time.monotonic() < deadline:
            self._gather(_TICK_S)
            self._lost_process()

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
