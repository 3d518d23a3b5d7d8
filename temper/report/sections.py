"""The page's tables, its gallery, and what it says about the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from temper.report import html, text
from temper.report.answer import faults
from temper.report.measured import ClassShare, LoadRun, Picture, Share
from temper.report.model import Int8, Parity, Report, Step, Timing, Variant, nearest

_SMALL_IMAGE_BYTES = 12_000
"""Above this a gallery shows fewer images, to keep the page light."""


def results(report: Report) -> str:
    """One row per variant: what it is, how right, how fast, how robust."""
    budgets = report.budgets()
    worst = [f"worst case {text.budget(*budget)}" for budget in budgets]
    head = ["variant", "engine", "size", "accuracy", "images/s", "p50", "p99", *worst]
    note = '<p class="note">Small print: 95 % intervals (Wilson). '
    note += f"{escape(_latency_note(report))}</p>"
    notes = "".join(f'<p class="note">{escape(fault)}</p>' for fault in faults(report))
    return html.table(head, (_result_row(variant, budgets) for variant in report.variants), left=2) + note + notes


def _result_row(variant: Variant, budgets: Sequence[tuple[str, float]]) -> list[object]:
    latency = variant.latency_ms
    return [
        html.with_note(variant.name, _endpoint(variant)),
        html.with_note(variant.engine, variant.engine_reason),
        text.size(variant.size_bytes),
        share(variant.accuracy),
        text.number(variant.throughput_ips) if variant.throughput_ips else "–",
        f"{text.number(latency.p50)} ms" if latency else "–",
        f"{text.number(latency.p99)} ms" if latency else "–",
        *(share(variant.worst_at(budget)) for budget in budgets),
    ]


def _endpoint(variant: Variant) -> str:
    files = f"; {variant.encoded_model} takes image files" if variant.encoded_model else ""
    return f"{variant.model} v{variant.version}{files}"


def share(found: Share | None) -> str:
    """A share over its interval and the number of images; a dash for what was not measured."""
    if found is None:
        return "–"
    return html.with_note(
        text.percent(found.value), f"{text.interval(found.low, found.high)}, {found.num_images} images"
    )


def _latency_note(report: Report) -> str:
    notes = dict.fromkeys(variant.latency_from for variant in report.variants if variant.latency_from)
    return f"Latency: {'; '.join(notes)}." if notes else ""


def per_class(report: Report) -> str:
    """Accuracy per class: clean on all test images, then the worst case under attack, per variant."""
    columns: dict[str, dict[str, ClassShare]] = {}
    for variant in report.variants:
        columns[f"{variant.name} clean"] = {share.label: share for share in variant.per_class}
        for budget in report.budgets():
            if (case := variant.worst_at(budget)) is not None:
                columns[f"{variant.name} worst case {text.budget(*budget)}"] = {
                    share.label: share for share in case.per_class
                }
    columns = {name: column for name, column in columns.items() if column}
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    if not columns:
        return ""

    def cells(label: str) -> Iterator[object]:
        yield label
        for column in columns.values():
            share = column.get(label)
            shown = f"{text.percent(share.value)} of {share.num_images}" if share else "–"
            yield html.heat(share.value, shown) if share else shown

    return html.table(["class", *columns], (list(cells(label)) for label in labels))


def gallery(report: Report, folder: Path) -> str:
    """What fooled each variant: the original, the adversarial image and their difference, amplified.

    Of an attack at several budgets, the one nearest to that which is told first.
    """
    parts, budgets = [], report.budgets()
    for variant in report.variants:
        for attack in (*nearest(variant.robustness, budgets), *nearest(variant.differential, budgets)):
            shots = "".join(_shots(attack.gallery, folder))
            if shots:
                heading = f"{variant.name}, {attack.attack} {text.budget(attack.norm, attack.epsilon)}"
                parts.append(f'<h3>{escape(heading)}</h3><div class="gallery">{shots}</div>')
    return "".join(parts)


def _shots(pictures: Sequence[Picture], folder: Path) -> Iterator[str]:
    for number, picture in enumerate(pictures):
        files = {kind: folder / name for kind, name in picture.files.items()}
        if not all(path.is_file() for path in files.values()):
            continue
        if number >= 4 and files["adversarial"].stat().st_size > _SMALL_IMAGE_BYTES:
            return
        images = "".join(f"{html.png(path, kind)}" for kind, path in files.items())
        words = "".join(f"<span>{kind}</span>" for kind in files)
        queries = f"{picture.num_queries:,} queries" if picture.num_queries != 1 else "1 query"
        yield (
            f'<div class="shot"><div>{images}{words}</div><p><b>{escape(picture.label)}</b> taken for '
            f"<b>{escape(picture.answer)}</b> after {queries}</p></div>"
        )


def load_table(report: Report) -> str:
    """Every load test with the server's own times beside the client's."""
    head = ["variant", "load", "images/s", "p50", "p90", "p99", "p99.9", "queue", "input", "inference", "output"]
    head += ["shed", "errors"]
    rows = [_load_row(variant.name, run) for variant in report.variants for run in variant.load]
    if not rows:
        return ""
    note = (
        "Latencies in ms, as the client sees them, of answered requests; queue, input, inference and output are "
        "Triton's own means per request, in ms. Closed loop: that many requests in flight. Open loop: Poisson "
        "arrivals at that rate. Shed: refused by the server because of its load."
    )
    return html.table(head, rows, left=2) + f'<p class="note">{note}</p>'


def _load_row(name: str, run: LoadRun) -> list[object]:
    rate = run.rate_rps
    load = f"closed, {run.concurrency} in flight" if rate is None else f"open, {text.number(rate)}/s"
    if run.late_share is not None:
        load = html.with_note(load, f"{text.percent(run.late_share)} sent more than 1 ms late")
    shown, times = 4 * ["–"], 4 * ["–"]
    if (latency := run.latency_ms) is not None:
        shown = [text.number(value) for value in (latency.p50, latency.p90, latency.p99, latency.p999)]
    if (server := run.server) is not None:
        inner = (server.compute_input_ms, server.compute_infer_ms, server.compute_output_ms)
        times = [f"{value:.2f}" for value in (server.queue_ms, *inner)]
    errors = ", ".join(f"{count} {kind}" for kind, count in run.errors.items() if count) or "0"
    shed = f"{run.shed:,} ({text.percent(run.shed_share)})" if run.shed else "0"
    cell = html.with_note(errors, "; ".join(run.reasons.values()))
    return [name, load, text.number(run.throughput_ips), *shown, *times, shed, cell]


def compression(report: Report) -> str:
    """How each compressed variant was made, and how near it is to the float32 network."""
    parts = []
    for variant in report.variants:
        if (done := variant.calibration) is not None:
            words = (
                f"{done.precision}, {done.method} calibration on {done.num_calibration} training images; "
                f"{done.num_conv} Conv and {done.num_gemm} linear layers quantised per channel, one branch of "
                f"each of {done.num_residual_adds} residual Adds; the same answer as float32 on "
                f"{text.percent(done.agreement)} of {done.num_images} test images."
            )
            words += "".join(f" {sentence}" for sentence in _int8(variant.int8))
            parts.append(f"<p><b>{escape(variant.name)}</b>: {escape(words)}</p>")
    return "".join(parts)


def _int8(int8: Int8 | None) -> Iterator[str]:
    """How many bits the weights have and why, where it was verified and served, and how exact it is as served."""
    if int8 is None:
        return
    if (chosen := int8.reduce_range) is not None:
        asked = "auto: " if chosen.asked == "auto" else ""
        yield f"Weights of {int8.weight_bits} bits (reduce_range: {asked}{chosen.why})."
    if int8.serving_isa:
        yield f"Verified on {int8.verified_isa}, served on {int8.serving_isa}."
    if (exact := int8.exact) is not None:
        yield (
            f"As served: the answer of the graph's exact arithmetic on {text.percent(exact.agreement)} of "
            f"{exact.num_images} test images, the logits {text.percent(exact.relative_rms)} of their spread "
            "apart (rms)."
        )


def parity(report: Report) -> str:
    """The served answers against torchvision and the network as they are; empty when it was not compared."""
    found = [(variant, variant.parity) for variant in report.variants if variant.parity is not None]
    if not found:
        return ""
    first = found[0][1]
    pixels = f"{first.num_same_pixels} of {first.num_images} test images have the very pixels of torchvision"
    if first.num_same_pixels < first.num_images:
        pixels += f", the others differ by up to {text.number(first.max_pixel_diff)} of 255"
    note = (
        f"Raw files by torchvision's own reading and transforms and {first.runtime} before any compression, "
        f"against the files as a client sends them and the server's answer. {pixels}. What a variant that is "
        "compressed, an ensemble or behind a defence differs by is that; what any other differs by is how it is "
        "served. Whether [data] is what the network was trained with nothing here can know: compare the accuracy "
        "with your own, or ask `temper diagnose`. Small print: 95 % intervals (Wilson)."
    )
    head = ["variant", "same answer", "logits apart, of their spread (rms)", "largest difference of a logit"]
    through_files = any(one.num_same_encoded is not None for _, one in found)
    if through_files:
        head.append("files as they are: same logits to the bit")

    def cells(variant: Variant, one: Parity) -> list[object]:
        same = "–" if one.num_same_encoded is None else f"{one.num_same_encoded} of {one.num_images}"
        return [
            variant.name,
            share(one.agreement),
            text.fine_percent(one.relative_rms),
            html.with_note(f"{one.max_abs_diff:.1g}", f"largest logit {one.max_abs_logit:.3g}"),
            *([html.with_note(same, f"through {variant.encoded_model or '–'}")] if through_files else []),
        ]

    return html.table(head, (cells(*each) for each in found)) + f'<p class="note">{escape(note)}</p>'


def steps(report: Report) -> str:
    """What each step of a variant's compression did, in process."""
    return "".join(
        f"<h3>{escape(variant.name)}</h3>{_steps_table(variant.steps)}"
        for variant in report.variants
        if variant.steps
    )


