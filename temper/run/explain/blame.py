"""The layers that a quantised variant's loss comes from, and what leaving some of them unquantised gives."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from temper.builder.build import compress_graph
from temper.builder.built import Built
from temper.builder.compress.quantize import QuantizeConfig, find_nodes
from temper.builder.compress.variant import ChosenStep, VariantConfig
from temper.builder.contract import GRAPH_FILE
from temper.builder.engines.kind import ENGINES
from temper.builder.engines.latency import timing_engine
from temper.builder.errors import BuilderError, QuantizeError
from temper.builder.names import short_names
from temper.builder.store.artifacts import Artifact
from temper.errors import WorkflowError
from temper.host.machine import machine_id
from temper.report.explained import Blame, LayerBlame, Mended
from temper.run.explain.look import Look, Progress, interval, paired, share
from temper.run.keys import default_of

_QUANTIZE = "quantize"


@dataclass(frozen=True)
class _Quantized:
    """A variant's quantisation: its graph before and after, and how it was done."""

    one: Built
    before: Artifact
    after: Artifact
    config: QuantizeConfig
    kept_high: tuple[str, ...]
    """Layers that it left unquantised."""
    later: tuple[str, ...]
    """The steps that followed."""

    def with_high(self, names: Sequence[str]) -> QuantizeConfig:
        """The same quantisation with more layers left high, beside those that are already."""
        high = tuple(dict.fromkeys((*self.kept_high, *names)))
        return replace(self.config, keep_high=high, max_loss=None)

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.before.path / GRAPH_FILE, self.after.path / GRAPH_FILE


def blame_variants(look: Look, *, mend: bool, named: bool, keep_high: Sequence[str] = ()) -> Iterator[Blame]:
    """Looks at every quantised variant.

    Args:
        look: The look.
        mend: Quantises anew with what is suggested, and measures that.
        named: Refuses a variant without a float32 counterpart, instead of noting it.
        keep_high: Layers to try in place of what is found, as `keep_high` of a quantisation takes them.

    Raises:
        WorkflowError: A variant that was asked for has no float32 counterpart, or there is no such layer.
    """
    reasons = {one.variant: _why_no_counterpart(look, one) for one in look.chosen}
    for one in look.chosen:
        reason = reasons[one.variant]
        if reason is not None and named and look.config.parts == ("blame",):
            raise WorkflowError(f"explain: variant {one.variant!r} {reason}")
        if reason is not None and not look.is_original(one.variant):
            look.note(f"{one.variant}: no layer is blamed: it {reason}", "blame", one.variant)
    found = [_open(look, one) for one in look.chosen if reasons[one.variant] is None]
    if (mend or keep_high) and not found:
        raise WorkflowError(
            "explain: nothing to try: none of these variants is quantised after training; choose one that has "
            "a step quantize of another method than qat"
        )
    asked = {variant.one.variant: _find(variant, keep_high) for variant in found}
    for variant in found:
        name = variant.one.variant
        with look.leaving_out(f"{name}: which layer is to blame", "blame", name):
            yield _blame(look, variant, mend, asked[name])


def _find(variant: _Quantized, keep_high: Sequence[str]) -> list[str]:
    """The layers that patterns name."""
    try:
        return find_nodes(variant.paths[0], keep_high)
    except QuantizeError as error:
        raise WorkflowError(f"explain: variant {variant.one.variant!r}: {error}") from error


def _why_no_counterpart(look: Look, one: Built) -> str | None:
    if look.is_original(one.variant):
        return "is the network before any compression"
    if _QUANTIZE not in [snapshot.step for snapshot in one.snapshots]:
        return (
            "is not quantised, so that no float32 graph has its layers one by one; its representation says what "
            "was changed"
        )
    if _config(look, one).method == "qat":
        return (
            "was trained in int8, so that its weights have no float32 counterpart; its representation says what "
            "was changed"
        )
    return None


def _config(look: Look, one: Built) -> QuantizeConfig:
    found = next(chosen.config for chosen in look.variant(one).compress if chosen.name == _QUANTIZE)
    assert isinstance(found, QuantizeConfig), "the step's own"
    return found


def _open(look: Look, one: Built) -> _Quantized:
    steps = [snapshot.step for snapshot in one.snapshots]
    position = steps.index(_QUANTIZE)
    before, after = (one.snapshots[index].graph for index in (position - 1, position))
    figures = next(stage.figures for stage in one.stages if stage.name == _QUANTIZE)
    high = tuple(figures.get("kept_high", ()))
    return _Quantized(one, before, after, _config(look, one), high, tuple(steps[position + 1 :]))


