"""The load generator on a real tritonserver: its counts, its end when the server dies, and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from temper.client import Client, ClientError, InvalidRequest, ModelNotFound, ServerUnavailable, wire
from temper.client.load import LoadConfig, LoadResult, RaceConfig, measure, race, run_closed_loop, run_open_loop
from temper.client.load.generator import plan_runs
from temper.client.load.processes import LoadProcesses
from temper.client.load.tally import Recorder
from temper.client.load.worker import Job, arrivals
from temper.client.model import ModelInfo
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

QUICK = LoadConfig(duration_s=1.5, warmup_s=0.2, concurrencies=(1, 8))
ROOT = Path(__file__).resolve().parents[2]
Until = Callable[[Callable[[], object]], None]
INFO = ModelInfo(
    name="m",
    version="1",
    input_name="x",
    image_shape=(2,),
    output_name="y",
    num_classes=2,
    max_batch_size=0,
    output_shape=(2,),
)


def _answer(num_bytes: int = 8, *, raw: bytes | None = None, name: str = "y") -> bytes:
    response = wire.pb.ModelInferResponse()
    response.outputs.add(name=name, datatype="FP32", shape=[2])
    response.raw_output_contents.append(bytes(num_bytes) if raw is None else raw)
    return bytes(response.SerializeToString())


def _load_processes(parent: int) -> list[int]:
    """The load processes that `parent` started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(child): _command(int(child)) for child in children}
    return [
        child for child, command in commands.items() if b"from temper.client.load.worker import main" in command
    ]