def _steps_table(rows: Sequence[Step]) -> str:
    head = ["step", "GFLOPs", "parameters", "size", "accuracy", "change", "same answer as float32", "latency", ""]

    def cells(row: Step) -> list[object]:
        change, ratio = row.accuracy_change, row.latency_ratio
        points = text.signed(100 * change.difference) if change else "–"
        span = text.bounds(change.low, change.high) if change else ""
        before = "the step before"
        if row.latency_before_ms is not None:
            before += f", then {text.number(row.latency_before_ms)} ms"
        return [
            row.name.replace("_", " "),
            f"{row.flops / 1e9:.2f}",
            f"{row.num_parameters / 1e6:.2f} M",
            text.size(row.size_bytes),
            share(row.accuracy),
            html.with_note(points, span),
            text.percent(row.agreement),
            html.with_note(f"{text.number(row.latency_ms)} ms", f"{text.times(ratio)} {before}" if ratio else ""),
            row.verdict or "",
        ]

    note = (
        f"Every step's graph in {rows[0].engine}, in process: accuracy on the test images, change against the "
        "step before (points, 95 % interval, paired), latency of one image, in turns with the step before, whose "
        "latency then stands beside the ratio: the one in its own row was measured at another time."
    )
    return html.table(head, (cells(row) for row in rows)) + f'<p class="note">{note}</p>'


