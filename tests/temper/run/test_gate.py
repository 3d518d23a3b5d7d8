"""A recipe's gate: variants against one of them, then a candidate against what is served, which it replaces."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from temper.builder.publish.switch import read_history
from temper.builder.publish.versions import served_version
from temper.cli.main import cli
from temper.errors import ServerError
from temper.gate.config import GateConfig
from temper.gate.rules.accuracy import AccuracyRule
from temper.progress import Display
from temper.run import workflow
from temper.run.gate import read_gate
from temper.serve.verify import verify_repository

RULES = """
[gate]
accuracy = { max_drop = 60 }
robustness = { max_drop = 90, attack = "noise" }
size = { max_ratio = 0.3 }
engine = { agreement_with_torch = 0.05 }
"""


def gate(recipe: Path, tmp_path: Path, *options: object) -> Result:
    words = ["gate", recipe, "--repository", tmp_path / "models", "--runs", tmp_path / "runs", *options]
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.mark.server
@pytest.mark.slow
def test_variants_are_judged_and_a_candidate_takes_over(quick_recipe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "quick.toml"
    recipe.write_text(quick_recipe.read_text() + RULES)
    result = gate(recipe, tmp_path, "--json")
    assert result.exit_code == 0, result.output
    (verdict,) = json.loads(result.stdout)
    assert [one["rule"] for one in verdict["findings"]] == ["accuracy", "robustness", "size", "engine"]
    assert (verdict["candidate"]["model"], verdict["reference"]["model"]) == ("quick_int8", "quick_fp32")
    report = json.loads((tmp_path / "runs" / "quick" / "report.json").read_text())
    assert [one["answer"] for one in report["verdicts"]] == ["SHIP"]
    assert "<title>SHIP quick_int8" in (tmp_path / "runs" / "quick" / "report.html").read_text()

    served = 'against = "served"\npromote = "on-ship"\naccuracy = { max_drop = 60 }\n'
    recipe.write_text(quick_recipe.read_text().replace('"max"', '"entropy"') + f"[gate]\n{served}")
    result = gate(recipe, tmp_path, "--json")
    assert result.exit_code == 0, result.output
    (verdict,) = json.loads(result.stdout)
    sides = [(verdict[role]["model"], verdict[role]["version"]) for role in ("candidate", "reference")]
    assert sides == [("quick_int8", 2), ("quick_int8", 1)]
    assert served_version(tmp_path / "models" / "quick_int8") == 2
    (event,) = read_history(tmp_path / "models", "quick_int8")
    assert (event.event, event.before, event.after, event.answer) == ("promoted", 1, 2, "SHIP")
    assert all(one.reason is None for one in verify_repository(tmp_path / "models"))

    result = gate(recipe, tmp_path)  # version 2 is what is served now
    assert result.exit_code == 1
    assert "no verdict: every variant is what is served already" in result.stderr


def test_server_that_does_not_load_what_is_shipped_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ServerError("model m: version 2 is not loaded by host:1: no memory")

    monkeypatch.setattr(workflow, "promote", refuse)
    measurements = SimpleNamespace(display=Display(quiet=True), url="host:1")
    run: Any = SimpleNamespace(measurements=measurements, warnings=[])
    built: Any = SimpleNamespace(path=tmp_path / "m" / "2", model="m", version=2)
    workflow._Run._promote(run, built)
    assert run.warnings == ["m version 2 was not promoted: model m: version 2 is not loaded by host:1: no memory"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["accuracy.max_drop=-1"], "gate: accuracy.max_drop: got -1"),
        (["accuracy=0.5"], "gate: accuracy: got 0.5, expected"),
        (["accuracy.drop=0.5"], 'gate: accuracy.drop: no such key, did you mean "max_drop"?'),
        (["engine.agreement_with_torch=99.5"], "gate: engine.agreement_with_torch: got 99.5"),
        (["accuracy.max_drop=much"], 'gate: accuracy.max_drop: got "much", expected a number'),
    ],
)
def test_rules_that_make_no_sense(texts: list[str], message: str) -> None:
    result = CliRunner().invoke(
        cli, ["gate", "--model", "m", "--images", "d", *(part for text in texts for part in ("--rule", text))]
    )
    assert result.exit_code == 1
    assert message in result.stderr


def test_rules_of_the_command_line_win_over_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text("[gate]\nconfidence = 0.9\naccuracy = { max_drop = 3 }\n")
    found = read_gate(["accuracy.max_drop=1", "power=0.9"], file)
    assert found == GateConfig(confidence=0.9, power=0.9, accuracy=AccuracyRule(max_drop=1))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ('against = "nope"\nflips = { max = 1 }', 'gate.against: got "nope", expected one of "served", "fp32", '),
        ('robustness = { max_drop = 1, attack = "pgd" }', 'gate.robustness.attack: got "pgd", expected one of '),
        (
            'against = "served"\nrobustness = { max_drop = 1 }',
            'gate.robustness: got against = "served", whose gradients nobody has, expected a variant',
        ),
        ("", "gate: got no rule, expected at least one of accuracy, "),
    ],
)
def test_recipe_whose_gate_does_not_fit(quick_recipe: Path, tmp_path: Path, gate: str, message: str) -> None:
    recipe = tmp_path / "quick.toml"
    recipe.write_text(f"{quick_recipe.read_text()}[gate]\n{gate}\n")
    result = CliRunner().invoke(cli, ["recipe", str(recipe)])
    assert result.exit_code == 1
    assert message in result.output


def test_recipe_whose_gate_has_nothing_to_judge_by(quick_recipe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "quick.toml"
    head = quick_recipe.read_text().partition("[[attacks]]")[0]
    recipe.write_text(f"{head}[gate]\nrobustness = {{ max_drop = 1 }}\n")
    result = CliRunner().invoke(cli, ["recipe", str(recipe)])
    assert "expected an attack to judge by: the recipe has no [[attacks]]" in result.output
    recipe.write_text(head)
    result = CliRunner().invoke(cli, ["gate", str(recipe)])
    assert result.exit_code == 1
    assert "has no rules, expected a table such as [gate] with accuracy = { max_drop = 0.5 }" in result.stderr
