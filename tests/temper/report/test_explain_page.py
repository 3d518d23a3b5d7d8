"""The explanation: its sentences, its page, its form in the terminal, and what is read back."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jsonschema  # type: ignore[import-untyped]  # ships none
import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter

from temper.builder.names import short_names
from temper.cli.main import cli
from temper.errors import ReportError
from temper.report import write_explanation, write_report
from temper.report.explain_answer import blamed, kept, knows, moved
from temper.report.explain_table import render_explain
from temper.report.explained import Explanation
from temper.report.read import read_explanation, read_report
from temper.report.schemas import FOLDER

Json = dict[str, Any]


ADAPTER = TypeAdapter(Explanation)


def typed(explanation: Json) -> Explanation:
    return ADAPTER.validate_json(json.dumps(explanation), strict=True)


class CheckPage(Protocol):
    """Writes the explanation and parses its page, which is well formed."""

    def __call__(self, explanation: Json, folder: Path) -> tuple[Any, str]: ...


@pytest.fixture
def check_page(parse_page: Callable[[str], Any]) -> CheckPage:
    def check(explanation: Json, folder: Path) -> tuple[Any, str]:
        text = write_explanation(typed(explanation), folder)[1].read_text(encoding="utf-8")
        return parse_page(text), text

    return check


def test_page_is_well_formed_and_self_contained(explanation: Json, tmp_path: Path, check_page: CheckPage) -> None:
    checker, text = check_page(explanation, tmp_path)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert all(address.startswith("data:image/png;base64,") for address in checker.addresses)
    # Shares and noise; probes and ranks; what was moved; curves and importance.
    assert checker.tags.count("svg") == 7
    assert checker.tags.count("img") == 2 * 5
    assert re.search(r"\bnan\b", text) is None


FOUND = {
    "lost": "int8 against itself before quantisation: accuracy −2.2 points (95 % interval −3.2 to −1.3), the "
    "same answer on 97.1 % (95.1–99.1) of 450 test images. The loss, the logits' mean squared difference, is "
    "4.1 % of their variance.",
    "worst": "Put back to float alone, layer1.1.conv2 takes 62.0 % of the loss away (95 % interval 54.8 to "
    "69.2 %), layer4.1.conv2 21.0 % (17.9 to 24.1 %), layer3.1.conv1 3.0 % (1.7 to 4.3 %).",
    "finding": "layer4.1.conv2: 3.1 % of its input is clipped.",
    "suggestion": "With layer1.1.conv2 and layer4.1.conv2 kept in float, 93.0 % of the loss goes (90.0 to 96.0 "
    "%): accuracy +2.1 points (95 % interval +1.1 to +3.0) over int8, the answer from before on 99.6 % "
    "(97.6–100.0) of 450 images; quantised anew and measured on all test images, at 1.08× the latency of int8 "
    "(1.05× to 1.11×) and 12.6 MB.",
    "where": "Run in int8 on 450 test images, in OpenVINO 2026.4.1 on the CPU.",
    "in float": ">in float<",
    "full name": 'title="/model/layer4/layer4.0/downsample/downsample.0/Conv"',
    "short name": ">layer4.0.downsample<",
    "bar": "layer1.1.conv2: 62.0 % (54.8 to 69.2 %)</title>",
    "noise": "layer4.1.conv2: 18.2 dB</title>",
    "outlier": "41×<small>channel 17</small>",
    "folded layers": "<summary>12 more</summary>",
    "tried": "1.31 ms<small>1.08× that of int8 (1.05× to 1.11×)</small>",
    "probe": "before finetuning, layer4.1: 69.0 %</title>",
    "lower bound": "rank at least 44.0 of 512",
    "emergence": 'title="epoch 2, layer3.1: 77.9 % (75.9–79.9)">78<',
    "similarity": 'title="layer4.1, layer4.1: 0.38 (0.37 to 0.38)">0.38<',
    "same features": "stem, layer1.0: the same features for every image",
    "folded maps": "<summary>1 more</summary>",
    "curve": "taylor, 64 features: 95.3 %</title>",
    "stability": "0.81<small>0.78 to 0.84</small>",
    "selection's note": "L1 paths were cut at 64 features.",
    "attribution": "<b>3</b>: fp32 says <b>3</b>, int8 says <b>8</b> (image 203)",
    "note": "<li>fp8 was left out: nothing here runs it</li>",
    "config": "<dt>explain.num_train</dt><dd>1000</dd>",
    "version": "<dt>torch</dt><dd>2.13.0</dd>",
}


def test_page_tells_all(explanation: Json, tmp_path: Path, check_page: CheckPage) -> None:
    _, page = check_page(explanation, tmp_path)
    plain = page.replace("&#x27;", "'")
    assert [name for name, words in FOUND.items() if words not in plain] == []
    snippet = explanation["blames"][0]["snippet"].replace('"', "&quot;")
    assert page.count(f"<pre>{snippet}</pre>") == 1


def test_page_says_what_is_not_the_engine_and_what_was_not_tried(
    explanation: Json, tmp_path: Path, check_page: CheckPage
) -> None:
    (blame,) = explanation["blames"]
    blame |= {"in_engine": False, "note": "TensorRT fuses its layers", "suggestion_note": "two are enough"}
    blame["suggestion"] |= {"tried": False, "latency_ms": None, "latency_ratio": None, "size_bytes": None}
    words = " ".join(check_page(explanation, tmp_path)[0].words)
    assert (
        "tensors cannot be read: this is the graph's exact arithmetic, not the engine's. Layers were ranked"
        in words
    )
    assert "as the quantised graph computes with them put back; it was not built anew. two are enough." in words


def test_sentences_of_a_loss_that_no_layer_explains(explanation: Json) -> None:
    (blame,) = explanation["blames"]
    blame |= {"suggestion": None, "snippet": "", "suggestion_note": "there is no loss to recover"}
    blame["layers"] = [{**layer, "share": None} for layer in blame["layers"]]
    assert blamed(typed(explanation).blames[0])[1:] == [
        "No layer takes part of the loss away for certain when it alone is put back to float.",
        "there is no loss to recover.",
    ]


def test_sentences_on_the_representation(explanation: Json) -> None:
    first, _ = knows(typed(explanation))
    assert first == (
        "float32: a linear classifier reads 59.3 % (57.3–61.3) from stem and 98.0 % (96.0–100.0) from layer4.1 "
        "(95 % intervals); the last features' effective rank is 44.0 of 512."
    )
    assert moved(typed(explanation))[0] == (
        "before finetuning and float32: least alike in layer4.1, CKA 0.38 (0.37 to 0.38); most in stem, 1.00 "
        "(0.99 to 1.00)."
    )


def test_sentence_on_the_features(explanation: Json) -> None:
    assert kept(typed(explanation)) == []  # neither of its methods is one that is told
    greedy, random, _ = explanation["selection"]["curves"]
    greedy["method"], random["method"] = "greedy", "random"
    place = greedy["num_features"].index(128)
    greedy["change"][place] |= {"difference": -0.004, "low": -0.011, "high": 0.002}
    (sentence,) = kept(typed(explanation))
    start = (
        "A head that is trained anew on some of the features, against one on all: 128 of 512, chosen by greedy, "
        "−0.4 points (95 % interval −1.1 to +0.2); 128 of 512, at random, "
    )
    assert sentence.startswith(start)


def test_layers_that_a_sentence_skips_are_said(explanation: Json) -> None:
    (blame,) = explanation["blames"]
    assert "not named" not in blamed(typed(explanation).blames[0])[1]
    first = max((layer for layer in blame["layers"] if layer["share"]), key=lambda layer: layer["share"]["value"])
    first["share"]["low"] = -0.1
    assert blamed(typed(explanation).blames[0])[1].endswith("; layers whose interval reaches 0 are not named.")


def test_blocks_that_know_more_than_the_last_are_not_within_its_interval(explanation: Json) -> None:
    view = explanation["networks"][0]
    for block, value in zip(view["blocks"], (0.5, 0.8, 0.9, 0.96, 0.95, 0.9, 0.81, 0.79, 0.8), strict=True):
        block["probe"] |= {"value": value, "low": value - 0.02, "high": value + 0.02}
    assert (
        "and 80.0 % (78.0–82.0) from layer4.1, within that interval from layer3.1 on"
        in knows(typed(explanation))[0]
    )


def test_networks_are_alike_where_every_block_is_for_certain(explanation: Json) -> None:
    pair = explanation["similarities"][2]
    for row, _ in enumerate(pair["rows"]):
        pair["values"][row][row] = {"value": 0.995 + row / 10_000, "low": 0.992, "high": 0.999}
    alike = "float32 and int8: alike in every block, least in stem, CKA 0.99 (0.99 to 1.00)."
    assert alike in moved(typed(explanation))
    pair["values"][4][4] |= {"low": 0.6}
    assert "float32 and int8: least alike in stem" in moved(typed(explanation))[1]


@pytest.mark.parametrize(("change", "certain"), [(-0.03, True), (0.0, False), (0.03, False)])
def test_suggestion_without_a_loss_may_buy_nothing(explanation: Json, change: float, certain: bool) -> None:
    (blame,) = explanation["blames"]
    blame["accuracy_change"] |= {"difference": change, "low": change - 0.01, "high": change + 0.01}
    doubt = "No loss of accuracy is certain on the test images, so this may buy nothing."
    assert (doubt in blamed(typed(explanation).blames[0])) is not certain


def test_terminal_gets_nothing_that_acts_on_it(explanation: Json) -> None:
    explanation["notes"][0]["words"] = "a\x1b[31m :warning:"
    explanation["blames"][0]["snippet"] = "x" * 500
    lines = render_explain(typed(explanation)).splitlines()
    assert lines[-1] == "a\\u001b[31m :warning:"
    assert "x" * 500 in lines


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("/model/conv1/Conv", "conv1"),
        ("/model/layer4/layer4.0/conv2/Conv", "layer4.0.conv2"),
        ("/model/layer4/layer4.0/downsample/downsample.0/Conv", "layer4.0.downsample"),
        ("/model/layer2/layer2.1/conv2/conv2.1/Conv", "layer2.1.conv2.1"),
        ("/model/layer2/layer2.1/Add", "layer2.1.add"),
        ("node_conv2d_7", "node_conv2d_7"),
        ("", ""),
    ],
)
def test_short_name(name: str, short: str) -> None:
    assert short_names([name]) == {name: short}


def test_short_names_that_would_be_the_same_stay_long() -> None:
    names = ["/model/fc/Gemm", "/model/fc/MatMul"]
    assert short_names(names) == dict(zip(names, names, strict=True))


def test_everything_is_escaped(explanation: Json, tmp_path: Path, check_page: CheckPage) -> None:
    """Every text of the JSON that the page shows is hostile."""
    kept = {"kind", "image", "integrated_gradients", "grad_cam"}

    def hostile(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: hostile(inner, name) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [hostile(inner, key) for inner in value]
        return f"{value}<script>&\"'" if isinstance(value, str) and key not in kept else value

    _, page = check_page(hostile(explanation, ""), tmp_path)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == page.count("&lt;script&gt;&amp;&quot;&#x27;") > 500
    assert "<script>" in render_explain(typed(hostile(explanation, "")))


EMPTY: dict[str, tuple[str, list[Any] | None]] = {
    "blames": ("Which layer is to blame", []),
    "networks": ("What each block knows", []),
    "similarities": ("Similarity", []),
    "selection": ("Features", None),
    "attributions": ("Where two variants look", []),
    "notes": ("Notes", []),
}


@pytest.mark.parametrize("part", EMPTY)
def test_empty_part_gives_no_section(explanation: Json, tmp_path: Path, part: str, check_page: CheckPage) -> None:
    heading, nothing = EMPTY[part]
    assert f"<h2>{heading}</h2>" in check_page(explanation, tmp_path)[1]
    page = check_page({**explanation, part: nothing}, tmp_path)[1]
    assert f"<h2>{heading}</h2>" not in page and page.count("<h2>") == 6


def test_explanation_of_nothing(explanation: Json, tmp_path: Path, check_page: CheckPage) -> None:
    bare = {**explanation, **{part: nothing for part, (_, nothing) in EMPTY.items()}}
    assert check_page(bare, tmp_path)[1].count("<h2>") == 1
    assert render_explain(typed(bare)) == ""


def test_figures_that_are_null_leave_no_hole(explanation: Json, tmp_path: Path, check_page: CheckPage) -> None:
    """Networks without probes, features that are all the same, a selection of nothing, a picture that is gone."""
    for view in explanation["networks"]:
        for block in view["blocks"]:
            block["probe"] = None
    for pair in explanation["similarities"]:
        pair["values"] = [[None for _ in row] for row in pair["values"]]
    explanation["selection"] |= {"importance": [{"method": "taylor", "values": [0.0, 0.0]}], "curves": []}
    for layer in explanation["blames"][0]["layers"]:
        layer |= {"share": None, "signal_to_noise_db": None, "cosine": None}
    (tmp_path / explanation["attributions"][0]["image"]).unlink()
    checker, page = check_page(explanation, tmp_path)
    assert checker.tags.count("svg") == 1  # the ranks
    assert checker.tags.count("img") == 5
    assert "When the features emerged" not in page and "None" not in page
    assert "linear probe" in render_explain(typed(explanation))


def test_terminal_has_the_worst_layers_and_the_line_for_the_recipe(explanation: Json) -> None:
    text = render_explain(typed(explanation))
    lines = text.splitlines()
    (head,) = [index for index, line in enumerate(lines) if line.lstrip().startswith("layer ")]
    assert lines[head].split() == "layer share of the loss SNR dB cosine clipped outlier findings".split()
    rows = lines[head + 2 : lines.index("", head)]
    assert len(rows) == 8
    assert rows[1].split()[:9] == "layer4.1.conv2 21.0 % (17.9 to 24.1 %) 18.2 0.9899".split()
    assert explanation["blames"][0]["snippet"] in lines
    row = next(line for line in lines if line.split()[:1] == ["float32"])
    assert row.split() == "float32 59 67 73 79 83 87 91 95 98 98.0".split()
    assert lines[-1] == "fp8 was left out: nothing here runs it"
    assert all(
        words in text for name, words in FOUND.items() if name in ("lost", "worst", "finding", "suggestion")
    )
    assert "\x1b" not in text and "\x1b[" in render_explain(typed(explanation), color=True)


def test_explanation_reads_back_as_it_was_written(explanation: Json, tmp_path: Path) -> None:
    path, _ = write_explanation(typed(explanation), tmp_path)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(explanation))
    assert read_explanation(tmp_path) == read_explanation(path) == typed(explanation)
    assert not list(tmp_path.glob("*.new"))


AGAIN = "run `temper explain` again, or delete it"
REFUSED: dict[str, tuple[Callable[[Json], object], str]] = {
    "newer": (
        lambda whole: {**whole, "format": 2},
        f": got an explanation of format 2, expected 1; take the Temper that wrote it, or {AGAIN}",
    ),
    "list": (lambda whole: [], f': is no explanation of a run, expected "format": 1; {AGAIN}'),
    "part": (lambda whole: {"format": 1}, f": recipe: Field required (and 14 more); {AGAIN}"),
    "text": (lambda whole: {**whole, "seconds": "1"}, f": seconds: Input should be a valid number; {AGAIN}"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_broken_explanation_is_one_line(
    explanation: Json, report: Json, tmp_path: Path, change: Callable[[Json], object], message: str
) -> None:
    path = tmp_path / "explain.json"
    path.write_text(json.dumps(change(explanation)))
    with pytest.raises(ReportError) as caught:
        read_explanation(tmp_path)
    assert str(caught.value) == f"{path}{message}"
    (tmp_path / "report.json").write_text(json.dumps(report))
    shown = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert (shown.exit_code, shown.stderr) == (0, f"{path}{message}; report.html gets no link to it\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", ": is not JSON ("), (None, ": no such file, expected an explain.json or a run's folder")],
)
def test_file_that_is_no_explanation(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "explain.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ReportError) as caught:
        read_explanation(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_schema_takes_an_explanation_and_refuses_another(explanation: Json) -> None:
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / "explain.json").read_text()))
    whole = json.loads(json.dumps(explanation))
    validator.validate(whole)
    wrong = copy.deepcopy(whole)
    wrong["networks"][0]["kind"] = "teacher"
    for other in (wrong, {**whole, "format": 2}, {**whole, "blames": [{"variant": "int8"}]}):
        assert not validator.is_valid(other)


def test_report_command_renders_both_pages_and_links_them(explanation: Json, report: Json, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({**report, "explanation": "explain.html"}))
    (tmp_path / "explain.json").write_text(json.dumps(explanation))
    result = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    names = ("report.html", "report.json", "explain.html")
    assert result.stdout.splitlines()[-3:] == [str(tmp_path / name) for name in names]
    assert '<a href="explain.html">' in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<a href="report.html">' in (tmp_path / "explain.html").read_text(encoding="utf-8")
    for name in ("explain.json", "explain.html"):
        (tmp_path / name).unlink()
    CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert "explain.html" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_keeps_the_link_and_nothing_else_in_it(report: Json, tmp_path: Path) -> None:
    del report["explanation"]  # as in a report before there were any
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert read_report(tmp_path).explanation is None
    (tmp_path / "report.json").write_text(json.dumps({**report, "explanation": "javascript:alert(1)"}))
    read = read_report(tmp_path)
    _, page = write_report(read, tmp_path / "again")
    assert read_report(tmp_path / "again") == read
    assert '<a href="javascript%3Aalert%281%29">' in page.read_text(encoding="utf-8")
