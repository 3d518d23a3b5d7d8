"""The report as one page that needs nothing else: no script, no address outside it, pictures inside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from temper.report import figures, html, text
from temper.report.answer import answers
from temper.report.corruptions import corruptions
from temper.report.measured import Paired
from temper.report.model import Report
from temper.report.robustness import attacks, differential, weak_spots, worst_cases
from temper.report.sections import (
    compression,
    gallery,
    load_table,
    machine,
    parity,
    per_class,
    results,
    steps,
    timings,
)
from temper.report.table import all_budgets
from temper.report.verdict_page import verdict_section
from temper.report.verdict_text import headline, short


def render_page(report: Report, folder: Path) -> str:
    """The page as text.

    Args:
        report: The run's report.
        folder: Where the report lies; the gallery's files are named relative to it.
    """
    title = f"Temper report: {report.recipe}"
    if report.verdicts:
        stopped = "stopped early, " if report.stopped else ""
        title = f"{stopped}{', '.join(map(short, report.verdicts))}: {title}"
    parts = [
        _header(report, title),
        html.section("Verdict", verdict_section(report.verdicts)),
        html.section("Results", results(report)),
        html.section("Accuracy and speed", _speed_figures(report)),
        html.section("Adversarial robustness", _robustness(report)),
        html.section("Corrupted images", corruptions(report)),
        html.section("Accuracy per class", per_class(report)),
        html.section("Adversarial images", gallery(report, folder)),
        html.section("Load tests", load_table(report)),
        html.section("Served as the recipe says", parity(report)),
        html.section("Compression", compression(report)),
        html.section("Compression, step by step", steps(report)),
        html.section("Stages", timings(report)),
        html.section("Machine and versions", machine(report)),
    ]
    return html.page(title, parts)


def _header(report: Report, title: str) -> str:
    here = report.machine
    device = here.gpu.name if here.gpu else here.cpu
    facts = f"{report.created} · {device}, {here.cores} cores · measured through {report.server}"
    parts = [f"<header><h1>{escape(title)}</h1>", f'<p class="muted">{escape(facts)}</p>']
    if report.stopped:
        parts.append(f'<p class="stopped">This run stopped early: {escape(report.stopped)}</p>')
    parts += [f'<p class="answer">{escape(headline(verdict))}</p>' for verdict in report.verdicts]
    parts += [f'<p class="stopped">{escape(warning)}</p>' for warning in report.warnings]
    parts += [f'<p class="answer">{escape(sentence)}</p>' for sentence in answers(report)]
    if report.explanation is not None:
        words = "Why: which layers the losses come from, and what the networks know"
        # Quoted, so that it is never anything but a file's name.
        parts.append(f'<p><a href="{escape(quote(report.explanation))}">{words}</a></p>')
    return "".join(parts) + _tiles(report) + "</header>"


def _tiles(report: Report) -> str:
    """The last comparison's figures, large."""
    if not report.comparisons:
        return ""
    comparison = report.comparisons[-1]
    names = f"{comparison.variant} against {comparison.baseline}"
    tiles = []
    if comparison.accuracy is not None:
        tiles.append(_paired_tile("accuracy", comparison.accuracy))
    if comparison.throughput_ratio is not None:
        tiles.append((text.times(comparison.throughput_ratio), "throughput", names))
    for case in comparison.worst_case:
        if case.budget in report.budgets():
            value, name, note = _paired_tile(f"worst case under attack {text.budget(*case.budget)}", case)
            tiles.append(("no answer", name, case.doubt) if case.doubt else (value, name, note))
    tiles.append((text.times(comparison.size_ratio), "size of the engine file", names))
    body = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span><span>{escape(note)}</span></div>'
        for value, name, note in tiles
    )
    return f'<div class="tiles">{body}</div>'


def _paired_tile(name: str, paired: Paired) -> tuple[str, str, str]:
    bounds = text.bounds(paired.low, paired.high)
    note = f"95 % interval {bounds}, {text.probability(paired.p_value)}"
    return f"{text.signed(100 * paired.difference)} points", name, note


def _names(report: Report) -> Sequence[str]:
    return [variant.name for variant in report.variants]


def _speed_figures(report: Report) -> str:
    variants, names = report.variants, _names(report)
    body = html.figure(
        "The frontier",
        figures.frontier(variants),
        "Full marks: no other variant is as good in accuracy, worst case under attack, latency and size, and "
        "better in one. Up and to the left is better.",
        names,
    )
    body += html.figure(
        "Accuracy against throughput",
        figures.accuracy_against_throughput(variants),
        "Best closed-loop throughput; whiskers are 95 % intervals. Up and to the right is better.",
        names,
    ) + html.figure(
        "Latency against throughput",
        figures.latency_against_throughput(variants),
        "Full line p50, broken line p99, numbers are requests in flight; rings are the open loop "
        "(Poisson arrivals, latency from the scheduled send time).",
        names,
    )
    return html.figures(body)


def _robustness(report: Report) -> str:
    variants, names = report.variants, _names(report)
    norms = dict.fromkeys(norm for norm, _ in all_budgets(variants))
    body = html.figure(
        "Accuracy without and under attack",
        figures.robust_accuracy(variants),
        "The same images for all; an image is right when no attack within the budget fooled the endpoint with it. "
        "Whiskers are 95 % intervals.",
        names,
    )
    for norm in norms:
        body += html.figure(
            f"Accuracy over the budget, {text.norm(norm)}",
            figures.accuracy_over_epsilon(variants, norm),
            "Full lines: the worst case of all attacks. Broken lines: each attack alone.",
            names,
        )
    body += html.figure(
        "Accuracy over the attacker's queries",
        figures.robust_accuracy_over_queries(variants),
        "Attacks that search through the endpoint alone. How fast a search goes says how hard searching is, not "
        "how robust a variant: that is the worst case.",
        names,
    )
    return html.figures(body) + worst_cases(report) + attacks(report) + weak_spots(report) + differential(report)