def timings(report: Report) -> str:
    """The stages with their seconds, as they ran; what was reused took next to none."""
    if not report.timings:
        return ""
    longest = max(row.seconds for row in report.timings) or 1

    def cells(row: Timing) -> list[object]:
        width = 160 * row.seconds / longest
        bar = html.Raw(f'<td class="text"><span class="meter" style="width:{width:.0f}px"></span></td>')
        took = "reused" if row.reused else text.seconds(row.seconds)
        return [row.stage, row.note, took, "" if row.reused else bar]

    total = f'<p class="note">This run took {text.seconds(report.seconds)} in all.</p>'
    return html.table(["stage", "", "time", ""], (cells(row) for row in report.timings), left=2) + total


def machine(report: Report) -> str:
    """Where and with what it was measured, and the recipe."""
    here, gpu = report.machine, report.machine.gpu
    facts = {
        "CPU": f"{here.cpu}, {here.cores} cores",
        "instruction sets": ", ".join(here.flags) or "none of note",
        "memory": f"{here.ram_bytes / 2**30:.1f} GiB",
        "GPU": f"{gpu.name}, {gpu.memory}, driver {gpu.driver}" if gpu else "none",
        "system": f"{here.os}, Linux {here.kernel}",
        "commit": report.commit or "unknown",
    }
    settings = dict(flat(report.config))
    return (
        f'<div class="columns"><div><h3>Machine</h3>{html.definitions(facts)}</div>'
        f"<div><h3>Versions</h3>{html.definitions(report.versions)}</div></div>"
        + (f"<h3>Recipe</h3>{html.definitions(settings)}" if settings else "")
    )


def flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """The recipe's keys by full path, in order; what is not given is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, inner in enumerate(value):
            yield from flat(inner, f"{path}[{index}]")
    elif value is not None:
        yield path, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
