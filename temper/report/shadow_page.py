"""Where two versions disagree as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from temper.report import html, text
from temper.report.gallery import shrunk_png
from temper.report.shadowed import Shadow, ShadowAnswer, ShadowImage


def render_shadow(shadow: Shadow, folder: Path) -> str:
    """The page as text.

    Args:
        shadow: What was found.
        folder: Where the pictures lie, whose files are named relative to it.
    """
    first, second = (side.version for side in shadow.sides)
    title = f"Temper shadow: {shadow.model}, version {first} against {second}"
    head = f'<p class="muted">{escape(f"{shadow.created} · {shadow.server}")}</p>'
    head += "".join(f'<p class="answer">{escape(sentence)}</p>' for sentence in sentences(shadow))
    shots = "".join(_shots(shadow, folder))
    shown = f"Disagreements, {len(shadow.kept):,} of {shadow.num_disagreements:,}, the most different first"
    return html.page(
        title,
        [
            f"<header><h1>{escape(title)}</h1>{head}</header>",
            html.section("Versions", _table(shadow)),
            html.section(shown, f'<div class="gallery">{shots}</div>' if shots else ""),
        ],
    )


def sentences(shadow: Shadow) -> list[str]:
    """What was found, in words."""
    share, (first, second) = shadow.disagreement, shadow.sides
    found = [
        f"Versions {first.version} and {second.version} disagree on {text.percent(share.value)} of "
        f"{share.num_images:,} images (95 % interval {text.interval(share.low, share.high)})."
    ]
    if (paired := shadow.difference) is not None:
        found.append(
            f"Accuracy of version {second.version} against {first.version}: "
            f"{text.points(paired.difference, paired.low, paired.high)}; {paired.num_only_first:,} images went "
            f"from right to wrong, {paired.num_only_second:,} from wrong to right."
        )
    return found


def _table(shadow: Shadow) -> str:
    rows = [
        [
            side.version,
            "" if (share := side.accuracy) is None else _share(share.value, share.low, share.high),
            f"{sum(side.errors.values()):,}",
        ]
        for side in shadow.sides
    ]
    return html.table(["version", "accuracy", "no score"], rows)


def _share(value: float, low: float, high: float) -> str:
    return f"{text.percent(value)} [{text.interval(low, high)}]"


def _shots(shadow: Shadow, folder: Path) -> Iterator[str]:
    for one in shadow.kept:
        image = ""
        if one.picture is not None and (folder / one.picture).is_file():
            image = html.png(shrunk_png(folder / one.picture), one.image or f"image {one.index}")
        answers = " → ".join(_answer(answer) for answer in one.answers)
        truth = f", is {escape(one.label)}" if one.label is not None else ""
        yield f'<div class="shot">{image}<p>{answers}{truth}</p><p class="muted">{escape(_name(one))}</p></div>'


def _answer(answer: ShadowAnswer) -> str:
    if answer.label is None:
        return "no score"
    sure = "" if answer.confidence is None else f" {text.percent(answer.confidence)}"
    return f"<b>{escape(answer.label)}</b>{sure}"


def _name(one: ShadowImage) -> str:
    return f"image {one.index}" if one.image is None else f"{one.image} (image {one.index})"