def _command(pid: int) -> bytes:
    """A process's command line; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.server
@pytest.mark.parametrize(("concurrency", "processes"), [(1, None), (5, 2)])
def test_closed_loop_counts_what_the_server_counts(
    server: TritonServer, sample: Sample, until: Until, concurrency: int, processes: int | None
) -> None:
    config = LoadConfig(duration_s=2.0, warmup_s=0.0, batch_size=4, num_processes=processes)
    with Client(server.grpc_url) as client:
        before = client.statistics("toy_fp32")
        result = run_closed_loop(
            server.grpc_url, "toy_fp32", sample.images, concurrency=concurrency, config=config
        )
        # Triton counts a request a moment after it answered it.
        until(lambda: client.statistics("toy_fp32").since(before).num_success >= result.completed)
        # Not counted are the question for labels, one connecting request per process, those that end after the
        # window, and what the server had answered but not yet counted before.
        num_sent = client.statistics("toy_fp32").since(before).num_success
    assert result.interrupted is None and result.errors == {} and result.lost == 0
    assert 0 < result.completed <= num_sent <= result.completed + 8 + 2 * concurrency
    assert result.throughput_ips == pytest.approx(result.completed * 4 / result.duration_s)
    assert (result.mode, result.concurrency, result.rate_rps, result.batch_size) == (
        "closed",
        concurrency,
        None,
        4,
    )
    assert result.num_processes == (processes or 1)
    times = result.latency_ms
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p999"] <= times["max"]
    # Little's law: requests in flight = rate x mean latency, less those that ended after the window.
    in_flight_s = result.completed * times["mean"] / 1e3
    cut_off_s = 3 * concurrency * times["max"] / 1e3
    assert (
        0.75 * concurrency * result.duration_s - cut_off_s < in_flight_s < 1.01 * concurrency * result.duration_s
    )
    assert result.server is not None and 0 < result.server["compute_infer_ms"] < times["max"]
    assert json.loads(json.dumps(result.to_json()))["completed"] == result.completed


@pytest.mark.server
def test_open_loop_sends_every_arrival(server: TritonServer, sample: Sample) -> None:
    config = LoadConfig(duration_s=1.0, warmup_s=0.2, seed=3, num_processes=1)
    result = run_open_loop(server.grpc_url, "toy_fp32", sample.images, rate_rps=60.0, config=config)
    planned = sum(when >= 0.2 for when in arrivals(60.0, 0.0, 1.2, (3, 0)))
    assert abs(result.completed - planned) <= 1  # the clock's rounding at the window's edges
    assert result.errors == {} and result.lost == 0 and result.interrupted is None
    assert result.late_share is not None and 0 <= result.late_share <= 1
    assert result.send_lag_p99_ms is not None and result.send_lag_p99_ms >= 0


@pytest.mark.server
def test_open_loop_counts_the_wait_of_a_stalled_server(toy_repository: Path, sample: Sample) -> None:
    config = LoadConfig(duration_s=2.0, warmup_s=0.0, timeout_s=300)
    with TritonServer(toy_repository) as running:
        wake = threading.Timer(0.6, os.kill, (running.pid, signal.SIGCONT))

        def stall(done_ms: int, total_ms: int) -> None:
            if done_ms > 500 and wake.ident is None:
                os.kill(running.pid, signal.SIGSTOP)
                wake.start()

        result = run_open_loop(
            running.grpc_url, "toy_fp32", sample.images, rate_rps=40.0, config=config, progress=stall
        )
        wake.join()
    assert result.interrupted is None and result.num_errors == 0
    # A closed loop would have one slow request; here a tenth of them and more fell due during the stall.
    assert result.latency_ms["p90"] > 50
    assert result.latency_ms["max"] > 300


@pytest.mark.server
def test_measure_runs_closed_then_open_and_reports_progress(server: TritonServer, sample: Sample) -> None:
    seen: list[tuple[int, int]] = []
    results = measure(server.grpc_url, "toy_fp32", sample.images, QUICK, lambda *step: seen.append(step))
    assert [(r.mode, r.concurrency) for r in results] == [("closed", 1), ("closed", 8), ("open", None)]
    best = max(result.throughput_ips for result in results[:2])
    assert results[2].rate_rps == pytest.approx(0.7 * best)
    assert {total for _, total in seen} == {5100}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] > 3400


def test_rates_replace_the_share_of_the_best_throughput() -> None:
    results = [LoadResult(mode="closed", model="m", version="1", throughput_ips=100.0)]
    assert list(plan_runs(LoadConfig(concurrencies=(), rates_rps=(5.0, 9.0)), results)) == [(0, 5.0), (0, 9.0)]
    assert list(plan_runs(LoadConfig(concurrencies=(2,), batch_size=10), results)) == [(2, 0.0), (0, 7.0)]
    assert list(plan_runs(LoadConfig(concurrencies=(2,), open_loop_fraction=None), results)) == [(2, 0.0)]


@pytest.mark.server
def test_two_models_are_loaded_in_turns(server: TritonServer, sample: Sample) -> None:
    seen: list[tuple[int, int]] = []
    config = RaceConfig(rounds=3, duration_s=0.3, warmup_s=0.1, concurrency=2, rate_rps=150.0)
    first, second = ("toy_fp32", ""), ("toy_fp32", "1")
    found = race(server.grpc_url, first, second, sample.images, config, lambda *step: seen.append(step))
    assert found.closed_trouble is None and found.open_trouble is None
    assert [len(pair) for pair in found.throughput_ips] == [2, 2, 2] and len(found.p99_ms) == 3
    assert min(min(pair) for pair in found.throughput_ips) > 0 < min(found.p99_ms)
    assert seen == [(number, 9) for number in range(1, 10)]


@pytest.mark.server
def test_a_run_that_cannot_start_says_why(server: TritonServer, sample: Sample) -> None:
    with pytest.raises(ModelNotFound, match="model 'nope' is not on"):
        run_closed_loop(server.grpc_url, "nope", sample.images, concurrency=1, config=QUICK)
    with pytest.raises(InvalidRequest, match=r"images: got FP32 .*expects UINT8"):
        run_open_loop(server.grpc_url, "toy_fp32", sample.images.astype(np.float32), rate_rps=1, config=QUICK)
    with pytest.raises(InvalidRequest, match="batch_size: got 33, model toy_fp32 takes at most 32 images"):
        measure(server.grpc_url, "toy_fp32", sample.images, LoadConfig(batch_size=33))
    with pytest.raises(ServerUnavailable, match="no server answers there"):
        measure("127.0.0.1:1", "toy_fp32", sample.images, QUICK)
    with pytest.raises(ValueError, match="concurrency: got 0, expected at least 1"):
        run_closed_loop(server.grpc_url, "toy_fp32", sample.images, concurrency=0)
    with pytest.raises(ValueError, match="rate_rps: got -1, expected requests per second above 0"):
        run_open_loop(server.grpc_url, "toy_fp32", sample.images, rate_rps=-1)


@pytest.mark.server
@pytest.mark.parametrize("load", ["one", "closed", "open"])
def test_killed_server_ends_the_run_with_the_answers(toy_repository: Path, sample: Sample, load: str) -> None:
    config = LoadConfig(duration_s=600, warmup_s=0.0, num_processes=1 if load == "one" else 2, rates_rps=(50.0,))
    with TritonServer(toy_repository) as running:

        def kill(done_ms: int, total_ms: int) -> None:
            with contextlib.suppress(ClientError, ProcessLookupError):
                if _num_answers(running.grpc_url) > 20:
                    os.kill(running.pid, signal.SIGKILL)

        url, images = running.grpc_url, sample.images
        if load == "open":
            result = run_open_loop(url, "toy_fp32", images, rate_rps=50.0, config=config, progress=kill)
        else:
            concurrency = 1 if load == "one" else 6
            result = run_closed_loop(
                url, "toy_fp32", images, concurrency=concurrency, config=config, progress=kill
            )
            # A slot may write one more request into the broken connection before it is told, or have been
            # answered just before, and find nobody to connect to.
            assert result.lost <= 2 * concurrency
            assert load == "one" or result.lost + result.num_errors > 0
    assert result.completed > 0 and result.duration_s < config.duration_s
    assert result.latency_ms["p50"] > 0
    assert result.interrupted is not None
    assert re.fullmatch(
        r"the server at 127\.0\.0\.1:\d+ died [\d.]+ s into the run: "
        rf"{result.completed} requests answered, {result.lost} lost on the way, \d+ failed",
        result.interrupted,
    )
    assert set(result.errors) <= {"UNAVAILABLE"}
    assert _load_processes(os.getpid()) == []


SCRIPT = """
import json, sys
import numpy as np
from temper.client.load import LoadConfig, run_closed_loop

