"""Versions that nobody is served yet, on a server of one's own. The server is a real one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from temper.backends.temper import artifact
from temper.client import Client
from temper.errors import ServerError
from temper.serve.endpoint import Endpoint
from temper.serve.server import TritonServer
from temper.serve.verify import find_changed

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = pytest.mark.server

SHIFT = 1000.0


def test_two_versions_are_loaded_at_once_and_the_highest_answers_for_none(
    two_versions: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPER_STAGING", "0")
    images = sample.images[:3]
    before = (two_versions / "toy" / "config.pbtxt").read_bytes()
    with (
        TritonServer(two_versions, models=["squeezed"], versions={"toy": (2, 1)}) as server,
        Client(server.grpc_url) as client,
    ):
        assert client.versions("toy") == ("1", "2")
        old, new, unversioned, squeezed = (
            client.infer(model, images, version=version)
            for model, version in (("toy", "1"), ("toy", "2"), ("toy", ""), ("squeezed", ""))
        )
        assert {version: client.model_info("toy", version).labels[0] for version in ("1", "2")} == {
            "1": "number 0",
            "2": "number 0",
        }
        environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    np.testing.assert_allclose(new - old, SHIFT, atol=1e-2)
    np.testing.assert_array_equal(unversioned, new)
    assert np.all(squeezed > SHIFT / 2)
    assert b"TEMPER_STAGING=1" in environment
    assert (two_versions / "toy" / "config.pbtxt").read_bytes() == before


def test_endpoint_loads_one_candidate_and_a_server_for_others_only_what_is_served(
    two_versions: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPER_STAGING", "1")
    images = sample.images[:3]
    with Endpoint(None, two_versions, models=["toy"], versions={"toy": [2]}) as candidate:
        with Client(candidate.url()) as client:
            assert client.versions("toy") == ("2",)
            assert client.model_info("toy").labels[0] == "number 0"
            assert np.all(client.infer("toy", images) > SHIFT / 2)
    with TritonServer(two_versions, models=["toy"]) as server, Client(server.grpc_url) as client:
        assert client.versions("toy") == ("1",)
        assert np.all(client.infer("toy", images) < SHIFT / 2)
        assert b"TEMPER_STAGING=1" not in Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")


def test_version_that_was_changed_is_named_before_a_server_reads_it(two_versions: Path) -> None:
    """Triton itself, given two versions of which one fails, may crash while it gives up the other."""
    server = TritonServer(two_versions, models=["toy"], versions={"toy": (1, 2)})
    (two_versions / "toy" / "1" / "model.onnx").write_bytes(b"other")
    with pytest.raises(ServerError, match=r"model toy: .*toy/1/model.onnx: SHA-256 is "):
        server.start()
    assert server.pid == 0


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CASES: dict[str, tuple[dict[str, tuple[int, ...]], tuple[str, str, str] | None, str]] = {
    "missing version": (
        {"toy": (1, 7)},
        None,
        r"toy/7/config.pbtxt: no such file, expected a version that `temper",
    ),
    "missing model": ({"cat": (1,)}, None, r"model 'cat' is not in .*; it holds: squeezed, squeezed_defence, toy"),
    "engine": ({"toy": (1, 2)}, ("1/model.onnx", "", ""), r"toy/1/model.onnx: SHA-256 is "),
    "own config": ({"toy": (2,)}, ("2/config.pbtxt", "count: 1", "count: 2"), r"toy/2/config.pbtxt: SHA-256 is "),
    "other settings": (
        {"toy": (1, 2)},
        ("2/config.pbtxt", "max_batch_size: 8", "max_batch_size: 4"),
        r"toy: version 1 says max_batch_size: 8 where version 2 says max_batch_size: 4, and Triton has one config",
    ),
    "no version": (
        {"toy": (1, 2)},
        ("1/config.pbtxt", "version_policy", "versions_policy"),
        r"toy/1: config.pbtxt names no version",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_version_that_may_not_be_loaded_is_one_line(two_versions: Path, name: str) -> None:
    versions, change, message = CASES[name]
    if change is not None:
        file, old, new = change
        path = two_versions / "toy" / file
        path.write_bytes(b"other") if not old else edit(path, old, new)
    with pytest.raises(ServerError, match=message) as caught:
        TritonServer(two_versions, models=["toy"], versions=versions).start()
    assert "\n" not in str(caught.value)


def test_what_others_are_served_may_not_name_two_versions(two_versions: Path) -> None:
    edit(two_versions / "toy" / "config.pbtxt", "versions: 1", "versions: 1\n    versions: 2")
    assert re.search(
        r"got name 'toy' and versions \['1', '2'\], expected 'toy'", find_changed(two_versions)["toy"]
    )
    assert find_changed(two_versions, ["toy"], {"toy": (1, 2)}) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("count: 1", "count: 2"),
        ('"temper"', '"python"'),
        ("versions: 2", "versions: 3\n    versions: 2"),
        ('"2/labels.txt"', '"../labels.txt"'),
    ],
)
def test_config_of_several_versions_differs_in_nothing_else(two_versions: Path, old: str, new: str) -> None:
    folder = two_versions / "toy" / "1"
    config = artifact.config_for((1, 2), (folder / "config.pbtxt").read_bytes())
    assert artifact.verify_files(folder, {}, config).keys() >= {"config.pbtxt", "model.onnx"}
    changed = config.replace(old.encode(), new.encode())
    assert changed != config
    with pytest.raises(artifact.ArtifactError, match="toy/config.pbtxt: is not the one that was published with v"):
        artifact.verify_files(folder, {}, changed)
