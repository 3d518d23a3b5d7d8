"""Settings of a load test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How a served model is loaded.

    Raises:
        ValueError: A value makes no sense; the message names the field.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    concurrencies: tuple[int, ...] = (1, 4, 16)
    """Closed loop: requests kept in flight, one run for each."""

    rates_rps: tuple[float, ...] = ()
    """Open loop: mean arrival rates in requests per second (Poisson), one run for each."""

    open_loop_fraction: float | None = 0.7
    """Open loop when no rates are given: the rate as a share of the best closed-loop throughput; 0, or None
    from Python, for none."""

    duration_s: float = 5.0
    """Length of each run's measured window in seconds."""

    warmup_s: float = 1.0
    """Load before the window that is not counted, in seconds."""

    batch_size: int = 1
    """Images per request."""

    num_processes: int | None = None
    """Processes that make the load; not given: one below a concurrency of 8, else 1 to 4 by the cores."""

    seed: int = 0
    """Seed of the Poisson arrivals."""

    timeout_s: float = 30.0
    """Deadline of a request in seconds; in the open loop counted from its scheduled time."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _check(
            "concurrencies", self.concurrencies, all(c >= 1 for c in self.concurrencies), "integers of at least 1"
        )
        _check("rates_rps", self.rates_rps, all(_positive(r) for r in self.rates_rps), "rates above 0")
        fraction = self.open_loop_fraction
        _check("open_loop_fraction", fraction, fraction is None or 0 <= fraction <= 2, "0 (none) to 2")
        if not self.concurrencies and not self.rates_rps:
            raise ValueError("concurrencies: got none and no rates_rps either, expected at least one of the two")
        _check("duration_s", self.duration_s, _positive(self.duration_s), "seconds above 0")
        _check(
            "warmup_s", self.warmup_s, self.warmup_s >= 0 and math.isfinite(self.warmup_s), "seconds, 0 or more"
        )
        _check("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        processes = self.num_processes
        _check("num_processes", processes, processes is None or 1 <= processes <= 64, "1 to 64")
        _check("seed", self.seed, self.seed >= 0, "0 or more")
        _check("timeout_s", self.timeout_s, _positive(self.timeout_s), "seconds above 0")


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _check(field: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"{field}: got {value}, expected {expected}")
