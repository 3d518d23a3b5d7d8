"""A latency histogram of fixed size, after Gil Tene's (https://hdrhistogram.github.io/HdrHistogram/).

Values are counted in whole nanoseconds. Below 2048 ns every value has its own bucket; above, each doubling is cut
into 1024 equal buckets, so a value read back is within 0.05 % of the one recorded, from 1 us to 1 h: three
significant digits. Memory is 270 kB whatever is recorded; recording is vectorised.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_S = 3600.0
_HALF_BITS = 10
_MAX_NS = int(MAX_S * 1e9)
_NUM_BUCKETS = ((_MAX_NS.bit_length() - _HALF_BITS - 1) << _HALF_BITS) + (2 << _HALF_BITS)


class Histogram:
    """Counts of durations between 1 us and 1 h.

    Longer ones are counted in the last bucket; `max_s` and `mean_s` are exact all the same.
    """

    __slots__ = ("_max_ns", "_min_ns", "_sum_ns", "counts")

    def __init__(self) -> None:
        """Make an empty histogram."""
        self.counts: npt.NDArray[np.int64] = np.zeros(_NUM_BUCKETS, np.int64)
        self._sum_ns = 0.0
        self._min_ns = float("inf")
        self._max_ns = 0.0

    def __len__(self) -> int:
        """Return how many durations were recorded."""
        return int(self.counts.sum())

    def record(self, durations_s: npt.ArrayLike) -> None:
        """Count durations in seconds; negative ones (a clock's jitter) count as zero."""
        values = np.atleast_1d(np.asarray(durations_s, np.float64)) * 1e9
        if values.size == 0:
            return
        np.maximum(values, 0.0, out=values)
        self._sum_ns += float(values.sum())
        self._min_ns = min(self._min_ns, float(values.min()))
        self._max_ns = max(self._max_ns, float(values.max()))
        self.counts += np.bincount(_bucket(values), minlength=_NUM_BUCKETS)

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts to this one."""
        self.counts += other.counts
        self._sum_ns += other._sum_ns
        self._min_ns = min(self._min_ns, other._min_ns)
        self._max_ns = max(self._max_ns, other._max_ns)

    @property
    def mean_s(self) -> float:
        """Exact mean in seconds; 0 when empty."""
        return self._sum_ns / max(1, len(self)) / 1e9

    @property
    def max_s(self) -> float:
        """Exact maximum in seconds; 0 when empty."""
        return self._max_ns / 1e9

    def quantile_s(self, *quantiles: float) -> list[float]:
        """Return the smallest recorded durations that at least these shares (0 to 1) do not exceed, in seconds.

        Raises:
            ValueError: Nothing was recorded.
        """
        total = len(self)
        if total == 0:
            raise ValueError("quantiles: the histogram is empty, expected at least one recorded duration")
        # A share such as 0.999 x 1000 must not become rank 1000 through rounding.
        ranks = np.maximum(1, np.ceil(np.asarray(quantiles) * total - 1e-6)).astype(np.int64)
        buckets = np.searchsorted(np.cumsum(self.counts), ranks)
        return [min(max(_middle_ns(int(b)), self._min_ns), self._max_ns) / 1e9 for b in buckets]

    def summary_ms(self) -> dict[str, float]:
        """Return p50, p90, p99, p999, mean and max in milliseconds; empty when nothing was recorded."""
        if len(self) == 0:
            return {}
        names = ("p50", "p90", "p99", "p999")
        values = dict(zip(names, self.quantile_s(0.5, 0.9, 0.99, 0.999), strict=True))
        values |= {"mean": self.mean_s, "max": self.max_s}
        return {name: round(value * 1e3, 6) for name, value in values.items()}


def _bucket(values_ns: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    whole = np.minimum(values_ns, _MAX_NS).astype(np.int64)
    # frexp's exponent of a whole number is its bit length.
    shift = np.maximum(np.frexp(whole.astype(np.float64))[1].astype(np.int64) - (_HALF_BITS + 1), 0)
    return np.asarray((shift << _HALF_BITS) + (whole >> shift))


def _middle_ns(bucket: int) -> float:
    shift = max(0, (bucket >> _HALF_BITS) - 1)
    low = (bucket - (shift << _HALF_BITS)) << shift
    return low + ((1 << shift) - 1) / 2
