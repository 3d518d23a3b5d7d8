"""`temper gate` on two served models: the three answers and their exits, what is written, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from benchmarks.gate_served import plant
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import PluginBackend, TritonConfig
from temper.cli.main import cli
from temper.gate.keys import create_key
from temper.imaging.preprocess import Preprocessing
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from benchmarks.sample import Sample

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def repository(sample: Sample, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `toy` version 1 is served and 2, which loses a fifth of the answers, a candidate; `twin` is as 1."""
    folder = tmp_path_factory.mktemp("gate")
    planted = {"toy": folder / "worse" / "model.onnx", "twin": folder / "twin" / "model.onnx"}
    for model, share in (("toy", 0.2), ("twin", 0.0)):
        planted[model].parent.mkdir()
        plant(toy_onnx, planted[model], share, seed=0)
    for model, network in (("toy", toy_onnx), *planted.items()):
        config = TritonConfig(
            name=model,
            image_size=32,
            num_classes=10,
            max_batch=32,
            preprocessing=Preprocessing(height=32, width=32),
            backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"}),
        )
        publish(
            folder / "repository", config, engine_file=network, labels=sample.class_names, card={"recipe": "toy"}
        )
    return folder / "repository"


@pytest.fixture(scope="module")
def images(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options that name the test images and their classes, as .npy files."""
    folder = tmp_path_factory.mktemp("arrays")
    np.save(folder / "images.npy", sample.images)
    np.save(folder / "labels.npy", sample.labels)
    return ["--images", folder / "images.npy", "--labels", folder / "labels.npy"]


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    with TritonServer(repository) as server:
        yield server.grpc_url


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def gate(*args: object) -> Result:
    return CliRunner().invoke(cli, ["gate", *map(str, args)])


def error_of(result: Result, exit_code: int) -> str:
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result.stderr.splitlines()[-1].removeprefix("error: ").removeprefix("Error: ")


@pytest.mark.parametrize(
    ("rules", "model", "exit_code", "answer", "said"),
    [
        (["accuracy.max_drop=2", "flips.max=2"], "twin", 0, "SHIP", "all 2 limits are kept"),
        (["accuracy.max_drop=2", "worst_class.max_drop=50"], "toy", 3, "HOLD", "drop of accuracy"),
        (["accuracy.max_drop=0.3"], "twin", 4, "NOT ENOUGH DATA", "test images would decide"),
    ],
)
def test_three_answers(
    repository: Path,
    images: list[object],
    rules: list[str],
    model: str,
    exit_code: int,
    answer: str,
    said: str,
) -> None:
    against = ["--against", "toy"] if model == "twin" else []
    files = ["--markdown", "verdict.md", "--junit", "verdict.xml"]
    options = [part for rule in rules for part in ("--rule", rule)]
    result = gate("--model", model, *against, *images, *options, *files, "--repository", repository)
    assert result.exit_code == exit_code, result.output
    assert result.stdout.startswith(f"{answer} {model} version ")
    assert said in result.stdout
    version = {"toy": 2, "twin": 1}[model]
    kept = json.loads((repository / model / str(version) / "verdict.json").read_text())
    sides = {role: (kept[role]["model"], kept[role]["version"]) for role in ("candidate", "reference")}
    assert sides == {"candidate": (model, version), "reference": ("toy", 1)}
    assert (kept["answer"], kept["num_images"], len(kept["findings"])) == (answer, 450, len(rules))
    assert answer in Path("verdict.md").read_text()
    assert len(list(ElementTree.parse("verdict.xml").iter("testcase"))) == len(rules)


def test_folder_of_images_speed_and_signature(repository: Path, sample: Sample, tmp_path: Path) -> None:
    for index, (image, label) in enumerate(zip(sample.images[:60], sample.labels[:60], strict=True)):
        folder = tmp_path / "tree" / sample.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    public = create_key(tmp_path / "key.pem")
    Path("rules.toml").write_text(
        "[gate]\nrounds = 3\nthroughput = { min_ratio = 0.01 }\nsize = { max_ratio = 1.5 }\n"
        "accuracy = { max_drop = 60 }\n"
    )
    options = ["--rules", "rules.toml", "--sign", "key.pem", "--repository", repository, "--json"]
    result = gate("--model", "twin", "--against", "toy", "--images", "tree", *options)
    assert result.exit_code == 0, result.output
    (verdict,) = json.loads(result.stdout)
    assert verdict["signature"]["key"] == public
    assert [one["rule"] for one in verdict["findings"]] == ["accuracy", "throughput", "size"]
    options = ["--rule", "accuracy.max_drop=60", "--repository", repository]
    again = gate("--model", "twin", "--against", "toy", "--images", "tree", *options)
    assert f"takes the place of the verdict of {verdict['created']}: SHIP, signed\n" in again.stderr


def test_running_server_is_asked_without_its_repository(url: str, images: list[object]) -> None:
    result = gate(
        *["--model", "twin", "--against", "toy", *images, "--url", url, "--rule", "accuracy.max_drop=2", "--json"]
    )
    assert result.exit_code == 0, result.output
    (verdict,) = json.loads(result.stdout)
    assert verdict["candidate"]["sums_sha256"] is None


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--model", "toy"], 2, "--images: expected labelled images with --model"),
        ([], 2, "got neither, expected either RECIPE or --model"),
        (["recipe.toml", "--version", "2"], 2, "--version: expected none with RECIPE, which says it all"),
        (["--model", "toy", "{images}"], 1, "gate: got no rule, expected at least one of accuracy, "),
        (["--model", "toy", "{images}", "--rule", "drop"], 1, "--rule drop: expected RULE.LIMIT=VALUE, as "),
        (
            ["--model", "toy", "{images}", "--rule", "robustness.max_drop=1"],
            1,
            "robustness: needs attacks, which only a recipe describes; run `temper gate RECIPE`, or leave ",
        ),
        (
            ["--model", "twin", "{images}", "--rule", "flips.max=1", "--repository", "{repository}"],
            1,
            "model twin: version 1 would be held against itself; publish a newer one, name --version, or another",
        ),
        (
            ["--model", "toy", "{images}", "--rule", "size.max_ratio=1", "--url", "127.0.0.1:1"],
            1,
            "size: is about the engine's file; name the model's --repository, or leave it out",
        ),
        (
            ["--model", "toy", "{images}", "--rule", "flips.max=1", "--url", "{url}"],
            1,
            "model toy: version 1 would be held against itself; name --version and --against-version, or another",
        ),
        (
            ["--model", "nope", "{images}", "--rule", "flips.max=1", "--against", "toy", "--url", "{url}"],
            1,
            "model 'nope' is not on ",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    repository: Path, images: list[object], url: str, options: list[str], exit_code: int, message: str
) -> None:
    known: dict[str, list[object]] = {"{repository}": [repository], "{url}": [url], "{images}": images}
    found = error_of(gate(*(part for option in options for part in known.get(option, [option]))), exit_code)
    assert message in found
