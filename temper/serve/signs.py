"""What tells after a switch that the new version is worse than the one before: tests on counts, without a server.

Fixed images are asked about before and after, so the same image answered otherwise is counted. That is sharper
than comparing how often each class is answered, and takes in every change of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from temper.client.noninferiority import rise_error, share_errors

RATE_RPS = 20.0
"""Probes per second, in an open loop."""
LOOK_S = 0.5
"""Between two looks at what came back."""
_TESTS = 5
"""In a look: probes that fail, the last of them, all requests that fail, slow answers, changed answers."""
_FALSE_ALARM = 0.05
# After the switch caches are cold, and a client learns the model anew.
_SETTLES_S = 1.0
# What three failed probes are to the eye they are to the test, unless probes failed before, or looks are many.
_LAST = 3
# Two seconds of probes, as a machine may be busy for one.
_SLOW = 40
_TIMES_P99 = 3.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One request of ours."""

    image: int
    """Which of the images."""
    due_s: float
    """When it was due, on `time.monotonic`."""
    latency_s: float
    """From then to the answer, or until now."""
    answer: int | None = None
    """The class; None without an answer."""
    error: str | None = None
    """Why it failed; None of one that was answered, or is on the way."""

    @property
    def done(self) -> bool:
        """Whether anything came back."""
        return self.answer is not None or self.error is not None


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """All requests for one version, whoever sent them, as the server counts them."""

    num: int = 0
    """Requests."""
    failed: int = 0
    """Those that failed."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """The version that was served."""

    num: int
    """Probes that came back."""
    failed: int
    """Those that failed."""
    p99_s: float
    """99th percentile of their latency."""
    answers: dict[int, int] = field(repr=False)
    """The class by image."""
    traffic: Traffic
    """All requests meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed."""

    changed: float | None
    """Share of images that may be answered otherwise, between 0 and 1; None judges no answers."""
    p99_ms: float | None = None
    """What the version's own verdict allows; None without."""
    num_looks: int = 120
    """How often is looked; the error of one look is such that all together err in 5 % of the cases at most."""

    @property
    def error(self) -> float:
        """Of one test in one look."""
        return _FALSE_ALARM / (_TESTS * self.num_looks)

    def changed_error(self, num_images: int) -> float:
        """Of the test of answers: once all images were asked about, looking again is no new chance to err."""
        looks = math.ceil(num_images / (RATE_RPS * LOOK_S))
        return self.error * self.num_looks / max(1, min(self.num_looks, looks))

    def latency_s(self, before: Before) -> float:
        """What the median of the answers may take."""
        return max(_TIMES_P99 * before.p99_s, (self.p99_ms or 0.0) / 1000)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """The new version is worse."""

    reason: str
    """Why, for a line and the history."""
    first_s: float
    """When the first request that shows it was due, on `time.monotonic`; of others' requests, when it was seen."""


def summarise(probes: Sequence[Probe], traffic: Traffic) -> Before:
    """Makes a baseline of the probes that have come back, of which some must."""
    done = [probe for probe in probes if probe.done]
    return Before(
        num=len(done),
        failed=sum(probe.error is not None for probe in done),
        p99_s=float(np.quantile([probe.latency_s for probe in done], 0.99)),
        answers={probe.image: probe.answer for probe in done if probe.answer is not None},
        traffic=traffic,
    )


def find_sign(
    before: Before, probes: Sequence[Probe], traffic: Traffic, limits: Limits, *, switched_s: float, now_s: float
) -> Sign | None:
    """Looks once.

    Args:
        before: The version that was served.
        probes: Those that were due since the switch, in that order.
        traffic: All requests that the new version was sent.
        limits: What is allowed.
        switched_s: When the new version was served.
        now_s: This moment, on the same clock.

    Returns:
        The first sign that is sure; None when there is none.
    """
    return (
        _failed_probes(before, probes, limits)
        or _failed_traffic(before, traffic, limits, now_s)
        or _slow(before, probes, limits, switched_s)
        or _changed(before, probes, limits)
    )


def changed_images(before: Before, probes: Sequence[Probe]) -> dict[int, Probe | None]:
    """The images that both versions answered: the first probe that was answered otherwise, or None.

    What counts is the last answer to each.
    """
    found: dict[int, Probe | None] = {}
    for probe in probes:
        if probe.answer is not None and (known := before.answers.get(probe.image)) is not None:
            found[probe.image] = (found.get(probe.image) or probe) if probe.answer != known else None
    return found


def images_needed(limits: Limits) -> int:
    """How many images it takes that all of them, answered otherwise, are a sign."""
    num = 1
    while limits.changed is not None and share_errors(num, num, limits.changed)[1] > limits.changed_error(num):
        num += 1
    return num


def _failed_probes(before: Before, probes: Sequence[Probe], limits: Limits) -> Sign | None:
    done = [probe for probe in probes if probe.done]
    for some in (done, done[-_num_last(before, limits) :]):
        failed = [probe for probe in some if probe.error is not None]
        if failed and rise_error(before.failed, before.num, len(failed), len(some)) <= limits.error:
            which = f"the last {len(some)}" if some is not done else f"{len(failed)} of {len(some)}"
            reason = f"{which} probes failed, {before.failed} of {before.num} before: {failed[-1].error}"
            return Sign(reason=reason, first_s=failed[0].due_s)
    return None


def _num_last(before: Before, limits: Limits) -> int:
    """How many probes in a row, all failed, are a sign where none failed before.

    By those that did the error would not be kept: it would be of another test in each case.
    """
    num = _LAST
    while num < _SLOW and rise_error(0, before.num, num, num) > limits.error:
        num += 1
    return num


def _failed_traffic(before: Before, traffic: Traffic, limits: Limits, now_s: float) -> Sign | None:
    old = before.traffic
    if not traffic.failed or rise_error(old.failed, old.num, traffic.failed, traffic.num) > limits.error:
        return None
    reason = f"{traffic.failed:,} of {traffic.num:,} requests failed, {old.failed:,} of {old.num:,} before"
    return Sign(reason=reason, first_s=now_s)


def _slow(before: Before, probes: Sequence[Probe], limits: Limits, switched_s: float) -> Sign | None:
    limit_s = limits.latency_s(before)
    settled = [probe for probe in probes if probe.due_s >= switched_s + _SETTLES_S]
    # One that is on the way says something only when it is late already.
    last = [probe for probe in settled if probe.done or probe.latency_s > limit_s][-_SLOW:]
    slow = [probe for probe in last if probe.latency_s > limit_s]
    if len(last) < _SLOW or share_errors(len(slow), len(last), 0.5)[1] > limits.error:
        return None
    median_ms = 1000 * float(np.median([probe.latency_s for probe in last]))
    reason = (
        f"the last {len(last)} probes took {median_ms:.3g} ms in the median, expected at most "
        f"{1000 * limit_s:.3g} ms (99th percentile before: {1000 * before.p99_s:.3g} ms)"
    )
    return Sign(reason=reason, first_s=slow[0].due_s)


def _changed(before: Before, probes: Sequence[Probe], limits: Limits) -> Sign | None:
    if limits.changed is None:
        return None
    both = changed_images(before, probes)
    changed = [probe for probe in both.values() if probe is not None]
    error = limits.changed_error(len(before.answers))
    if not changed or share_errors(len(changed), len(both), limits.changed)[1] > error:
        return None
    reason = (
        f"{len(changed)} of {len(both)} images are answered otherwise than before, expected at most "
        f"{100 * limits.changed:g} %"
    )
    return Sign(reason=reason, first_s=min(probe.due_s for probe in changed))
