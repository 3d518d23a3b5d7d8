"""int8 as served without VNNI: log, `query` and the agreement stage tell weights of 8 bits from those of 7."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from temper.builder.contract import TEST_IMAGES_FILE, TEST_LABELS_FILE
from temper.builder.engines.isa import AVX2_ONLY
from temper.builder.publish.ensemble import publish_ensemble
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import EnsembleBackend, PluginBackend, TritonConfig
from temper.builder.store.artifacts import Artifact, Store
from temper.cli.main import cli
from temper.progress import Display
from temper.run.measure import Measurements, subject
from temper.serve.endpoint import Endpoint
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = [pytest.mark.server, pytest.mark.int8]


@pytest.fixture(scope="module")
def folder(sample: Sample, toy_int8: Path, toy_reduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the sample in int8, over the full range, the reduced one and both, and an image."""
    folder = tmp_path_factory.mktemp("int8")
    ensemble = EnsembleBackend(members=("toy_8", "toy_7"))
    pair = TritonConfig(
        name="toy_pair", image_size=32, num_classes=10, max_batch=32, backend=ensemble, in_ensemble=True
    )
    for bits, graph in (("8", toy_int8), ("7", toy_reduced)):
        backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"int8_weight_bits": bits})
        publish(
            folder / "model_repository",
            replace(pair, name=f"toy_{bits}", backend=backend),
            engine_file=graph,
            labels=sample.class_names,
            card={"stages": [{"name": "engine", "figures": {"isa": "amx"}}]},
        )
    publish_ensemble(folder / "model_repository", pair, labels=sample.class_names, card={})
    Image.fromarray(sample.images[0]).save(folder / "image.png")
    return folder


@pytest.fixture(scope="module")
def old_server(folder: Path) -> Iterator[TritonServer]:
    """A server that runs as on a CPU with AVX2 and no more."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AVX2_ONLY.items():
            patch.setenv(name, value)
        with TritonServer(folder / "model_repository", log_file=folder / "server.log") as server:
            yield server


def test_plugin_warns_of_weights_that_saturate(
    old_server: TritonServer, folder: Path, until: Callable[[Callable[[], object]], None]
) -> None:
    def warned() -> list[str]:
        lines = (folder / "server.log").read_text().splitlines()
        return [line for line in lines if "neither VNNI nor AMX" in line]

    until(warned)  # a stub's lines come a moment later
    warnings = warned()
    assert all("toy_8/1/model.onnx: this CPU has" in line and "(verified on: amx)" in line for line in warnings)
    assert all(line.startswith("W") for line in warnings)


def test_agreement_with_exact_arithmetic_is_measured(
    old_server: TritonServer, sample: Sample, folder: Path, toy_int8: Path, toy_reduced: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / TEST_IMAGES_FILE, sample.images)
    np.save(tmp_path / TEST_LABELS_FILE, np.asarray(sample.labels, np.int64))
    data = Artifact(path=tmp_path, digest="data", info={}, reused=True)
    found = {}
    with Display(quiet=True) as display, Endpoint(old_server.grpc_url, folder / "model_repository") as endpoint:
        measurements = Measurements(
            store=Store(tmp_path / "store"), endpoint=endpoint, data=data, display=display, url=old_server.grpc_url
        )
        for bits, path in ((8, toy_int8), (7, toy_reduced)):
            target = subject(f"int{bits}", f"toy_{bits}", 1, folder / "model_repository" / f"toy_{bits}" / "1")
            graph = Artifact(path=path.parent, digest=str(bits), info={}, reused=True)
            found[bits] = measurements.agreement(target, graph).info
    assert found[7]["num_images"] == found[8]["num_images"] == len(sample.images)
    assert found[7]["retries"] == found[8]["retries"] == {}
    assert found[7]["agreement"] >= 0.99
    assert found[8]["agreement"] < 0.97
    assert found[7]["relative_rms"] < 0.25 * found[8]["relative_rms"]


def query(folder: Path, *options: str) -> tuple[Result, list[dict[str, Any]]]:
    result = CliRunner().invoke(cli, ["query", str(folder / "image.png"), "--json", *options])
    assert result.exit_code == 0, result.output
    return result, json.loads(result.stdout)


@pytest.mark.parametrize(("model", "warns"), [("toy_8", True), ("toy_7", False), ("toy_pair", True)])
def test_query_says_that_it_does_not_know_the_servers_cpu(
    old_server: TritonServer, folder: Path, model: str, warns: bool
) -> None:
    result, (answer,) = query(folder, "--url", old_server.grpc_url, "--model", model)
    assert ("which is not known, has neither VNNI nor AMX" in answer.get("warning", "")) == warns
    assert (f"warning: {model}: " in result.stderr) == warns


@pytest.mark.slow
def test_query_knows_the_embedded_servers_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AVX2_ONLY.items():
        monkeypatch.setenv(name, value)
    _, (answer,) = query(folder, "--repository", str(folder / "model_repository"), "--model", "toy_8")
    assert "the serving CPU has neither VNNI nor AMX (only avx2)" in answer["warning"]
