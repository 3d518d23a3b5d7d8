"""Two served models loaded in turns, so that what else the machine does meets both alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from temper.client import protocol
from temper.client.client import Client
from temper.client.errors import ServerUnavailable
from temper.client.load.config import LoadConfig
from temper.client.load.generator import Progress, prepare
from temper.client.load.result import LoadResult

_MIN_REQUESTS = 300
"""Of one open loop: what its 99th percentile is read from."""


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """How two models are loaded in turns.

    Raises:
        ValueError: A value makes no sense; the message names the field.
    """

    rounds: int = 5
    """Turns of both; an interval over them needs three."""
    duration_s: float = 2.0
    """Length of each measured window in seconds; longer where the rate asks for it."""
    warmup_s: float = 0.5
    """Load before each window that is not counted, in seconds."""
    concurrency: int | None = 16
    """Closed loop: requests kept in flight; None for no closed loop."""
    rate_rps: float | None = None
    """Open loop on the second model alone: mean arrival rate in requests per second (Poisson); None for none."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.rounds < 3:
            raise ValueError(f"rounds: got {self.rounds}, expected at least 3, for an interval over them")
        self.settings(0)

    def settings(self, number: int, *, is_open: bool = False) -> LoadConfig:
        """Return the settings of a run in the round of that number."""
        length_s = self.duration_s
        if is_open and self.rate_rps:
            length_s = max(length_s, _MIN_REQUESTS / self.rate_rps)
        return LoadConfig(
            concurrencies=(self.concurrency or 1,),
            rates_rps=() if self.rate_rps is None else (self.rate_rps,),
            duration_s=length_s,
            warmup_s=self.warmup_s,
            seed=number,
        )


@dataclass(frozen=True, kw_only=True)
class Race:
    """What a race measured, round by round."""

    throughput_ips: tuple[tuple[float, float], ...]
    """Images per second of both, closed loop."""
    p99_ms: tuple[float, ...]
    """The second's 99th percentile of latency from the scheduled times, open loop."""
    closed_trouble: str | None
    """Why the throughputs are none, in one line: requests failed or were shed."""
    open_trouble: str | None
    """Why the latencies are none, in the same way."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return asdict(self)


def race(
    url: str,
    first: tuple[str, str],
    second: tuple[str, str],
    images: protocol.Payload,
    config: RaceConfig,
    progress: Progress | None = None,
    *,
    url_of_first: str | None = None,
    images_of_first: protocol.Payload | None = None,
) -> Race:
    """Load two served models in turns; who begins changes from round to round.

    Args:
        url: host:port of the gRPC endpoint.
        first: Name and version of the one that the other is held against; an empty version is the newest.
        second: Name and version of the other.
        images: As for `run_closed_loop`.
        config: Rounds, lengths and loads.
        progress: Called with (done, total) in runs.
        url_of_first: Where the first one is served, if elsewhere.
        images_of_first: The same images as the first one takes them, if otherwise.

    Raises:
        ClientError: A run cannot start, or the server died: no server, no such model, images that do not fit.
    """
    of_first = images if images_of_first is None else images_of_first
    plan = list(_plan(config))
    pairs: list[dict[int, float]] = [{} for _ in range(config.rounds)]
    p99_ms: list[float] = []
    trouble: dict[bool, str | None] = {}
    with Client(url_of_first or url) as one, Client(url) as two:
        runs = (
            prepare(one, *first, of_first, config.settings(0)),
            prepare(two, *second, images, config.settings(0)),
        )
        for done, (number, which) in enumerate(plan):
            if which is None:
                run = replace(runs[1], config=config.settings(number, is_open=True))
                result = run.start(0, config.rate_rps or 0.0, None)
                p99_ms += [result.latency_ms["p99"]] if result.latency_ms else []
            else:
                result = runs[which].start(config.concurrency or 1, 0.0, None)
                pairs[number][which] = result.throughput_ips
            if result.interrupted is not None:
                if result.stopped_by_user:
                    raise KeyboardInterrupt(result.interrupted)
                raise ServerUnavailable(result.interrupted)
            trouble[which is None] = trouble.get(which is None) or _trouble(result)
            if progress is not None:
                progress(done + 1, len(plan))
    return Race(
        throughput_ips=tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2),
        p99_ms=tuple(p99_ms),
        closed_trouble=trouble.get(False),
        open_trouble=trouble.get(True),
    )


def _plan(config: RaceConfig) -> Iterator[tuple[int, int | None]]:
    """Yields the runs in order: the round, and who is loaded; None for the open loop."""
    for number in range(config.rounds):
        if config.concurrency is not None:
            yield from ((number, which) for which in ((0, 1) if number % 2 == 0 else (1, 0)))
        if config.rate_rps is not None:
            yield number, None


def _trouble(result: LoadResult) -> str | None:
    """What says that the figures are not of all requests; a round without any answer has no figure anyway."""
    if result.num_errors:
        return f"{result.num_errors:,} requests to {result.model} failed: {result.say_errors()}"
    if result.shed:
        return f"{result.model} shed {100 * result.shed_share:.1f} % of the requests"
    return None
