"""`temper explain` on a recipe that is built in seconds: every part, what is kept, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from temper.cli.main import cli
from temper.client.errors import ClientError
from temper.report.explained import Explanation
from temper.report.read import read_explanation, read_report

pytestmark = pytest.mark.slow

RECIPE = """
name = "look"
[data]
source = "digits"
image_size = 32
test_fraction = 0.75
num_test = 40
num_calibration = 16
[model]
arch = "resnet18"
[train]
epochs = 2
snapshots = 1
[[variants]]
name = "fp32"
[[variants]]
name = "int8"
compress = [{ quantize = { precision = "int8", method = "max", keep_high = ["/model/fc/Gemm"] } }]
[[variants]]
name = "cut"
compress = [{ select = { features = 0.25, num_images = 64 } }]
[[variants]]
name = "both"
ensemble = ["fp32", "int8"]
[engine]
kind = "openvino"
[explain]
num_images = 24
num_train = 60
num_attributions = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipe, its runs and its models are."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "look.toml").write_text(RECIPE)
    return folder


def explain(home: Path, *args: str) -> Result:
    folders = ["--repository", str(home / "models"), "--runs", str(home / "runs")]
    return CliRunner().invoke(cli, ["explain", str(home / "look.toml"), *folders, *args])


@pytest.fixture(scope="module")
def first(home: Path) -> Result:
    return explain(home)


@pytest.fixture(scope="module")
def explanation(first: Result, home: Path) -> Explanation:
    assert first.exit_code == 0, first.output
    return read_explanation(home / "runs" / "look")


def test_every_part_has_its_figures(explanation: Explanation) -> None:
    (blame,) = explanation.blames
    assert (blame.variant, blame.precision, blame.runs_in, blame.in_engine) == ("int8", "int8", "OpenVINO", True)
    assert [layer.name for layer in blame.layers if not layer.quantized] == ["/model/fc/Gemm"]
    assert len([layer for layer in blame.layers if layer.op == "Add"]) == 8
    assert blame.num_images == blame.num_search == blame.num_activations == 24
    # Whether OpenVINO computes the same when it gives out inner tensors depends on the machine; it is always said.
    said = f"changes what OpenVINO computes (the logits by {100 * blame.tap_change:.0f} % of their spread)"
    assert blame.tap_change <= 0.05 or said in blame.note
    blocks = ["stem", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))]
    names = [network.name for network in explanation.networks]
    assert names == ["float32", "before finetuning", "int8", "cut", "epoch 1"]
    for network in explanation.networks:
        assert [block.name for block in network.blocks] == blocks
        assert all(block.probe is not None and block.probe.num_images == 24 for block in network.blocks)
    assert {network.name: network.blocks[-1].num_features for network in explanation.networks} == {
        **dict.fromkeys(names, 512),
        "cut": 128,
    }
    pairs = [(one.first, one.second) for one in explanation.similarities]
    assert pairs == [
        ("float32", "float32"),
        ("before finetuning", "float32"),
        ("float32", "int8"),
        ("float32", "cut"),
        ("epoch 1", "float32"),
    ]
    diagonals = {
        pair: [cell.value for row in range(9) if (cell := one.values[row][row]) is not None]
        for pair, one in zip(pairs, explanation.similarities, strict=True)
    }
    assert diagonals["float32", "float32"] == [1.0] * 9
    assert min(diagonals["float32", "int8"]) > 0.95
    assert explanation.selection is not None
    assert [one.method for one in explanation.selection.importance] == [
        "shapley",
        "permutation",
        "taylor",
        "activation",
    ]
    assert {len(one.values) for one in explanation.selection.importance} == {512}
    assert all(curve.change[-1].difference == 0 for curve in explanation.selection.curves)


def test_pictures_lie_beside_the_page(explanation: Explanation, home: Path) -> None:
    folder = home / "runs" / "look"
    for one in explanation.attributions:
        assert one.maps[0].network == "fp32"
        files = [one.image, *(name for each in one.maps for name in (each.integrated_gradients, each.grad_cam))]
        assert all((folder / name).is_file() for name in files)
    assert len(explanation.attributions) + sum("no attributions" in note.words for note in explanation.notes) == 2


def test_what_cannot_be_blamed_is_said(explanation: Explanation, first: Result) -> None:
    said = "cut: no layer is blamed: it is not quantised, so that no float32 graph has its layers one by one"
    assert any(note.words.startswith(said) for note in explanation.notes)
    assert first.stdout.splitlines()[-2:] == [
        str(Path(first.stdout.splitlines()[-1]).with_name("explain.html")),
        first.stdout.splitlines()[-1],
    ]


def test_second_look_reuses_everything(explanation: Explanation, home: Path) -> None:
    again = explain(home, "--json")
    assert again.exit_code == 0, again.output
    shown = [line for line in again.stderr.splitlines() if line.startswith("✓")]
    assert len(shown) > 10
    assert [line for line in shown if " reused" not in line] == []
    found = json.loads(again.stdout)
    kept = {**explanation.to_json(), **{name: found[name] for name in ("created", "seconds")}}
    assert found == json.loads(json.dumps(kept))


