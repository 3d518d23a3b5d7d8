"""Load runs: the requests, the split over processes, the watch over the server, and the result."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from temper.client import protocol
from temper.client.client import Client
from temper.client.errors import ClientError, InvalidRequest, ServerUnavailable
from temper.client.load.config import LoadConfig
from temper.client.load.processes import LoadProcesses
from temper.client.load.result import LoadResult
from temper.client.load.tally import Tally
from temper.client.load.worker import Job
from temper.client.model import ModelInfo, ServerStatistics

Progress = Callable[[int, int], None]

POOL_REQUESTS = 64
"""As many different requests are sent in turn, and no more of the images are used."""
_POOL_BYTES = 64 << 20
_GO_DELAY_S = 0.05
# After the last deadline the processes have this long to end, on a busy machine too.
_END_S = 60.0
# How often, and how far apart, a silent server is asked whether it lives before the run is given up.
_PROBES = 2
_PROBE_PAUSE_S = 0.25


def run_closed_loop(
    url: str,
    model: str,
    images: protocol.Payload,
    *,
    concurrency: int,
    config: LoadConfig | None = None,
    version: str = "",
    progress: Progress | None = None,
) -> LoadResult:
    """Keep `concurrency` requests in flight, each followed by the next as soon as it is answered.

    Args:
        url: host:port of the gRPC endpoint.
        model: Model name.
        images: [N, *image_shape] of the model's input type, uint8 [N, H, W, 3] for a Temper model, or the files of
            N images for one that decodes them; the first ones (up to 64 requests of them) are sent in turn.
        concurrency: Requests in flight.
        config: Length, warm-up and the rest; `LoadConfig()` when not given.
        version: Model version; empty takes the newest.
        progress: Called with (done, total) in milliseconds.

    Raises:
        ClientError: The run cannot start: no server, no such model, images that do not fit. What goes wrong later
            is in the result.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency: got {concurrency}, expected at least 1")
    config = config or LoadConfig()
    with Client(url) as client:
        run = prepare(client, model, version, images, config)
        return run.start(concurrency, 0.0, progress)


def run_open_loop(
    url: str,
    model: str,
    images: protocol.Payload,
    *,
    rate_rps: float,
    config: LoadConfig | None = None,
    version: str = "",
    progress: Progress | None = None,
) -> LoadResult:
    """Send requests at Poisson times, whatever the answers do, and count latency from those times.

    A server that stalls thereby shows the wait of every request that fell due meanwhile (no coordinated omission).
    At most 4096 requests per process are outstanding; those due beyond that are sent late, not dropped, and fail
    as "deadline" when they could not be sent in time. Arguments and errors as `run_closed_loop`.
    """
    if not (rate_rps > 0 and math.isfinite(rate_rps)):
        raise ValueError(f"rate_rps: got {rate_rps}, expected requests per second above 0")
    config = config or LoadConfig()
    with Client(url) as client:
        run = prepare(client, model, version, images, config)
        return run.start(0, rate_rps, progress)


def measure(
    url: str,
    model: str,
    images: protocol.Payload,
    config: LoadConfig | None = None,
    progress: Progress | None = None,
    *,
    version: str = "",
) -> list[LoadResult]:
    """Run the closed loop at every concurrency, then the open loop at every rate.

    Without `rates_rps` the one open-loop rate is `open_loop_fraction` of the best closed-loop throughput. A run
    that was interrupted is the last one. Arguments and errors as `run_closed_loop`.
    """
    config = config or LoadConfig()
    one_ms = round((config.warmup_s + config.duration_s) * 1000)
    num_open = len(config.rates_rps) or int(bool(config.open_loop_fraction and config.concurrencies))
    total_ms = one_ms * (len(config.concurrencies) + num_open)
    results: list[LoadResult] = []
    with Client(url) as client:
        run = prepare(client, model, version, images, config)
        for concurrency, rate_rps in plan_runs(config, results):
            done_ms = one_ms * len(results)
            step = progress and _shift(progress, done_ms, total_ms)
            results.append(run.start(concurrency, rate_rps, step))
            if results[-1].interrupted is not None:
                break
    return results


