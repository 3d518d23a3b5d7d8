"""Latency, throughput and size.

The first two are judged over rounds in which reference and candidate take turns, so that a slow minute of the
machine hits both; a round is one figure, as its requests depend on one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from temper.gate.evidence import Evidence
from temper.gate.rules.base import Look, More, Rule, check_above
from temper.report import text

_MOST = 20.0
"""Of a log ratio, whatever few rounds that scatter would allow."""


@dataclass(frozen=True, kw_only=True)
class LatencyRule(Rule):
    """How long an answer may take at a given rate."""

    title: ClassVar[str] = "99th percentile of latency"
    needs_labels: ClassVar[bool] = False
    unit: ClassVar[str] = "ms"

    p99_ms: float
    """Milliseconds; shipped is whose 99th percentile surely is lower, on the mean over rounds."""
    rate: float
    """Requests per second, an open loop with Poisson arrivals."""

    def __post_init__(self) -> None:
        """Checks both."""
        check_above("p99_ms", self.p99_ms, 0.1, 600_000, "milliseconds")
        check_above("rate", self.rate, 0.01, 1_000_000, "requests per second")

    @property
    def limit(self) -> float:
        """In milliseconds."""
        return self.p99_ms

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Compares the rounds' mean with the limit; requests that failed or were shed hold it."""
        name = f"{self.title} at {self.rate:g} requests/s"
        if evidence.latency_note is not None:
            return [self.look(name=name, sure="HOLD", said=evidence.latency_note)]
        look = _over_rounds(self, name, evidence.p99_ms, self.p99_ms, confidence)
        # No latency is below 0, whatever few rounds that scatter say.
        return [look if look.low is None else replace(look, low=max(0.0, look.low))]


@dataclass(frozen=True, kw_only=True)
class ThroughputRule(Rule):
    """How much faster than the reference it must be."""

    title: ClassVar[str] = "throughput against the reference"
    needs_labels: ClassVar[bool] = False
    unit: ClassVar[str] = "x"

    min_ratio: float
    """Candidate's images per second over the reference's in the same round, closed loop; shipped is what surely
    is faster, on the geometric mean over rounds."""

    def __post_init__(self) -> None:
        """Checks it."""
        check_above("min_ratio", self.min_ratio, 0.01, 100, "a ratio such as 1.5")

    @property
    def limit(self) -> float:
        """A ratio."""
        return self.min_ratio

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Compares the mean of the rounds' log ratios with the limit's."""
        if any(min(pair) <= 0 for pair in evidence.throughput_ips):
            return [self.nothing("in a round nothing was answered")]
        ratios = [math.log(candidate / reference) for reference, candidate in evidence.throughput_ips]
        # Turned around, as less is worse.
        found = _over_rounds(self, "", [-one for one in ratios], -math.log(self.min_ratio), confidence)
        return [_turned(found)]


def _turned(look: Look) -> Look:
    """A look at -log of a ratio as one at the ratio."""
    back = {
        key: None if value is None else math.exp(min(-value, _MOST))
        for key, value in (("figure", look.figure), ("low", look.high), ("high", look.low))
    }
    return replace(look, **back)  # type: ignore[arg-type]  # all of them are numbers or None


@dataclass(frozen=True, kw_only=True)
class SizeRule(Rule):
    """How large the engine's file may be."""

    title: ClassVar[str] = "size against the reference"
    needs_labels: ClassVar[bool] = False
    unit: ClassVar[str] = "x"

    max_ratio: float
    """Candidate's bytes over the reference's."""

    def __post_init__(self) -> None:
        """Checks it."""
        check_above("max_ratio", self.max_ratio, 0.001, 20, "a ratio such as 0.3")

    @property
    def limit(self) -> float:
        """A ratio."""
        return self.max_ratio

    def judge(self, evidence: Evidence, confidence: float) -> Sequence[Look]:
        """Divides."""
        if evidence.size_bytes is None or min(evidence.size_bytes) <= 0:
            return [self.nothing("the engines' files are not at hand")]
        reference, candidate = evidence.size_bytes
        kept = candidate <= self.max_ratio * reference
        said = f"{text.size(candidate)} against {text.size(reference)}"
        return [self.look(figure=candidate / reference, sure="SHIP" if kept else "HOLD", said=said)]


def _over_rounds(rule: Rule, name: str, rounds: Sequence[float], limit: float, confidence: float) -> Look:
    """Student's t over independent rounds, of which less is better."""
    if len(rounds) < 2:
        return rule.nothing(f"{len(rounds)} of at least 2 rounds was measured", name=name)
    from scipy.stats import t  # type: ignore[import-untyped]  # ships none

    mean, spread, degrees = float(np.mean(rounds)), float(np.std(rounds, ddof=1)), len(rounds) - 1
    error = spread / math.sqrt(len(rounds))
    away = (mean - limit) / error if error else math.copysign(math.inf, mean - limit) if mean != limit else 0.0
    half = error * float(t.ppf(confidence, degrees))

    def needs(confidence: float, power: float) -> More | None:
        if mean >= limit:
            return None
        beta = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(power)
        # The last term is what t asks for beyond the normal distribution (Guenther 1981).
        num = (sum(beta) * spread / (limit - mean)) ** 2 + beta[0] ** 2 / 2
        return More(
            num=max(math.ceil(num), len(rounds) + 1), given="their spread as it is", what="rounds (gate.rounds)"
        )

    found: dict[str, Any] = {"figure": mean, "low": mean - half, "high": mean + half}
    return rule.look(
        name=name, **found, kept=float(t.cdf(away, degrees)), broken=float(t.sf(away, degrees)), needs=needs
    )
