"""A sweep as tasks of a real Ray cluster on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from temper.errors import WorkflowError
from temper.progress import Display
from temper.report.model import Report
from temper.run.recipe import Recipe, load_recipe
from temper.run.sweep import parse_over, sweep_recipe
from temper.run.sweep_run import run_sweep

ray = pytest.importorskip("ray")
from temper.run.cluster import run_on_ray  # noqa: E402

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one machine with two cores and no GPU."""
    from ray.cluster_utils import Cluster

    head: dict[str, Any] = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False}
    while True:
        cluster = Cluster()
        try:
            cluster.add_node(**head)
            break
        except Exception as error:
            cluster.shutdown()  # type: ignore[no-untyped-call]  # has no types
            # Ray gives a node 30 s to start, which a busy machine takes.
            if "timed out during startup" not in str(error):
                raise
    yield cluster.address
    cluster.shutdown()  # type: ignore[no-untyped-call]  # has no types


@pytest.fixture
def recipe(quick_recipe: Path) -> Recipe:
    """The quick recipe's int8, with two ways to find the ranges."""
    return sweep_recipe(load_recipe(quick_recipe), [parse_over("quantize.method=max,entropy")])


def run(recipe: Recipe, address: str, home: Path, **wanted: float) -> Report:
    with Display(quiet=True) as display:
        arguments: dict[str, Any] = {
            "repository": home / "models",
            "runs": home / "runs",
            "display": display,
        } | wanted
        return run_sweep(
            recipe,
            runs=home / "runs",
            run_all=lambda pairs: run_on_ray(pairs, address=address, **arguments),
        )


def descendants(pid: int) -> Iterator[int]:
    """Of this cluster, whatever others run on the machine."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                yield int(child)
                yield from descendants(int(child))


def kill_worker_once(runs: Path, killed: list[int], ended: threading.Event) -> None:
    """Kills the task's process as soon as it has finished the network's training; notes how nice it was."""
    while not ended.wait(0.1):
        if list(runs.glob("*/stages/weights-*")):
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_run"):
                        niceness = os.getpriority(os.PRIO_PROCESS, pid)
                        os.kill(pid, signal.SIGKILL)
                        killed.append(niceness)
                        return


def test_sweep_survives_the_loss_of_a_worker(recipe: Recipe, address: str, tmp_path: Path) -> None:
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=kill_worker_once, args=(tmp_path / "runs", killed, ended))
    killer.start()
    try:
        report = run(recipe, address, tmp_path)
    finally:
        ended.set()
        killer.join()
    (niceness,) = killed
    # What is measured there must not give way to whatever else runs on the machine.
    assert niceness <= os.getpriority(os.PRIO_PROCESS, 0)
    assert [row.name for row in report.variants] == ["fp32", "int8_methodmax", "int8_methodentropy"]
    assert (report.failed, report.stopped) == ((), None)
    assert all(row.accuracy and row.throughput_ips for row in report.variants)
    assert any(row.frontier for row in report.variants)
    # The second attempt took up what the first had trained.
    assert len(list((tmp_path / "runs" / recipe.name / "stages").glob("weights-*"))) == 1


def test_more_than_the_cluster_has_is_one_line(recipe: Recipe, address: str, tmp_path: Path) -> None:
    message = r"--ray: a variant asks for 2 cores and 1 GPUs, but the largest machine of the cluster has 2 and 0"
    with pytest.raises(WorkflowError, match=message):
        run(recipe, address, tmp_path, num_gpus=1)


@pytest.mark.parametrize(
    ("nowhere", "reason"), [("127.0.0.1:1", "Connection refused"), ("cluster", "expected HOST:PORT")]
)
def test_cluster_that_is_not_there_is_one_line(recipe: Recipe, tmp_path: Path, nowhere: str, reason: str) -> None:
    with pytest.raises(
        WorkflowError, match=rf"--ray {nowhere}: there is no Ray cluster \(.*{reason}.*\); start one"
    ):
        run(recipe, nowhere, tmp_path)
