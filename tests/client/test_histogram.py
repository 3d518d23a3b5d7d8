"""The latency histogram against numpy on the raw values."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from temper.client.load import Histogram

QUANTILES = (0.5, 0.9, 0.99, 0.999)


@pytest.mark.parametrize("scale_s", [2e-6, 1e-3, 0.5, 300.0])
def test_quantiles_are_within_three_significant_digits(scale_s: float) -> None:
    values = np.random.default_rng(0).exponential(scale_s, 50_000).clip(1e-6, 3600)
    histogram = Histogram()
    for chunk in np.array_split(values, 13):
        histogram.record(chunk)
    exact = np.sort(values)[np.ceil(np.array(QUANTILES) * len(values)).astype(int) - 1]
    np.testing.assert_allclose(histogram.quantile_s(*QUANTILES), exact, rtol=1e-3)
    assert histogram.mean_s == pytest.approx(values.mean())
    assert histogram.max_s == pytest.approx(values.max())
    assert len(histogram) == 50_000


def test_every_magnitude_is_read_back_within_a_thousandth() -> None:
    for value in np.geomspace(1e-6, 3600, 997):
        histogram = Histogram()
        histogram.record([value, value, 10 * value])
        assert histogram.quantile_s(0.5)[0] == pytest.approx(value, rel=1e-3)


def test_merge_equals_recording_together() -> None:
    values = np.random.default_rng(1).lognormal(-6, 1, 1000)
    parts, whole = (Histogram(), Histogram()), Histogram()
    parts[0].record(values[:300])
    parts[1].record(values[300:])
    merged = pickle.loads(pickle.dumps(parts[0]))
    merged.merge(parts[1])
    whole.record(values)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.summary_ms() == pytest.approx(whole.summary_ms())


def test_memory_does_not_grow_with_what_is_recorded() -> None:
    histogram = Histogram()
    before = histogram.counts.nbytes
    histogram.record(np.full(100_000, 0.01))
    assert histogram.counts.nbytes == before < 300_000


def test_out_of_range_values_are_kept() -> None:
    histogram = Histogram()
    histogram.record([-1.0, 0.0, 1e-9, 9000.0])
    assert len(histogram) == 4
    assert histogram.max_s == 9000.0
    assert histogram.quantile_s(0.25, 1.0)[0] == 0.0


def test_one_value_is_every_quantile() -> None:
    histogram = Histogram()
    histogram.record(0.0123)
    assert set(histogram.quantile_s(*QUANTILES)) == {0.0123}
    assert histogram.summary_ms() == dict.fromkeys(("p50", "p90", "p99", "p999", "mean", "max"), 12.3)


def test_empty_histogram_has_no_quantiles() -> None:
    histogram = Histogram()
    histogram.record([])
    assert histogram.summary_ms() == {}
    with pytest.raises(ValueError, match="the histogram is empty, expected at least one"):
        histogram.quantile_s(0.5)


@pytest.mark.parametrize("count", [10, 1000, 1001])
def test_rank_is_not_moved_by_rounding(count: int) -> None:
    histogram = Histogram()
    histogram.record(np.arange(1, count + 1))
    assert histogram.quantile_s(0.999)[0] == pytest.approx(np.ceil(0.999 * count - 1e-6), rel=1e-3)
