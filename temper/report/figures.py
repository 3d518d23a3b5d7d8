"""The report's pictures, each from the report's figures alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from temper.client.robustness.base import ATTACKS
from temper.report import text
from temper.report.measured import CurvePoint, Latency, LoadRun, Share
from temper.report.model import Variant
from temper.report.svg import Axis, Plot, log_span, span
from temper.report.table import all_budgets

NUM_STYLES = 7


def style(index: int) -> str:
    """The colour class of the variant at this place in the recipe."""
    return f"s{index % NUM_STYLES}"


def accuracy_against_throughput(variants: Sequence[Variant]) -> str | None:
    """Accuracy with its interval over images per second: up and to the right is better."""
    known = [
        (index, variant.name, variant.accuracy, variant.throughput_ips)
        for index, variant in enumerate(variants)
        if variant.accuracy and variant.throughput_ips
    ]
    if not known:
        return None
    x = span([speed for *_, speed in known], "images per second", zero=True, pad=0.15)
    y = span(_bounds(accuracy for _, _, accuracy, _ in known), "accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy against throughput, per variant")
    for index, name, accuracy, speed in known:
        plot.error_bar(speed, 100 * accuracy.low, 100 * accuracy.high, style(index))
        note = f"{name}: {text.percent(accuracy.value)}, {text.number(speed)} images/s"
        plot.marker(speed, 100 * accuracy.value, style(index), note)
        plot.label(speed, 100 * accuracy.value, name, "direct", dx=11, dy=4)
    return plot.svg()


def _bounds(shares: Iterable[Share]) -> list[float]:
    return [100 * end for share in shares for end in (share.low, share.high)]


def frontier(variants: Sequence[Variant]) -> str | None:
    """Accuracy over latency for a sweep: full marks are on the frontier, rings are beaten by another variant."""
    known = [
        (index, variant, variant.accuracy, variant.latency_ms.p50)
        for index, variant in enumerate(variants)
        if variant.accuracy and variant.latency_ms and variant.frontier is not None
    ]
    if not known:
        return None
    x = log_span([latency for *_, latency in known], "p50 latency", suffix=" ms")
    y = span(_bounds(accuracy for _, _, accuracy, _ in known), "accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy over latency, per variant, and which variants no other beats")
    for index, variant, accuracy, latency in known:
        plot.error_bar(latency, 100 * accuracy.low, 100 * accuracy.high, style(index))
        note = f"{variant.name}: {text.percent(accuracy.value)}, {text.number(latency)} ms, "
        note += text.size(variant.size_bytes)
        look = style(index) if variant.frontier else f"{style(index)} ring"
        plot.marker(latency, 100 * accuracy.value, look, note)
        plot.label(latency, 100 * accuracy.value, variant.name, "direct", dx=11, dy=4)
    return plot.svg()


def latency_against_throughput(variants: Sequence[Variant]) -> str | None:
    """p50 (full line) and p99 (broken line) of the closed loop over its throughput; rings for the open loop."""
    answered = [[(run, run.latency_ms) for run in variant.load if run.latency_ms] for variant in variants]
    points = [point for each in answered for point in each]
    if not points:
        return None
    x = span([run.throughput_ips for run, _ in points], "images per second", zero=True)
    y = log_span([value for _, latency in points for value in (latency.p50, latency.p99)], "latency", suffix=" ms")
    plot = Plot(x, y, "Latency against throughput, per variant")
    for index, (variant, each) in enumerate(zip(variants, answered, strict=True)):
        for run, latency in each:
            if run.mode == "open":
                _latency_marks(plot, run, latency, f"{style(index)} ring", variant.name)
        closed = [(run.concurrency or 0, run, latency) for run, latency in each if run.mode == "closed"]
        closed.sort(key=lambda one: one[0])
        if len(closed) > 1:
            plot.line([(run.throughput_ips, latency.p99) for _, run, latency in closed], f"{style(index)} broken")
            plot.line([(run.throughput_ips, latency.p50) for _, run, latency in closed], f"{style(index)} full")
        for concurrency, run, latency in closed:
            _latency_marks(plot, run, latency, style(index), variant.name)
            plot.label(run.throughput_ips, latency.p99, str(concurrency), "small", dy=-9)
    return plot.svg()


def _latency_marks(plot: Plot, run: LoadRun, latency: Latency, look: str, name: str) -> None:
    where = f"concurrency {run.concurrency}" if run.rate_rps is None else f"{run.rate_rps:.1f} requests/s"
    for p, value in (("p50", latency.p50), ("p99", latency.p99)):
        note = f"{name}, {where}: {p} {text.number(value)} ms, {text.number(run.throughput_ips)} images/s"
        plot.marker(run.throughput_ips, value, look, note)


def robust_accuracy(variants: Sequence[Variant]) -> str | None:
    """Bars of accuracy, clean and in the worst case at each budget on the same images, with their intervals."""
    budgets = all_budgets(variants)
    if not budgets:
        return None
    names = ["clean", *(text.budget(*budget) for budget in budgets)]
    x = Axis(low=0, high=len(names), label="")
    y = Axis(low=0, high=100, label="accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy without and under attack, per variant", x_names=names)
    width = 0.72 / len(variants)
    for index, variant in enumerate(variants):
        for group, share in _groups(variant, budgets):
            left = group + 0.14 + index * width
            note = f"{variant.name}, {names[group]}: {text.percent(share.value)} "
            note += f"[{text.interval(share.low, share.high)}], {share.num_images} images"
            plot.bar(left + 0.02, left + width - 0.02, 100 * share.value, style(index), note)
            plot.error_bar(left + width / 2, 100 * share.low, 100 * share.high, "ink")
    return plot.svg()


def _groups(variant: Variant, budgets: Sequence[tuple[str, float]]) -> Iterator[tuple[int, Share]]:
    if variant.robustness:
        yield 0, variant.robustness[0].clean_accuracy
    for group, budget in enumerate(budgets, start=1):
        if (case := variant.worst_at(budget)) is not None:
            yield group, case


def accuracy_over_epsilon(variants: Sequence[Variant], norm: str) -> str | None:
    """How the worst case falls as the budget grows; broken lines are single attacks."""
    cases = [[case for case in variant.worst_case if case.norm == norm] for variant in variants]
    if not any(len(each) > 1 for each in cases):
        return None
    largest = max(case.epsilon for each in cases for case in each)
    x = Axis(low=0, high=largest, label=f"epsilon, 1/255, {text.norm(norm)}")
    y = Axis(low=0, high=100, label="accuracy", suffix=" %")
    plot = Plot(x, y, f"Accuracy over the size of the budget in {text.norm(norm)}, per variant")
    for index, (variant, each) in enumerate(zip(variants, cases, strict=True)):
        clean = [(0.0, 100 * variant.robustness[0].clean_accuracy.value)] if each else []
        for name in dict.fromkeys(attack.attack for attack in variant.robustness):
            path = [
                (attack.epsilon, 100 * attack.accuracy)
                for attack in variant.robustness
                if (attack.attack, attack.norm) == (name, norm)
            ]
            plot.line(clean + sorted(path), f"{style(index)} broken")
        plot.line(clean + sorted((case.epsilon, 100 * case.value) for case in each), f"{style(index)} full")
        for case in each:
            plot.error_bar(case.epsilon, 100 * case.low, 100 * case.high, style(index))
            note = f"{variant.name}, {text.budget(*case.budget)}: {text.percent(case.value)} at worst"
            plot.marker(case.epsilon, 100 * case.value, style(index), note)
    return plot.svg()


def _is_search(attack: str) -> bool:
    """Whether an attack spends queries to search, which one that follows a surrogate does not."""
    return attack not in ATTACKS.names() or ATTACKS.get(attack).sees != "surrogate"


def _is_blind(attack: str) -> bool:
    """Whether an attack is shown nothing of the answers; False for one that is not installed here."""
    return attack in ATTACKS.names() and ATTACKS.get(attack).sees == "nothing"


def robust_accuracy_over_queries(variants: Sequence[Variant]) -> str | None:
    """How accuracy falls as the attacker may ask more often; what goes by no answers, as noise, is broken."""
    curves = [
        (index, attack)
        for index, variant in enumerate(variants)
        for attack in variant.robustness
        if len(attack.curve) > 1 and _is_search(attack.attack)
    ]
    if not curves:
        return None
    longest = max(point.num_queries for _, attack in curves for point in attack.curve)
    # A logarithmic axis has no 0: the accuracy before the first query stands at its left end.
    x = Axis(low=1, high=max(longest, 2), label="queries per image", log=True)
    y = Axis(low=0, high=100, label="accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy over the attacker's queries, per variant")
    for index, attack in curves:
        plot.line(_path(attack.curve), f"{style(index)} {'broken' if _is_blind(attack.attack) else 'full'}")
    ends: dict[str, CurvePoint] = {}
    for _, attack in curves:
        name, last = f"{attack.attack} {text.budget(attack.norm, attack.epsilon)}", attack.curve[-1]
        ends[name] = min(ends.get(name, last), last, key=lambda point: point.accuracy)
    for name, end in ends.items():
        # Under the lowest curve, unless that is where the axis is.
        below = end.accuracy > 0.1
        plot.label(end.num_queries, 100 * end.accuracy, name, "small", dx=-4, dy=15 if below else -7)
    return plot.svg()


def _path(curve: Sequence[CurvePoint]) -> list[tuple[float, float]]:
    """The curve as a staircase: accuracy stays until the query that lowers it."""
    points = [(point.num_queries, 100 * point.accuracy) for point in curve]
    path: list[tuple[float, float]] = [points[0]]
    for (_, before), (queries, after) in pairwise(points):
        path += [(queries, before), (queries, after)]
    return path
