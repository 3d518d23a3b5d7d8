"""The page's section on corrupted images: every variant's mean, and its accuracy by kind and severity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from temper.report import html, text
from temper.report.measured import Corruptions, Estimate, PairedCorruptions
from temper.report.model import Report, Variant

_NOTE = (
    "Each image in every kind and severity of ImageNet-C, at the strengths made for 224 pixels; small print: 95 "
    "% intervals over the images. CE, the corruption error of a kind: a variant's errors over its baseline's, "
    "in %; above 100 it is worse. mCE: their mean. Relative mCE: the same of the errors that corruption adds. "
    "Both swing with kinds in which the baseline seldom errs; the change in accuracy does not."
)


def corruptions(report: Report) -> str:
    """One row per variant against the first one, then a heat map of kinds and severities for each."""
    measured = [(variant, variant.corruptions) for variant in report.variants if variant.corruptions]
    if not measured:
        return ""
    against = {comparison.variant: comparison.corruptions for comparison in report.comparisons}
    head = ["variant", "not corrupted", "corrupted", "change", "mCE", "relative mCE"]
    rows = [_row(variant, figures, against.get(variant.name)) for variant, figures in measured]
    maps = "".join(
        f"<div><h3>{escape(variant.name)}, accuracy in %</h3>{_map(figures, against.get(variant.name))}</div>"
        for variant, figures in measured
    )
    left_out = "".join(_left_out(variant, against.get(variant.name)) for variant, _ in measured)
    note = f'<p class="note">{escape(_NOTE)}</p>{left_out}'
    return f'{html.table(head, rows)}{note}<div class="columns">{maps}</div>'


def _row(variant: Variant, figures: Corruptions, paired: PairedCorruptions | None) -> list[object]:
    clean, mean = figures.clean_accuracy, figures.accuracy
    change = paired.difference if paired else None
    return [
        variant.name,
        html.with_note(
            text.percent(clean.value), f"{text.interval(clean.low, clean.high)}, {clean.num_images} images"
        ),
        html.with_note(text.percent(mean.value), text.interval(mean.low, mean.high)),
        html.with_note(
            f"{text.signed(100 * change.value)} points",
            text.bounds(change.low, change.high),
        )
        if change
        else "–",
        _error(paired.mce if paired else None),
        _error(paired.relative_mce if paired else None),
    ]


def _error(found: Estimate | None) -> object:
    if found is None:
        return "–"
    return html.with_note(f"{found.value:.1f} %", f"{found.low:.1f} to {found.high:.1f}")


def _left_out(variant: Variant, paired: PairedCorruptions | None) -> str:
    """Names the kinds that have no corruption error."""
    kinds = [kind for kind, error in paired.corruption_errors.items() if error is None] if paired else []
    if not kinds:
        return ""
    named = ", ".join(map(_name, kinds))
    words = f"{variant.name}: its baseline makes no error in {named}, which is left out of mCE."
    return f'<p class="note">{escape(words)}</p>'


def _map(figures: Corruptions, paired: PairedCorruptions | None) -> str:
    """Kinds by severities, stronger where more images are right, with the mean and the error of each kind."""
    kinds = list(dict.fromkeys(cell.kind for cell in figures.cells))
    severities = list(dict.fromkeys(str(cell.severity) for cell in figures.cells))

    def cells(kind: str) -> Iterator[object]:
        values = [cell.value for cell in figures.cells if cell.kind == kind]
        yield _name(kind)
        yield from (html.heat(value, f"{100 * value:.0f}") for value in values)
        mean = sum(values) / len(values)
        yield html.heat(mean, f"{100 * mean:.1f}")
        if paired:
            error = paired.corruption_errors[kind]
            yield "–" if error is None else f"{error:.0f} %"

    head: Sequence[str] = ["severity", *severities, "mean", *(["CE"] if paired else [])]
    return html.table(head, (list(cells(kind)) for kind in kinds))


def _name(kind: str) -> str:
    return kind.replace("_", " ")
