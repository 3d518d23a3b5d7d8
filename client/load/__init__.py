"""Load tests of a served model: closed loop at a concurrency, open loop at a Poisson rate.

In scope: throughput, the latency distribution, errors by kind, and Triton's own times beside ours. Not in scope:
starting the server. `generator.py` holds the public calls, `processes.py` the lives of the processes,
`worker.py` what runs in each of them, `histogram.py` keeps latencies in fixed memory. Read `generator.py` first.
"""

from temper.client.load.config import LoadConfig
from temper.client.load.generator import POOL_REQUESTS, measure, plan_runs, run_closed_loop, run_open_loop
from temper.client.load.histogram import Histogram
from temper.client.load.result import LoadResult

__all__ = [
    "POOL_REQUESTS",
    "Histogram",
    "LoadConfig",
    "LoadResult",
    "measure",
    "plan_runs",
    "run_closed_loop",
    "run_open_loop",
]
