"""The report: its sentences, its table, and a page that is whole and needs nothing from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from temper.builder.engines.isa import why_inexact
from temper.report import figures, write_report
from temper.report.answer import answers, faults, say_chance
from temper.report.gallery import amplified_difference, write_gallery
from temper.report.model import Report
from temper.report.svg import Axis, span
from temper.report.table import render_table

Json = dict[str, Any]


def typed(report: Json) -> Report:
    return TypeAdapter(Report).validate_json(json.dumps(report), strict=True)


class CheckPage(Protocol):
    """Writes the report and parses its page, which is well formed."""

    def __call__(self, report: Json, folder: Path) -> tuple[Any, str]: ...


@pytest.fixture
def check_page(parse_page: Callable[[str], Any]) -> CheckPage:
    def check(report: Json, folder: Path) -> tuple[Any, str]:
        text = write_report(typed(report), folder)[1].read_text(encoding="utf-8")
        return parse_page(text), text

    return check


def test_page_is_well_formed_and_self_contained(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    checker, text = check_page(report, tmp_path)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert checker.addresses
    assert all(address.startswith("data:image/png;base64,") for address in checker.addresses)
    assert checker.tags.count("svg") == 5
    assert checker.tags.count("img") == 3 * 6 * 2


def test_page_answers_first(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    checker, _ = check_page(report, tmp_path)
    words = " ".join(checker.words)
    assert "int8 against fp32: accuracy −0.2 points (95 % interval −1.2 to +0.7), 3.10× the throughput" in words
    for heading in (
        "Results",
        "Adversarial images",
        "Load tests",
        "Compression",
        "Stages",
        "Machine and versions",
    ):
        assert heading in words
    assert "attacks[0].epsilon" in words
    assert "L∞ 23.5/255" in words  # the nearest wrong image
    assert "2.50 ms 0.40× the step before, then 6.25 ms" in " ".join(words.split())
    assert "2 INTERNAL image: <is none>" in " ".join(words.split())
    assert "digits_int8 v1; digits_int8_jpeg takes image files" in words


def test_page_tells_what_went_wrong_behind_the_figures(
    report: Json, tmp_path: Path, check_page: CheckPage
) -> None:
    first, second = report["variants"]
    first["accuracy"]["errors"] = {"nonfinite_output": 3}
    first["corruptions"]["errors"] = {"nonfinite_output": 7}
    second["robustness"][1] |= {"errors": {"nonfinite_output": 1}, "retries": {"unavailable": 5, "deadline": 1}}
    second["load"][2] |= {"shed": 1234, "shed_share": 0.4}
    sentences = [
        "fp32, accuracy: 3 of 450 images got no score (3 nonfinite_output) and count as wrong.",
        "fp32, corruptions: 7 of 800 images got no score (7 nonfinite_output) and count as wrong.",
        "int8, square: 1 of 200 images got no score (1 nonfinite_output) and count as wrong.",
        "int8, square: requests were sent again: 5 unavailable, 1 deadline.",
    ]
    assert faults(typed(report)) == sentences
    checker, _ = check_page(report, tmp_path)
    words = " ".join(checker.words)
    assert all(sentence in words for sentence in [*sentences, "1,234 (40.0 %)", "2 INTERNAL"])


def test_page_proves_that_served_is_as_trained(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    words = " ".join(check_page(report, tmp_path)[0].words)
    for sentence in (
        "63 of 64 test images have the very pixels of torchvision, the others differ by up to 12.0 of 255.",
        "fp32 100.0 % 98.0–100.0, 64 images <0.01 % 3e-05 largest logit 17.2 64 of 64 through digits_fp32_jpeg",
        "int8 98.4 % 96.4–100.0, 64 images 3.10 % 0.9 largest logit 17.2",
        "transforms and PyTorch before any compression",
    ):
        assert sentence in " ".join(words.split())
    report["variants"][0]["parity"]["runtime"] = "ONNX Runtime"
    words = " ".join(check_page(report, tmp_path)[0].words)
    assert "transforms and ONNX Runtime before any compression" in " ".join(words.split())
    for variant in report["variants"]:
        variant["parity"]["num_same_encoded"] = None
    assert "same logits to the bit" not in check_page(report, tmp_path)[1]
    for variant in report["variants"]:
        variant["parity"] = None
    assert "Served as the recipe says" not in check_page(report, tmp_path)[1]


def test_page_says_how_exact_int8_is(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    words = " ".join(check_page(report, tmp_path)[0].words)
    for sentence in (
        "Weights of 7 bits (reduce_range: auto: at AVX2 8-bit weights change the answer to 7.5 %).",
        "Verified on avx512_vnni, served on avx2.",
        "exact arithmetic on 99.8 % of 450 test images, the logits 0.6 % of their spread apart (rms).",
    ):
        assert sentence in words
    assert faults(typed(report)) == []


def test_int8_that_depends_on_the_cpu_is_a_fault(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    report["variants"][1]["int8"] |= {
        "warning": why_inexact("avx2", 8),
        "exact": {**report["variants"][1]["int8"]["exact"], "agreement": 0.925, "num_images": 40},
    }
    first, second = faults(typed(report))
    assert first.startswith(
        "int8: the serving CPU has neither VNNI nor AMX (only avx2), so int8 weights of 8 bits"
    )
    assert second.startswith(
        "int8: the served int8 gives the answer of the graph's exact arithmetic on only 92.5 %"
    )
    words = " ".join(check_page(report, tmp_path)[0].words)
    assert first in words
    assert second in words


@pytest.mark.parametrize(
    ("counts", "low", "value", "high", "warned"),
    [
        ((25, 25, 25, 25), 0.11, 0.17, 0.26, "25.0 %"),
        ((25, 25, 25, 25), 0.23, 0.27, 0.32, "25.0 %"),
        ((25, 25, 25, 25), 0.24, 0.30, 0.36, None),
        ((90, 10), 0.88, 0.90, 0.908, "90.0 %"),  # a constant answer
        ((90, 10), 0.90, 0.93, 0.95, None),
        ((10,) * 100, 0.08, 0.1, 0.11, None),  # ten times chance
        ((10,) * 100, 0.007, 0.013, 0.022, "1.0 %"),
        ((90,), 0.96, 1.0, 1.0, None),
        ((), 0.0, 0.1, 0.2, None),
    ],
)
def test_accuracy_at_chance_is_said(
    report: Json, counts: tuple[int, ...], low: float, value: float, high: float, warned: str | None
) -> None:
    found = report["variants"][0]
    found["accuracy"] |= {"value": value, "low": low, "high": high}
    classes = {"value": 0.5, "low": 0.4, "high": 0.6}
    found["per_class"] = [{"label": f"c{i}", **classes, "num_images": num} for i, num in enumerate(counts)]
    said = say_chance(typed(report).variants[0])
    assert (said is not None) == (warned is not None)
    if said is not None:
        assert said.startswith(f"fp32: the accuracy, {100 * value:.1f} % (95 % interval ")
        assert said.endswith(f"is not clearly above chance: calling every image c0 is right for {warned}")


def test_warnings_come_before_the_answer(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    report["warnings"] = ["fp32: the accuracy is <none>"]
    words = " ".join(check_page(report, tmp_path)[0].words)
    assert words.index("fp32: the accuracy is <none>") < words.index("int8 against fp32")


def test_warning_of_a_shared_stage_is_said_once(report: Json) -> None:
    for variant in report["variants"]:
        stage = {"name": "weights", "figures": {"warning": "catastrophic overfitting in epoch 2"}, "reused": False}
        variant["build"] = [stage, *variant["build"]]
    assert faults(typed(report)) == ["weights: catastrophic overfitting in epoch 2."]


def test_page_escapes_names(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    report["variants"][0]["name"] = '<b>"&'
    report["variants"][1]["per_class"][0]["label"] = "<script>alert(1)</script>"
    _, text = check_page(report, tmp_path)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_page_of_a_run_that_stopped(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    for variant in report["variants"]:
        variant |= {"accuracy": None, "throughput_ips": None, "latency_ms": None, "load": [], "robustness": []}
        variant |= {"per_class": [], "calibration": None, "latency_from": None, "worst_case": []}
    report |= {"comparisons": [], "stopped": "the embedded tritonserver died", "timings": []}
    checker, _ = check_page(report, tmp_path)
    assert "This run stopped early: the embedded tritonserver died" in " ".join(checker.words)
    assert "svg" not in checker.tags


def test_page_shows_corruptions_and_names_the_kinds_that_do_not_count(
    report: Json, tmp_path: Path, check_page: CheckPage
) -> None:
    (sentence,) = answers(typed(report))
    assert "accuracy on corrupted images −1.3 points (95 % interval −2.0 to −0.5), mCE 104.2 % (95 % i" in sentence
    checker, page = check_page(report, tmp_path)
    words = " ".join(checker.words)
    for shown in (
        "Corrupted images",
        "int8: its baseline makes no error in fog, which is left out of mCE.",
        "gaussian noise 59 19 38.7 104 % fog 59 19 38.7 –",
    ):
        assert shown in words
    assert '<td class="heat" style="--share:0.19">' in page
    for variant in report["variants"]:
        variant["corruptions"] = None
    report["comparisons"][0]["corruptions"] = None
    checker, _ = check_page(report, tmp_path)
    assert "Corrupted images" not in " ".join(checker.words) and "mCE" not in answers(typed(report))[0]


def test_page_without_gallery_files(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    checker, _ = check_page(report, tmp_path)
    assert "img" not in checker.tags


def test_page_shows_fewer_large_images(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    for file in tmp_path.rglob("*-adversarial.png"):
        Image.fromarray(pixels).save(file)
    checker, _ = check_page(report, tmp_path)
    assert checker.tags.count("img") == 3 * 4 * 2


def test_report_json_is_strict(report: Json, tmp_path: Path) -> None:
    path, _ = write_report(typed(report), tmp_path)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(replace(typed(report), seconds=float("nan")), tmp_path)
    assert not list(tmp_path.glob("*.new"))


def test_answers_of_a_single_variant(report: Json) -> None:
    report["variants"] = report["variants"][:1]
    report["comparisons"] = []
    assert answers(typed(report)) == [
        "fp32: accuracy 98.4 % (95 % interval 96.4–100.0), 465 images/s, "
        "31.0 % under attack at worst (L∞ 24/255), 70.0 % on corrupted images."
    ]


def test_answers_when_nothing_was_measured(report: Json) -> None:
    report["comparisons"] = []
    for variant in report["variants"]:
        variant |= {"accuracy": None, "throughput_ips": None, "robustness": [], "corruptions": None}
        variant["worst_case"] = []
    assert answers(typed(report)) == []


def test_budget_names_its_norm_wherever_it_stands(report: Json, tmp_path: Path, check_page: CheckPage) -> None:
    """Of each norm one budget is told first, and the worst case in two norms is two."""
    far = {"norm": "l2", "epsilon": 512.0}
    for variant in report["variants"]:
        variant["robustness"].append({**variant["robustness"][0], **far})
        variant["worst_case"].append({**variant["worst_case"][0], **far})
    report["comparisons"][0]["worst_case"].append({**report["comparisons"][0]["worst_case"][0], **far})
    assert sorted(typed(report).budgets()) == [("l2", 512.0), ("linf", 24.0)]
    alone = " ".join(answers(typed({**report, "variants": report["variants"][:1], "comparisons": []})))
    assert "31.0 % under attack at worst (L∞ 24/255)" in alone and "at worst (L2 512/255)" in alone
    _, page = check_page(report, tmp_path)
    for words in (
        "worst case under attack L2 512/255",
        "worst case L∞ 24/255",
        ">L∞ 48/255<",
        "Accuracy over the budget, L∞",
        ">noise<",
        ">L2 512/255<",
    ):
        assert words in page


def test_difference_that_is_no_answer_is_printed_as_what_it_is(
    report: Json, tmp_path: Path, check_page: CheckPage
) -> None:
    (comparison,), variant = report["comparisons"], report["variants"][1]
    case = comparison["worst_case"][0]
    case |= {"difference": 0.135, "low": 0.079, "high": 0.191, "num_only_first": 3, "num_only_second": 30}
    mask = {"attack": "square", "norm": "linf", "epsilon": 24.0, "evidence": "62.1 % of its scores were equal"}
    case["doubt"] = variant["worst_case"][0]["doubt"] = "gradients or scores are masked (square: 62.1 %)"
    comparison["robustness"][1]["masked"] = mask["evidence"]
    variant["masks"] = [mask]
    (sentence,) = answers(typed(report))
    assert "no answer, as gradients or scores are masked (square: 62.1 %) (+13.5 points (95 % interval" in sentence
    assert "robust" not in sentence
    (fault,) = faults(typed(report))
    assert fault == ("int8, square (L∞ 24/255): gradients or scores are masked: 62.1 % of its scores were equal.")
    _, page = check_page(report, tmp_path)
    assert "<b>no answer</b>" in page and ">masked<" in page


def test_interval_too_wide_to_tell_says_how_many_images_would(report: Json) -> None:
    case = report["comparisons"][0]["worst_case"][0]
    case |= {"difference": -0.01, "low": -0.05, "high": 0.03, "num_only_first": 14, "num_only_second": 9}
    (sentence,) = answers(typed(report))
    assert "not told apart (2 points would take 1,001 images)" in sentence


def test_curve_of_an_attack_that_sees_no_answers_is_broken(report: Json) -> None:
    for name, is_broken in (("noise", True), ("square", False), ("not installed here", False)):
        rows = report["variants"][0]["robustness"]
        report["variants"][0]["robustness"] = [{**rows[0], "attack": name}]
        drawn = figures.robust_accuracy_over_queries(typed(report).variants[:1])
        assert drawn is not None and ("broken" in drawn) == is_broken


def test_render_table(report: Json) -> None:
    head, _, first, second = render_table(typed(report)).splitlines()
    assert head.split() == ("variant engine size accuracy images/s p50 ms p99 ms worst case L∞ 24/255".split())
    assert first.split()[:7] == ["fp32", "openvino", "44.7", "MB", "98.4", "%", "[96.4–100.0]"]
    assert second.split()[-3:] == ["29.0", "%", "[27.0–31.0]"]
    assert "\x1b" not in render_table(typed(report))
    assert "\x1b[" in render_table(typed(report), color=True)


def test_render_table_dashes_for_what_is_missing(report: Json) -> None:
    report["variants"][1] |= {"accuracy": None, "throughput_ips": None, "latency_ms": None, "worst_case": []}
    assert render_table(typed(report)).splitlines()[-1].split() == ["int8", "openvino", "11.3", "MB"] + 5 * ["–"]


def test_figures_of_one_point(report: Json) -> None:
    variant = report["variants"][0]
    variant["load"] = variant["load"][:1]
    variant["accuracy"] |= {"value": 1.0, "low": 1.0, "high": 1.0, "num_images": 1}
    for picture in (figures.accuracy_against_throughput, figures.latency_against_throughput):
        assert "nan" not in (picture(typed(report).variants[:1]) or "nan")


def test_figures_without_an_answered_request(report: Json) -> None:
    for variant in report["variants"]:
        for run in variant["load"]:
            run |= {"completed": 0, "latency_ms": None, "throughput_ips": 0.0}
    assert figures.latency_against_throughput(typed(report).variants) is None


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(low=0, high=100, label=""), [0, 20, 40, 60, 80, 100]),
        (Axis(low=0.3, high=20, label="", log=True), [0.5, 1, 2, 5, 10, 20]),
        (span([96.0, 99.0], ""), [96, 97, 98, 99]),
    ],
)
def test_axis_ticks_are_round(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == pytest.approx(1)


def test_amplified_difference() -> None:
    original = np.full((2, 2, 3), 100, dtype=np.uint8)
    adversarial = original.copy()
    adversarial[0, 0] = 108
    adversarial[1, 1] = 96
    shown = amplified_difference(original, adversarial)
    assert shown[0, 0, 0] == 255
    assert shown[0, 1, 0] == 128
    assert shown[1, 1, 0] == 64
    assert (amplified_difference(original, original) == 128).all()


def test_write_gallery_keeps_the_very_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    entry = {"original": pixels[0], "adversarial": pixels[1], "label": "a", "answer": "b", "num_queries": 3}
    (written,) = write_gallery([entry], tmp_path / "gallery")
    assert written["label"] == "a"
    assert (np.asarray(Image.open(tmp_path / "gallery" / written["adversarial"])) == pixels[1]).all()
