"""The answer in words: what each further variant costs and gains against the first one."""

from __future__ import annotations

from collections.abc import Sequence

from temper.client.stats import images_needed, is_above_chance
from temper.report import text
from temper.report.measured import Accuracy, Attack, Corruptions, Differential, Paired, PairedWorstCase
from temper.report.model import Comparison, Report, Variant, nearest

TELLING = 0.02
"""A difference of robust accuracy that would matter."""
_MIN_AGREEMENT = 0.99
"""Served int8 below this share of the exact arithmetic's answers is worth a sentence."""


def answers(report: Report) -> list[str]:
    """One sentence per comparison; with a single variant, one sentence that describes it.

    Only what was measured is said, so a run that stopped early gives shorter sentences.
    """
    budgets = report.budgets()
    variants = {variant.name: variant for variant in report.variants}
    return [_compared(one, variants.get(one.variant), budgets) for one in report.comparisons] or [
        sentence for variant in report.variants if (sentence := _described(variant, budgets))
    ]


def _compared(comparison: Comparison, variant: Variant | None, budgets: Sequence[tuple[str, float]]) -> str:
    parts = []
    if comparison.accuracy is not None:
        parts.append(f"accuracy {_difference(comparison.accuracy)}")
    if comparison.throughput_ratio is not None:
        parts.append(f"{text.times(comparison.throughput_ratio)} the throughput")
    parts += [_worst_case(case) for case in comparison.worst_case if case.budget in budgets]
    parts += [_differential(found) for found in nearest(variant.differential if variant else (), budgets)]
    if (corrupted := comparison.corruptions) is not None:
        change = corrupted.difference
        parts.append(f"accuracy on corrupted images {text.points(change.value, change.low, change.high)}")
        if (mce := corrupted.mce) is not None:
            parts.append(f"mCE {mce.value:.1f} % (95 % interval {mce.low:.1f} to {mce.high:.1f})")
    parts.append(f"{text.times(comparison.size_ratio)} the size")
    return f"{comparison.variant} against {comparison.baseline}: {', '.join(parts)}."


def _difference(paired: Paired) -> str:
    return text.points(paired.difference, paired.low, paired.high)


def _worst_case(case: PairedWorstCase) -> str:
    """The difference as what it is: a doubt is named, and so is what the number of images could not show."""
    said = f"worst case under attack ({text.budget(case.norm, case.epsilon)}) {_difference(case)}"
    if case.doubt is not None:
        budget = text.budget(case.norm, case.epsilon)
        return f"worst case under attack ({budget}) no answer, as {case.doubt} ({_difference(case)} as measured)"
    discordant = (case.num_only_first + case.num_only_second) / case.num_images
    needed = images_needed(TELLING, max(discordant, TELLING))
    if case.low <= 0 <= case.high and case.high - case.low > 2 * TELLING and needed > case.num_images:
        return f"{said}, not told apart ({100 * TELLING:.0f} points would take {needed:,} images)"
    return said


def _differential(found: Differential) -> str:
    share = found.success
    return (
        f"{text.percent(share.value)} of the images (95 % interval {text.interval(share.low, share.high)}) can be "
        f"made right for {found.reference} and wrong for it ({text.budget(found.norm, found.epsilon)})"
    )


def _described(variant: Variant, budgets: Sequence[tuple[str, float]]) -> str:
    parts = []
    if (share := variant.accuracy) is not None:
        interval = text.interval(share.low, share.high)
        parts.append(f"accuracy {text.percent(share.value)} (95 % interval {interval})")
    if variant.throughput_ips:
        parts.append(f"{text.number(variant.throughput_ips)} images/s")
    for case in variant.worst_case:
        if case.budget in budgets:
            doubt = f", or less: {case.doubt}" if case.doubt else ""
            parts.append(f"{text.percent(case.value)} under attack at worst ({text.budget(*case.budget)}{doubt})")
    if (corrupted := variant.corruptions) is not None:
        parts.append(f"{text.percent(corrupted.accuracy.value)} on corrupted images")
    return f"{variant.name}: {', '.join(parts)}." if parts else ""


def say_chance(variant: Variant) -> str | None:
    """Says so when the accuracy's interval ends at chance or little above it; None when it lies clearly above.

    Chance is the share of the most frequent class of the test images: what a constant answer gets right.
    """
    if (share := variant.accuracy) is None or len(variant.per_class) < 2:
        return None
    most = max(variant.per_class, key=lambda one: one.num_images)
    chance = most.num_images / sum(one.num_images for one in variant.per_class)
    if is_above_chance(share.low, share.high, chance):
        return None
    return (
        f"{variant.name}: the accuracy, {text.percent(share.value)} (95 % interval "
        f"{text.interval(share.low, share.high)}), is not clearly above chance: calling every image {most.label} "
        f"is right for {text.percent(chance)}"
    )


def faults(report: Report) -> list[str]:
    """One sentence for all that went wrong behind a figure.

    Deaths, answers that were no scores, retries, attacks that saw a mask, and int8 answers that depend on the CPU.
    """
    found = [f"{death}." for death in report.deaths]
    for variant in report.variants:
        found += _int8_faults(variant)
        found += [
            f"{variant.name}, {mask.attack} ({text.budget(mask.norm, mask.epsilon)}): gradients or scores are "
            f"masked: {mask.evidence}."
            for mask in variant.masks
        ]
        warned = [stage for stage in variant.build if "warning" in stage.figures]
        found += [f"{stage.name}: {stage.figures['warning']}." for stage in warned]
        measured: list[tuple[str, Accuracy | Attack | Corruptions]] = [
            (attack.attack, attack) for attack in (*variant.robustness, *variant.differential)
        ]
        if variant.accuracy is not None:
            measured.insert(0, ("accuracy", variant.accuracy))
        if variant.corruptions is not None:
            measured.append(("corruptions", variant.corruptions))
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
