"""The variants of a sweep as tasks of a Ray cluster that runs already.

Every task builds, serves and measures one variant beside the first one, so its figures are from one machine. A
task has its machine to itself as far as it matters: all of its cores where the engine runs on the CPU, else the
GPUs that it asks for. What a lost worker had finished is kept in the runs folder, and Ray gives its task to
another one; where the machines share that folder, nothing is made twice.

Source: Ray's documentation on tasks, resources and fault tolerance.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.engines.build import pick_engine
from temper.errors import WorkflowError
from temper.run.sweep_run import Outcome, run_pair

if TYPE_CHECKING:
    from temper.progress import Display
    from temper.run.recipe import Recipe

_REACH_S = 10.0
_RETRIES = 3
"""How often a task is begun again after its worker was lost."""
_ENVIRONMENT = {"RAY_worker_niceness": "0"}
"""Ray makes its workers, and so their servers, nice (15): whatever else runs would starve what they measure."""


def run_on_ray(
    pairs: Sequence[Recipe],
    *,
    address: str,
    repository: Path,
    runs: Path,
    display: Display,
    num_gpus: float | None = None,
    num_cpus: float | None = None,
) -> Iterator[Outcome]:
    """Runs the variants on a cluster, as many at once as it has room for.

    Args:
        pairs: Recipes of the first variant and one other.
        address: The cluster's, `auto` for one on this machine.
        repository: The model repository, on every machine of the cluster.
        runs: The runs' folder, on every machine of the cluster.
        display: Shows a line for every variant that is done.
        num_gpus: GPUs for each variant; 1 for an engine that runs on one, otherwise 0, when not given.
        num_cpus: Cores for each variant; those of the smallest machine for an engine on the CPU, otherwise 1, when
            not given.

    Yields:
        The outcomes as they come.

    Raises:
        WorkflowError: Ray is not installed, there is no cluster, or it never has what a variant asks for.
    """
    ray = _connect(address)
    try:
        options = {
            **_resources(ray, pairs[0], num_gpus, num_cpus),
            "max_retries": _RETRIES,
            "runtime_env": {"env_vars": _ENVIRONMENT},
        }
        task = ray.remote(**options)(_run)
        folders = (str(repository.resolve()), str(runs.resolve()))
        waiting = {task.remote(pair, *folders): pair.variants[-1].name for pair in pairs}
        while waiting:
            (reference,), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(reference)
            with display.stage(f"{name}: on {address}") as shown:
                outcome = _result(ray, reference, name)
                shown.note = outcome.reason or "measured"
            yield outcome
    finally:
        ray.shutdown()


def _run(pair: Recipe, repository: str, runs: str) -> Outcome:
    """Runs on a worker."""
    from temper.progress import Display

    with Display(quiet=True) as display:
        return run_pair(pair, repository=Path(repository), runs=Path(runs), display=display)


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise WorkflowError("--ray needs the package ray; run `pip install 'temper[ray]'`") from error
    try:
        _reach(address)
        with contextlib.redirect_stdout(None):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise WorkflowError(
            f"--ray {address}: there is no Ray cluster ({reason}); start one with `ray start --head`, "
            "or leave --ray out to run on this machine"
        ) from error
    return ray


def _reach(address: str) -> None:
    """Connects to the cluster's port and hangs up: without an answer Ray itself would try for minutes.

    Raises:
        OSError: Nothing listens there.
        ValueError: It is no address.
    """
    if address in ("auto", "local"):
        return
    url = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
    if not url.hostname or not url.port:
        raise ValueError("expected HOST:PORT, ray://HOST:PORT or auto")
    socket.create_connection((url.hostname, url.port), timeout=_REACH_S).close()


def _resources(ray: Any, pair: Recipe, num_gpus: float | None, num_cpus: float | None) -> dict[str, float]:
    on_cpu = pick_engine(pair.engine).kind.device == "cpu"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if num_cpus is None:
        num_cpus = min(node.get("CPU", 0.0) for node in nodes) if on_cpu else 1.0
    wanted = {"num_cpus": num_cpus, "num_gpus": num_gpus if num_gpus is not None else 0.0 if on_cpu else 1.0}
    if not any(
        node.get("CPU", 0.0) >= wanted["num_cpus"] and node.get("GPU", 0.0) >= wanted["num_gpus"] for node in nodes
    ):
        largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
        raise WorkflowError(
            f"--ray: a variant asks for {wanted['num_cpus']:g} cores and {wanted['num_gpus']:g} GPUs, but the "
            f"largest machine of the cluster has {largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}"
        )
    return wanted


def _result(ray: Any, reference: Any, name: str) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # A bug of ours in the worker; the others go on.
        return Outcome(variant=name, report=None, reason=(str(error).strip().splitlines() or [""])[-1])
    except ray.exceptions.RayError as error:
        reason = (str(error).splitlines() or [""])[0]
        return Outcome(variant=name, report=None, reason=f"its worker was lost {_RETRIES + 1} times: {reason}")
    return outcome
