"""Attacks on a real tritonserver."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from temper.client import Client
from temper.client.errors import ModelNotFound, ServerUnavailable
from temper.client.retry import RetryPolicy
from temper.client.robustness import AttackConfig, AttackResult, attack
from temper.client.robustness.attacks.noise import NoiseConfig
from temper.client.robustness.attacks.square import SquareConfig
from temper.client.robustness.base import ATTACKS
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = pytest.mark.server
NUM_IMAGES = 32


def config(name: str) -> AttackConfig:
    shared = {"epsilon": 24, "num_images": NUM_IMAGES, "max_queries": 60, "batch_size": 8, "concurrency": 4}
    made: AttackConfig = ATTACKS.get(name).config(**shared)
    return made


@pytest.fixture(scope="module")
def results(server: TritonServer, sample: Sample) -> dict[str, AttackResult]:
    return {
        name: attack(server.grpc_url, "toy_fp32", sample.images, sample.labels, config(name))
        for name in ("square", "noise", "art-square")
    }


def test_square_fools_the_served_model_more_often_than_noise(results: dict[str, AttackResult]) -> None:
    square, noise = results["square"], results["noise"]
    assert square.clean_accuracy == noise.clean_accuracy and square.clean_accuracy["value"] > 0.8
    assert square.accuracy["value"] < noise.accuracy["value"]
    assert square.accuracy["value"] < square.clean_accuracy["value"] - 0.2
    assert square.num_queries < noise.num_queries


def test_square_is_no_weaker_than_art_at_the_same_budget(results: dict[str, AttackResult]) -> None:
    assert results["square"].accuracy["value"] <= results["art-square"].accuracy["value"]
    assert results["square"].num_queries < results["art-square"].num_queries


@pytest.mark.parametrize("name", ["square", "noise", "art-square"])
def test_server_misjudges_every_example_when_it_is_asked_again(
    results: dict[str, AttackResult], server: TritonServer, sample: Sample, name: str
) -> None:
    with Client(server.grpc_url) as client:
        for example in results[name].gallery:
            change = example.adversarial.astype(int) - sample.images[example.index]
            assert np.abs(change).max() <= 24
            answer = int(client.infer("toy_fp32", example.adversarial[None]).argmax())
            assert answer == example.served_label != sample.labels[example.index] == example.label


def test_attack_reads_a_memory_map(server: TritonServer, sample: Sample, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", sample.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    small = SquareConfig(epsilon=24, num_images=4, max_queries=5)
    assert attack(server.grpc_url, "toy_fp32", mapped, sample.labels, small).accuracy["num_images"] == 4


def test_attack_on_an_unknown_model_names_it(server: TritonServer, sample: Sample) -> None:
    with pytest.raises(ModelNotFound, match="model 'toy_int3' is not on .* it serves: toy_fp32"):
        attack(server.grpc_url, "toy_int3", sample.images, sample.labels, config("square"))


def test_server_killed_in_the_middle_is_reported_and_the_attack_resumes(
    results: dict[str, AttackResult], server: TritonServer, toy_repository: Path, sample: Sample, tmp_path: Path
) -> None:
    path = tmp_path / "attack.jsonl"
    with TritonServer(toy_repository, log_file=tmp_path / "tritonserver.log") as doomed:

        def kill(done: int, total: int) -> None:
            # Answers that were on their way come after the kill too.
            if done > total // 2 and doomed.alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(doomed.pid, signal.SIGKILL)

        with pytest.raises(ServerUnavailable, match="[1-9][0-9]* of 32 images were finished; run it again"):
            attack(
                doomed.grpc_url,
                "toy_fp32",
                sample.images,
                sample.labels,
                config("square"),
                kill,
                checkpoint=path,
                retry=RetryPolicy(max_attempts=2, first_wait_s=0.01),
            )
    finished = len(path.read_text().splitlines()) - 1
    assert 0 < finished < NUM_IMAGES
    resumed = attack(server.grpc_url, "toy_fp32", sample.images, sample.labels, config("square"), checkpoint=path)
    assert np.mean(resumed.survived == results["square"].survived) > 0.9


def test_attack_goes_on_through_a_restart_of_the_server(toy_repository: Path, sample: Sample) -> None:
    with TritonServer(toy_repository) as doomed:
        restart = threading.Thread(target=doomed.restart)

        def kill(done: int, total: int) -> None:
            if done > 0 and restart.ident is None:
                os.kill(doomed.pid, signal.SIGKILL)
                restart.start()

        small = NoiseConfig(epsilon=24, num_images=16, max_queries=20, batch_size=4)
        patient = RetryPolicy(max_attempts=1000, patience_s=600, budget_share=100.0)
        data = (sample.images, sample.labels)
        result = attack(doomed.grpc_url, "toy_fp32", *data, small, kill, retry=patient)
        restart.join()
    assert result.retries["unavailable"] > 0
    assert result.accuracy["num_images"] == 16 and result.num_queries > 0
