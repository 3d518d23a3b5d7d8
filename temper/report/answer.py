"""The answer in words: what each further variant costs and gains against the first one."""

from collections.abc import Mapping
from typing import Any

from temper.report import text

_MIN_AGREEMENT = 0.99
"""Served int8 below this share of the exact arithmetic's answers is worth a sentence."""


def answers(report: Mapping[str, Any]) -> list[str]:
    """One sentence per comparison; with a single variant, one sentence that describes it.

    Only what was measured is said, so a run that stopped early gives shorter sentences.
    """
    variants = {variant["name"]: variant for variant in report["variants"]}
    found = [_compared(comparison, variants) for comparison in report.get("comparisons", [])]
    return [sentence for sentence in found if sentence] or [
        sentence for variant in report["variants"] if (sentence := _described(variant))
    ]


def _compared(comparison: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    if accuracy := comparison.get("accuracy"):
        parts.append(f"accuracy {_difference(accuracy)}")
    if ratio := comparison.get("throughput_ratio"):
        parts.append(f"{text.times(ratio)} the throughput")
    for attack in comparison.get("robustness", []):
        label = f"{attack['attack']} ({text.budget(attack['norm'], attack['epsilon'])})"
        parts.append(f"accuracy under {label} {_difference(attack)}")
    if ratio := comparison.get("size_ratio"):
        parts.append(f"{text.times(ratio)} the size")
    if not parts:
        return ""
    return f"{comparison['variant']} against {comparison['baseline']}: {', '.join(parts)}."


def _difference(paired: Mapping[str, Any]) -> str:
    return text.points(paired["difference"], paired["low"], paired["high"])


def _described(variant: Mapping[str, Any]) -> str:
    parts = []
    if accuracy := variant.get("accuracy"):
        value = text.percent(accuracy["value"])
        parts.append(f"accuracy {value} (95 % interval {text.interval(accuracy['low'], accuracy['high'])})")
    if throughput := variant.get("throughput_ips"):
        parts.append(f"{text.number(throughput)} images/s")
    for row in variant.get("robustness", []):
        parts.append(
            f"{text.percent(row['accuracy'])} under {row['attack']} ({text.budget(row['norm'], row['epsilon'])})"
        )
    return f"{variant['name']}: {', '.join(parts)}." if parts else ""


def faults(report: Mapping[str, Any]) -> list[str]:
    """One sentence for all that went wrong behind a figure.

    Deaths, answers that were no scores, retries, and int8 answers that depend on the CPU.
    """
    found = [f"{death}." for death in report.get("deaths", [])]
    for variant in report["variants"]:
        found += _int8_faults(variant)
        measured = [("accuracy", variant["accuracy"])] if variant.get("accuracy") else []
        measured += [(row["attack"], row) for row in variant.get("robustness", [])]
        for name, figures in measured:
            if errors := figures.get("errors"):
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in errors.items())
                found.append(
                    f"{variant['name']}, {name}: {sum(errors.values()):,} of {figures['num_images']:,} images "
                    f"got no score ({kinds}) and count as wrong."
                )
            if retries := figures.get("retries"):
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in retries.items())
                found.append(f"{variant['name']}, {name}: requests were sent again: {kinds}.")
    return found


def _int8_faults(variant: Mapping[str, Any]) -> list[str]:
    int8 = variant.get("int8") or {}
    found = [f"{variant['name']}: {int8['warning']}."] if int8.get("warning") else []
    exact = int8.get("exact")
    if exact and exact["agreement"] < _MIN_AGREEMENT:
        found.append(
            f"{variant['name']}: the served int8 gives the answer of the graph's exact arithmetic on only "
            f"{text.percent(exact['agreement'])} of {exact['num_images']:,} test images."
        )
    return found
