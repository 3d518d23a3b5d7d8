"""The table `[gate]`: what it takes, and what it says of what makes no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from temper.gate.config import GateConfig
from temper.gate.rules.accuracy import AccuracyRule
from temper.gate.rules.robustness import RobustnessRule

WHOLE: dict[str, Any] = {
    "against": "fp32",
    "accuracy": {"max_drop": 0.5},
    "worst_class": {"max_drop": 3.0},
    "flips": {"max": 1.0},
    "robustness": {"attack": "worst_case", "max_drop": 2.0},
    "calibration": {"max_increase": 0.01, "threshold": 0.9, "max_share_drop": 2},
    "latency": {"p99_ms": 15, "rate": 100},
    "throughput": {"min_ratio": 1.5},
    "size": {"max_ratio": 0.3},
    "engine": {"agreement_with_torch": 0.995},
}


def read(content: dict[str, Any]) -> GateConfig:
    return TypeAdapter(GateConfig).validate_json(json.dumps(content), strict=True)


def test_a_whole_table_is_read_with_its_rules_in_order() -> None:
    config = read(WHOLE)
    assert list(config.rules) == [key for key in WHOLE if key != "against"]
    assert {name: rule.limit for name, rule in config.rules.items()} == {
        "accuracy": 0.5,
        "worst_class": 3.0,
        "flips": 1.0,
        "robustness": 2.0,
        "calibration": 0.01,
        "latency": 15.0,
        "throughput": 1.5,
        "size": 0.3,
        "engine": 0.995,
    }
    assert (config.confidence, config.power, config.promote, config.against) == (0.95, 0.8, "by-hand", "fp32")


def test_one_rule_is_enough() -> None:
    config = read({"robustness": {"max_drop": 2.0}})
    assert config.rules == {"robustness": RobustnessRule(max_drop=2.0)} and config.against == ""
    assert GateConfig(accuracy=AccuracyRule(max_drop=0.5)).rules == {"accuracy": AccuracyRule(max_drop=0.5)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"accuracy": None},
            "got no rule, expected at least one of accuracy, worst_class, flips, robustness, cal",
        ),
        ({"confidence": 95}, "confidence: got 95, expected a share above 0.5 and below 1; 95 % is 0.95"),
        ({"confidence": 0.4}, "confidence: got 0.4, expected a share above 0.5 and below 1"),
        ({"power": 1.0}, "power: got 1, expected a share above 0 and below 1"),
        ({"rounds": 2}, "rounds: got 2, expected rounds, 3 to 1000"),
        ({"duration_s": 0}, "duration_s: got 0, expected seconds, 0.1 to 3600"),
        ({"promote": "always"}, "'by-hand' or 'on-ship'"),
        ({"accuracy": {"max_drop": 0.005}}, "max_drop: got 0.005, expected points .* so a share of 0.005 is 0.5"),
        ({"accuracy": {"max_drop": -1}}, "max_drop: got -1, expected points .percent. from 0.05 to 100"),
        ({"accuracy": {"max_drop": 0}}, "max_drop: got 0, expected points"),
        ({"worst_class": {"max_drop": 100}}, "max_drop: got 100, expected points"),
        ({"flips": {"max": 0.01}}, "max: got 0.01, expected points .percent."),
        ({"robustness": {"attack": "", "max_drop": 1}}, 'attack: got "", expected an attack of the recipe, or'),
        (
            {"calibration": {"max_increase": 1}},
            "max_increase: got 1, expected a share between 0 and 1, such as 0.01",
        ),
        ({"calibration": {"max_increase": 0.01, "threshold": 0.9}}, "threshold: got one of threshold and max_sh"),
        (
            {"calibration": {"max_increase": 0.01, "threshold": 90, "max_share_drop": 2}},
            "threshold: got 90, expected a share between 0 and 1, such as 0.9",
        ),
        (
            {"calibration": {"max_increase": 0.01, "threshold": 0.9, "max_share_drop": 0.02}},
            "max_share_drop: got 0.02, expected points",
        ),
        ({"latency": {"p99_ms": 0.015, "rate": 100}}, "p99_ms: got 0.015, expected milliseconds, 0.1 to"),
        ({"latency": {"p99_ms": 15, "rate": 0}}, "rate: got 0, expected requests per second"),
        ({"throughput": {"min_ratio": 150}}, "min_ratio: got 150, expected a ratio such as 1.5, 0.01 to 100"),
        ({"size": {"max_ratio": 30}}, "max_ratio: got 30, expected a ratio such as 0.3"),
        (
            {"engine": {"agreement_with_torch": 99.5}},
            "agreement_with_torch: got 99.5, expected a share between 0 an",
        ),
        (
            {"engine": {"agreement_with_torch": 1.0}},
            "agreement_with_torch: got 1, expected a share between 0 and 1",
        ),
        ({"accuracy": {"max_drop": 0.5, "drop": 1}}, "accuracy.drop\n  Unexpected keyword argument"),
        ({"speed": {"min_ratio": 2}}, "speed\n  Unexpected keyword argument"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read({"accuracy": {"max_drop": 0.5}, **wrong})


@pytest.mark.parametrize("rule", [AccuracyRule, RobustnessRule])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_limit_that_is_no_number_is_refused(rule: Any, value: float) -> None:
    with pytest.raises(ValueError, match="max_drop: got (nan|inf), expected points"):
        rule(max_drop=value)
