"""A model that asks for a verdict, inside a real tritonserver: what is loaded, and the line for what is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # ships none

from temper.gate.keys import public_key
from temper.serve.server import TritonServer
from tests.verdicts import KEY, OTHER, judge

ShareServer = Callable[[pytest.FixtureRequest, TritonServer], AbstractContextManager[TritonServer]]

pytestmark = pytest.mark.server


def _judge_another_engine(folder: Path) -> None:
    judge(folder)
    path = folder / "verdict.json"
    content = json.loads(path.read_text())
    content["candidate"]["engine_sha256"] = "ab" * 32
    path.write_text(json.dumps(content))


def _edit(folder: Path) -> None:
    judge(folder, "HOLD")
    path = folder / "verdict.json"
    path.write_text(path.read_text().replace('"HOLD"', '"SHIP"'))


# What is done to a version, and why it is not loaded.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "unjudged": (lambda _: None, "verdict.json: no such file, expected a verdict that says SHIP"),
    "held": (lambda folder: judge(folder, "HOLD"), "verdict.json: says 'HOLD', expected SHIP"),
    "undecided": (lambda folder: judge(folder, "NOT ENOUGH DATA"), "says 'NOT ENOUGH DATA', expected SHIP"),
    "another": (_judge_another_engine, "is of other files: it names 'ab"),
    "unknown": (lambda folder: judge(folder, key=OTHER), "which is none of the 1 trusted ones"),
    "unsigned": (lambda folder: judge(folder, key=None), "is not signed, expected the signature of a trusted key"),
    "edited": (_edit, "was changed after the key 8a88e3dd7409f195... signed it, so nothing in it counts"),
}


@pytest.fixture(scope="module")
def repository(publish_model: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judged") / "repository"
    for name in ("shipped", *REFUSED):
        publish_model(root, name, num_instances=1, require_verdict=True)
    publish_model(root, "free", num_instances=1)
    judge(root / "shipped" / "1")
    for name, (change, _) in REFUSED.items():
        change(root / name / "1")
    return root


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "release.pub"
    path.write_text(f"ed25519 {public_key(KEY)}\n")
    return path


@pytest.fixture(scope="module")
def judged(
    request: pytest.FixtureRequest, share_server: ShareServer, repository: Path, keys: Path
) -> Iterator[TritonServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEMPER_TRUSTED_KEYS", str(keys.parent))
        with share_server(request, TritonServer(repository, strict=False)) as server:
            yield server


def test_what_was_judged_and_what_nobody_asks_a_verdict_of_is_served(judged: TritonServer) -> None:
    assert set(judged.failed) == set(REFUSED)
    with triton.InferenceServerClient(judged.grpc_url) as client:
        image = triton.InferInput("image", [1, 32, 32, 3], "UINT8")
        image.set_data_from_numpy(np.zeros((1, 32, 32, 3), np.uint8))
        for model in ("shipped", "free"):
            assert client.infer(model, [image]).as_numpy("logits").shape == (1, 10)


@pytest.mark.parametrize("name", REFUSED)
def test_what_was_not_is_refused_in_one_line(judged: TritonServer, name: str) -> None:
    assert REFUSED[name][1] in judged.failed[name]


def test_without_trusted_keys_nothing_that_asks_for_a_verdict_is_loaded(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEMPER_TRUSTED_KEYS", raising=False)
    with TritonServer(repository, models=["shipped", "free"], strict=False) as server:
        assert list(server.failed) == ["shipped"]
        assert "no key is trusted; set TEMPER_TRUSTED_KEYS to a file or folder" in server.failed["shipped"]


def test_a_server_may_ask_a_verdict_of_every_model(
    repository: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPER_TRUSTED_KEYS", str(keys))
    monkeypatch.setenv("TEMPER_REQUIRE_VERDICT", "1")
    with TritonServer(repository, models=["shipped", "free"], strict=False) as server:
        assert list(server.failed) == ["free"]
        assert "verdict.json: no such file, expected a verdict that says SHIP" in server.failed["free"]


def test_a_server_that_measures_loads_what_has_no_verdict_yet(repository: Path) -> None:
    with TritonServer(repository, models=["unjudged"], versions={"unjudged": (1,)}) as server:
        assert server.failed == {}
