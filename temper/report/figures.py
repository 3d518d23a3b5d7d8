"""The report's five pictures, each from the report's figures alone."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from temper.client.robustness.base import ATTACKS
from temper.report import text
from temper.report.svg import Axis, Plot, log_span, span
from temper.report.table import attack_keys

NUM_STYLES = 6

Variant = Mapping[str, Any]


def style(index: int) -> str:
    """The colour class of the variant at this place in the recipe."""
    return f"s{index % NUM_STYLES}"


def accuracy_against_throughput(variants: Sequence[Variant]) -> str | None:
    """Accuracy with its interval over images per second: up and to the right is better."""
    known = [(i, v) for i, v in enumerate(variants) if v.get("accuracy") and v.get("throughput_ips")]
    if not known:
        return None
    bounds = [100 * v["accuracy"][end] for _, v in known for end in ("low", "high")]
    x = span([v["throughput_ips"] for _, v in known], "images per second", zero=True, pad=0.15)
    y = span(bounds, "accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy against throughput, per variant")
    for index, variant in known:
        accuracy, speed = variant["accuracy"], variant["throughput_ips"]
        plot.error_bar(speed, 100 * accuracy["low"], 100 * accuracy["high"], style(index))
        note = f"{variant['name']}: {text.percent(accuracy['value'])}, {text.number(speed)} images/s"
        plot.marker(speed, 100 * accuracy["value"], style(index), note)
        plot.label(speed, 100 * accuracy["value"], variant["name"], "direct", dx=11, dy=4)
    return plot.svg()


def frontier(variants: Sequence[Variant]) -> str | None:
    """Accuracy over latency for a sweep: full marks are on the frontier, rings are beaten by another variant."""
    known = [
        (i, v) for i, v in enumerate(variants) if v.get("accuracy") and v.get("latency_ms") and "frontier" in v
    ]
    if not known:
        return None
    x = log_span([v["latency_ms"]["p50"] for _, v in known], "p50 latency", suffix=" ms")
    y = span([100 * v["accuracy"][end] for _, v in known for end in ("low", "high")], "accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy over latency, per variant, and which variants no other beats")
    for index, variant in known:
        accuracy, latency = variant["accuracy"], variant["latency_ms"]["p50"]
        plot.error_bar(latency, 100 * accuracy["low"], 100 * accuracy["high"], style(index))
        note = f"{variant['name']}: {text.percent(accuracy['value'])}, {text.number(latency)} ms, "
        note += text.size(variant["size_bytes"])
        look = style(index) if variant["frontier"] else f"{style(index)} ring"
        plot.marker(latency, 100 * accuracy["value"], look, note)
        plot.label(latency, 100 * accuracy["value"], variant["name"], "direct", dx=11, dy=4)
    return plot.svg()


def latency_against_throughput(variants: Sequence[Variant]) -> str | None:
    """p50 (full line) and p99 (broken line) of the closed loop over its throughput; rings for the open loop."""
    runs = [run for variant in variants for run in variant.get("load", []) if run["completed"]]
    if not runs:
        return None
    latencies = [run["latency_ms"][p] for run in runs for p in ("p50", "p99")]
    x = span([run["throughput_ips"] for run in runs], "images per second", zero=True)
    y = log_span(latencies, "latency", suffix=" ms")
    plot = Plot(x, y, "Latency against throughput, per variant")
    for index, variant in enumerate(variants):
        for run in variant.get("load", []):
            if run["completed"] and run["mode"] == "open":
                _latency_marks(plot, run, f"{style(index)} ring", variant["name"])
        closed = [run for run in variant.get("load", []) if run["completed"] and run["mode"] == "closed"]
        closed.sort(key=lambda run: run["concurrency"])
        for p, look in (("p99", "broken"), ("p50", "full")):
            points = [(run["throughput_ips"], run["latency_ms"][p]) for run in closed]
            if len(points) > 1:
                plot.line(points, f"{style(index)} {look}")
        for run in closed:
            _latency_marks(plot, run, style(index), variant["name"])
            plot.label(run["throughput_ips"], run["latency_ms"]["p99"], str(run["concurrency"]), "small", dy=-9)
    return plot.svg()


def _latency_marks(plot: Plot, run: Mapping[str, Any], look: str, name: str) -> None:
    where = f"concurrency {run['concurrency']}" if run["mode"] == "closed" else f"{run['rate_rps']:.1f} requests/s"
    for p in ("p50", "p99"):
        note = f"{name}, {where}: {p} {text.number(run['latency_ms'][p])} ms, "
        note += f"{text.number(run['throughput_ips'])} images/s"
        plot.marker(run["throughput_ips"], run["latency_ms"][p], look, note)


def robust_accuracy(variants: Sequence[Variant]) -> str | None:
    """Bars of accuracy, clean and under each attack on the same images, with their intervals."""
    keys = attack_keys({"variants": variants})
    if not keys:
        return None
    names = ["clean", *(f"{attack} {text.budget(norm, epsilon)}" for attack, norm, epsilon in keys)]
    x = Axis(low=0, high=len(names), label="")
    y = Axis(low=0, high=100, label="accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy without and under attack, per variant", x_names=names)
    width = 0.72 / len(variants)
    for index, variant in enumerate(variants):
        for group, share in _groups(variant, keys):
            left = group + 0.14 + index * width
            value = 100 * share["value"]
            note = f"{variant['name']}, {names[group]}: {text.percent(share['value'])} "
            note += f"[{text.interval(share['low'], share['high'])}], {share['num_images']} images"
            plot.bar(left + 0.02, left + width - 0.02, value, style(index), note)
            middle = left + width / 2
            plot.error_bar(middle, 100 * share["low"], 100 * share["high"], "ink")
    return plot.svg()


def _groups(variant: Variant, keys: Sequence[tuple[str, str, float]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = {(row["attack"], row["norm"], row["epsilon"]): row for row in variant.get("robustness", [])}
    clean = next((row["clean_accuracy"] for row in rows.values() if row.get("clean_accuracy")), None)
    if clean:
        yield 0, clean
    for group, key in enumerate(keys, start=1):
        if key in rows:
            yield group, {**rows[key], "value": rows[key]["accuracy"]}


def _is_blind(attack: str) -> bool:
    """Whether an attack is shown nothing of the answers; False for one that is not installed here."""
    return attack in ATTACKS.names() and ATTACKS.get(attack).sees == "nothing"


def robust_accuracy_over_queries(variants: Sequence[Variant]) -> str | None:
    """How accuracy falls as the attacker may ask more often; what goes by no answers, as noise, is broken."""
    curves = [
        (index, row)
        for index, variant in enumerate(variants)
        for row in variant.get("robustness", [])
        if len(row.get("curve") or []) > 1
    ]
    if not curves:
        return None
    longest = max(point["num_queries"] for _, row in curves for point in row["curve"])
    # A logarithmic axis has no 0: the accuracy before the first query stands at its left end.
    x = Axis(low=1, high=max(longest, 2), label="queries per image", log=True)
    y = Axis(low=0, high=100, label="accuracy", suffix=" %")
    plot = Plot(x, y, "Accuracy over the attacker's queries, per variant")
    for index, row in curves:
        plot.line(_steps(row["curve"]), f"{style(index)} {'broken' if _is_blind(row['attack']) else 'full'}")
    ends: dict[str, Mapping[str, float]] = {}
    for _, row in curves:
        name, last = f"{row['attack']} {text.budget(row['norm'], row['epsilon'])}", row["curve"][-1]
        ends[name] = min(ends.get(name, last), last, key=lambda point: point["accuracy"])
    for name, end in ends.items():
        # Under the lowest curve, unless that is where the axis is.
        below = end["accuracy"] > 0.1
        plot.label(end["num_queries"], 100 * end["accuracy"], name, "small", dx=-4, dy=15 if below else -7)
    return plot.svg()


def _steps(curve: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    points = [(point["num_queries"], 100 * point["accuracy"]) for point in curve]
    path = [points[0]]
    for (_, before), (queries, after) in pairwise(points):
        path += [(queries, before), (queries, after)]
    return path
