"""Looks into a recipe's network and what its compression did to it, and writes explain.json and explain.html.

Every look is a stage that is kept, so a second time does only what changed. All runs in process, in the engine
that serves where it gives inner tensors out, and no server is needed; `workflow.py` measures what is served.
"""

from __future__ import annotations

import datetime
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from temper.builder.build import compress_graph
from temper.builder.built import Built
from temper.builder.compress.variant import ChosenStep
from temper.builder.contract import GRAPH_FILE, LABELS_FILE, TEST_LABELS_FILE
from temper.builder.engines.build import pick_engine
from temper.builder.engines.kind import ENGINES
from temper.builder.engines.latency import timing_engine
from temper.builder.explain.activations import RunsIn, pick_runs_in
from temper.builder.explain.config import ExplainConfig
from temper.builder.names import read_labels
from temper.builder.network.stage import Setting
from temper.builder.store.artifacts import Artifact, Store
from temper.client.stats import compare_paired, proportion
from temper.errors import WorkflowError
from temper.host.machine import commit, machine, versions
from temper.report.explained import (
    FORMAT,
    Attribution,
    AttributionMaps,
    Blame,
    Block,
    CurveOfFeatures,
    Explanation,
    FeatureImportance,
    Interval,
    LayerBlame,
    Mended,
    NetworkView,
    Selection,
    Similarity,
)
from temper.report.measured import Paired, Share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from temper.progress import Display
    from temper.run.recipe import Recipe

PICTURES = "explain"
ORIGINAL, INITIAL = "float32", "before finetuning"
_QUANTIZE = "quantize"
Make = Callable[[Path, Callable[[int, int], None]], Mapping[str, Any]]


def explain_recipe(
    recipe: Recipe,
    built: Sequence[Built],
    *,
    runs: Path,
    display: Display,
    variants: Sequence[str] = (),
    mend: bool = False,
) -> Explanation:
    """Looks into what was built of a recipe; the recipe's `explain` says how, or the defaults do.

    Args:
        recipe: The recipe.
        built: Its variants, from `build_recipe`.
        runs: The run's folder is `runs/<recipe>`; pictures go into `explain` in it.
        display: Where progress is shown.
        variants: Names of those to look at; all when not given.
        mend: Quantises anew with what is suggested, and measures that.

    Raises:
        WorkflowError: There is no such variant, or what was asked for does not exist of it.
        BuilderError: A graph cannot be looked into.
        ClientError: A graph's gradients cannot be followed.
    """
    started = datetime.datetime.now(datetime.UTC), time.monotonic()
    look = _Look(recipe, built, runs / recipe.name, display, _chosen(recipe, built, variants))
    parts = look.config.parts
    blames = tuple(look.blames(mend, named=bool(variants))) if "blame" in parts else ()
    networks = look.networks() if {"representation", "attributions", "features"} & set(parts) else []
    views, similarities = look.represent(networks) if "representation" in parts else ((), ())
    selection = look.selection(networks[0]) if "features" in parts else None
    attributions = tuple(look.attributions(networks)) if "attributions" in parts else ()
    return Explanation(
        format=FORMAT,
        recipe=recipe.name,
        created=started[0].strftime("%Y-%m-%d %H:%M UTC"),
        seconds=round(time.monotonic() - started[1], 1),
        commit=commit(),
        cpu=machine()["cpu"],
        versions=versions(),
        config=asdict(look.config),
        notes=tuple(dict.fromkeys(look.notes)),
        blames=blames,
        networks=views,
        similarities=similarities,
        selection=selection,
        attributions=attributions,
    )


def _chosen(recipe: Recipe, built: Sequence[Built], names: Sequence[str]) -> list[Built]:
    """The variants to look at; an ensemble has no network of its own."""
    known = [one.name for one in recipe.variants if not one.ensemble]
    for name in names:
        if name not in [one.name for one in recipe.variants]:
            raise WorkflowError(f"explain: got variant {name!r}, expected one of {', '.join(known)}")
        if name not in known:
            raise WorkflowError(
                f"explain: variant {name!r} is an ensemble, which has no network of its own; name its members"
            )
    return [one for one in built if one.variant in (names or known)]


