"""Promotes a version while it is watched: it goes back by itself when it is surely worse than what was served.

What counts as a sign is in `signs.py`. Probes name no version, so they go where all requests go.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from temper.backends.temper.artifact import ArtifactError
from temper.backends.temper.verdict import read_verdict
from temper.builder.publish.switch import Switched, versions_of
from temper.builder.publish.versions import served_version
from temper.client import Client
from temper.client.errors import ClientError
from temper.errors import ServerError, TemperError
from temper.progress import Display
from temper.serve import reload
from temper.serve.probing import Prober
from temper.serve.promote import check_candidate, promote, rollback
from temper.serve.rehearsal import rehearse
from temper.serve.signs import (
    LOOK_S,
    RATE_RPS,
    Before,
    Limits,
    Probe,
    Sign,
    Traffic,
    changed_images,
    find_sign,
    images_needed,
    summarise,
)

BEFORE_S = 5.0
"""How long the version that is served is asked before the switch."""
NUM_IMAGES = round(BEFORE_S * RATE_RPS)
"""Images that are of use: each is asked about once before the switch."""
FOLLOWS_S = 20.0
"""How long a server may take to follow what was switched before."""
MAX_CHANGED = 10.0
"""Percent of the images that may be answered otherwise, unless more is allowed."""


class WatchError(TemperError):
    """A version cannot be watched; nothing was switched."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What became of a promotion."""

    switched: Switched | None
    """The promotion; None when the version was worse already before it, and nothing was switched."""
    line: str
    """What was seen, for the user."""
    back: Switched | None = None
    """The way back; None when the version stays."""
    reason: str | None = None
    """The sign that it is worse."""
    back_s: float | None = None
    """Seconds from the first request that showed it until the old version was served."""


def watch(
    repository: Path,
    model: str,
    version: int | None = None,
    *,
    url: str,
    images: npt.NDArray[np.uint8],
    seconds: float,
    real: bool,
    max_changed: float | None = None,
    rehearsal: bool = True,
    override: bool = False,
    reason: str = "",
    display: Display | None = None,
) -> Watched:
    """Promotes a version, watches it, and rolls back at a sign that it is worse than the one before.

    What shows on a server of its own is not switched to.

    Args:
        repository: The model repository.
        model: The model.
        version: The version; the newest when not given.
        url: host:port of the running server that reads the repository, a `temper serve` or another.
        images: uint8 [N, H, W, 3], to ask about; `NUM_IMAGES` are enough.
        seconds: How long it is watched.
        real: Whether these are such images as the model is for; of others the answers say nothing, and errors and
            latency are judged alone.
        max_changed: Percent of the images that may be answered otherwise; when not given `MAX_CHANGED`, or what
            the verdict's rule `flips` allows, if that is more.
        rehearsal: Ask the version on a server of its own first, where its engine runs on this machine.
        override: As `promote` has it.
        reason: As `promote` has it.
        display: Shows what goes on.

    Raises:
        WatchError: There are too few images, the served version answers none, or the server answers with another
            one than the repository names; nothing was switched.
        PromoteError: As `promote`, and as `rollback`.
        ServerError: As `promote`, and as `rollback`.
        PublishError: The repository cannot be written.
        KeyboardInterrupt: Ctrl-C; a version that was switched to is served on.
    """
    display = display or Display(quiet=True)
    version = version or max(versions_of(repository, model), default=None)
    named = served_version(repository / model)
    served = _wait_for(url, model, named)
    if served is None or version is None or named == version:
        switched = promote(repository, model, version, url=url, override=override, reason=reason)
        why = "it was served already" if named == version else "nothing was served before"
        return Watched(switched=switched, line=f"{model}: not watched, as {why}")
    if not override:
        check_candidate(repository, model, version)  # else it is asked for seconds first
    limits = _limits(repository / model / str(version), seconds, max_changed if real else None, real=real)
    if (needed := images_needed(limits)) > len(images):
        raise WatchError(
            f"{len(images)} images to ask about: expected at least {needed}, as fewer never tell that more than "
            f"{100 * (limits.changed or 0):g} % of them are answered otherwise"
        )
    with Prober(url, model, images) as prober:
        with display.stage(f"{model}: ask version {served}, as it is served"):
            before = _ask_before(prober, url, model, served)
        if rehearsal:
            with display.stage(f"{model}: ask version {version} on a server of its own"):
                sign = rehearse(repository, model, version, images, before=before, limits=limits, display=display)
            if sign is not None:
                line = f"{model}: version {version} is not switched to: on a server of its own {sign.reason}"
                return Watched(switched=None, line=line, reason=sign.reason)
        switched = promote(repository, model, version, url=url, override=override, reason=reason)
        watcher = _Watcher(repository, url, prober, before, switched, limits)
        try:
            with display.stage(f"{model}: watch version {switched.after}"):
                sign = watcher.look_for(seconds)
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(
                f"interrupted: version {switched.after} of {model} is served on, and watched no more"
            ) from stopped
        return watcher.end(sign)


def _wait_for(url: str, model: str, named: int | None) -> int | None:
    """The version that a server answers with, once it is the one that the repository names, if it names one.

    Raises:
        WatchError: It stays another one, so that the two would be held against something else than they say.
    """
    begin = time.monotonic()
    while (served := reload.served_version(url, model)) not in (None, named) and named is not None:
        if time.monotonic() - begin > FOLLOWS_S:
            raise WatchError(
                f"model {model}: {url} answers with version {served}, expected version {named}, which the "
                f"repository serves; switch it with `temper promote {model} --version {named} --url {url}` first"
            )
        time.sleep(0.1)
    return served


