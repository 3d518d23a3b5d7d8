"""Closed-loop load with requests that were made elsewhere, by the processes of our load generator."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu.processor import CpuMeter
from temper.client.client import Client
from temper.client.errors import ClientError
from temper.client.load.processes import LoadProcesses
from temper.client.load.worker import Job
from temper.client.model import ModelInfo, ServerStatistics

_GO_DELAY_S = 0.1
_TIMEOUT_S = 30.0


def run_load(
    url: str,
    info: ModelInfo,
    requests: tuple[bytes, ...],
    *,
    batch: int,
    concurrency: int,
    num_processes: int,
    warmup_s: float,
    duration_s: float,
    server_pid: int,
) -> dict[str, Any]:
    """Keep `concurrency` requests in flight and measure what comes back.

    Args:
        url: host:port of the gRPC endpoint.
        info: The model.
        requests: Serialised, sent in turn.
        batch: Images per request.
        concurrency: Requests in flight, over all processes.
        num_processes: Processes that send them; at most one for each request in flight.
        warmup_s: Load before the window, in seconds.
        duration_s: The window, in seconds.
        server_pid: tritonserver's process, whose processor time is counted with its stubs'.

    Returns:
        ips, p50_ms, p99_ms, requests, errors, server (Triton's own means, batch_size among them), cores (processor
        seconds per second of the window: client, tritonserver, stubs), interrupted.

    Raises:
        ClientError: The run cannot start.
    """
    count = min(num_processes, concurrency)
    jobs = [
        Job(
            url=url,
            info=info,
            requests=requests,
            batch_size=batch,
            concurrency=concurrency // count + (number < concurrency % count),
            rate_rps=0.0,
            seed=(0, number),
            warmup_s=warmup_s,
            duration_s=duration_s,
            timeout_s=_TIMEOUT_S,
        )
        for number in range(count)
    ]
    with Client(url) as client, LoadProcesses(jobs) as processes:
        begin = time.monotonic() + _GO_DELAY_S
        window = _Window(client, info, CpuMeter(server_pid), begin + warmup_s, begin + warmup_s + duration_s)
        interrupted = processes.run(begin, window.tick)
        window.close()
    tally = processes.tally
    p50_s, p99_s = tally.latency.quantile_s(0.5, 0.99) if tally.completed else (None, None)
    return {
        "ips": tally.in_window * batch / duration_s,
        "p50_ms": p50_s and 1e3 * p50_s,
        "p99_ms": p99_s and 1e3 * p99_s,
        "requests": tally.completed,
        "errors": dict(tally.errors),
        "server": window.server,
        "cores": window.cores,
        "num_processes": count,
        "interrupted": interrupted,
    }


class _Window:
    """What is read at both ends of the measured window: Triton's counters and the processor time."""

    def __init__(self, client: Client, info: ModelInfo, meter: CpuMeter, start: float, end: float) -> None:
        self._client, self._info, self._meter = client, info, meter
        self._start, self._end = start, end
        self._before: ServerStatistics | None = None
        self.server: dict[str, float] | None = None
        self.cores: dict[str, float] | None = None

    def tick(self, trouble: bool) -> str | None:
        """Called ten times a second; a text ends the run."""
        now = time.monotonic()
        if trouble:
            return "the connection to the server broke"
        if self._before is None and now >= self._start:
            self._before = self._statistics()
            self._meter.start()
        if now >= self._end:
            self.close()
            if now > self._end + _TIMEOUT_S:
                return "a load process did not end in time"
        return None

    def close(self) -> None:
        """Read the counters once more; what is there already stays."""
        if self._before is None or self.server is not None:
            return
        self.cores = self._meter.stop()
        after = self._statistics()
        self.server = after.since(self._before).mean_ms() if after is not None else {}

    def _statistics(self) -> ServerStatistics | None:
        try:
            return self._client.statistics(self._info.name, self._info.version)
        except ClientError:
            return None
