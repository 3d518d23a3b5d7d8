"""The main job on a real server: a recipe becomes a report, again it is reused, a dead server leaves a part."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships none
import pytest
from click.testing import CliRunner, Result

from temper.builder.engines.gpu import compute_capability
from temper.builder.engines.isa import instruction_set, why_inexact
from temper.builder.engines.tensorrt import TENSORRT, TensorRtConfig
from temper.builder.engines.tensorrt_rtx import TensorRtRtxConfig
from temper.builder.errors import DataError
from temper.builder.publish.switch import switch, versions_of
from temper.builder.store.files import locked
from temper.cli.main import cli
from temper.errors import WorkflowError
from temper.progress import Display
from temper.report.page import render_page
from temper.report.read import read_explanation, read_report
from temper.report.schemas import FOLDER
from temper.run.recipe import load_recipe
from temper.run.workflow import LOCK_FILE, run_recipe
from temper.serve.server import TritonServer

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this file's runs and models are."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def quick_recipe(quick_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick recipe, with a transfer attack, for what int8 alone gets wrong, and on corrupted images."""
    table = '\n[[attacks]]\nname = "pgd"\nepsilon = 8\ncurve = [4]\nsteps = 3\nsurrogates = ["own", "fp32"]\n'
    table += "num_images = 8\n"
    table += (
        '\n[[attacks]]\nname = "differential"\nepsilon = 24\nnum_images = 8\nsteps = 5\nmax_queries = 2\n'
        '\n[corruptions]\nkinds = ["contrast", "fog"]\nseverities = [1, 5]\nnum_images = 8\nnum_processes = 1\n'
        '\n[explain]\nparts = ["blame"]\nnum_images = 8\nnum_train = 8\n'
    )
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    path.write_text(quick_recipe.read_text() + table)
    return path


def run_cli(recipe: Path, home: Path, *args: str) -> Result:
    folders = ["--repository", str(home / "model_repository"), "--runs", str(home / "runs")]
    return CliRunner().invoke(cli, ["run", str(recipe), *folders, *args])


@pytest.fixture(scope="module")
def first(quick_recipe: Path, home: Path) -> Result:
    """The first run."""
    return run_cli(quick_recipe, home)


@pytest.fixture(scope="module")
def report(first: Result, home: Path) -> dict[str, Any]:
    """Its report.json."""
    found: dict[str, Any] = json.loads((home / "runs" / "quick" / "report.json").read_text(encoding="utf-8"))
    return found


def test_run_prints_table_answer_and_paths(first: Result, home: Path) -> None:
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["fp32", "int8"]
    assert any(line.startswith("int8 against fp32: accuracy ") for line in lines)
    pages = ("report.html", "report.json", "explain.html")
    assert lines[-3:] == [str(home / "runs" / "quick" / name) for name in pages]
    assert "✓ start the embedded tritonserver" in first.stderr
    assert "attacks: 8 images; to find a difference of 2 points takes about 979, where two" in first.stderr


