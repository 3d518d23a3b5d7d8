"""On a real server: answers that are no numbers, load that is shed, and promotions under a living client."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from temper.cli.main import cli
from temper.client import (
    AsyncClient,
    Client,
    ClientError,
    ModelNotFound,
    NonFiniteOutput,
    Overloaded,
    ServerError,
    VersionChanged,
)
from temper.client.accuracy import evaluate_accuracy
from temper.client.load import LoadConfig, run_closed_loop, run_open_loop
from temper.client.robustness import attack
from temper.client.robustness.attacks.hop_skip_jump import HopSkipJumpConfig
from temper.client.robustness.attacks.noise import NoiseConfig
from temper.client.robustness.attacks.square import SquareConfig
from temper.serve.server import TritonServer

pytestmark = pytest.mark.server

CODE = Path(__file__).parent / "models" / "faulty" / "model.py"
Until = Callable[[Callable[[], object]], None]
CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {max_batch}
input [{{ name: "image" data_type: TYPE_UINT8 dims: [ 8, 8, 3 ] }}]
output [{{ name: "logits" {output} label_filename: "labels.txt" }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
version_policy: {{ specific: {{ versions: [ {version} ] }} }}
dynamic_batching {{
  default_queue_policy {{ max_queue_size: {queue} }}
}}
"""


class PollingServer(TritonServer):
    """The embedded server, but it looks for changes of its repository, as a server in production may.

    A promotion unloads a model, whose stub stays a zombie until Triton comes to reap it: the supervisor keeps the
    long grace of loading.
    """

    def _tell(self, line: str) -> None:
        if line != "serving":
            super()._tell(line)

    def _arguments(self, *given: Any) -> list[str]:
        kept = [
            one for one in super()._arguments(*given) if not one.startswith(("--model-control", "--load-model"))
        ]
        return [*kept, "--model-control-mode=poll", "--repository-poll-secs=1"]


SCORES, CLASSES = "data_type: TYPE_FP32 dims: [ 3 ]", "data_type: TYPE_INT64 dims: [ 1 ]"


def write_model(
    repository: Path,
    name: str,
    version: int,
    *,
    labels: str,
    max_batch: int,
    queue: int = 64,
    output: str = SCORES,
) -> None:
    """Write a version beside the older ones, then switch to it."""
    folder = repository / name
    (folder / str(version)).mkdir(parents=True)
    shutil.copy(CODE, folder / str(version) / "model.py")
    (folder / "labels.txt").write_text("\n".join(labels.split()) + "\n")
    new = folder / "config.pbtxt.new"
    new.write_text(CONFIG.format(name=name, version=version, max_batch=max_batch, queue=queue, output=output))
    new.replace(folder / "config.pbtxt")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("faults")
    repository = folder / "model_repository"
    write_model(repository, "faulty", 1, labels="red green blue", max_batch=8)
    write_model(repository, "narrow", 1, labels="red green blue", max_batch=1, queue=2)
    write_model(repository, "promoted", 1, labels="red green blue", max_batch=8)
    write_model(repository, "classes", 1, labels="red", max_batch=8, output=CLASSES)
    with PollingServer(repository, log_file=folder / "tritonserver.log", only_published=False) as running:
        yield running


@pytest.fixture
def promote(served: TritonServer, until: Until) -> Callable[..., str]:
    """Promotes the next version of `promoted`, and returns when it alone answers."""

    def now(labels: str = "rot gruen blau", max_batch: int = 8) -> str:
        repository = Path(served.repository)
        version = 1 + max(int(path.name) for path in (repository / "promoted").iterdir() if path.name.isdecimal())
        write_model(repository, "promoted", version, labels=labels, max_batch=max_batch)
        with Client(served.grpc_url) as client:
            until(lambda: client.versions("promoted") == (str(version),))
        return str(version)

    return now


