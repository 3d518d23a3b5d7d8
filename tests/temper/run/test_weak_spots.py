"""Weak spots: which class is taken for which under attack, and what a variant alone can be made to misjudge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from temper.builder.store.artifacts import Artifact
from temper.client.robustness.result import INDICES_FILE, SURVIVED_FILE, TAKEN_FOR_FILE
from temper.report.answer import answers, faults
from temper.report.model import Report
from temper.report.page import render_page
from temper.run.worst_case import compare_attacks, compare_worst_cases, with_worst_case

NAMES = ["zero", "one", "two"]
LABELS = np.array([0, 0, 1, 1, 2, 2])


def stage(folder: Path, name: str, epsilon: float, taken_for: list[int]) -> Artifact:
    """An attack's stage on all images."""
    folder.mkdir()
    np.save(folder / INDICES_FILE, np.arange(6))
    np.save(folder / SURVIVED_FILE, np.array(taken_for) < 0)
    np.save(folder / TAKEN_FOR_FILE, taken_for)
    curve = [{"num_queries": 0, "accuracy": 1.0}, {"num_queries": 9, "accuracy": 0.5}]
    info = {"attack": name, "norm": "linf", "epsilon": epsilon, "stuck": 0.0, "max_queries": 9, "curve": curve}
    info |= {"white_box": False, "draws": False}
    return Artifact(path=folder, digest="", info=info, reused=False)


def read(report: dict[str, Any]) -> Report:
    return TypeAdapter(Report).validate_json(json.dumps(report), strict=True)


def test_worst_case_counts_confusions_and_leaves_comparing_attacks_out(
    report: dict[str, Any], tmp_path: Path
) -> None:
    blank = read(report).variants[0]
    small = stage(tmp_path / "a", "pgd", 4, [1, -1, 2, -1, -1, -1])
    large = stage(tmp_path / "b", "square", 8, [1, 1, 0, 2, -1, -1])
    other = stage(tmp_path / "c", "differential", 4, [2, 2, 2, 2, 1, 1])
    variant = with_worst_case(blank, [small, other, large], LABELS, NAMES)
    first, second = variant.worst_case
    assert [(case.epsilon, case.attacks) for case in variant.worst_case] == [(4, ("pgd",)), (8, ("pgd", "square"))]
    pairs = [[(one.label, one.answer, one.num_images) for one in case.pairs] for case in (first, second)]
    # The third image is taken for two classes, the first one twice for the same.
    assert pairs[0] == [("zero", "one", 1), ("one", "two", 1)]
    assert pairs[1] == [("zero", "one", 2), ("one", "two", 2), ("one", "zero", 1)]
    assert (first.value, second.value) == (4 / 6, 2 / 6)
    both = [small, other], [small, other], (variant, variant)
    assert [one.attack for one in compare_attacks(*both)] == ["pgd"]
    assert [one.epsilon for one in compare_worst_cases(*both)] == [4]


def test_page_tells_the_weak_spots_and_what_one_variant_alone_gets_wrong(
    report: dict[str, Any], tmp_path: Path
) -> None:
    for variant in report["variants"]:
        attack = variant["robustness"][1]
        shares = [{**share, "value": 0.1 * int(share["label"])} for share in attack["per_class"]]
        pairs = [{"label": "4", "answer": "9", "num_images": 17}, {"label": "9", "answer": "<4>", "num_images": 5}]
        case = {**report["variants"][0]["accuracy"], "value": 0.4, "norm": "linf", "epsilon": 24.0, "doubt": None}
        del case["errors"], case["retries"]
        variant["worst_case"] = [{**case, "attacks": ["square"], "per_class": shares, "pairs": pairs}]
    share = {"value": 0.525, "low": 0.45, "high": 0.6, "num_images": 190}
    found = {**attack, "attack": "differential", "reference": "fp32", "success": share, "reference_queries": 123}
    small = {**found, "epsilon": 2.0, "success": {**share, "value": 0.1}, "retries": {"deadline": 2}}
    variant["differential"] = [small, {**found, "norm": "linf"}]
    typed = read(report)
    page = render_page(typed, tmp_path)
    assert page.count('<td class="text">0 (0.0 % of 20), 1 (10.0 % of 20), 2 (20.0 % of 20), ') == 2
    assert page.count("4 for 9 (17), 9 for &lt;4&gt; (5)") == 2
    assert page.count("differential against fp32") == 2 and "10.0 %<small>45.0–60.0, 190 images" in page
    assert "int8, differential L∞ 24/255</h3>" in page and "int8, differential L∞ 2/255</h3>" not in page
    (sentence,) = answers(typed)
    assert (
        "52.5 % of the images (95 % interval 45.0–60.0) can be made right for fp32 and wrong for it (L∞ 24/255)"
    ) in sentence and "2/255)" not in sentence
    assert "int8, differential: requests were sent again: 2 deadline." in faults(typed)
    plain = render_page(read({**report, "variants": report["variants"][:1], "comparisons": []}), tmp_path)
    assert "Wrong here alone" not in plain