def test_report_has_the_promised_keys(first: Result, report: dict[str, Any]) -> None:
    assert {"recipe", "machine", "versions", "variants"} <= report.keys()
    assert report["recipe"] == "quick"
    assert report["stopped"] is None
    for variant, name in zip(report["variants"], ("fp32", "int8"), strict=True):
        assert (variant["name"], variant["model"], variant["version"]) == (name, f"quick_{name}", 1)
        assert variant["engine"] == "openvino"
        assert {"value", "low", "high", "num_images"} <= variant["accuracy"].keys()
        assert variant["accuracy"]["num_images"] == 60
        assert variant["throughput_ips"] > 0
        assert {"p50", "p90", "p99", "p999"} <= variant["latency_ms"].keys()
        attacks = [(row["attack"], row["epsilon"]) for row in variant["robustness"]]
        assert attacks == [("noise", 8), ("square", 48), ("pgd", 4), ("pgd", 8)]
        no_gradients = "no attack followed the gradients of all that is served at this budget, step by step"
        cases = [(row["epsilon"], row["attacks"], row["doubt"]) for row in variant["worst_case"]]
        assert cases == [
            (8, ["noise", "pgd"], None),
            (48, ["noise", "square", "pgd"], no_gradients),
            (4, ["pgd"], None),
        ]
        for row in variant["robustness"]:
            keys = {"attack", "norm", "epsilon", "accuracy", "low", "high", "num_images", "num_queries"}
            assert keys <= row.keys()
            assert row["low"] <= row["accuracy"] <= row["high"]
            assert row["num_queries"] <= row["num_images"] * row["max_queries"]
            fooled = sum(pair["num_images"] for pair in row["pairs"])
            assert fooled == round((row["clean_accuracy"]["value"] - row["accuracy"]) * row["num_images"])
        assert {name for case in variant["worst_case"] for name in case["attacks"]} == {"noise", "square", "pgd"}
        cells = [(cell["kind"], cell["severity"]) for cell in variant["corruptions"]["cells"]]
        assert cells == [("contrast", 1), ("contrast", 5), ("fog", 1), ("fog", 5)]
        assert variant["corruptions"]["clean_accuracy"]["num_images"] == 8
    assert report["variants"][0]["differential"] == []
    (row,) = report["variants"][1]["differential"]
    assert (row["attack"], row["reference"], row["epsilon"]) == ("differential", "fp32", 24)
    assert row["success"]["num_images"] <= 8 and row["reference_queries"] <= row["num_queries"] <= 16
    assert row["accuracy"] <= row["clean_accuracy"]["value"] == row["success"]["num_images"] / 8
    assert report["variants"][1]["size_bytes"] < report["variants"][0]["size_bytes"] / 3
    assert report["variants"][1]["calibration"]["num_calibration"] == 32
    assert report["variants"][0]["int8"] is None
    int8 = report["variants"][1]["int8"]
    assert (int8["verified_isa"], int8["serving_isa"]) == (instruction_set(), instruction_set())
    assert int8["exact"]["num_images"] == 60
    assert int8["exact"]["agreement"] >= 0.95
    assert int8["weight_bits"] == (7 if int8["reduce_range"]["used"] else 8)
    assert int8["warning"] == why_inexact(instruction_set(), int8["weight_bits"])


def test_uncompressed_variant_answers_as_its_owner_evaluates_it(report: dict[str, Any]) -> None:
    fp32, int8 = (variant["parity"] for variant in report["variants"][:2])
    assert fp32["num_same_pixels"] == fp32["num_images"] == 60
    assert fp32["agreement"]["value"] == fp32["agreement"]["high"] == 1 and fp32["agreement"]["low"] > 0.9
    assert fp32["runtime"] == "PyTorch" and fp32["max_abs_diff"] <= 1e-4 * max(1, fp32["max_abs_logit"])
    assert 0 < fp32["relative_rms"] < int8["relative_rms"] < 0.5


def test_report_and_explanation_name_each_other(first: Result, report: dict[str, Any], home: Path) -> None:
    folder = home / "runs" / "quick"
    assert report["explanation"] == "explain.html"
    assert 'href="explain.html"' in (folder / "report.html").read_text(encoding="utf-8")
    assert 'href="report.html"' in (folder / "explain.html").read_text(encoding="utf-8")
    (blame,) = read_explanation(folder).blames
    assert (blame.variant, blame.num_images, blame.num_search) == ("int8", 8, 8)