def _blame(look: Look, variant: _Quantized, mend: bool, asked: Sequence[str]) -> Blame:
    from temper.builder.explain.blame import ANSWERS_FILE

    def make(folder: Path, progress: Progress) -> Mapping[str, Any]:
        from temper.builder.explain.blame import run_blame

        return run_blame(variant.paths, look.images.path, look.runs_in, folder, progress, **sizes)

    sizes = {"most": look.config.num_images, "seed": look.config.seed}

    found = look.stage(
        "blame",
        f"{variant.one.variant}: which layer is to blame",
        sizes,
        [variant.before, variant.after, look.images],
        make,
        code=("temper.builder.explain.blame",),
        runs=True,
        note=_worst,
    )
    with np.load(found.path / ANSWERS_FILE) as answers:
        right = {name: answers[name] == look.labels for name in answers.files}
        agree = {name: answers[name] == answers["float32"] for name in answers.files}
    info, suggestion, note, config = found.info, None, found.info["kept_note"], None
    if info["kept"] and not asked:
        config = variant.with_high(info["kept"])
        suggestion = Mended(
            keep_high=tuple(info["kept"]),
            recovered=interval(info["recovered"]),
            agreement=share(agree["kept"]),
            accuracy=share(right["kept"]),
            accuracy_change=paired(right["quantized"], right["kept"]),
            tried=False,
        )
    if asked:
        config, note = variant.with_high(asked), "These layers were asked for, not found"
        suggestion = _mend(look, variant, asked, config)
    elif mend and config is not None:
        suggestion = _mend(look, variant, info["kept"], config)
    elif mend:
        note += "; so nothing was tried"
    notes = [info["note"], f"looked at before {', '.join(variant.later)}" if variant.later else ""]
    return Blame(
        variant=variant.one.variant,
        precision=variant.config.precision,
        runs_in=info["runs_in"],
        in_engine=info["in_engine"],
        note="; ".join(note for note in notes if note),
        num_images=info["num_images"],
        num_search=info["num_search"],
        num_activations=info["num_activations"],
        tap_change=info["tap_change"],
        loss=info["loss"],
        agreement=share(agree["quantized"]),
        accuracy=share(right["quantized"]),
        accuracy_change=paired(right["float32"], right["quantized"]),
        layers=tuple(_layer(figures) for figures in info["layers"]),
        suggestion=suggestion,
        suggestion_note=note,
        snippet=_snippet(look.variant(variant.one), config) if config else "",
    )


def _mend(look: Look, variant: _Quantized, names: Sequence[str], config: QuantizeConfig) -> Mended:
    """Quantises anew with more layers left high, and measures what that gives on all test images.

    Raises:
        WorkflowError: These layers cannot be left high.
    """
    from temper.builder.explain.mend import ANSWERS_FILE

    one, recipe, asked = variant.one, look.recipe, look.variant(variant.one)
    changed = ChosenStep(quantize=config)
    steps = tuple(changed if chosen.name == _QUANTIZE else chosen for chosen in asked.compress)
    try:
        graph = compress_graph(
            recipe.name,
            data=recipe.data,
            model=recipe.model,
            train=recipe.train,
            variant=replace(asked, name=f"{one.variant} mended", compress=steps),
            engine=recipe.engine,
            store=look.store,
            progress_factory=look.display.stage,
        )
    except BuilderError as error:
        raise WorkflowError(
            f"explain: variant {one.variant!r}: {len(names)} layers cannot be left unquantised: {error}; try fewer"
        ) from error
    timed, graphs = timing_engine(look.engine), [variant.before, one.snapshots[-1].graph, graph]

    def make(folder: Path, progress: Progress) -> Mapping[str, Any]:
        from temper.builder.explain.mend import measure_mended

        images = np.load(one.test_images, mmap_mode="r")
        paths = [each.path / GRAPH_FILE for each in graphs]
        return measure_mended(paths, images, look.runs_in, timed, folder, progress)

    found = look.stage(
        "mended",
        f"{one.variant}: mended",
        {"timed": timed, "machine": machine_id()},
        [*graphs, look.data],
        make,
        code=("temper.builder.explain.mend", *([type(ENGINES.get(timed.kind)).__module__] if timed else [])),
        libraries=ENGINES.get(timed.kind).libraries(timed) if timed else (),
        runs=True,
    )
    answers, labels = np.load(found.path / ANSWERS_FILE), np.load(one.test_labels)
    right, ratio = answers == labels, found.info["latency_ratio"]
    return Mended(
        keep_high=tuple(names),
        recovered=interval(found.info["recovered"]),
        agreement=share(answers[2] == answers[0]),
        accuracy=share(right[2]),
        accuracy_change=paired(right[1], right[2]),
        tried=True,
        latency_ms=found.info["latency_ms"],
        latency_ratio=interval(ratio) if ratio else None,
        size_bytes=(graph.path / GRAPH_FILE).stat().st_size,
    )


def _worst(info: Mapping[str, Any]) -> str:
    """The layer that explains most, in a word."""
    tried = [layer for layer in info["layers"] if layer["share"] is not None]
    worst = max(tried, key=lambda layer: layer["share"][0])
    name = short_names([layer["name"] for layer in info["layers"]])[worst["name"]]
    return f"{name} explains {100 * worst['share'][0]:.0f} % of the loss"


def _layer(figures: Mapping[str, Any]) -> LayerBlame:
    explained = None if figures["share"] is None else interval(figures["share"])
    return LayerBlame.of(figures, share=explained, findings=tuple(figures["findings"]))


def _snippet(variant: VariantConfig, config: QuantizeConfig) -> str:
    """A variant's steps as a line of a recipe, with another quantisation: what differs from the defaults."""
    steps = [(one.name, config if one.name == _QUANTIZE else one.config) for one in variant.compress]
    return f"compress = [{', '.join(f'{{ {name} = {_toml(_given(one))} }}' for name, one in steps)}]"


def _given(config: Any) -> dict[str, Any]:
    """What of a step's config its line has to say."""
    return {
        field.name: value
        for field in fields(config)
        if (value := getattr(config, field.name)) is not None
        and (field.name in ("precision", "method") or value != default_of(field))
    }


def _toml(value: object) -> str:
    """JSON's strings, numbers, booleans and arrays are TOML's; a table is another."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _toml(_given(value))
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_toml(one)}' for name, one in value.items())} }}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