class _Network:
    """One network that was run: its graph, what its blocks gave, and its answers."""

    def __init__(self, name: str, kind: str, graph: Artifact, run: Artifact, epoch: int | None = None) -> None:
        self.name, self.kind, self.graph, self.run, self.epoch = name, kind, graph, run, epoch

    @property
    def answers(self) -> NDArray[np.int64]:
        from temper.builder.explain.networks import ANSWERS_FILE

        answers: NDArray[np.int64] = np.load(self.run.path / ANSWERS_FILE)
        return answers


class _Look:
    """One look into a recipe: its stages, and what is said of them."""

    def __init__(
        self, recipe: Recipe, built: Sequence[Built], folder: Path, display: Display, chosen: Sequence[Built]
    ) -> None:
        self.recipe, self.folder, self.display, self.chosen = recipe, folder, display, chosen
        self.config = recipe.explain or ExplainConfig()
        self.built = {one.variant: one for one in built}
        self.store = Store(folder / "stages")
        self.setting = Setting(data=recipe.data, model=recipe.model, train=recipe.train)
        self.engine = pick_engine(recipe.engine).config
        self.notes: list[str] = []
        first = next(one for one in built if one.snapshots)
        assert first.weights is not None, "what has a graph was made from a network"
        self.data, self.weights, self.original = first.data, first.weights, first.snapshots[0].graph
        self.runs_in: RunsIn = pick_runs_in(self.engine, onnx.load(self.original.path / GRAPH_FILE))
        if self.runs_in.note:
            self.notes.append(self.runs_in.note)
        self.images = self._images()
        self.labels: NDArray[np.int64] = np.load(self.images.path / TEST_LABELS_FILE)

    def _stage(
        self,
        name: str,
        label: str,
        config: Mapping[str, Any],
        inputs: Sequence[Artifact],
        make: Make,
        *,
        code: Sequence[str],
        libraries: Sequence[str] = (),
        runs: bool = False,
        note: Callable[[Mapping[str, Any]], str] = lambda info: "",
    ) -> Artifact:
        """Runs a stage; `runs` says that it runs graphs, whose answers depend on where."""
        kind = ENGINES.get(self.engine.kind)
        if runs:
            config = {**config, "runs_in": self.runs_in.title, "engine": self.engine, "on": kind.machine_key()}
            code = (*code, type(kind).__module__)
            libraries = (*libraries, "onnx", "onnxruntime-gpu", *kind.libraries(self.engine))
        with self.display.stage(label) as shown:
            made = self.store.run(
                name, config, inputs, lambda folder: dict(make(folder, shown)), code=code, libraries=libraries
            )
            shown.reused, shown.note = made.reused, note(made.info)
        return made

    def _images(self) -> Artifact:
        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.images import write_images

            return write_images(self.setting.data, self.data.path, folder, progress, **sizes)

        sizes = {name: getattr(self.config, name) for name in ("num_images", "num_train", "seed")}
        return self._stage(
            "explain_images",
            "images to look with",
            sizes,
            [self.data],
            make,
            code=("temper.builder.explain.images",),
            libraries=self.setting.data.libraries,
            note=lambda info: f"{info['num_images']} test, {info['num_train']} training images",
        )

    def _test_images(self) -> NDArray[np.uint8]:
        from temper.builder.contract import TEST_IMAGES_FILE

        images: NDArray[np.uint8] = np.load(self.images.path / TEST_IMAGES_FILE, mmap_mode="r")
        return images

    # Blame.

    def blames(self, mend: bool, *, named: bool) -> Iterator[Blame]:
        """Of every quantised variant; one that was asked for by name and has no counterpart is refused."""
        for one in self.chosen:
            reason = self._why_no_counterpart(one)
            if reason is None:
                yield self._blame(one, mend)
            elif named and self.config.parts == ("blame",):
                raise WorkflowError(f"explain: variant {one.variant!r} {reason}")
            elif one.snapshots[-1].step != ORIGINAL:
                self.notes.append(f"{one.variant}: no layer is blamed: it {reason}")

    def _why_no_counterpart(self, one: Built) -> str | None:
        steps = [snapshot.step for snapshot in one.snapshots]
        if _QUANTIZE not in steps:
            return (
                "is not quantised, so that no float32 graph has its layers one by one; its representation says "
                "what was changed"
            )
        if self._quantize(one).method == "qat":
            return (
                "was trained in int8, so that its weights have no float32 counterpart; its representation says "
                "what was changed"
            )
        return None

    def _variant(self, one: Built) -> Any:
        return next(variant for variant in self.recipe.variants if variant.name == one.variant)

    def _quantize(self, one: Built) -> Any:
        return next(chosen.config for chosen in self._variant(one).compress if chosen.name == _QUANTIZE)

    def _blame(self, one: Built, mend: bool) -> Blame:
        from temper.builder.explain.blame import ANSWERS_FILE

        position = [snapshot.step for snapshot in one.snapshots].index(_QUANTIZE)
        before, after = (one.snapshots[index].graph for index in (position - 1, position))

        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.blame import run_blame

            graphs = (before.path / GRAPH_FILE, after.path / GRAPH_FILE)
            images, seed = self._test_images(), self.config.seed
            return run_blame(*graphs, images, self.labels, self.runs_in, folder, progress, seed=seed)

        found = self._stage(
            "blame",
            f"{one.variant}: which layer is to blame",
            {"seed": self.config.seed},
            [before, after, self.images],
            make,
            code=("temper.builder.explain.blame",),
            runs=True,
            note=_worst,
        )
        with np.load(found.path / ANSWERS_FILE) as answers:
            right = {name: answers[name] == self.labels for name in answers.files}
            agree = {name: answers[name] == answers["float32"] for name in answers.files}
        info, config = found.info, self._quantize(one)
        suggestion = None
        if info["kept"]:
            suggestion = Mended(
                keep_high=tuple(info["kept"]),
                recovered=_interval(info["recovered"]),
                agreement=_share(agree["kept"]),
                accuracy=_share(right["kept"]),
                accuracy_change=_paired(right["quantized"], right["kept"]),
                tried=False,
            )
        mended = self._mended_config(one, info["kept"]) if suggestion else None
        if suggestion and mended and mend:
            suggestion = self._mend(one, before, after, suggestion, mended)
        note = info["note"]
        if position < len(one.snapshots) - 1:
            later = ", ".join(snapshot.step for snapshot in one.snapshots[position + 1 :])
            note = f"{note}; " * bool(note) + f"looked at before {later}"
        return Blame(
            variant=one.variant,
            precision=config.precision,
            runs_in=info["runs_in"],
            in_engine=info["in_engine"],
            note=note,
            num_images=info["num_images"],
            num_activations=info["num_activations"],
            tap_change=info["tap_change"],
            loss=info["loss"],
            agreement=_share(agree["quantized"]),
            accuracy=_share(right["quantized"]),
            accuracy_change=_paired(right["float32"], right["quantized"]),
            layers=tuple(_layer(figures) for figures in info["layers"]),
            suggestion=suggestion,
            suggestion_note=info["kept_note"],
            snippet=_snippet(mended) if mended else "",
        )

    def _mended_config(self, one: Built, kept: Sequence[str]) -> Any:
        """The config of the quantisation with more layers left high, beside those that are already."""
        stage = next(stage for stage in one.stages if stage.name == _QUANTIZE)
        high = [*stage.figures.get("kept_high", ()), *kept]
        return replace(self._quantize(one), keep_high=tuple(dict.fromkeys(high)), max_loss=None)

    def _mend(self, one: Built, before: Artifact, after: Artifact, suggestion: Mended, config: Any) -> Mended:
        """Quantises anew with the suggested layers left high, and measures what that gives on all test images."""
        variant = self._variant(one)
        steps = tuple(
            ChosenStep(**{_QUANTIZE: config}) if chosen.name == _QUANTIZE else chosen
            for chosen in variant.compress
        )
        graph = compress_graph(
            self.recipe.name,
            data=self.recipe.data,
            model=self.recipe.model,
            train=self.recipe.train,
            variant=replace(variant, name=f"{one.variant} mended", compress=steps),
            engine=self.recipe.engine,
            store=self.store,
            progress_factory=self.display.stage,
        )
        timed = timing_engine(self.engine)

        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.mend import measure_mended

            images = np.load(one.test_images, mmap_mode="r")
            paths = [each.path / GRAPH_FILE for each in (before, one.snapshots[-1].graph, graph)]
            return measure_mended(paths, images, self.runs_in, timed, folder, progress)

        found = self._stage(
            "mended",
            f"{one.variant}: mended",
            {"timed": timed},
            [before, one.snapshots[-1].graph, graph, self.data],
            make,
            code=("temper.builder.explain.mend",),
            runs=True,
        )
        answers, labels = np.load(found.path / "answers.npy"), np.load(one.test_labels)
        right = answers == labels
        return Mended(
            keep_high=suggestion.keep_high,
            recovered=_interval(found.info["recovered"]),
            agreement=_share(answers[2] == answers[0]),
            accuracy=_share(right[2]),
            accuracy_change=_paired(right[1], right[2]),
            tried=True,
            latency_ms=found.info["latency_ms"],
            latency_ratio=found.info["latency_ratio"],
            size_bytes=(graph.path / GRAPH_FILE).stat().st_size,
        )

    # Representation.

    def networks(self) -> list[_Network]:
        """Runs the original, then the one before finetuning, the variants, and the snapshots of its training."""
        found = [self._run(ORIGINAL, "original", self.original)]
        wanted = self.config.parts
        if "representation" in wanted and self.recipe.train.epochs + self.recipe.train.head_epochs > 0:
            found.append(self._run(INITIAL, "initial", self._export(None)))
        if {"representation", "attributions"} & set(wanted):
            for one in self.chosen:
                if one.snapshots[-1].graph.digest != self.original.digest:
                    found.append(self._run(one.variant, "variant", one.snapshots[-1].graph))
        if "representation" in wanted:
            for epoch in self.weights.info.get("snapshots", ()):
                found.append(self._run(f"epoch {epoch}", "snapshot", self._export(epoch), epoch))
        return found

    def _export(self, epoch: int | None) -> Artifact:
        """The graph before finetuning, or after some of its epochs."""

        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.network.export import export_onnx
            from temper.builder.network.stage import initial_network, labels_of, open_snapshot

            if epoch is None:
                network = initial_network(self.setting, len(labels_of(self.data)))
            else:
                network = open_snapshot(self.setting, self.data, self.weights, epoch)
            mean, std = self.setting.model.mean, self.setting.model.std
            size = self.setting.data.image_size
            export_onnx(network, folder / GRAPH_FILE, image_size=size, mean=mean, std=std)
            return {}

        return self._stage(
            "snapshot",
            f"{INITIAL if epoch is None else f'epoch {epoch}'}: export to ONNX",
            {"epoch": epoch, "model": self.setting.model, "seed": self.setting.train.seed},
            [self.data, self.weights],
            make,
            code=("temper.builder.network.stage", "temper.builder.network.export"),
            libraries=("torch", "torchvision", "onnx"),
        )

    def _run(self, name: str, kind: str, graph: Artifact, epoch: int | None = None) -> _Network:
        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.networks import run_network

            return run_network(graph.path / GRAPH_FILE, self.images.path, self.runs_in, folder, progress)

        run = self._stage(
            "features",
            f"{name}: what its blocks give",
            {},
            [graph, self.images],
            make,
            code=("temper.builder.explain.networks",),
            runs=True,
        )
        return _Network(name, kind, graph, run, epoch)

    def represent(self, networks: Sequence[_Network]) -> tuple[tuple[NetworkView, ...], tuple[Similarity, ...]]:
        """Describes every network block by block, and compares each with the original."""
        views = tuple(self._describe(network) for network in networks)
        # Rows are the original's, but for what came before it.
        pairs = [
            (network, networks[0]) if network.kind in ("initial", "snapshot") else (networks[0], network)
            for network in networks
        ]
        return views, tuple(self._compare(*pair) for pair in pairs)

    def _describe(self, network: _Network) -> NetworkView:
        from temper.builder.explain.networks import CORRECT_FILE

        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.networks import describe_blocks

            return describe_blocks(network.run.path, self.images.path, folder, progress, seed=self.config.seed)

        found = self._stage(
            "blocks",
            f"{network.name}: what its blocks know",
            {"seed": self.config.seed},
            [network.run, self.images],
            make,
            code=("temper.builder.explain.networks",),
            libraries=("torch", "scikit-learn"),
        )
        if found.info["not_converged"]:
            blocks = ", ".join(found.info["not_converged"])
            self.notes.append(f"{network.name}: the probes of {blocks} ran out of steps: they may know more")
        with np.load(found.path / CORRECT_FILE) as correct:
            probes = {name: _share(correct[name]) for name in correct.files}
        blocks = tuple(
            Block(
                name=name,
                num_features=figures["num_features"],
                num_dead=figures["num_dead"],
                probe=probes.get(name),
                effective_rank=Interval.of(figures["effective_rank"]),
                rank_limited=figures["rank_limited"],
            )
            for name, figures in found.info["blocks"].items()
        )
        return NetworkView(
            name=network.name,
            kind=network.kind,  # type: ignore[arg-type]  # one of the four
            epoch=network.epoch,
            runs_in=network.run.info["runs_in"],
            accuracy=_share(network.answers == self.labels),
            blocks=blocks,
        )

    def _compare(self, first: _Network, second: _Network) -> Similarity:
        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.networks import compare_networks

            return compare_networks(first.run.path, second.run.path, progress, seed=self.config.seed)

        found = self._stage(
            "similarity",
            f"{first.name} and {second.name}: how alike",
            {"seed": self.config.seed},
            [first.run, second.run],
            make,
            code=("temper.builder.explain.networks",),
        ).info
        return Similarity(
            first=first.name,
            second=second.name,
            rows=tuple(found["rows"]),
            columns=tuple(found["columns"]),
            num_images=found["num_images"],
            values=tuple(
                tuple(None if cell is None else _interval(cell) for cell in row) for row in found["values"]
            ),
        )

    # The last features.

    def selection(self, original: _Network) -> Selection:
        """Which features of the original its head needs."""

        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.builder.explain.selection import run_selection

            network = (self.setting, self.data, self.weights)
            return run_selection(
                *network, original.run.path, self.images.path, folder, progress, seed=self.config.seed
            )

        found = self._stage(
            "selection",
            "which features matter",
            {"seed": self.config.seed},
            [self.data, self.weights, original.run, self.images],
            make,
            code=("temper.builder.explain.selection",),
            libraries=("torch", "scikit-learn"),
        )
        curves = []
        with np.load(found.path / "correct.npz") as correct:
            for figures in found.info["curves"]:
                right = correct[figures["method"]]
                curves.append(
                    CurveOfFeatures(
                        method=figures["method"],
                        num_features=tuple(figures["num_features"]),
                        accuracy=tuple(_share(row) for row in right),
                        change=tuple(_paired(right[-1], row) for row in right),
                        stability=_interval(figures["stability"]) if figures["stability"] else None,
                    )
                )
        return Selection(
            num_train=found.info["num_train"],
            num_images=len(self.labels),
            importance=tuple(
                FeatureImportance(method=method, values=tuple(values))
                for method, values in found.info["importance"].items()
            ),
            curves=tuple(curves),
            note=found.info["note"],
        )

    # Attributions.

    def attributions(self, networks: Sequence[_Network]) -> Iterator[Attribution]:
        """Where each variant and what it is compared with look, in images that they answer differently."""
        run = {network.name: network for network in networks if network.kind in ("original", "variant")}
        for one in self.chosen:
            other = self._variant(one).against or self.recipe.variants[0].name
            second = run.get(one.variant)
            # What was not compressed is the original, whatever its name.
            first = run.get(other) or (run[ORIGINAL] if self._is_original(other) else None)
            if second is not None and first is not None and first is not second:
                yield from self._attribute((other, first), (one.variant, second))

    def _is_original(self, name: str) -> bool:
        built = self.built[name]
        return bool(built.snapshots) and built.snapshots[-1].graph.digest == self.original.digest

    def _attribute(self, *pair: tuple[str, _Network]) -> Iterator[Attribution]:
        def make(folder: Path, progress: Callable[[int, int], None]) -> Mapping[str, Any]:
            from temper.run.attribution import write_attributions

            networks = [(name, each.graph.path / GRAPH_FILE, each.answers) for name, each in pair]
            names, images = read_labels(self.data.path / LABELS_FILE), self._test_images()
            found, notes = write_attributions(
                folder, images, self.labels, names, networks, num_images=self.config.num_attributions
            )
            return {"attributions": [asdict(one) for one in found], "notes": list(notes)}

        names = [name for name, _ in pair]
        found = self._stage(
            "attributions",
            f"{names[1]}: where it and {names[0]} look",
            {"names": names, "num_images": self.config.num_attributions},
            [*(each for _, network in pair for each in (network.graph, network.run)), self.images, self.data],
            make,
            code=("temper.run.attribution",),
            libraries=("torch", "captum", "onnx"),
        )
        self.notes += found.info["notes"]
        place = f"{PICTURES}/{names[1]}"
        if found.info["attributions"]:
            shutil.copytree(found.path, self.folder / place, dirs_exist_ok=True)
        for each in found.info["attributions"]:
            yield _attribution(json.loads(json.dumps(each)), place)


