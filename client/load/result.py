"""The outcome of one load run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What one run measured; everything but the throughput is about requests, not images.

    Attributes:
        mode: "closed" (a fixed number of requests in flight) or "open" (Poisson arrivals).
        model: Model name.
        version: Model version that was asked.
        concurrency: Requests kept in flight; None in the open loop.
        rate_rps: Mean arrival rate in requests per second; None in the closed loop.
        batch_size: Images per request.
        throughput_ips: Images answered per second of the measured window.
        completed: Requests answered. Closed loop: answered within the window. Open loop: scheduled within it.
        errors: Requests that failed, by kind: the gRPC status name in capitals ("UNAVAILABLE"), "deadline" (no
            answer in time; in the open loop also: not sent in time), "short_output", "nonfinite_output" (NaN or an
            infinity) and "bad_output" (anything else that is no answer of this model).
        lost: Requests that were sent, or may have been, and whose answer never came, because the connection broke
            or the run was cut short.
        latency_ms: p50, p90, p99, p999, mean, max of the those requests, from the call (closed loop) or from
            the scheduled time (open loop) to the answer; empty when nothing was answered.
        server: Triton's own means over the window: queue_ms, compute_input_ms, compute_infer_ms,
            compute_output_ms and batch_size; None when the server could not be asked.
        duration_s: Length of the measured window; shorter than asked for when the run was cut short.
        num_processes: Processes that made the load.
        late_share: Open loop: share of requests sent more than 1 ms after their scheduled time.
        send_lag_p99_ms: Open loop: 99th percentile of how long after its scheduled time a request was sent.
        interrupted: One line that says why the run was cut short; None when it was not.
    """

    mode: Literal["closed", "open"]
    model: str
    version: str
    concurrency: int | None = None
    rate_rps: float | None = None
    batch_size: int = 1
    throughput_ips: float = 0.0
    completed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    latency_ms: dict[str, float] = field(default_factory=dict)
    server: dict[str, float] | None = None
    duration_s: float = 0.0
    num_processes: int = 1
    late_share: float | None = None
    send_lag_p99_ms: float | None = None
    interrupted: str | None = None

    @property
    def num_errors(self) -> int:
        """All failed requests."""
        return sum(self.errors.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`."""
        return asdict(self)
