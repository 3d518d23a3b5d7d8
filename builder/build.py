"""Joins the stages: data -> weights -> graph -> compress -> engine -> published model, each kept in the store.

data ──┬─────────────┬───────────────┬─ test and calibration images
       └─> weights ──┴─> network steps ──> graph ──> graph steps ──> engine ──> model repository
           finetune      prune, distil, …  export    quantize, cast, …

Which steps there are, `compress/step.py` knows; nothing here does. A variant without compression goes from the
weights straight to the graph. What two variants have in common is made once.

Over 500 lines, as one class holds what the stages share; half of them say what each stage's key is made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from temper.builder.built import Built, Snapshot, StageReport
from temper.builder.compress.step import REGISTRY, Step
from temper.builder.compress.variant import VariantConfig
from temper.builder.contract import GRAPH_FILE, LABELS_FILE, REFERENCE_FILE, TEST_IMAGES_FILE
from temper.builder.names import read_labels
from temper.builder.network.stage import Setting
from temper.builder.publish.card import Card, CardRecipe, CardStage
from temper.builder.publish.serving import ServingConfig
from temper.builder.store.artifacts import Artifact, Store
from temper.builder.store.code import library_versions
from temper.builder.store.files import sha256_file

if TYPE_CHECKING:
    from temper.builder.data.config import DataConfig
    from temper.builder.engines.build import PickedEngine
    from temper.builder.engines.kind import EngineConfig, EngineKind
    from temper.builder.engines.latency import CompareLatency
    from temper.builder.network.resnet import ModelConfig
    from temper.builder.network.train import TrainConfig
    from temper.builder.publish.entry import Published
    from temper.builder.publish.triton_config import TritonConfig


class StageView(Protocol):
    """What is shown of one stage: called with (done, total) while it goes on."""

    reused: bool
    """Set when nothing had to run."""
    note: str
    """Set to the figure that matters."""

    def __call__(self, done: int, total: int) -> None:
        """Takes the progress."""


ProgressFactory = Callable[[str], AbstractContextManager[StageView]]


def build_variants(
    recipe_name: str,
    *,
    data: DataConfig,
    model: ModelConfig,
    train: TrainConfig,
    variants: Sequence[VariantConfig],
    engine: EngineConfig,
    store: Store,
    repository: Path,
    progress_factory: ProgressFactory,
    serving: ServingConfig | None = None,
    check_data: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[Built]:
    """Builds and publishes every variant of a recipe; what has not changed is reused.

    Args:
        recipe_name: Names the models: `<recipe>_<variant>`.
        data: The images.
        model: The architecture and its weights.
        train: How they are finetuned; no epochs takes them as they are.
        variants: What to build.
        engine: What runs them.
        store: Keeps the stages' results.
        repository: The model repository.
        progress_factory: Shows one stage: a context manager for its label.
        serving: How they are served; the defaults when not given.
        check_data: Given the figures of the data, it may refuse them, before the minutes that come next.

    Returns:
        One entry per variant, in order.

    Raises:
        BuilderError: Any of the stages failed; the message is one line.
        Exception: What `check_data` raises.
    """
    shared = (store, progress_factory, repository, serving, check_data)
    return _Build(recipe_name, data, model, train, engine, *shared).run(variants)


def compress_graph(
    recipe_name: str,
    *,
    data: DataConfig,
    model: ModelConfig,
    train: TrainConfig,
    variant: VariantConfig,
    engine: EngineConfig,
    store: Store,
    progress_factory: ProgressFactory,
) -> Artifact:
    """Makes the graph that a variant's engine would be built from, and no engine, in the stages of a build.

    Args:
        recipe_name: As in `build_variants`, like all the others.
        data: The images.
        model: The architecture and its weights.
        train: How they are finetuned.
        variant: What to make.
        engine: What would run it.
        store: Keeps the stages' results.
        progress_factory: Shows one stage.

    Returns:
        What holds model.onnx.

    Raises:
        BuilderError: Any of the stages failed; the message is one line.
    """
    return _Build(recipe_name, data, model, train, engine, store, progress_factory).compress(variant)


@dataclass(frozen=True)
class _Done:
    artifact: Artifact
    report: StageReport
    libraries: Sequence[str]
    """Whose versions decided it."""


@dataclass
class _Underway:
    """A variant on its way: what is done, and the latest network and graph."""

    variant: VariantConfig
    engine: PickedEngine
    data: Artifact
    original: Artifact
    done: list[_Done]
    network: Artifact
    exported: Artifact
    graph: Artifact
    snapshots: list[Snapshot]

    @property
    def weight_bits(self) -> int | None:
        """Bits that its int8 weights use, 7 or 8; None when it is not int8."""
        found = (one.report.figures.get("weight_bits") for one in self.done)
        return next((bits for bits in found if bits is not None), None)

    def add_graph(self, step: str, graph: Artifact) -> None:
        """Takes the graph that a step left."""
        self.graph = graph
        sizes = {name: self.exported.info[name] for name in ("flops", "num_parameters")}
        self.snapshots.append(Snapshot(step=step, graph=graph, **sizes))


class _Build:
    """One call of `build_variants`: the configs that its stages share. Without a repository it cannot publish."""

    def __init__(
        self,
        recipe_name: str,
        data: DataConfig,
        model: ModelConfig,
        train: TrainConfig,
        engine: EngineConfig,
        store: Store,
        progress_factory: ProgressFactory,
        repository: Path | None = None,
        serving: ServingConfig | None = None,
        check_data: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.recipe_name = recipe_name
        self.data = data
        self.model = model
        self.train = train
        self.engine = engine
        self.store = store
        self.repository = repository
        self.progress_factory = progress_factory
        self.serving = serving or ServingConfig()
        self.check_data = check_data
        self.members: set[str] = set()

    def run(self, variants: Sequence[VariantConfig]) -> list[Built]:
        from temper.builder.engines.build import pick_engine
        from temper.builder.publish.triton_config import check_serving

        engine = pick_engine(self.engine)
        check_serving(self.serving, engine.kind.backend(engine.config, None))
        self.members = {name for variant in variants for name in variant.ensemble}
        shared = self._make_shared(variants)
        built: dict[str, Built] = {}
        for variant in variants:
            if variant.ensemble:
                members = [built[name] for name in variant.ensemble]
                built[variant.name] = self._publish_ensemble(variant, members)
            else:
                built[variant.name] = self._build_variant(variant, engine, shared)
        return list(built.values())

    def compress(self, variant: VariantConfig) -> Artifact:
        from temper.builder.engines.build import pick_engine

        return self._compress(variant, pick_engine(self.engine), self._make_shared([variant])).graph

    def _make_shared(self, variants: Sequence[VariantConfig]) -> tuple[_Done, _Done, _Done]:
        """What all variants begin with: the images, the finetuned network and its graph."""
        self._check_weights(variants)  # before the minutes that the images may take
        data = self._prepare_data()
        if self.check_data is not None:
            self.check_data(data.report.figures)
        weights = self._make_weights(data.artifact)
        return data, weights, self._export(data.artifact, weights.artifact, "export to ONNX")

    def _check_weights(self, variants: Sequence[VariantConfig]) -> None:
        if self.model.graph is not None:
            from temper.builder.network.stage_import import check_graph

            quantizes = any(variant.precision in ("int8", "fp8") for variant in variants)
            check_graph(self._setting(), quantizes=quantizes)
        elif self.model.checkpoint is not None:
            from temper.builder.network.weights import check_weights_file

            check_weights_file(self.model.checkpoint)

    def _stage(
        self,
        name: str,
        label: str,
        config: object,
        inputs: Sequence[Artifact],
        make: Callable[[Path, StageView], Mapping[str, Any]],
        note: Callable[[dict[str, Any]], str],
        *,
        code: Sequence[str],
        libraries: Sequence[str],
    ) -> _Done:
        def run(folder: Path) -> dict[str, Any]:
            return dict(make(folder, view))

        with self.progress_factory(label) as view:
            artifact = self.store.run(name, config, inputs, run, code=code, libraries=libraries)
            view.reused = artifact.reused
            view.note = note(artifact.info)
        return _Done(artifact, StageReport(name, artifact.info, artifact.reused), libraries)

    def _setting(self) -> Setting:
        return Setting(data=self.data, model=self.model, train=self.train)

    def _prepare_data(self) -> _Done:
        from temper.builder.data.prepare import describe_data, fingerprint_data, prepare_data

        return self._stage(
            "data",
            "data",
            {"data": self.data, "content": fingerprint_data(self.data)},
            [],
            lambda folder, view: prepare_data(self.data, folder, view),
            describe_data,
            code=("temper.builder.data.prepare",),
            libraries=self.data.libraries,
        )

    def _make_weights(self, data: Artifact) -> _Done:
        from temper.builder.network.adversarial import describe_training
        from temper.builder.network.weights import sha256_checkpoint

        if self.model.graph is not None:
            return self._import_graph(self.model.graph, data)
        checkpoint = self.model.checkpoint
        content = sha256_checkpoint(checkpoint) if checkpoint is not None else None

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.network.stage_weights import make_weights

            return make_weights(self._setting(), data, folder, view)

        return self._stage(
            "weights",
            "finetune" if self.train.epochs + self.train.head_epochs > 0 else "weights",
            {"model": self.model, "content": content, "train": self.train},
            [data],
            make,
            describe_training,
            code=("temper.builder.network.stage_weights",),
            libraries=("torch", "torchvision"),
        )

    def _import_graph(self, path: Path, data: Artifact) -> _Done:
        from temper.builder.network.adversarial import describe_training
        from temper.builder.network.onnx_read import fingerprint_onnx
        from temper.builder.network.stage_import import pixels_of

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.compress.saturation import weight_bits
            from temper.builder.network.stage_import import import_weights

            info = import_weights(self._setting(), data, folder, view)
            bits = weight_bits(folder / GRAPH_FILE)  # of a file that was quantised elsewhere
            return info if bits is None else {**info, "weight_bits": bits}

        return self._stage(
            "weights",
            "import",
            {"model": self.model, "content": fingerprint_onnx(path), "pixels": pixels_of(self._setting())},
            [data],
            make,
            lambda info: f"{info['imported']}; {describe_training(info)}",
            code=("temper.builder.network.stage_import", "temper.builder.compress.saturation"),
            libraries=("onnx", "onnxruntime-gpu", "onnxslim"),
        )

    def _export(self, data: Artifact, weights: Artifact, label: str) -> _Done:
        is_imported = self.model.graph is not None
        origin = "its own file" if is_imported else "PyTorch"

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            if is_imported:
                from temper.builder.network.stage_import import export_imported

                return export_imported(weights, folder)
            from temper.builder.network.stage_export import export_graph

            return export_graph(self._setting(), data, weights, folder)

        return self._stage(
            "export",
            "graph" if is_imported else label,
            {"normalization": self.data.normalization},
            [data, weights],
            make,
            lambda info: f"{info['flops'] / 1e9:.2f} GFLOPs, within {info['max_abs_diff']:.1g} of {origin}",
            code=(f"temper.builder.network.{'stage_import' if is_imported else 'stage_export'}",),
            libraries=("torch", "torchvision", "onnx", "onnxruntime-gpu"),
        )

    def _build_variant(
        self, variant: VariantConfig, engine: PickedEngine, shared: tuple[_Done, _Done, _Done]
    ) -> Built:
        way = self._compress(variant, engine, shared)
        way.done.append(self._build_engine(way))
        return self._publish(way)

    def _compress(
        self, variant: VariantConfig, engine: PickedEngine, shared: tuple[_Done, _Done, _Done]
    ) -> _Underway:
        data, weights, graph = (each.artifact for each in shared)
        way = _Underway(
            variant, engine, data, weights, list(shared), weights, exported=graph, graph=graph, snapshots=[]
        )
        way.add_graph("float32", graph)
        for step, config in _planned(variant, engine.kind):
            self._run_step(way, step, config)
        return way

    def _run_step(self, way: _Underway, step: Step[Any], config: Any) -> None:
        data, original, network, graph = way.data, way.original, way.network, way.graph
        config = step.settle(config, way.engine.kind)
        needs, on_network = step.needs(config), step.works_on == "network"
        trains = on_network or "training" in needs
        engine = {"engine": way.engine.config, "on": way.engine.kind.machine_key()} if "engine" in needs else None
        # A search by latency finds another network in another engine.
        timing = () if engine is None else ("temper.builder.engines.latency", type(way.engine.kind).__module__)

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.compress import stage

            setting = self._setting()
            if on_network:
                timed = None if engine is None else self._compare_latency(way.engine.config)
                return stage.run_network_step(step, config, setting, data, original, network, folder, view, timed)
            return stage.run_graph_step(step, config, setting, data, original, network, graph, folder, view)

        label = f"{way.variant.name}: {step.label(config)}"
        inputs = [data, *([original, network] if trains else []), *([] if on_network else [graph])]
        done = self._stage(
            step.name,
            label,
            config if engine is None else {"step": config, **engine},
            inputs,
            make,
            step.note,
            code=("temper.builder.compress.stage", type(step).__module__, *step.code, *timing),
            libraries=(*step.libraries(config), *(way.engine.kind.libraries(way.engine.config) if timing else ())),
        )
        way.done.append(done)
        left = done.artifact
        if on_network:
            exported = self._export(data, left, f"{label}, exported")
            way.done.append(exported)
            way.network, way.exported, left = left, exported.artifact, exported.artifact
        way.add_graph(step.name, left)

    def _compare_latency(self, engine: EngineConfig) -> CompareLatency:
        from temper.builder.engines.latency import compare_in_engine

        size, (mean, std) = self.data.image_size, self.data.normalization
        return compare_in_engine(engine, image_size=size, mean=mean, std=std)

    def _build_engine(self, way: _Underway) -> _Done:
        variant, engine, data = way.variant, way.engine, way.data
        graph, exported, network = way.graph, way.exported, way.network
        # The other road starts from PyTorch, which post-training quantisation leaves for the graph.
        from_torch = engine.kind.wants_module(engine.config) and variant.precision not in ("int8", "fp8")
        from_torch = from_torch and self.model.graph is None
        limits = {"min_agreement": variant.min_agreement, "max_logit_diff": variant.max_logit_diff}

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.engines.build import AgreementLimits, build_engine
            from temper.builder.network.stage import NUM_VERIFY, images_of, served_module

            path = graph.path / GRAPH_FILE
            promised = [chosen.step.verify(path) for chosen in variant.compress]
            info = build_engine(
                path,
                folder,
                engine.config,
                images_of(data, TEST_IMAGES_FILE)[:NUM_VERIFY],
                reference=images_of(exported, REFERENCE_FILE),
                limits=AgreementLimits(**limits),
                precision=variant.precision,
                sparse_weights=variant.is_sparse,
                timing_cache=self.store.root / "timing.cache",
                module=served_module(self._setting(), data, network) if from_torch else None,
            )
            return {name: value for figures in (info, *promised) for name, value in figures.items()}

        return self._stage(
            "engine",
            f"{variant.name}: {engine.kind.name} engine",
            {
                "engine": engine.config.build_key(),
                "on": engine.kind.machine_key(),
                "sparse": variant.is_sparse,
                **limits,
            },
            [data, network, exported, graph],
            make,
            lambda info: f"{info['size_bytes'] / 1e6:.1f} MB",
            code=(
                "temper.builder.engines.build",
                type(engine.kind).__module__,
                *(["temper.builder.network.stage"] if from_torch else []),
            ),
            libraries=engine.kind.libraries(engine.config),
        )

    def _publish(self, way: _Underway) -> Built:
        from temper.builder.publish.entry import publish
        from temper.builder.publish.triton_config import TritonConfig

        kind, config = way.engine.kind, way.engine.config
        data, engine = way.data, way.done[-1].artifact
        labels = read_labels(data.path / LABELS_FILE)
        binding = kind.binding(config, engine.info)
        assert self.repository is not None, "given to whoever runs"
        triton = TritonConfig(
            name=f"{self.recipe_name}_{way.variant.name}",
            image_size=self.data.image_size,
            preprocessing=self.data.preprocessing,
            num_classes=len(labels),
            max_batch=config.max_batch,
            backend=kind.backend(config, way.weight_bits),
            parameters={"max_batch": str(config.max_batch)},
            num_instances=config.num_instances,
            serving=self.serving,
            in_ensemble=way.variant.name in self.members or self.serving.jpeg,
        )
        with self.progress_factory(f"{way.variant.name}: publish") as view:
            gone = self._retract_jpeg(triton.name)
            published = publish(
                self.repository,
                triton,
                engine_file=engine.path / engine.info["file"],
                labels=labels,
                card=self._card(way).to_json(),
                binding=binding and replace(binding, graph_sha256=sha256_file(way.graph.path / GRAPH_FILE)),
            )
            jpeg, taking = self._publish_jpeg(triton, labels, way.variant, way.data)
            view.reused = published.reused
            view.note = published.note + gone + taking
        return Built(
            variant=way.variant.name,
            model=published.model,
            version=published.version,
            engine=kind.name,
            engine_reason=way.engine.why,
            size_bytes=engine.info["size_bytes"],
            path=published.path,
            reused=published.reused,
            served=published.served,
            data=data,
            digest=engine.digest,
            stages=[each.report for each in way.done],
            snapshots=way.snapshots,
            weight_bits=way.weight_bits,
            jpeg=jpeg,
            weights=way.original,
        )

    def _publish_ensemble(self, variant: VariantConfig, members: list[Built]) -> Built:
        from temper.builder.publish.defence import describe_defences, render_defences
        from temper.builder.publish.ensemble import publish_ensemble
        from temper.builder.publish.triton_config import EnsembleBackend, TritonConfig

        first, names = members[0], ", ".join(variant.ensemble)
        labels = read_labels(first.data.path / LABELS_FILE)
        digests = {one.model: one.digest for one in members}
        card = Card(
            recipe=CardRecipe(name=self.recipe_name, variant=variant.to_json(), engine=asdict(self.engine)),
            data_digest=first.data.digest,
            member_digests=digests,
        )
        triton = TritonConfig(
            name=f"{self.recipe_name}_{variant.name}",
            image_size=self.data.image_size,
            preprocessing=self.data.preprocessing,
            num_classes=len(labels),
            max_batch=self.engine.max_batch,
            backend=EnsembleBackend(members=tuple(one.model for one in members), defend=variant.defend),
            serving=self.serving,
        )
        assert self.repository is not None, "given to whoever runs"
        with self.progress_factory(f"{variant.name}: publish") as view:
            gone = self._retract_jpeg(triton.name)
            published = publish_ensemble(self.repository, triton, labels=labels, card=card.to_json())
            jpeg, taking = self._publish_jpeg(triton, labels, variant, first.data)
            view.reused = published.reused
            view.note = published.note + gone + taking
        return Built(
            variant=variant.name,
            model=published.model,
            version=published.version,
            engine=first.engine,
            engine_reason=(f"the mean of the logits of {names}" if len(members) > 1 else names)
            + (f", behind {describe_defences(variant.defend)}" if variant.defend else ""),
            size_bytes=sum(one.size_bytes for one in members),
            path=published.path,
            reused=published.reused,
            served=published.served,
            data=first.data,
            digest=hashlib.sha256(
                (json.dumps(digests, sort_keys=True) + render_defences(variant.defend)).encode()
            ).hexdigest(),
            weight_bits=max((one.weight_bits for one in members if one.weight_bits is not None), default=None),
            jpeg=jpeg,
        )

    def _retract_jpeg(self, model: str) -> str:
        """Removes what took image files for a model, where the recipe wants none any more, and says so.

        Before the model is published: its queue is bounded by number then, which a step of an ensemble may not be.
        """
        from temper.builder.publish.ensemble import retract_jpeg

        assert self.repository is not None, "given to whoever runs"
        gone = [] if self.serving.jpeg else retract_jpeg(self.repository, model)
        return "".join(f"; {name} removed" for name in gone)

    def _publish_jpeg(
        self, triton: TritonConfig, labels: Sequence[str], variant: VariantConfig, data: Artifact
    ) -> tuple[Published | None, str]:
        """Publishes what takes image files for a variant, where the recipe wants it, and says so."""
        from temper.builder.publish.ensemble import NotYetError, publish_jpeg

        if not self.serving.jpeg:
            return None, ""
        recipe = CardRecipe(
            name=self.recipe_name,
            data=asdict(self.data),
            variant=variant.to_json(),
            engine=asdict(self.engine),
        )
        card = Card(recipe=recipe, data_digest=data.digest)
        assert self.repository is not None, "given to whoever runs"
        try:
            published = publish_jpeg(self.repository, triton, labels=labels, card=card.to_json())
        except NotYetError as error:
            return None, f"; {error}"
        return published, f"; {published.note} takes image files"

    def _card(self, way: _Underway) -> Card:
        unused = ("arch",) if self.model.graph is not None else ()
        # The measurements' keys hold its digest, so that an engine by another version is measured again.
        versions = library_versions(["temper", *(name for each in way.done for name in each.libraries)])
        return Card(
            recipe=CardRecipe(
                name=self.recipe_name,
                data=asdict(self.data),
                model={name: value for name, value in asdict(self.model).items() if name not in unused},
                train=asdict(self.train),
                variant=way.variant.to_json(),
                engine=asdict(self.engine),
            ),
            data_digest=way.data.digest,
            engine=way.engine.kind.name,
            versions={name: version for name, version in versions.items() if version is not None},
            stages=tuple(
                CardStage(name=each.report.name, digest=each.artifact.digest, figures=each.report.figures)
                for each in way.done
            ),
        )


def _planned(variant: VariantConfig, engine: EngineKind[Any]) -> list[tuple[Step[Any], Any]]:
    """Returns the variant's steps, and a cast where the engine would run in float32 what is not quantised."""
    steps = [(chosen.step, chosen.config) for chosen in variant.compress]
    if engine.wants_half_precision and steps and steps[-1][0].leaves_float(steps[-1][1]):
        cast = REGISTRY.get("cast")
        steps.append((cast, cast.config(precision="fp16")))
    return steps
