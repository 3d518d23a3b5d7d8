"""The answer in words: what each further variant costs and gains against the first one."""

from __future__ import annotations

from temper.report import text
from temper.report.measured import Accuracy, Attack, Paired
from temper.report.model import Comparison, Report, Variant

_MIN_AGREEMENT = 0.99
"""Served int8 below this share of the exact arithmetic's answers is worth a sentence."""


def answers(report: Report) -> list[str]:
    """One sentence per comparison; with a single variant, one sentence that describes it.

    Only what was measured is said, so a run that stopped early gives shorter sentences.
    """
    return [_compared(comparison) for comparison in report.comparisons] or [
        sentence for variant in report.variants if (sentence := _described(variant))
    ]


def _compared(comparison: Comparison) -> str:
    parts = []
    if comparison.accuracy is not None:
        parts.append(f"accuracy {_difference(comparison.accuracy)}")
    if comparison.throughput_ratio is not None:
        parts.append(f"{text.times(comparison.throughput_ratio)} the throughput")
    for attack in comparison.robustness:
        label = f"{attack.attack} ({text.budget(attack.norm, attack.epsilon)})"
        parts.append(f"accuracy under {label} {_difference(attack)}")
    parts.append(f"{text.times(comparison.size_ratio)} the size")
    return f"{comparison.variant} against {comparison.baseline}: {', '.join(parts)}."


def _difference(paired: Paired) -> str:
    return text.points(paired.difference, paired.low, paired.high)


def _described(variant: Variant) -> str:
    parts = []
    if (share := variant.accuracy) is not None:
        interval = text.interval(share.low, share.high)
        parts.append(f"accuracy {text.percent(share.value)} (95 % interval {interval})")
    if variant.throughput_ips:
        parts.append(f"{text.number(variant.throughput_ips)} images/s")
    for attack in variant.robustness:
        budget = text.budget(attack.norm, attack.epsilon)
        parts.append(f"{text.percent(attack.accuracy)} under {attack.attack} ({budget})")
    return f"{variant.name}: {', '.join(parts)}." if parts else ""


def faults(report: Report) -> list[str]:
    """One sentence for all that went wrong behind a figure.

    Deaths, answers that were no scores, retries, and int8 answers that depend on the CPU.
    """
    found = [f"{death}." for death in report.deaths]
    for variant in report.variants:
        found += _int8_faults(variant)
        warned = [stage for stage in variant.build if "warning" in stage.figures]
        found += [f"{stage.name}: {stage.figures['warning']}." for stage in warned]
        measured: list[tuple[str, Accuracy | Attack]] = [(attack.attack, attack) for attack in variant.robustness]
        if variant.accuracy is not None:
            measured.insert(0, ("accuracy", variant.accuracy))
        for name, figures in measured:
            if figures.errors:
                found.append(
                    f"{variant.name}, {name}: {sum(figures.errors.values()):,} of {figures.num_images:,} images "
                    f"got no score ({_kinds(figures.errors)}) and count as wrong."
                )
            if figures.retries:
                found.append(f"{variant.name}, {name}: requests were sent again: {_kinds(figures.retries)}.")
    return list(dict.fromkeys(found))  # variants share stages


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def _int8_faults(variant: Variant) -> list[str]:
    if (int8 := variant.int8) is None:
        return []
    found = [f"{variant.name}: {int8.warning}."] if int8.warning else []
    if int8.exact is not None and int8.exact.agreement < _MIN_AGREEMENT:
        found.append(
            f"{variant.name}: the served int8 gives the answer of the graph's exact arithmetic on only "
            f"{text.percent(int8.exact.agreement)} of {int8.exact.num_images:,} test images."
        )
    return found