def _limits(version: Path, seconds: float, max_changed: float | None, *, real: bool) -> Limits:
    """What is allowed by the user, and by the verdict on a version."""
    config: Any = None
    with contextlib.suppress(ArtifactError):
        config = (read_verdict(version) or {}).get("config")
    if max_changed is None:
        # More than half would say nothing.
        max_changed = max(MAX_CHANGED, min(50.0, _number(config, "flips", "max") or 0.0))
    return Limits(
        changed=max_changed / 100 if real else None,
        p99_ms=_number(config, "latency", "p99_ms"),
        num_looks=math.ceil(seconds / LOOK_S) + 1,  # the rehearsal
    )


def _number(config: object, rule: str, key: str) -> float | None:
    """A limit of a verdict, which may have been written by hand."""
    table = config.get(rule) if isinstance(config, Mapping) else None
    value = table.get(key) if isinstance(table, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return None
    return float(value)


def _ask_before(prober: Prober, url: str, model: str, served: int) -> Before:
    begin, counted = time.monotonic(), _traffic(url, model, served)
    time.sleep(BEFORE_S)
    probes = prober.since(begin)
    after = _traffic(url, model, served)
    if not any(probe.answer is not None for probe in probes):
        errors = [probe.error for probe in probes if probe.error is not None]
        said = errors[-1] if errors else "no answer came"
        raise WatchError(
            f"model {model}: version {served}, which is served, answers none of {len(probes)} probes ({said}), so "
            "there is nothing to hold the new one against; nothing was switched"
        )
    meanwhile = Traffic(num=max(0, after.num - counted.num), failed=max(0, after.failed - counted.failed))
    return summarise(probes, meanwhile)


def _traffic(url: str, model: str, version: int) -> Traffic:
    """All requests for a version since it was loaded; none where the server counts none, or does not answer."""
    try:
        with Client(url, timeout_s=LOOK_S) as client:
            counted = client.statistics(model, str(version))
    except ClientError:
        return Traffic()  # the probes tell whether it answers
    return Traffic(num=counted.num_success + counted.num_fail, failed=counted.num_fail)


class _Watcher:
    """After the switch."""

    def __init__(
        self, repository: Path, url: str, prober: Prober, before: Before, switched: Switched, limits: Limits
    ) -> None:
        self._repository, self._url, self._prober = repository, url, prober
        self._before, self._switched, self._limits = before, switched, limits
        self._begin = time.monotonic()
        self._traffic = Traffic()

    def look_for(self, seconds: float) -> Sign | None:
        """Looks twice a second until there is a sign, or the time is over, or somebody else has switched."""
        for number in range(1, math.ceil(seconds / LOOK_S) + 1):
            time.sleep(max(0.0, self._begin + min(number * LOOK_S, seconds) - time.monotonic()))
            if not self._is_served():
                return None
            self._traffic = _traffic(self._url, self._switched.model, self._switched.after)
            sign = find_sign(
                self._before,
                self._prober.since(self._begin),
                self._traffic,
                self._limits,
                switched_s=self._begin,
                now_s=time.monotonic(),
            )
            if sign is not None:
                return sign
        return None

    def end(self, sign: Sign | None) -> Watched:
        """Goes back, if there was a sign."""
        model, after = self._switched.model, self._switched.after
        if not self._is_served():
            line = f"{model}: version {after} is watched no more: another was switched to meanwhile"
            return Watched(switched=self._switched, line=line)
        if sign is None:
            return Watched(switched=self._switched, line=self._seen())
        url: str | None = self._url
        try:
            reload.served_version(self._url, model)
        except ServerError:
            url = None  # dead, it begins with the old version when it is started again
        back = rollback(self._repository, model, f"watched: {sign.reason}", url=url, version=after)
        back_s = time.monotonic() - sign.first_s
        when = f"{back_s:.1f} s after the first sign"
        if url is None:
            when += f"; {self._url} does not answer, and serves that when it is started again"
        line = f"{model}: went back to version {back.after}, {when}: {sign.reason}"
        return Watched(switched=self._switched, line=line, back=back, reason=sign.reason, back_s=back_s)

    def _is_served(self) -> bool:
        return served_version(self._repository / self._switched.model) == self._switched.after

    def _seen(self) -> str:
        probes = [probe for probe in self._prober.since(self._begin) if probe.done]
        failed = sum(probe.error is not None for probe in probes)
        parts = [f"{failed} of {len(probes)} probes failed", *self._latency(probes)]
        if self._limits.changed is not None:
            both = changed_images(self._before, probes)
            num = sum(probe is not None for probe in both.values())
            parts.append(f"{num} of {len(both)} images answered otherwise")
        if self._traffic.num:
            parts.append(f"{self._traffic.failed:,} of all {self._traffic.num:,} requests failed")
        return f"{self._switched.model}: version {self._switched.after} stays: {', '.join(parts)}"

    def _latency(self, probes: list[Probe]) -> list[str]:
        if not probes:
            return []
        median_ms = 1000 * statistics.median(probe.latency_s for probe in probes)
        limit_ms = 1000 * self._limits.latency_s(self._before)
        return [f"median {median_ms:.3g} ms (limit {limit_ms:.3g} ms)"]