# No __name__ guard: the load processes must not run this module again.
config = LoadConfig(duration_s=600, warmup_s=0.0, num_processes=2)
print("begun", flush=True)
result = run_closed_loop(sys.argv[1], "toy_fp32", np.zeros((4, 32, 32, 3), np.uint8), concurrency=4, config=config)
print(json.dumps(result.to_json()))
"""


def _num_answers(url: str) -> int:
    """How many requests the server has answered since it started."""
    with Client(url) as client:
        return client.statistics("toy_fp32").num_success


def _start_script(url: str, until: Until) -> tuple[subprocess.Popen[str], list[int]]:
    """Start SCRIPT and return it with its load processes, under way."""
    before = _num_answers(url)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    until(lambda: len(_load_processes(process.pid)) == 2)
    until(lambda: _num_answers(url) > before + 20)
    return process, _load_processes(process.pid)


@pytest.mark.server
def test_ctrl_c_keeps_what_was_measured(server: TritonServer, until: Until) -> None:
    process, workers = _start_script(server.grpc_url, until)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    result: dict[str, Any] = json.loads(output)
    assert result["interrupted"].startswith("stopped by Ctrl-C: ")
    assert result["stopped_by_user"] is True
    assert result["completed"] > 0 and result["lost"] <= 4 and result["errors"] == {}
    until(lambda: not any(map(_command, workers)))


@pytest.mark.server
def test_load_processes_end_with_a_killed_parent(server: TritonServer, until: Until) -> None:
    process, workers = _start_script(server.grpc_url, until)
    process.kill()
    process.communicate()
    until(lambda: not any(map(_command, workers)))


def test_a_job_without_a_server_counts_its_errors() -> None:
    job = Job(
        url="127.0.0.1:1",
        info=INFO,
        requests=(b"",),
        batch_size=1,
        concurrency=2,
        rate_rps=0.0,
        seed=(0, 0),
        warmup_s=0.0,
        duration_s=600,
        timeout_s=30.0,
    )
    with LoadProcesses([job]) as processes:
        reason = processes.run(time.monotonic(), lambda trouble: "it told" if trouble else None)
    assert reason == "it told"
    assert processes.tally.completed == 0 and set(processes.tally.errors) == {"UNAVAILABLE"}


def test_short_output_is_an_error_and_not_a_latency() -> None:
    recorder = Recorder(INFO, 1, (10.0, 20.0), open_loop=False)
    for size in (8, 4, 8, 0):
        recorder.answer(11.0, 11.5, _answer(size))
    recorder.answer(11.0, 11.5, b"\xff")
    recorder.flush()
    assert recorder.tally.errors == {"short_output": 2, "bad_output": 1}
    texts = recorder.tally.reasons
    assert "4 bytes" in texts["short_output"] and "ModelInferResponse" in texts["bad_output"]
    assert recorder.tally.completed == len(recorder.tally.latency) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answer_that_is_no_number_is_an_error_of_its_own_kind(value: float) -> None:
    recorder = Recorder(INFO, 1, (10.0, 20.0), open_loop=False)
    broken = _answer(raw=np.array([1, value], np.float32).tobytes())
    good = [_answer(), _answer(raw=np.array([3, -1e38], np.float32).tobytes())] * 500  # several blocks
    for message in (broken, *good, broken, *good, broken):
        recorder.answer(11.0, 11.5, message)
    recorder.answer(11.0, 11.5, _answer(name="z"))  # as long as a good one, and of another output
    recorder.flush()
    assert recorder.tally.errors == {"nonfinite_output": 3, "bad_output": 1}
    assert recorder.tally.completed == len(recorder.tally.latency) == 2000


def test_few_answers_are_kept_however_long_they_are() -> None:
    """Between two looks at their numbers: 64 answers, or 256 KiB of them."""
    for num_scores, most in ((2, 64), (50_000, 1)):
        info = replace(INFO, num_classes=num_scores, output_shape=(num_scores,))
        response = wire.pb.ModelInferResponse()
        response.outputs.add(name="y", datatype="FP32", shape=[num_scores])
        response.raw_output_contents.append(bytes(4 * num_scores))
        recorder = Recorder(info, 1, (10.0, 20.0), open_loop=False)
        for number in range(200):
            recorder.answer(11.0, 11.5, response.SerializeToString())
            assert number + 1 - recorder.tally.completed < most


def test_late_answer_is_an_error_and_not_a_latency() -> None:
    recorder = Recorder(INFO, 1, (10.0, 20.0), open_loop=False, timeout_s=0.5)
    for ended in (11.5, 11.6):
        recorder.answer(11.0, ended, _answer())
    recorder.flush()
    assert recorder.tally.errors == {"deadline": 1}
    assert recorder.tally.completed == len(recorder.tally.latency) == 1


def test_closed_loop_counts_by_the_answer_and_open_loop_by_the_schedule() -> None:
    times = [(8.0, 9.0), (9.0, 11.0), (12.0, 13.0), (19.0, 21.0), (21.0, 22.0)]
    closed, opened = (Recorder(INFO, 1, (10.0, 20.0), open_loop=kind) for kind in (False, True))
    for begun, ended in times:
        closed.answer(begun, ended, _answer())
        opened.answer(begun, ended, _answer())
    closed.flush()
    opened.flush()
    assert (closed.tally.completed, closed.tally.in_window) == (2, 2)
    assert (opened.tally.completed, opened.tally.in_window) == (2, 2)
    assert closed.tally.latency.quantile_s(1.0)[0] == opened.tally.latency.quantile_s(1.0)[0] == 2.0
    assert closed.tally.latency.quantile_s(0.5)[0] == opened.tally.latency.quantile_s(0.5)[0]
    assert closed.tally.latency.quantile_s(0.5)[0] == pytest.approx(1.0, rel=1e-3)


def test_arrivals_are_poisson_and_repeat_with_the_seed() -> None:
    times = np.array(list(arrivals(1000.0, 5.0, 25.0, (0, 0))))
    assert times[0] >= 5.0 and times[-1] < 25.0 and len(times) == pytest.approx(20_000, rel=0.03)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential
    assert list(arrivals(1000.0, 5.0, 25.0, (0, 0))) == times.tolist()
    assert list(arrivals(1000.0, 5.0, 6.0, (0, 1)))[:5] != times[:5].tolist()


BAD_CONFIG: list[tuple[dict[str, Any], str]] = [
    ({"concurrencies": (4, 0)}, r"concurrencies: got \(4, 0\), expected integers of at least 1"),
    ({"concurrencies": ()}, "concurrencies: got none and no rates_rps either"),
    ({"rates_rps": (0.0,)}, r"rates_rps: got \(0\.0,\), expected rates above 0"),
    ({"open_loop_fraction": 3.0}, "open_loop_fraction: got 3.0, expected 0"),
    ({"duration_s": 0.0}, "duration_s: got 0.0, expected seconds above 0"),
    ({"warmup_s": -1.0}, "warmup_s: got -1.0, expected seconds, 0 or more"),
    ({"batch_size": 0}, "batch_size: got 0, expected at least 1"),
    ({"num_processes": 0}, "num_processes: got 0, expected 1 to 64"),
    ({"timeout_s": float("inf")}, "timeout_s: got inf, expected seconds above 0"),
    ({"seed": -1}, "seed: got -1, expected 0 or more"),
]


@pytest.mark.parametrize(("values", "message"), BAD_CONFIG, ids=[next(iter(row[0])) for row in BAD_CONFIG])
def test_config_refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadConfig(**values)