def images(count: int, first: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Green images; `first` is the first value of every second one."""
    found = np.full((count, 8, 8, 3), (10, 90, 20), np.uint8)
    found[1::2, 0, 0, 0] = first or 10
    return found


def run_async(url: str, use: Callable[[AsyncClient], Any]) -> Any:
    async def main() -> Any:
        async with AsyncClient(url) as client:
            return await use(client)

    return asyncio.run(main())


@pytest.mark.parametrize("first", [255, 254, 253])
def test_answer_that_is_no_number_is_an_error_in_every_call(served: TritonServer, first: int) -> None:
    async def stream(client: AsyncClient) -> None:
        async for _ in client.stream("faulty", [images(4, first)]):
            pass

    calls: list[Callable[[], Any]] = [
        lambda: client.infer("faulty", images(20, first)),
        lambda: list(client.stream("faulty", [images(4), images(4, first)])),
        lambda: run_async(served.grpc_url, lambda twin: twin.infer("faulty", images(20, first))),
        lambda: run_async(served.grpc_url, stream),
    ]
    with Client(served.grpc_url) as client:
        for call in calls:
            with pytest.raises(
                NonFiniteOutput, match=r"model faulty version 1: logits holds NaN or an infinity for"
            ):
                call()
        assert np.isfinite(client.infer("faulty", images(20))).all()


def test_accuracy_and_attack_count_it(served: TritonServer) -> None:
    labels = np.ones(40, int)
    result = evaluate_accuracy(served.grpc_url, "faulty", images(40, 255), labels)
    assert (result.value, result.errors) == (0.5, {"nonfinite_output": 20})
    config = NoiseConfig(epsilon=1, max_queries=3, batch_size=8)
    attacked = attack(served.grpc_url, "faulty", images(40, 255), labels, config)
    assert attacked.accuracy["value"] == 0.5 and attacked.errors == {"nonfinite_output": 20}
    with pytest.raises(NonFiniteOutput, match="not one answer to 40 images"):
        evaluate_accuracy(served.grpc_url, "faulty", np.full((40, 8, 8, 3), 255, np.uint8), labels)


def test_error_that_an_image_gets_is_its_own(served: TritonServer) -> None:
    labels = np.ones(16, int)
    config = NoiseConfig(epsilon=1, max_queries=3, batch_size=8)
    attacked = attack(served.grpc_url, "faulty", images(16, 251), labels, config)
    assert attacked.clean_accuracy["value"] == 0.5 and attacked.errors == {"server_error": 8}
    with pytest.raises(
        ServerError, match=r"not one answer to 4 images is a score .4 server_error.; check this model"
    ):
        evaluate_accuracy(served.grpc_url, "faulty", np.full((4, 8, 8, 3), 251, np.uint8), labels[:4])


def test_model_that_answers_classes_alone_can_be_attacked(served: TritonServer) -> None:
    labels, pixels = np.ones(2, int), images(2)
    assert evaluate_accuracy(served.grpc_url, "classes", pixels, labels).value == 1.0
    config = HopSkipJumpConfig(norm="l2", epsilon=900, max_queries=200, init_changes=20)
    found = attack(served.grpc_url, "classes", pixels, labels, config)
    # The boundary is where red is as much as green: 8 * 8 changes of 40 in each of both.
    assert found.distance and found.distance["num_images"] == 2
    assert 40 * np.sqrt(2) * 8 <= found.distance["median"] <= 900 and found.accuracy["value"] == 0.0
    message = (
        "the model answers the class alone, and square needs scores; use an attack that does not: hop-skip-jump"
    )
    with pytest.raises(ClientError, match=message):
        attack(served.grpc_url, "classes", pixels, labels, SquareConfig())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_load_counts_it(served: TritonServer, concurrency: int) -> None:
    config = LoadConfig(duration_s=0.5, warmup_s=0.0, batch_size=2)
    result = run_closed_loop(served.grpc_url, "faulty", images(40, 254), concurrency=concurrency, config=config)
    assert result.completed == 0 and set(result.errors) == {"nonfinite_output"}
    assert (result.why_unanswered() or "").startswith("no request was answered: ")


def test_query_names_the_image(served: TritonServer, tmp_path: Path) -> None:
    # Two batches, of which the first is answered.
    for number, pixels in enumerate([*images(8), *images(4, 255)]):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    options = ["query", "--url", served.grpc_url, "--model", "faulty", "--json", str(tmp_path)]
    result = CliRunner().invoke(cli, options)
    assert result.exit_code == 1
    answered = [Path(one["image"]).name for one in json.loads(result.stdout)]
    assert answered == [f"{number:02}.png" for number in range(8)]
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in lines] == [str(tmp_path / f"{number}.png") for number in ("09", "11")]
    assert all("logits holds NaN or an infinity for 2 of 4 images" in line for line in lines)


def test_full_queue_is_named_and_what_is_shed_is_reported(served: TritonServer) -> None:
    slow = images(1)
    slow[0, 0, 0, 0] = 252  # 0.3 s each, of which the queue holds two
    failed: list[Exception] = []

    def ask() -> None:
        while not failed:
            try:
                client.infer("narrow", slow)
            except Overloaded as error:
                failed.append(error)

    with Client(served.grpc_url) as client:
        client.model_info("narrow")
        # Each asks again until one is refused: sooner or later more than three are on the way.
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all("the server sheds load: " in str(error) and "send less at once" in str(error) for error in failed)
    config = LoadConfig(duration_s=2.0, warmup_s=0.0, num_processes=1)
    result = run_open_loop(served.grpc_url, "narrow", slow, rate_rps=30, config=config)
    assert result.interrupted is None and result.errors == {} and result.lost == 0
    assert result.completed > 0 and result.shed > result.completed
    assert result.shed_share == result.to_json()["shed_share"] == result.shed / (result.shed + result.completed)
    options = ["load", "--url", served.grpc_url, "--model", "narrow", "--concurrency", "6", "--duration", "4"]
    shown = CliRunner().invoke(cli, options)
    assert shown.exit_code == 0
    assert "shed: refused by the server because of its load" in shown.stdout


def test_measurement_fits_into_a_short_queue(served: TritonServer) -> None:
    """A batch is more requests than the queue holds, and takes them one after the other."""
    slow = images(8)
    slow[:, 0, 0, 0] = 252
    result = evaluate_accuracy(served.grpc_url, "narrow", slow, np.ones(8, int))
    assert (result.num_images, result.value, result.errors) == (8, 1.0, {})


def test_load_whose_window_is_too_short_says_what_to_change(served: TritonServer, tmp_path: Path) -> None:
    slow = images(8)
    slow[:, 0, 0, 0] = 252  # 2.4 s
    np.save(tmp_path / "slow.npy", slow)
    options = ["--url", served.grpc_url, "--model", "faulty", "--images", str(tmp_path / "slow.npy")]
    short = ["--concurrency", "1", "--batch-size", "8", "--duration", "2", "--warmup", "0"]
    result = CliRunner().invoke(cli, ["load", *options, *short])
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert "no request was answered within the 2 s that were measured: one takes " in error
    assert error.endswith("raise the duration (--duration), or keep fewer in flight (--concurrency)")
    result = CliRunner().invoke(cli, ["load", *options, "--rate", "0.01", "--duration", "0.05", "--warmup", "0"])
    assert result.stderr.splitlines()[-1] == (
        "error: no request fell due within 0.05 s at 0.01 requests/s; "
        "raise the duration (--duration) or the rate (--rate)"
    )


def test_client_learns_again_after_a_promotion(served: TritonServer, promote: Callable[..., str]) -> None:
    async def check(twin: AsyncClient) -> None:
        await twin.infer("promoted", images(30))
        version = await asyncio.to_thread(promote, "a b c", 8)
        assert (await twin.infer("promoted", images(30))).shape == (30, 3)
        info = await twin.model_info("promoted")
        assert (info.version, info.labels) == (version, ("a", "b", "c"))

    with Client(served.grpc_url) as client:
        before = client.model_info("promoted")
        version = promote("rot gruen blau", 2)  # also less than what is sent in one piece by now
        assert client.infer("promoted", images(30)).shape == (30, 3)
        after = client.model_info("promoted")
        assert (before.labels, before.max_batch_size) == (("red", "green", "blue"), 8)
        assert (after.version, after.labels, after.max_batch_size) == (version, ("rot", "gruen", "blau"), 2)
        run_async(served.grpc_url, check)


def test_pinned_version_that_is_gone_is_named(served: TritonServer, promote: Callable[..., str]) -> None:
    with Client(served.grpc_url) as client:
        old = client.model_info("promoted").version
        client.infer("promoted", images(3), version=old)
        new = promote()
        expected = f"model 'promoted' on .* has no version {old}; it serves: {new}"
        with pytest.raises(ModelNotFound, match=expected) as caught:
            client.infer("promoted", images(3), version=old)
        assert caught.value.code == "NOT_FOUND"
        with pytest.raises(ModelNotFound, match=expected):
            run_async(served.grpc_url, lambda twin: twin.infer("promoted", images(3), version=old))


def test_stream_across_a_promotion_is_named(served: TritonServer, promote: Callable[..., str]) -> None:
    def batches() -> Iterator[Any]:
        yield images(4)
        promote("one two three", 4)
        yield images(4)

    with Client(served.grpc_url) as client:
        old = client.model_info("promoted").version
        with pytest.raises(VersionChanged, match=rf"model promoted: version {old} was replaced by \d+ during the"):
            list(client.stream("promoted", batches()))
        assert [len(logits) for logits in client.stream("promoted", [images(6)])] == [6]


def test_measurements_across_a_promotion_fail_by_name(served: TritonServer, promote: Callable[..., str]) -> None:
    promoted: list[str] = []

    def once(done: int, total: int) -> None:
        if not promoted:
            promoted.append(promote())

    labels, pixels = np.ones(400, int), images(400)
    with pytest.raises(ModelNotFound, match=r"model 'promoted' on .* has no version \d+; it serves: \d+"):
        evaluate_accuracy(served.grpc_url, "promoted", pixels, labels, 4, once)
    promoted.clear()
    config = NoiseConfig(max_queries=500, batch_size=8)
    with pytest.raises(ModelNotFound, match=r"has no version \d+; it serves: \d+ .attack noise: "):
        attack(served.grpc_url, "promoted", pixels, labels, config, once)


def answered(served: TritonServer) -> int:
    with Client(served.grpc_url) as client:
        return client.statistics("promoted").num_success


@pytest.mark.parametrize("rate", [(), ("--rate", "50")])
def test_load_across_a_promotion_says_so_and_fails(
    served: TritonServer, promote: Callable[..., str], until: Until, rate: tuple[str, ...]
) -> None:
    before = answered(served)

    def promote_under_load() -> None:
        until(lambda: answered(served) >= before + 10)  # before the load comes the question for labels
        promote()

    promoting = threading.Thread(target=promote_under_load)
    promoting.start()
    options = ["load", "--url", served.grpc_url, "--model", "promoted", "--duration", "600", *rate]
    result = CliRunner().invoke(cli, [*options, *([] if rate else ["--concurrency", "2,4"])])
    promoting.join()
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: model promoted: version ") and " was replaced by " in error
    assert " requests answered, " in error
