"""What one load process counts while it runs; fixed in size, so that memory does not grow with the test."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from temper.client import protocol, wire
from temper.client.errors import ClientError, NonFiniteOutput, ShortOutput
from temper.client.load.histogram import Histogram
from temper.client.model import DTYPES, ModelInfo

# Durations gathered before they go into the histogram in one vectorised step.
_CHUNK = 4096
# Answers whose numbers are looked at in one vectorised step, and how many bytes they may hold: alone, between two
# requests, the look costs ten times as much, for nothing of it is in the processor's caches by then.
_BLOCK = 64
_BLOCK_BYTES = 256 << 10
LATE_S = 1e-3
# Characters kept of what was said of an error.
_REASON = 300


@dataclass
class Tally:
    """Counts of one process, or of several merged.

    Attributes:
        latency: Durations of the answered requests that count.
        lag: Open loop: how long after its scheduled time each request was sent.
        completed: Answered requests that count.
        in_window: Requests answered within the measured window, whenever they were sent: the throughput.
        late: Open loop: requests sent more than `LATE_S` after their scheduled time.
        shed: Requests that the server refused because of its load.
        errors: Failed requests by kind.
        reasons: What was said of the first of each kind, in a line; not of those that are silence.
        lost: Requests whose answer never came.
        last_answer: Clock (`time.monotonic`) of the last answer, 0 when there was none.
        longest_s: The longest that any answer took, within the window or not.
    """

    latency: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)
    completed: int = 0
    in_window: int = 0
    late: int = 0
    shed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    last_answer: float = 0.0
    longest_s: float = 0.0

    def merge(self, other: Tally) -> None:
        """Add another process's counts."""
        self.latency.merge(other.latency)
        self.lag.merge(other.lag)
        self.completed += other.completed
        self.in_window += other.in_window
        self.late += other.late
        self.shed += other.shed
        self.errors.update(other.errors)
        self.reasons = other.reasons | self.reasons
        self.lost += other.lost
        self.last_answer = max(self.last_answer, other.last_answer)
        self.longest_s = max(self.longest_s, other.longest_s)


class Recorder:
    """Sorts every request of a run into a Tally, which is complete after `flush`.

    Args:
        info: The model, to tell a short output.
        batch_size: Images per request.
        window: Start and end of the measured window (`time.monotonic`).
        open_loop: Whether a request belongs to the window by its scheduled time rather than by its answer's.
        timeout_s: An answer that took longer counts as a missed deadline.
    """

    def __init__(
        self,
        info: ModelInfo,
        batch_size: int,
        window: tuple[float, float],
        *,
        open_loop: bool,
        timeout_s: float = math.inf,
    ) -> None:
        """Start with nothing counted."""
        self.tally = Tally()
        self._info = info
        self._batch_size = batch_size
        self._start, self.end = window
        self._open_loop = open_loop
        self._timeout_s = timeout_s
        self._durations: list[float] = []
        self._lags: list[float] = []
        # How a good answer begins and how long it is, once one was checked in full.
        self._head, self._length = b"", -1
        # Begun, ended and message of answers that are good but for their numbers, which nobody has seen yet.
        self._unseen: list[tuple[float, float, bytes]] = []
        self._block = 1

    def answer(self, begun: float, ended: float, message: bytes) -> None:
        """Count an answer; `begun` is the call (closed loop) or the scheduled time (open loop)."""
        if ended - begun > self._timeout_s:
            self.fail(begun, ended, "deadline")
            return
        if len(message) == self._length and message.startswith(self._head):
            self._unseen.append((begun, ended, message))
            if len(self._unseen) >= self._block:
                self._look()
        elif self._check(message, begun, ended):
            self._count(begun, ended)

    def sent(self, scheduled: float, now: float) -> None:
        """Count how late an open-loop request was sent."""
        if self._start <= scheduled < self.end:
            self.tally.late += now - scheduled > LATE_S
            self._lags.append(now - scheduled)
            if len(self._lags) >= _CHUNK:
                self._record()

    def fail(self, begun: float, ended: float, kind: str, reason: str = "") -> None:
        """Count a failed request; one of the warm-up does not count, one that ends after the window does."""
        if self._counts(begun, ended):
            self.tally.errors[kind] += 1
            if reason and kind not in self.tally.reasons:
                self.tally.reasons[kind] = " ".join(reason.split())[:_REASON]

    def _counts(self, begun: float, ended: float) -> bool:
        return (begun if self._open_loop else ended) >= self._start

    def rpc_error(self, begun: float, ended: float, error: Exception) -> None:
        """Count what gRPC raised."""
        name = wire.status_name(error)
        if wire.was_lost(error):
            self.tally.lost += 1
        elif wire.was_shed(error):
            self.tally.shed += self._counts(begun, ended)
        else:
            is_late = name == "DEADLINE_EXCEEDED"
            self.fail(begun, ended, "deadline" if is_late else name, "" if is_late else wire.details(error))

    def flush(self) -> None:
        """Count the answers not looked at yet and move the gathered durations into the histograms."""
        self._look()
        self._record()

    def _record(self) -> None:
        self.tally.latency.record(self._durations)
        self.tally.lag.record(self._lags)
        self._durations.clear()
        self._lags.clear()

    def _count(self, begun: float, ended: float) -> None:
        tally = self.tally
        tally.last_answer = ended
        if ended - begun > tally.longest_s:
            tally.longest_s = ended - begun
        inside = self._start <= ended <= self.end
        tally.in_window += inside
        if inside if not self._open_loop else self._start <= begun < self.end:
            tally.completed += 1
            self._durations.append(ended - begun)
            if len(self._durations) >= _CHUNK:
                self._record()

    def _look(self) -> None:
        """Count the answers whose numbers are all finite, and name the others."""
        unseen, self._unseen = self._unseen, []
        start = len(self._head)
        finite = np.isfinite(
            np.frombuffer(b"".join([message[start:] for _, _, message in unseen]), DTYPES[self._info.output_dtype])
        )
        good = [True] * len(unseen) if finite.all() else finite.reshape(len(unseen), -1).all(axis=1).tolist()
        for (begun, ended, _), is_good in zip(unseen, good, strict=True):
            if is_good:
                self._count(begun, ended)
            else:
                self.fail(begun, ended, NonFiniteOutput.kind)

    def _check(self, message: bytes, begun: float, ended: float) -> bool:
        """Tell whether an answer is good in full, and learn how one begins."""
        self._look()
        try:
            self._head = protocol.constant_head(self._info, message, self._batch_size)
        except (ShortOutput, NonFiniteOutput) as error:
            self.fail(begun, ended, error.kind, str(error))
            return False
        except ClientError as error:
            self.fail(begun, ended, "bad_output", str(error))
            return False
        self._length = len(message)
        self._block = max(1, min(_BLOCK, _BLOCK_BYTES // self._length))
        return True