def _worst(info: Mapping[str, Any]) -> str:
    """The layer that explains most, in a word."""
    tried = [layer for layer in info["layers"] if layer["share"] is not None]
    worst = max(tried, key=lambda layer: layer["share"][0])
    return f"{worst['name'].removeprefix('/model/')} explains {100 * worst['share'][0]:.0f} % of the loss"


def _layer(figures: Mapping[str, Any]) -> LayerBlame:
    share = None if figures["share"] is None else _interval(figures["share"])
    return LayerBlame.of(figures, share=share, findings=tuple(figures["findings"]))


def _snippet(config: Any) -> str:
    """A quantisation as a step of a recipe: what differs from the defaults."""
    defaults = type(config)()
    given = {
        name: value
        for name, value in asdict(config).items()
        if name in ("precision", "method") or value != getattr(defaults, name)
    }
    # JSON's strings, numbers, booleans and arrays of them are TOML's.
    keys = ", ".join(f"{name} = {json.dumps(value)}" for name, value in given.items() if value is not None)
    return f"{{ {_QUANTIZE} = {{ {keys} }} }}"


def _attribution(found: Mapping[str, Any], place: str) -> Attribution:
    """An entry whose files are named from the run's folder."""
    maps = tuple(
        AttributionMaps.of(
            each, **{name: f"{place}/{each[name]}" for name in ("integrated_gradients", "grad_cam")}
        )
        for each in found["maps"]
    )
    return Attribution.of(found, image=f"{place}/{found['image']}", maps=maps)


def _interval(found: Sequence[float]) -> Interval:
    value, low, high = found
    return Interval(value=value, low=low, high=high)


def _share(hits: NDArray[np.bool_]) -> Share:
    return Share.of(proportion(hits))


def _paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    return Paired.of(compare_paired(first, second).to_json())
