"""Part `table`: the results as Markdown, for benchmarks/RESULTS.md; what was not measured is said to be so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import standin
from benchmarks.gpu.context import read_file

_UNMEASURED = "not measured"
_QUANTISED = ("int8", "fp8")
_EAGER, _COMPILED = "torch eager fp16", "torch.compile fp16"


def render(folder: Path) -> str:
    """Returns the tables of whatever results lie in a folder.

    Args:
        folder: Holds the parts' files, or some of them.
    """
    names = ("probe", "engines", "training", "gradients", "served", "tests", "sanitizer")
    probe, engines, training, gradients, served, tests, sanitizer = (
        read_file(folder / f"{part}.json") or {} for part in names
    )
    sections = [
        _machine(probe),
        _stand_in(probe),
        _figures(engines, served),
        _in_process(engines),
        _builds(engines),
        _pytorch(engines),
        _convolutions(engines),
        _steps("Training", training, "step | images/s"),
        _steps("Gradients of an attack with a surrogate", gradients, "graph | images times steps/s"),
        _served(engines, served),
        _tests(tests),
        _sanitizer(sanitizer),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _machine(probe: Mapping[str, Any]) -> list[str]:
    if not probe:
        return [f"**Machine**: {_UNMEASURED} (probe did not run)."]
    gpu, machine = probe.get("gpu", {}), probe.get("machine", {})
    if "no_gpu" in gpu:
        lines = [f"**Machine**: no NVIDIA GPU: {gpu['no_gpu']}."]
    else:
        memory = gpu.get("memory_bytes", 0) / 2**30
        lines = [
            f"**Machine**: {gpu.get('name')} ({memory:.0f} GiB, compute capability "
            f"{gpu.get('compute_capability')}), driver {gpu.get('driver')}; {machine.get('cpu')}, "
            f"{machine.get('cores')} cores."
        ]
    versions = ", ".join(f"{name} {version}" for name, version in probe.get("versions", {}).items())
    lines += [
        "",
        f"**Versions**: {versions}. Measured {probe.get('date')}, commit {probe.get('commit') or 'unknown'}.",
        "",
    ]
    for kind, row in probe.get("rows", {}).items():
        if kind == standin.NAME:
            continue
        if row.get("error") is None:
            lines.append(
                f"- {kind} runs ({row.get('plugin') or kind}); against PyTorch float32 the labels agree on "
                f"{100 * row['agreement']:.0f} %, logits differ by at most {row['max_abs_diff']:.3g} of "
                f"{row['max_abs_logit']:.3g}."
            )
            continue
        lines.append(f"- {kind} does not run: {row['error']}")
        for key, what in (("library", "loading it"), ("built_for_this_gpu", "built for this very GPU")):
            if row.get(key) not in (None, "loads"):
                lines.append(f"    - {what}: {row[key]}")
            elif row.get(key) == "loads":
                lines.append(f"    - {what}: loads")
    return lines


def _stand_in(probe: Mapping[str, Any]) -> list[str]:
    """The plugin in one process on the stand-in: what its buffers and copies deliver at most."""
    row = probe.get("rows", {}).get(standin.NAME)
    if row is None:
        return []
    if row["error"] is not None:
        return [f"**Plugin on the stand-in, in process**: {_UNMEASURED} ({row['error']})."]
    equal = "every answer right to the bit" if row["equal"] else "WRONG ANSWERS"
    lines = [f"**Plugin on the stand-in, in process** ({row['plugin']}; {equal}; no network is computed)", ""]
    lines.append("| batch | GPU alone | from pinned memory | from ordinary memory | from Triton's shared memory |")
    lines.append("| --- | --- | --- | --- | --- |")
    for batch, measured in row["in_process"].items():
        ways = [measured.get(way) for way in ("buffers", "plugin", "shared")]
        figures = [measured["buffers"]["device_ips"], *(way and way["ips"] for way in ways)]
        shown = [_UNMEASURED if ips is None else f"{ips:,.0f}/s" for ips in figures]
        lines.append(f"| {batch} | {' | '.join(shown)} |")
    return lines


_CEILINGS: tuple[tuple[str, int | None], ...] = (("cuda", 100_000), ("system", None), ("grpc", 20_000))


def _figures(engines: Mapping[str, Any], served: Mapping[str, Any]) -> list[str]:
    """The figures that were asked for, each with its limit."""
    lines = ["| figure, ResNet-50, batch 128 | asked | measured |", "| --- | --- | --- |"]
    for transport, limit in (("cuda", 0.9), ("system", 0.9), ("grpc", 0.5)):
        for base, words in (("ips", "in process with transfers"), ("device_ips", "in process, GPU alone")):
            ratios = list(_shares(engines, served, transport, base))
            best = max(ratios, default=None)
            shown = _UNMEASURED if best is None else f"{best[0]:.2f} ({best[1]})"
            asked = f">= {limit}" if base == "ips" else ""
            lines.append(f"| served over {_NAMES[transport]} / {words} | {asked} | {shown} |")
    for transport, ceiling in _CEILINGS:
        found = [
            (row["ips"], row["model"])
            for row in _loads(served)
            if row["model"].startswith(standin.NAME) and (row["transport"], row["batch"]) == (transport, 128)
        ]
        shown = f"{max(found)[0]:,.0f}/s ({max(found)[1]})" if found else _UNMEASURED
        asked = f">= {ceiling:,}/s" if ceiling else ""
        lines.append(f"| plugin without a network, over {_NAMES[transport]} | {asked} | {shown} |")
    row = engines.get("rows", {}).get("resnet50 128", {}).get("contenders", {})
    for base in (_COMPILED, _EAGER):
        for figure, words in (("device_ips", "GPU alone"), ("ips", "with transfers")):
            found = [
                (row[name][figure] / row[base][figure], name) for name in _QUANTISED if name in row and base in row
            ]
            shown = f"{max(found)[0]:.2f} ({max(found)[1]})" if found else _UNMEASURED
            asked = ">= 2" if (base, figure) == (_COMPILED, "device_ips") else ""
            lines.append(f"| int8 or fp8 engine / {base}, {words} | {asked} | {shown} |")
    return lines


_NAMES = {"grpc": "gRPC uint8", "system": "system shared memory", "cuda": "CUDA shared memory"}


def _shares(
    engines: Mapping[str, Any], served: Mapping[str, Any], transport: str, base: str
) -> Iterator[tuple[float, str]]:
    """Served over the engine's own throughput, per model and load at batch 128."""
    own = engines.get("rows", {}).get("resnet50 128", {}).get("contenders", {})
    for row in _loads(served):
        precision = row["model"].split()[1]
        fits = row["model"].startswith("resnet50 ") and row["transport"] == transport and row["batch"] == 128
        if fits and precision in own:
            yield row["ips"] / own[precision][base], f"{row['model'][9:]}, {row['concurrency']} in flight"


