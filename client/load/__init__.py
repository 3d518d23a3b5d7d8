"""Load tests of a served model: closed loop at a concurrency, open loop at a Poisson rate.

In scope: throughput, the latency distribution, errors by kind, and Triton's own times beside ours. Not in scope:
starting the server. `generator.py` holds the public calls, `interleaved.py` loads two models in turns,
`processes.py` holds the lives of the processes, `worker.py` what runs in each of them, `histogram.py` keeps
latencies in fixed memory. Read `generator.py` first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temper.lazy import lazy

if TYPE_CHECKING:
    from temper.client.load.config import LoadConfig as LoadConfig
    from temper.client.load.generator import (
        POOL_REQUESTS as POOL_REQUESTS,
        measure as measure,
        plan_runs as plan_runs,
        run_closed_loop as run_closed_loop,
        run_open_loop as run_open_loop,
    )
    from temper.client.load.histogram import Histogram as Histogram
    from temper.client.load.interleaved import Race as Race, RaceConfig as RaceConfig, race as race
    from temper.client.load.result import LoadResult as LoadResult

# Loaded when used: who reads a recipe wants the configs alone, without gRPC.
_HOMES = {
    "LoadConfig": "temper.client.load.config",
    "POOL_REQUESTS": "temper.client.load.generator",
    "measure": "temper.client.load.generator",
    "plan_runs": "temper.client.load.generator",
    "run_closed_loop": "temper.client.load.generator",
    "run_open_loop": "temper.client.load.generator",
    "Histogram": "temper.client.load.histogram",
    "Race": "temper.client.load.interleaved",
    "RaceConfig": "temper.client.load.interleaved",
    "race": "temper.client.load.interleaved",
    "LoadResult": "temper.client.load.result",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