def test_layers_that_are_asked_for_are_tried(explanation: Explanation, home: Path) -> None:
    asked = "--variant int8 --part blame --keep-high layer1.0.add --keep-high */layer1.0/*"
    one = explain(home, *asked.split(), "--json")
    assert one.exit_code == 0, one.output
    (blame,) = json.loads(one.stdout)["blames"]
    mended = blame["suggestion"]
    layers = [f"/model/layer1/layer1.0/{name}" for name in ("conv1/Conv", "conv2/Conv", "Add")]
    assert sorted(mended["keep_high"]) == sorted(layers)
    assert mended["tried"] is True
    assert mended["accuracy"]["num_images"] == 40
    assert (
        0 < mended["latency_ratio"]["low"] <= mended["latency_ratio"]["value"] <= mended["latency_ratio"]["high"]
    )
    assert mended["size_bytes"] > 0
    high = ", ".join(f'"{name}"' for name in ["/model/fc/Gemm", *mended["keep_high"]])
    line = f'compress = [{{ quantize = {{ precision = "int8", method = "max", keep_high = [{high}] }} }}]'
    assert blame["snippet"] == line


def test_later_look_keeps_what_it_was_not_asked_for(explanation: Explanation, home: Path) -> None:
    for asked in (["--part", "blame", "--part", "blame"], ["--variant", "cut"], ["--variant", "int8"]):
        assert explain(home, *asked).exit_code == 0
        kept = read_explanation(home / "runs" / "look")
        for name in ("blames", "networks", "similarities", "selection", "attributions"):
            assert getattr(kept, name) == getattr(explanation, name), name
    assert explain(home, "--part", "blame", "--images", "16").exit_code == 0
    assert read_explanation(home / "runs" / "look").networks == ()  # other images are another look


def test_report_beside_it_gets_the_link(explanation: Explanation, home: Path, report: dict[str, Any]) -> None:
    path = home / "runs" / "look" / "report.json"
    path.write_text(json.dumps(report))
    assert explain(home, "--part", "features").exit_code == 0
    assert read_report(path).explanation == "explain.html"
    path.write_text("{")
    result = explain(home, "--part", "features")
    assert result.exit_code == 0
    assert "it gets no link to explain.html" in result.stderr
    path.unlink()


def test_suggestion_that_was_tried_is_kept(
    explanation: Explanation, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small a network loses too little for a suggestion.
    monkeypatch.setattr("temper.builder.explain.blame._SMALL", 0.0)
    result = explain(home, "--part", "blame", "--images", "20", "--try", "--json")
    assert result.exit_code == 0, result.output
    (blame,) = json.loads(result.stdout)["blames"]
    assert blame["suggestion"]["tried"] is True
    assert blame["suggestion"]["accuracy"]["num_images"] == 40
    assert explain(home, "--part", "blame", "--images", "20").exit_code == 0
    (kept,) = read_explanation(home / "runs" / "look").blames
    assert json.loads(json.dumps(asdict(kept))) == blame


def test_look_that_cannot_be_taken_is_noted(
    explanation: Explanation, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ClientError("has the operator Round")

    monkeypatch.setattr("temper.run.explain.maps.write_attributions", refuse)
    recipe = home / "again.toml"
    recipe.write_text(RECIPE.replace("num_attributions = 1", "num_attributions = 2"))
    folders = ["--repository", str(home / "models"), "--runs", str(home / "runs"), "--json"]
    result = CliRunner().invoke(cli, ["explain", str(recipe), *folders])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert "cut: where it looks: left out: has the operator Round" in [note["words"] for note in found["notes"]]
    assert len(found["networks"]) == 5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--variant", "int9"], "error: explain: got variant 'int9', expected one of fp32, int8, cut"),
        (
            ["--variant", "both"],
            "error: explain: variant 'both' is an ensemble, which has no network of its own; na",
        ),
        (
            ["--variant", "cut", "--part", "blame"],
            "error: explain: variant 'cut' is not quantised, so that no flo",
        ),
        (
            ["--part", "blame", "--keep-high", "layer1.0.conv9"],
            "error: explain: variant 'int8': keep_high: no layer is called 'layer1.0.conv9'; the nearest are l",
        ),
        (
            ["--part", "blame", "--keep-high", "*"],
            "error: explain: variant 'int8': 29 layers cannot be left unquantised: ",
        ),
        (["--part", "features", "--try"], "error: explain: nothing to try without the part blame; add --part bl"),
        (["--variant", "cut", "--try"], "error: explain: nothing to try: none of these variants is quantised aft"),
    ],
)
def test_what_is_not_there_is_refused(args: list[str], message: str, explanation: Explanation, home: Path) -> None:
    result = explain(home, *args)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
