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
        version: Model version that was asked: the newest one as the run began, or the one that was wished for.
        concurrency: Requests kept in flight; None in the open loop.
        rate_rps: Mean arrival rate in requests per second; None in the closed loop.
        batch_size: Images per request.
        throughput_ips: Images answered per second of the measured window.
        completed: Requests answered. Closed loop: answered within the window. Open loop: scheduled within it.
        errors: Requests that failed, by kind: the gRPC status name in capitals ("UNAVAILABLE"), "deadline" (no
            answer in time; in the open loop also: not sent in time), "short_output", "nonfinite_output" (NaN or an
            infinity) and "bad_output" (anything else that is no answer of this model).
        reasons: What was said of the first of each kind, where something was, in a line of at most 300 characters.
        shed: Requests that the server refused because of its load: the model's queue was full, or they waited too
            long in it. They are neither errors nor answered.
        lost: Requests that were sent, or may have been, and whose answer never came, because the connection broke
            or the run was cut short.
        latency_ms: p50, p90, p99, p999, mean, max of the completed requests alone, from the call (closed loop) or
            from the scheduled time (open loop) to the answer; empty when nothing was answered.
        longest_s: The longest that any answer took, within the window or not; 0 when there was none.
        server: Triton's own means over the window: queue_ms, compute_input_ms, compute_infer_ms,
            compute_output_ms and batch_size; None when the server could not be asked.
        duration_s: Length of the measured window; shorter than asked for when the run was cut short.
        num_processes: Processes that made the load.
        late_share: Open loop: share of requests sent more than 1 ms after their scheduled time.
        send_lag_p99_ms: Open loop: 99th percentile of how long after its scheduled time a request was sent.
        interrupted: One line that says why the run was cut short; None when it was not.
        stopped_by_user: Whether Ctrl-C cut it short. It raises nothing, so that what was measured is returned.
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
    reasons: dict[str, str] = field(default_factory=dict)
    shed: int = 0
    lost: int = 0
    latency_ms: dict[str, float] = field(default_factory=dict)
    longest_s: float = 0.0
    server: dict[str, float] | None = None
    duration_s: float = 0.0
    num_processes: int = 1
    late_share: float | None = None
    send_lag_p99_ms: float | None = None
    interrupted: str | None = None
    stopped_by_user: bool = False

    @property
    def num_errors(self) -> int:
        """All failed requests."""
        return sum(self.errors.values())

    @property
    def shed_share(self) -> float:
        """Share of the requests that the server refused because of its load, 0 to 1."""
        return self.shed / max(1, self.completed + self.num_errors + self.shed + self.lost)

    def say_errors(self) -> str:
        """Say in one line how many of each kind failed, and what was said of its first; empty when none did."""
        return ", ".join(
            f"{count:,} {kind}" + (f" ({self.reasons[kind]})" if kind in self.reasons else "")
            for kind, count in self.errors.items()
        )

    def why_unanswered(self) -> str | None:
        """Say in one line why no request counts as answered, and what to change; None when one does."""
        if self.completed:
            return None
        silent = {"shed by the server": self.shed, "lost": self.lost}
        kinds = [self.say_errors(), *(f"{count:,} {kind}" for kind, count in silent.items() if count)]
        if any(kinds):
            return f"no request was answered: {', '.join(filter(None, kinds))}"
        if self.mode == "open":
            return (
                f"no request fell due within {self.duration_s:g} s at {self.rate_rps:g} requests/s; "
                "raise the duration (--duration) or the rate (--rate)"
            )
        took = f": one takes {self.longest_s:.2g} s" if self.longest_s else ""
        return (
            f"no request was answered within the {self.duration_s:g} s that were measured{took}; "
            "raise the duration (--duration), or keep fewer in flight (--concurrency)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `json.dumps`."""
        return asdict(self) | {"shed_share": self.shed_share}