def test_corruptions_without_their_library_end_before_anything_is_built(
    quick_recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    result = run_cli(quick_recipe, home / "without")
    assert result.exit_code == 1 and not (home / "without" / "model_repository").exists()
    assert result.stderr.splitlines()[-1].endswith("install it with: pip install 'temper[corruptions]'")


def test_second_run_waits_for_the_first_and_says_so(
    first: Result, quick_recipe: Path, home: Path, tmp_path: Path
) -> None:
    recipe, errors = load_recipe(quick_recipe), io.StringIO()
    folders: dict[str, Any] = {"repository": home / "model_repository", "runs": home / "runs", "folder": tmp_path}
    done = threading.Event()

    def run() -> None:
        with Display(errors) as display:
            run_recipe(recipe, **folders, display=display)
        done.set()

    second = threading.Thread(target=run)
    with locked(tmp_path / LOCK_FILE):
        second.start()
        while "another run is at work; waiting until it is done" not in errors.getvalue():
            time.sleep(0.05)
        assert not done.is_set()
    second.join()
    assert done.is_set()


def test_attack_on_more_images_than_the_data_has_ends_before_a_network_is_made(
    quick_recipe: Path, tmp_path: Path
) -> None:
    greedy = tmp_path / "greedy.toml"
    text = quick_recipe.read_text().replace("num_test = 60\n", "").replace("num_images = 8", "num_images = 9999")
    greedy.write_text(text)
    result = run_cli(greedy, tmp_path)
    assert result.exit_code == 1
    expected = "attacks[0].num_images: got 9999, expected at most 1347 (all the test images there are)"
    assert result.stderr.splitlines()[-1] == f"error: {expected}"
    stages = [path for path in (tmp_path / "runs" / "quick" / "stages").iterdir() if path.is_dir()]
    assert [path.name.split("-")[0] for path in stages] == ["data"]


def test_entry_that_the_embedded_server_cannot_serve_ends_before_it_is_built(
    quick_recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT need not be here to see that."""
    monkeypatch.setattr(type(TENSORRT), "require", lambda self, config: None)
    monkeypatch.setattr(type(TENSORRT), "why_not_run", lambda self: None)
    monkeypatch.setattr("temper.run.workflow.build_recipe", lambda *_, **__: pytest.fail("it was built"))
    message = "engine tensorrt: is served by Triton's backend 'tensorrt', which the embedded server does not have"
    engine = TensorRtConfig(server_backend="tensorrt")
    with pytest.raises(WorkflowError, match=message):
        run_recipe(
            dataclasses.replace(load_recipe(quick_recipe), engine=engine),
            repository=home / "model_repository",
            runs=home / "native",
            display=Display(),
        )


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_engine_for_a_gpu_that_is_not_here_ends_before_it_is_built(
    quick_recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("temper.run.workflow.build_recipe", lambda *_, **__: pytest.fail("it was built"))
    recipe = dataclasses.replace(load_recipe(quick_recipe), engine=TensorRtRtxConfig())
    message = (
        r"engine tensorrt-rtx: nothing could be measured on this machine: .*; build it with `temper build`, or"
    )
    with pytest.raises(WorkflowError, match=message):
        run_recipe(recipe, repository=home / "model_repository", runs=home / "rtx", display=Display())


def test_report_is_as_its_schema_says_and_reads_back(report: dict[str, Any], home: Path) -> None:
    jsonschema.Draft202012Validator(json.loads((FOLDER / "report.json").read_text())).validate(report)
    read = read_report(home / "runs" / "quick")
    assert json.loads(json.dumps(read.to_json())) == report
    assert render_page(read, home / "runs" / "quick") == (home / "runs" / "quick" / "report.html").read_text()


def test_report_compares_on_the_same_images(report: dict[str, Any]) -> None:
    (comparison,) = report["comparisons"]
    fp32, int8 = report["variants"]
    assert (comparison["variant"], comparison["baseline"]) == ("int8", "fp32")
    difference = int8["accuracy"]["value"] - fp32["accuracy"]["value"]
    assert comparison["accuracy"]["difference"] == pytest.approx(difference)
    assert comparison["accuracy"]["low"] <= difference <= comparison["accuracy"]["high"]
    assert 0 <= comparison["accuracy"]["p_value"] <= 1
    assert comparison["throughput_ratio"] == pytest.approx(int8["throughput_ips"] / fp32["throughput_ips"])
    assert [row["attack"] for row in comparison["robustness"]] == ["noise", "square", "pgd", "pgd"]
    for worst in comparison["worst_case"]:
        one, two = (
            next(row["value"] for row in variant["worst_case"] if row["epsilon"] == worst["epsilon"])
            for variant in (fp32, int8)
        )
        assert worst["difference"] == pytest.approx(two - one) and worst["num_images"] == 8
    one, two = (variant["corruptions"]["accuracy"]["value"] for variant in (fp32, int8))
    assert comparison["corruptions"]["difference"]["value"] == pytest.approx(two - one)


def test_report_gallery_files_exist(report: dict[str, Any], home: Path) -> None:
    shots = [shot for variant in report["variants"] for row in variant["robustness"] for shot in row["gallery"]]
    assert shots
    for shot in shots:
        assert shot["label"] != shot["answer"]
        for kind in ("original", "adversarial", "difference"):
            assert (home / "runs" / "quick" / shot[kind]).is_file()


def test_second_run_reuses_everything_and_starts_no_server(
    first: Result, report: dict[str, Any], quick_recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: TritonServer) -> TritonServer:
        raise AssertionError("the server was started")

    monkeypatch.setattr(TritonServer, "start", refuse)
    result = run_cli(quick_recipe, home, "--json")
    assert result.exit_code == 0, result.output
    again = json.loads(result.stdout)
    assert all(stage["reused"] for stage in again["timings"])
    assert again["variants"] == [
        {**row, "build": [{**step, "reused": True} for step in row["build"]]} for row in report["variants"]
    ]
    assert again["comparisons"] == report["comparisons"]


def test_explanation_that_fails_leaves_the_report(
    first: Result, quick_recipe: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DataError("an image cannot be read")

    monkeypatch.setattr("temper.builder.explain.images.write_images", refuse)
    other = home / "other.toml"
    other.write_text(quick_recipe.read_text().replace("num_train = 8", "num_train = 9"))
    result = run_cli(other, home)
    assert result.exit_code == 1
    assert "error: explain: an image cannot be read; what was measured is in" in result.stderr
    report = read_report(home / "runs" / "quick")
    # The page of the run before is one of the same graphs.
    assert (report.stopped, report.explanation) == ("explain: an image cannot be read", "explain.html")
    assert len(report.comparisons) == 1
    assert run_cli(quick_recipe, home).exit_code == 0  # as it was, for the tests that follow


def test_ensemble_is_measured_as_any_variant(first: Result, quick_recipe: Path, home: Path) -> None:
    recipe = quick_recipe.parent / "pair.toml"
    pair = (
        '[[variants]]\nname = "pair"\nensemble = ["fp32", "int8"]\n'
        "defend = [{ random_resize = { smallest = 0.8 } }]\n\n[engine]"
    )
    text = (
        quick_recipe.read_text()
        .replace("[engine]", pair)
        .replace("max_queries = 4", "max_queries = 4\nexpectation = 2")
    )
    fgsm = '[[attacks]]\nname = "fgsm"\nepsilon = 8\nnum_images = 8\nmax_queries = 2\nexpectation = 2\n'
    recipe.write_text(f"{text}\n{fgsm}")
    result = run_cli(recipe, home, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    fp32, int8, both = report["variants"]
    assert (both["model"], both["steps"], both["calibration"]) == ("quick_pair", [], None)
    assert both["size_bytes"] == fp32["size_bytes"] + int8["size_bytes"]
    told = ("weight_bits", "serving_isa", "warning")
    assert fp32["int8"] is None
    assert {key: both["int8"][key] for key in told} == {key: int8["int8"][key] for key in told}
    assert both["accuracy"]["num_images"] == 60
    assert any(run["completed"] > 0 for run in both["load"])
    # Who does not draw is asked once: noise for as many queries, a surrogate for as many turns.
    for row, queries in ((fp32, [4, 20, 2, 2, 1]), (int8, [4, 20, 2, 2, 1]), (both, [4, 20, 2, 2, 2])):
        assert [attack["attack"] for attack in row["robustness"]] == ["noise", "square", "pgd", "pgd", "fgsm"]
        assert [attack["max_queries"] for attack in row["robustness"]] == queries
    assert both["robustness"][0]["num_queries"] % 2 == 0
    hint = "answers one image differently each time, so luck counts as success; let the attack expect several"
    said = {line.partition(":")[0] for line in result.stderr.splitlines() if hint in line}
    assert said == {"square", "pgd", "differential"}
    card = json.loads((home / "model_repository" / "quick_pair" / "1" / "card.json").read_text())
    assert card["defend"] == [{"random_resize": {"smallest": 0.8}}]
    reused = [stage["stage"] for stage in report["timings"] if stage["reused"]]
    assert "finetune" in reused
    assert all(step["reused"] for row in (fp32, int8) for step in row["build"])
    # Members of an ensemble are published with another queue, so they are measured again.
    assert not {"fp32: accuracy", "int8: accuracy", "pair: accuracy"} & set(reused)
    # From outside the recipe gradients go through the same defence and both members.
    (data,) = (path for path in (home / "runs" / "quick" / "stages").glob("data-*") if path.is_dir())
    command = ["attack", "--model", "quick_pair", "--repository", str(home / "model_repository"), "--json"]
    command += ["--images", str(data / "test_images.npy"), "--labels", str(data / "test_labels.npy")]
    command += ["--attack", "pgd", "--num-images", "8", "--runs", str(home / "runs")]
    file = str(home / "model_repository" / "quick_fp32" / str(fp32["version"]) / "model.onnx")
    with TritonServer(home / "model_repository", log_file=home / "outside.log") as running:
        for option, surrogate in (
            ([], "own"),
            (["--surrogate", file], file),
            (["--url", running.grpc_url], "own"),
        ):
            outside = CliRunner().invoke(cli, [*command, *option])
            assert outside.exit_code == 0, outside.output
            found = json.loads(outside.stdout)
            assert (found["draws"], found["white_box"]) == (True, False) and found["num_queries"] > 0
            assert (found["model"], found["settings"]["surrogates"]) == ("quick_pair", [surrogate])
            assert ('go through what quick_pair has: [{"random_resize"' in outside.stderr) == (surrogate == file)
    assert "its gradients are those of quick_pair in" in outside.stderr
    run_cli(quick_recipe, home)  # the report of this file's other tests


def serve_newest(repository: Path) -> None:
    for model in ("quick_fp32", "quick_int8"):
        switch(repository, model, versions_of(repository, model)[-1], event="promoted")


def test_candidate_is_not_measured_on_a_server_that_lacks_it(
    first: Result, quick_recipe: Path, home: Path
) -> None:
    serve_newest(home / "model_repository")
    recipe = quick_recipe.with_name("other_queue.toml")
    recipe.write_text(quick_recipe.read_text() + "\n[serving]\nqueue_timeout_ms = 20000\n")
    with TritonServer(home / "model_repository", log_file=home / "other.log") as running:
        result = run_cli(recipe, home, "--url", running.grpc_url)
    assert result.exit_code == 1
    version = versions_of(home / "model_repository", "quick_fp32")[-1]
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: quick_fp32 version {version} is a candidate, which the server at {running.grpc_url}"
    )
    assert last.endswith("; leave --url out, or promote it")
    folders = ["--repository", str(home / "model_repository"), "--runs", str(home / "runs")]
    built = CliRunner().invoke(cli, ["build", str(recipe), *folders])
    line = f"quick_fp32 version {version} reused, a candidate (version {version - 1} is served): openvino, "
    assert built.stdout.startswith(line)
    run_cli(quick_recipe, home)  # the report of this file's other tests


def test_run_on_a_running_server(first: Result, quick_recipe: Path, home: Path) -> None:
    serve_newest(home / "model_repository")
    with TritonServer(home / "model_repository", log_file=home / "other.log") as running:
        result = run_cli(quick_recipe, home, "--url", running.grpc_url, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["server"] == f"the server at {running.grpc_url}"
    measured = {stage["stage"]: stage["reused"] for stage in found["timings"]}
    assert measured["fp32: load"] is False
    assert measured["finetune"] is True


def test_run_without_the_server_it_names(first: Result, quick_recipe: Path, home: Path) -> None:
    serve_newest(home / "model_repository")
    result = run_cli(quick_recipe, home, "--url", "127.0.0.1:1")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: accuracy of quick_fp32: 127.0.0.1:1: no server answers there")
    assert "Traceback" not in result.output


def test_run_whose_server_dies_once_measures_again(
    first: Result, quick_recipe: Path, home: Path, tmp_path: Path, doom: Callable[..., None]
) -> None:
    again = tmp_path / "again.toml"
    again.write_text(quick_recipe.read_text().replace("warmup_s = 0.1", "warmup_s = 0.2"))
    doom(signal.SIGSEGV, stage="int8: load")
    result = run_cli(again, home, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    log = home / "runs" / "quick" / "tritonserver.log"
    (line,) = report["deaths"]
    assert line == (
        f"tritonserver died by SIGSEGV; its backtrace is in {log}; started again, measuring int8: load again"
    )
    assert line in result.stderr.splitlines()
    assert f"{line}." in (home / "runs" / "quick" / "report.html").read_text(encoding="utf-8")
    assert "Signal (11) received" in log.read_text()
    assert report["stopped"] is None
    for variant in report["variants"]:
        assert [(run["errors"], run["interrupted"]) for run in variant["load"]] == [({}, None)] * 3


def test_run_keeps_what_was_measured_when_the_server_dies_again(
    first: Result, quick_recipe: Path, home: Path, tmp_path: Path, doom: Callable[..., None]
) -> None:
    text = quick_recipe.read_text().replace("duration_s = 1.0", "duration_s = 600.0")
    slow = tmp_path / "slow.toml"
    slow.write_text(text)
    doom(signal.SIGKILL, signal.SIGKILL, stage="fp32: load", share=0.001)
    display = Display(io.StringIO())
    with display:
        report = run_recipe(
            load_recipe(slow), repository=home / "model_repository", runs=home / "runs", display=display
        )
    log = home / "runs" / "quick" / "tritonserver.log"
    death = f"tritonserver died by SIGKILL; its backtrace is in {log}"
    assert report.deaths == (f"{death}; started again, measuring fp32: load again",)
    assert report.stopped is not None
    assert report.stopped.startswith(f"load test of quick_fp32: {death}: the server at ")
    assert " requests answered, " in report.stopped
    fp32, int8 = report.variants
    assert [one.accuracy and one.accuracy.num_images for one in (fp32, int8)] == [60, 60]
    assert fp32.load[0].completed > 0
    assert int8.load == ()
    written = json.loads((home / "runs" / "quick" / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_json()))
    assert "This run stopped early" in (home / "runs" / "quick" / "report.html").read_text(encoding="utf-8")
