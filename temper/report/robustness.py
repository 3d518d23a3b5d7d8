"""The page's tables of attacks: what each left of each variant, and where the variants are weak."""

from __future__ import annotations

from html import escape

from temper.report import html, text
from temper.report.measured import Attack, PairedAttack, PairedWorstCase
from temper.report.model import Report, Variant
from temper.report.sections import share
from temper.report.table import all_budgets


def worst_cases(report: Report) -> str:
    """One row per variant: what all attacks together leave at every budget, and the difference to its baseline."""
    budgets = all_budgets(report.variants)
    if not budgets:
        return ""
    head = ["variant", *(heading for budget in budgets for heading in (text.budget(*budget), "difference"))]
    rows = []
    for variant in report.variants:
        found = {
            each.budget: each
            for one in report.comparisons
            if one.variant == variant.name
            for each in one.worst_case
        }
        row: list[object] = [variant.name]
        for budget in budgets:
            row += [share(variant.worst_at(budget)), _difference(found.get(budget))]
        rows.append(row)
    return f"<h3>Worst case at every budget</h3>{html.table(head, rows)}"


_MAX_SPOTS = 5


def attacks(report: Report) -> str:
    """One row per attack, budget and variant, with the difference to its baseline where it says something."""
    head = ["attack", "budget", "variant", "accuracy", "difference", "queries", "median", "nearest"]
    head += ["nothing to follow"]
    rows = [
        _row(report, variant, attack)
        for key in dict.fromkeys(attack.key for variant in report.variants for attack in variant.robustness)
        for variant in report.variants
        if (attack := variant.attack(key)) is not None
    ]
    if not rows:
        return ""
    note = (
        "Every image was sent to the endpoint as uint8 and judged by its answer. Queries: in all; median: until "
        "an image was fooled. Nearest: how far away the nearest misclassified image was that was sent, the median "
        "over those with one; no attack looks further once it is within the budget. Difference: to its baseline, "
        "in points, on the same images; under one attack it tells how hard that attack is, the worst case tells "
        "how robust a variant is. Nothing to follow: queries with the scores of the one before, or without a "
        "gradient."
    )
    return f'<h3>Attack by attack</h3>{html.table(head, rows, left=3)}<p class="note">{escape(note)}</p>'


def weak_spots(report: Report) -> str:
    """Per variant, at the budgets told first: the weakest classes, and which are taken for which."""
    head = ["variant", "budget", "classes with the lowest worst case", "most often taken for"]
    rows = [
        [
            variant.name,
            text.budget(*case.budget),
            ", ".join(f"{one.label} ({text.percent(one.value)} of {one.num_images})" for one in weakest),
            ", ".join(f"{one.label} for {one.answer} ({one.num_images:,})" for one in case.pairs[:_MAX_SPOTS]),
        ]
        for variant in report.variants
        for budget in report.budgets()
        if (case := variant.worst_at(budget)) is not None
        for weakest in [sorted(case.per_class, key=lambda one: one.value)[:_MAX_SPOTS]]
    ]
    if not rows:
        return ""
    note = (
        "Taken for: the true class for the answered one, with the images that any attack within the budget made "
        "the endpoint misjudge so; an image that was taken for several classes counts for each."
    )
    return f'<h3>Weak spots</h3>{html.table(head, rows, left=4)}<p class="note">{escape(note)}</p>'


def differential(report: Report) -> str:
    """One row per variant and attack that compares it with a reference."""
    head = ["variant", "attack", "budget", "wrong here alone", "queries", "asked of the reference"]
    rows = [
        [
            variant.name,
            f"{found.attack} against {found.reference}",
            text.budget(found.norm, found.epsilon),
            share(found.success),
            f"{found.num_queries:,}",
            f"{found.reference_queries:,}",
        ]
        for variant in report.variants
        for found in variant.differential
    ]
    if not rows:
        return ""
    note = (
        "Wrong here alone: of the images that the variant and the reference both get right, the share for which "
        "an image within the budget was found that the reference still gets right and the variant does not, as "
        "served. It tells where the two differ; the worst case tells how robust each is."
    )
    return f'<h3>Wrong here alone</h3>{html.table(head, rows, left=3)}<p class="note">{escape(note)}</p>'


def _row(report: Report, variant: Variant, attack: Attack) -> list[object]:
    success = attack.queries_to_success
    return [
        attack.attack,
        text.budget(attack.norm, attack.epsilon),
        variant.name,
        share(attack.share),
        _difference(_paired(report, variant, attack.key)),
        f"{attack.num_queries:,}",
        text.number(success.median) if success else "–",
        text.budget(attack.norm, round(attack.distance.median, 1)) if attack.distance else "–",
        text.percent(attack.stuck),
    ]


def _paired(report: Report, variant: Variant, key: tuple[str, str, float]) -> PairedAttack | None:
    found = [one.robustness for one in report.comparisons if one.variant == variant.name]
    return next((each for pairs in found for each in pairs if each.key == key), None)


def _difference(paired: PairedAttack | PairedWorstCase | None) -> object:
    if paired is None:
        return "–"
    if isinstance(paired, PairedAttack) and paired.masked is not None:
        return html.with_note("masked", paired.masked)
    if isinstance(paired, PairedWorstCase) and paired.doubt is not None:
        return html.with_note("no answer", paired.doubt)
    bounds = text.bounds(paired.low, paired.high)
    return html.with_note(text.signed(100 * paired.difference), bounds)