def plan_runs(config: LoadConfig, results: Sequence[LoadResult]) -> Iterator[tuple[int, float]]:
    """Yield what `measure` runs: (concurrency, 0) for closed loops, then (0, rate in requests/s) for open ones.

    Args:
        config: The settings.
        results: The results until then; the caller lets it grow, as they decide on the open loop's rate.
    """
    for concurrency in config.concurrencies:
        yield concurrency, 0.0
    rates = config.rates_rps
    best_ips = max((result.throughput_ips for result in results), default=0.0)
    if not rates and config.open_loop_fraction and best_ips > 0:
        rates = (config.open_loop_fraction * best_ips / config.batch_size,)
    for rate_rps in rates:
        yield 0, rate_rps


def _shift(progress: Progress, done_ms: int, total_ms: int) -> Progress:
    return lambda done, _: progress(done_ms + done, total_ms)


def prepare(client: Client, model: str, version: str, images: protocol.Payload, config: LoadConfig) -> Run:
    """Learn a model and make the requests of its runs, once for all of them.

    Raises:
        ClientError: No server, no such model, images that do not fit.
    """
    info = client.model_info(model, version)
    if isinstance(images, np.ndarray):
        protocol.check_images(info, images)
    else:
        protocol.check_encoded(info, images)
    size = config.batch_size
    if size > max(1, info.max_batch_size):
        raise InvalidRequest(
            f"batch_size: got {size}, model {model} takes at most {max(1, info.max_batch_size)} images per request"
        )
    image_bytes = images[0].nbytes if isinstance(images, np.ndarray) else max(map(len, images))
    num_requests = min(POOL_REQUESTS, math.ceil(len(images) / size), _POOL_BYTES // (size * max(1, image_bytes)))
    requests = []
    for number in range(max(1, num_requests)):
        chosen = np.arange(number * size, (number + 1) * size) % len(images)
        some = images[chosen] if isinstance(images, np.ndarray) else [images[index] for index in chosen]
        # A run stays with the version it started on, even when a newer one is published meanwhile.
        requests.append(protocol.encode(info, some, version=info.version))
    return Run(client=client, info=info, requests=tuple(requests), config=config, pinned=bool(version))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model, its serialised requests and the settings; `start` makes one run of it."""

    client: Client
    info: ModelInfo
    requests: tuple[bytes, ...]
    config: LoadConfig
    pinned: bool

    def start(self, concurrency: int, rate_rps: float, progress: Progress | None) -> LoadResult:
        """Make one run: a closed loop with so many in flight, or with 0 an open loop at the rate."""
        jobs = self._jobs(concurrency, rate_rps)
        with LoadProcesses(jobs) as processes:
            before = _statistics(self.client, self.info)
            begin = time.monotonic() + _GO_DELAY_S
            watch = _Watch(self.client, self.info, self.config, begin, before, progress, pinned=self.pinned)
            reason = processes.run(begin, watch.tick) or watch.promotion()
            server = watch.server_times()
        result = LoadResult(
            mode="closed" if concurrency else "open",
            model=self.info.name,
            version=self.info.version,
            concurrency=concurrency or None,
            rate_rps=None if concurrency else rate_rps,
            batch_size=self.config.batch_size,
            num_processes=len(jobs),
            server=server,
            stopped_by_user=processes.stopped_by_user,
        )
        return _fill(result, processes.tally, watch.start, self.config.duration_s, reason)

    def _jobs(self, concurrency: int, rate_rps: float) -> list[Job]:
        config = self.config
        count = config.num_processes or _num_processes(concurrency)
        count = min(count, concurrency) if concurrency else count
        return [
            Job(
                url=self.client.url,
                info=self.info,
                requests=self.requests,
                batch_size=config.batch_size,
                concurrency=concurrency // count + (number < concurrency % count),
                rate_rps=rate_rps / count,
                seed=(config.seed, number),
                warmup_s=config.warmup_s,
                duration_s=config.duration_s,
                timeout_s=config.timeout_s,
            )
            for number in range(count)
        ]


def _num_processes(concurrency: int) -> int:
    """One process costs the server least; more only where cores are left and the load needs them."""
    if 0 < concurrency < 8:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores // 4))


class _Watch:
    """The parent's part during a run: progress, Triton's statistics around the window, and the server's death."""

    def __init__(
        self,
        client: Client,
        info: ModelInfo,
        config: LoadConfig,
        begin: float,
        before: ServerStatistics | None,
        progress: Progress | None,
        *,
        pinned: bool,
    ) -> None:
        self._pinned = pinned
        self.start = begin + config.warmup_s
        self._begin = begin
        self._end = self.start + config.duration_s
        self._limit = self._end + config.timeout_s + _END_S
        self._client = client
        self._info = info
        self._progress = progress
        self._before = before
        self._began = False
        self._after: ServerStatistics | None = None

    def tick(self, trouble: bool) -> str | None:
        """Do what is due; return why the run must stop, if it must."""
        now = time.monotonic()
        if self._progress is not None:
            total_ms = round((self._end - self._begin) * 1000)
            self._progress(min(total_ms, max(0, round((now - self._begin) * 1000))), total_ms)
        if trouble and not self._server_lives():
            return f"the server at {self._client.url} died {max(0.0, now - self._begin):.1f} s into the run"
        if trouble and (promotion := self.promotion()):
            return promotion
        if now > self._limit:
            return "a load process did not end in time"
        if not self._began and now >= self.start:
            self._began = True
            before = _statistics(self._client, self._info)
            # On a busy machine this may be late; then the window's times count from before the run.
            self._before = before if time.monotonic() < self._end else self._before
        if self._after is None and now >= self._end:
            self._after = _statistics(self._client, self._info)
        return None

    def promotion(self) -> str | None:
        """Say that another version took the measured one's place, or came beside it where none was asked for."""
        measured = self._info.version
        try:
            served = self._client.versions(self._info.name)
        except ClientError:
            return None
        if not served or (measured in served and (self._pinned or measured == served[-1])):
            return None
        return f"model {self._info.name}: version {measured} was replaced by {served[-1]} during the run"

    def server_times(self) -> dict[str, float] | None:
        """Return Triton's mean times over the window, None when the server cannot be asked."""
        after = self._after or _statistics(self._client, self._info)
        if self._before is None or after is None:
            return None
        return after.since(self._before).mean_ms() or None

    def _server_lives(self) -> bool:
        for attempt in range(_PROBES):
            if attempt:
                time.sleep(_PROBE_PAUSE_S)
            try:
                return self._client.server_live(timeout_s=2.0)
            except ServerUnavailable:
                continue
            except ClientError:
                return True  # it answers, if only to say no, or is too busy to
        return False


def _statistics(client: Client, info: ModelInfo) -> ServerStatistics | None:
    try:
        return client.statistics(info.name, info.version)
    except ClientError:
        return None  # a dead server, or one that forbids it: the run's own figures stand alone


def _fill(result: LoadResult, tally: Tally, start: float, duration_s: float, reason: str | None) -> LoadResult:
    if reason is not None:
        duration_s = min(duration_s, max(0.0, tally.last_answer - start))
        failed = tally.errors.total() + tally.shed
        reason = f"{reason}: {tally.completed} requests answered, {tally.lost} lost on the way, {failed} failed"
    is_open = result.mode == "open"
    sent = len(tally.lag)
    return replace(
        result,
        throughput_ips=tally.in_window * result.batch_size / duration_s if duration_s > 0 else 0.0,
        completed=tally.completed,
        errors=dict(sorted(tally.errors.items())),
        reasons=dict(sorted(tally.reasons.items())),
        shed=tally.shed,
        lost=tally.lost,
        latency_ms=tally.latency.summary_ms(),
        longest_s=tally.longest_s,
        duration_s=duration_s,
        late_share=tally.late / sent if is_open and sent else None,
        send_lag_p99_ms=tally.lag.quantile_s(0.99)[0] * 1e3 if is_open and sent else None,
        interrupted=reason,
    )