def _loads(served: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = served.get("rows", {}).values()
    return [row for row in rows if "ips" in row and row.get("error") is None]


def _in_process(engines: Mapping[str, Any]) -> list[str]:
    rows = engines.get("rows", {})
    if not rows:
        return [f"**In process**: {_UNMEASURED}{_why(engines)}."]
    lines = [f"**In process** ({engines.get('rounds')} rounds in turn, medians){_unfinished(engines)}", ""]
    lines += ["| network | batch | contender | images/s, GPU alone | with transfers | p50 ms | p99 ms | GPU MiB |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for key, row in sorted(rows.items(), key=lambda item: _order(item[0])):
        arch, batch, *group = key.split(maxsplit=2)
        for name, it in row.get("contenders", {}).items():
            # The plugin's copy into pinned memory changes nothing on the GPU.
            alone = "" if name.endswith("plugin") else f"{it['device_ips']:,.0f}"
            memory = "" if it.get("gpu_mib") is None or name.endswith("plugin") else str(it["gpu_mib"])
            lines.append(
                f"| {arch} | {batch} | {name} | {alone} | {it['ips']:,.0f} | {it['p50_ms']:.2f} | "
                f"{it['p99_ms']:.2f} | {memory} |"
            )
        lines += [
            f"| {arch} | {batch} | {name} | {_UNMEASURED}: {why} | | | | |"
            for name, why in _errors(row, *group).items()
        ]
    return lines


def _errors(row: Mapping[str, Any], name: str = "all") -> dict[str, str]:
    """Contenders that failed; all of them, or the group of this name, when the process ended in this row."""
    return {name: row["error"]} if row.get("error") else dict(row["errors"])


def _builds(engines: Mapping[str, Any]) -> list[str]:
    """How the engines were built, and how far their answers are from PyTorch's."""
    lines: list[str] = []
    for key, row in sorted(engines.get("rows", {}).items(), key=lambda item: _order(item[0])):
        arch, batch = key.split()[:2]
        for precision, about in row.get("engines", {}).items():
            if batch != "128" or "error" in about:
                continue
            agreement = row.get("agreement", {}).get(precision, {})
            labels = f"{100 * agreement['labels']:.0f} %" if agreement else ""
            diff = f"{agreement['max_abs_diff']:.3g} of {agreement['max_abs_logit']:.3g}" if agreement else ""
            size, audit = about["size_bytes"] / 1e6, (about.get("engine_audit") or {})
            convs = ", ".join(f"{count} {kind}" for kind, count in (audit.get("convs") or {}).items())
            lines.append(
                f"| {arch} | {precision} | {size:.1f} | {about['ready_s']} | {convs} | {labels} | {diff} |"
            )
    if not lines:
        return []
    head = "| network | engine | MB | s until ready | convolutions | labels as PyTorch fp16 | logits differ by |"
    return [head, "| --- | --- | --- | --- | --- | --- | --- |", *lines]


def _pytorch(engines: Mapping[str, Any]) -> list[str]:
    """PyTorch alone: each contender against eager fp16 in the same turns, and how far their answers are apart."""
    lines: list[str] = []
    for key, row in sorted(engines.get("rows", {}).items(), key=lambda item: _order(item[0])):
        for name, it in row.get("contenders", {}).items():
            beside, agreement = it.get("eager_beside"), row["agreement"].get(name)
            if beside is None or name == _EAGER:
                continue
            gains = [f"{it[figure] / beside[figure]:.2f}" for figure in ("device_ips", "ips")]
            labels = f"{100 * agreement['labels']:.0f} %" if agreement else ""
            diff = f"{agreement['max_abs_diff']:.3g} of {agreement['max_abs_logit']:.3g}" if agreement else ""
            cells = [*key.split(), name, *gains, it["ready_s"], labels, diff]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    if not lines:
        return []
    head: tuple[str, ...] = ("network", "batch", "contender", f"times {_EAGER}, GPU alone", "with transfers")
    head += ("s until ready", "labels as eager", "logits differ by")
    note = "**PyTorch alone**; whatever is compiled or folded has its batch normalisations in the convolutions"
    return [note, "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines]


def _convolutions(engines: Mapping[str, Any]) -> list[str]:
    """A network's convolutions one by one, by kernel."""
    lines: list[str] = []
    for key, row in engines.get("rows", {}).items():
        for name, it in row.get("convolutions", {}).items():
            shown = f"{it['num_layers']} | {it['ms']:.3f}" if "ms" in it else f" | {_UNMEASURED}: {it['error']}"
            lines.append(f"| {' | '.join(key.split())} | {name} | {shown} |")
    if not lines:
        return []
    note = "**Convolutions**, each alone, without quantising the activations between them"
    return [note, "", "| network | batch | kernel | layers | ms, all of them |", "|" + " --- |" * 5, *lines]


def _steps(name: str, part: Mapping[str, Any], head: str) -> list[str]:
    rows = part.get("rows", {})
    if not rows:
        return [f"**{name}**: {_UNMEASURED}{_why(part)}."]
    lines = [f"**{name}** ({part.get('rounds')} rounds, medians){_unfinished(part)}", ""]
    lines += [f"| network | size | batch | {head} | ms | spread | GPU MiB at most |"]
    lines += ["|" + " --- |" * 8]
    for key, row in rows.items():
        cells = key.split(maxsplit=3)
        if row.get("error"):
            cells += [f"{_UNMEASURED}: {row['error']}", "", "", ""]
        else:
            spread = (max(row["rounds"]) - min(row["rounds"])) / row["ips"] if "rounds" in row else None
            cells += [f"{row['ips']:,.0f}", f"{row['ms']:.1f}" if "ms" in row else ""]
            cells += ["" if spread is None else f"{100 * spread:.1f} %", str(row["peak_mib"] or "")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


_SERVED_HEAD = (
    *("model", "over", "images a request", "in flight", "images/s", "share", "p50 ms", "p99 ms", "batch formed"),
    *("cores: client", "tritonserver", "stubs", "GPU MiB before, after", "host MiB before, after"),
)


def _served(engines: Mapping[str, Any], served: Mapping[str, Any]) -> list[str]:
    rows = _loads(served)
    if not rows:
        return [f"**Served**: {_UNMEASURED}{_why(served)}."]
    lines = [f"**Served** (share: of the engine in process at batch 128, with transfers){_unfinished(served)}", ""]
    lines += [f"| {' | '.join(_SERVED_HEAD)} |", f"|{' --- |' * len(_SERVED_HEAD)}"]
    for row in rows:
        arch, _, rest = row["model"].partition(" ")
        own = engines.get("rows", {}).get(f"{arch} 128", {}).get("contenders", {}).get(rest.split()[0])
        share = f"{row['ips'] / own['ips']:.2f}" if own else ""
        cores, batch = row.get("cores") or {}, (row.get("server") or {}).get("batch_size")
        cells = [row["model"], row["transport"], row["batch"], row["concurrency"], f"{row['ips']:,.0f}", share]
        cells += [f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", "" if batch is None else f"{batch:.0f}"]
        cells += [cores.get(name, "") for name in ("client", "tritonserver", "stubs")]
        memory = row.get("memory_mib") or {"before": {}, "after": {}}
        cells += [f"{memory['before'].get(who, '')}, {memory['after'].get(who, '')}" for who in ("gpu", "host")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failed = {key: row["error"] for key, row in served["rows"].items() if row.get("error")}
    return lines + ([""] if failed else []) + [f"- {key}: {_UNMEASURED}: {why}" for key, why in failed.items()]


def _tests(tests: Mapping[str, Any]) -> list[str]:
    row = tests.get("rows", {}).get("pytest")
    if row is None:
        return [f"**`pytest -m gpu`**: {_UNMEASURED}{_why(tests)}."]
    counts = ", ".join(
        f"{number} {what}" for what, number in row.get("counts", {}).items() if what != "deselected"
    )
    return [f"**`pytest -m gpu`**: {counts or row.get('error')}."]


def _sanitizer(sanitizer: Mapping[str, Any]) -> list[str]:
    rows = sanitizer.get("rows", {})
    if not rows:
        return [f"**compute-sanitizer**: {_UNMEASURED}{_why(sanitizer)}."]
    said = ", ".join(f"{tool}: {row['error'] or 'clean'}" for tool, row in rows.items())
    return [f"**compute-sanitizer** over the plugin on the stand-in: {said}{_unfinished(sanitizer)}."]


def _why(part: Mapping[str, Any]) -> str:
    return f" ({part['reason']})" if part.get("reason") else ""


def _unfinished(part: Mapping[str, Any]) -> str:
    return f"; {part['state']}: {part['reason']}" if part.get("reason") else ""


def _order(key: str) -> tuple[int, str, int]:
    """ResNet-18 before 50 before 101, then by batch."""
    arch, batch = key.split()[:2]
    return len(arch), arch, int(batch)
