"""Joins the stages: data -> weights -> graph -> compress -> engine -> published model, each kept in the store.

data ──┬─────────────┬───────────────┬─ test and calibration images
       └─> weights ──┴─> network steps ──> graph ──> graph steps ──> engine ──> model repository
           finetune      prune, low_rank,  export    quantize, cast
                         sparsify, distil

A variant without compression goes from the weights straight to the graph. What two variants have in common is made
once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from temper.builder.built import Built, Snapshot, StageReport
from temper.builder.compress.variant import GRAPH_STEPS, CompressStage, VariantConfig
from temper.builder.contract import GRAPH_FILE, LABELS_FILE
from temper.builder.engines.config import EngineConfig, EngineKind
from temper.builder.names import read_labels
from temper.builder.publish.card import Card, CardRecipe, CardStage
from temper.builder.publish.serving import ServingConfig
from temper.builder.store.artifacts import Artifact, Store
from temper.builder.store.files import sha256_file

if TYPE_CHECKING:
    from temper.builder.compress.cast import CastConfig
    from temper.builder.compress.quantize import QuantizeConfig
    from temper.builder.data.config import DataConfig
    from temper.builder.network.resnet import ModelConfig
    from temper.builder.network.train import TrainConfig
    from temper.builder.stages import Setting

_PACKAGES = (
    "temper",
    "torch",
    "torchvision",
    "nvidia-modelopt",
    "onnx",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-rtx",
    "tensorrt",
    "torch-tensorrt",
)


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

    Returns:
        One entry per variant, in order.

    Raises:
        BuilderError: Any of the stages failed; the message is one line.
    """
    shared = (store, repository, progress_factory, serving or ServingConfig())
    return _Build(recipe_name, data, model, train, engine, *shared).run(variants)


@dataclass(frozen=True)
class _Done:
    artifact: Artifact
    report: StageReport


@dataclass
class _Chain:
    """A variant on its way: what is done, and the latest network and graph."""

    variant: VariantConfig
    kind: EngineKind
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
        quantized = next((one for one in self.done if one.report.name == "quantize"), None)
        return quantized.report.figures["weight_bits"] if quantized is not None else None

    def add_graph(self, step: str, graph: Artifact) -> None:
        """Takes the graph that a step left."""
        self.graph = graph
        sizes = {name: self.exported.info[name] for name in ("flops", "num_parameters")}
        self.snapshots.append(Snapshot(step=step, graph=graph, **sizes))


class _Build:
    """One call of `build_variants`: the configs that its stages share."""

    def __init__(
        self,
        recipe_name: str,
        data: DataConfig,
        model: ModelConfig,
        train: TrainConfig,
        engine: EngineConfig,
        store: Store,
        repository: Path,
        progress_factory: ProgressFactory,
        serving: ServingConfig,
    ) -> None:
        self.recipe_name = recipe_name
        self.data = data
        self.model = model
        self.train = train
        self.engine = engine
        self.store = store
        self.repository = repository
        self.progress_factory = progress_factory
        self.serving = serving
        self.members: set[str] = set()

    def run(self, variants: Sequence[VariantConfig]) -> list[Built]:
        from temper.builder.engines.build import pick_engine
        from temper.builder.network.weights import check_weights_file

        kind, why = pick_engine(self.engine)
        if self.model.checkpoint is not None:  # before the minutes that the images may take
            check_weights_file(self.model.checkpoint)
        self.members = {name for variant in variants for name in variant.ensemble}
        data = self._prepare_data()
        weights = self._make_weights(data.artifact)
        graph = self._export(data.artifact, weights.artifact, "export to ONNX")
        built: dict[str, Built] = {}
        for variant in variants:
            if variant.ensemble:
                members = [built[name] for name in variant.ensemble]
                built[variant.name] = self._publish_ensemble(variant, members)
            else:
                built[variant.name] = self._build_variant(variant, kind, why, (data, weights, graph))
        return list(built.values())

    def _stage(
        self,
        name: str,
        label: str,
        config: object,
        inputs: Sequence[Artifact],
        make: Callable[[Path, StageView], Mapping[str, Any]],
        note: Callable[[dict[str, Any]], str],
    ) -> _Done:
        with self.progress_factory(label) as view:
            artifact = self.store.run(name, config, inputs, lambda folder: dict(make(folder, view)))
            view.reused = artifact.reused
            view.note = note(artifact.info)
        return _Done(artifact, StageReport(name, artifact.info, artifact.reused))

    def _setting(self) -> Setting:
        # builder.stages brings torch along: seconds that a run which reuses everything should not cost.
        from temper.builder.stages import Setting

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
        )

    def _make_weights(self, data: Artifact) -> _Done:
        checkpoint = self.model.checkpoint
        content = sha256_file(checkpoint) if checkpoint is not None else None

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.stages import make_weights

            return make_weights(self._setting(), data, folder, view)

        return self._stage(
            "weights",
            "finetune" if self.train.epochs + self.train.head_epochs > 0 else "weights",
            {"model": self.model, "content": content, "train": self.train},
            [data],
            make,
            lambda info: f"{100 * info['accuracy']:.2f} % of {info['num_images']} test images",
        )

    def _export(self, data: Artifact, weights: Artifact, label: str) -> _Done:
        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.stages import export_graph

            return export_graph(self._setting(), data, weights, folder)

        return self._stage(
            "export",
            label,
            {"mean": self.model.mean, "std": self.model.std},
            [data, weights],
            make,
            lambda info: f"{info['flops'] / 1e9:.2f} GFLOPs, within {info['max_abs_diff']:.1g} of PyTorch",
        )

    def _build_variant(
        self, variant: VariantConfig, kind: EngineKind, why: str, shared: tuple[_Done, _Done, _Done]
    ) -> Built:
        data, weights, graph = (each.artifact for each in shared)
        chain = _Chain(
            variant, kind, data, weights, list(shared), weights, exported=graph, graph=graph, snapshots=[]
        )
        chain.add_graph("float32", graph)
        for step in _planned(variant, kind):
            if step.name in GRAPH_STEPS:
                self._change_graph(chain, step)
            else:
                self._change_network(chain, step)
        chain.done.append(self._build_engine(chain))
        return self._publish(chain, why)

    def _change_network(self, chain: _Chain, step: CompressStage) -> None:
        data, original, before = chain.data, chain.original, chain.network
        engine = (chain.kind, self.engine)
        timed = step.prune is not None and step.prune.latency is not None

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.stages import compress_network

            return compress_network(self._setting(), step, engine, data, original, before, folder, view)

        label = f"{chain.variant.name}: {step.name.replace('_', ' ')}"
        inputs = [data, original, before]
        # A search by latency finds another network in another engine.
        config = {"step": step.config, "engine": engine} if timed else step.config
        done = self._stage(step.name, label, config, inputs, make, lambda info: str(info.get("note", "")))
        exported = self._export(data, done.artifact, f"{label}, exported")
        chain.done += [done, exported]
        chain.network, chain.exported = done.artifact, exported.artifact
        chain.add_graph(step.name, exported.artifact)

    def _change_graph(self, chain: _Chain, step: CompressStage) -> None:
        if step.cast is not None:
            done = self._cast(chain, step.cast)
        else:
            assert step.quantize is not None, "the graph steps are these two"
            done = self._quantize(chain, step.quantize)
        chain.done.append(done)
        chain.add_graph(step.name, done.artifact)

    def _quantize(self, chain: _Chain, config: QuantizeConfig) -> _Done:
        data, original, network, graph = chain.data, chain.original, chain.network, chain.graph
        trained = config.method == "qat"
        if config.reduce_range == "auto" and (chain.kind != "openvino" or config.precision != "int8"):
            config = replace(config, reduce_range=False)  # only int8 saturates, and only on CPUs
        key: object = config
        if config.reduce_range == "auto":  # OpenVINO's answers decide
            key = {"quantize": config, "openvino": _package_version("openvino")}

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.stages import quantize_graph, train_quantized

            if trained:
                return train_quantized(self._setting(), config, data, original, network, graph, folder, view)
            return quantize_graph(config, data, graph, folder, view)

        return self._stage(
            "quantize",
            f"{chain.variant.name}: {'train in' if trained else 'quantise to'} {config.precision}",
            key,
            [data, original, network, graph] if trained else [data, graph],
            make,
            lambda info: f"agrees with float32 on {100 * info['against_float32']['agreement']:.1f} %",
        )

    def _cast(self, chain: _Chain, config: CastConfig) -> _Done:
        data, graph = chain.data, chain.graph

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder.stages import cast_graph

            return cast_graph(config, data, graph, folder)

        label = f"{chain.variant.name}: cast to {config.precision}"
        return self._stage(
            "cast", label, config, [data, graph], make, lambda info: f"{info['size_bytes'] / 1e6:.1f} MB"
        )

    def _build_engine(self, chain: _Chain) -> _Done:
        variant, kind, data = chain.variant, chain.kind, chain.data
        graph, exported, network = chain.graph, chain.exported, chain.network
        # The other road starts from PyTorch, which post-training quantisation leaves for the graph.
        from_torch = self.engine.frontend == "torch-tensorrt" and variant.precision not in ("int8", "fp8")
        timing_cache = self.store.root / "timing.cache"

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            from temper.builder import stages

            sparse = {"sparsity": stages.check_sparse(graph)} if variant.is_sparse else {}
            module = stages.served_module(self._setting(), data, network) if from_torch else None
            info = stages.build_engine_file(
                kind, self.engine, variant, data, graph, exported, folder, timing_cache, module
            )
            return {**info, **sparse}

        limits = {"min_agreement": variant.min_agreement, "max_logit_diff": variant.max_logit_diff}
        return self._stage(
            "engine",
            f"{variant.name}: {kind} engine",
            {"kind": kind, "engine": self.engine, "package": _package_version(kind), "sparse": variant.is_sparse}
            | limits,
            [data, network, exported, graph],
            make,
            lambda info: f"{info['size_bytes'] / 1e6:.1f} MB",
        )

    def _publish(self, chain: _Chain, why: str) -> Built:
        from temper.builder.publish.entry import publish

        kind, data, engine = chain.kind, chain.data, chain.done[-1].artifact
        labels = read_labels(data.path / LABELS_FILE)
        name = f"{self.recipe_name}_{chain.variant.name}"
        bound = kind == "tensorrt" and self.engine.hardware_compatibility != "ampere_plus"
        with self.progress_factory(f"{chain.variant.name}: publish") as view:
            published = publish(
                self.repository,
                model=name,
                engine_file=engine.path / engine.info["file"],
                labels=labels,
                card=self._card(chain).to_json(),
                image_size=self.data.image_size,
                num_classes=len(labels),
                max_batch=self.engine.max_batch,
                parameters=self._parameters(chain),
                num_instances=self.engine.num_instances,
                serving=self.serving,
                in_ensemble=chain.variant.name in self.members,
                server_backend=self.engine.server_backend,
                opt_batch=self.engine.opt_batch,
                version_compatible=self.engine.version_compatible,
                # Other engines, and plans built for several, are not bound to the GPU that built them.
                compute_capability=engine.info["compute_capability"] if bound else None,
                graph_sha256=sha256_file(chain.graph.path / GRAPH_FILE) if bound else None,
            )
            view.reused = published.reused
            view.note = published.note
        return Built(
            variant=chain.variant.name,
            model=published.model,
            version=published.version,
            engine=kind,
            engine_reason=why,
            size_bytes=engine.info["size_bytes"],
            path=published.path,
            reused=published.reused,
            data=data,
            digest=engine.digest,
            stages=[each.report for each in chain.done],
            snapshots=chain.snapshots,
            weight_bits=chain.weight_bits,
        )

    def _publish_ensemble(self, variant: VariantConfig, members: list[Built]) -> Built:
        from temper.builder.publish.ensemble import publish_ensemble

        first = members[0]
        labels = read_labels(first.data.path / LABELS_FILE)
        digests = {one.model: one.digest for one in members}
        card = Card(
            recipe=CardRecipe(name=self.recipe_name, variant=variant.to_json(), engine=asdict(self.engine)),
            data_digest=first.data.digest,
            member_digests=digests,
        )
        with self.progress_factory(f"{variant.name}: publish") as view:
            published = publish_ensemble(
                self.repository,
                model=f"{self.recipe_name}_{variant.name}",
                members=[one.model for one in members],
                labels=labels,
                card=card.to_json(),
                image_size=self.data.image_size,
                num_classes=len(labels),
                max_batch=self.engine.max_batch,
                serving=self.serving,
            )
            view.reused = published.reused
            view.note = published.note
        return Built(
            variant=variant.name,
            model=published.model,
            version=published.version,
            engine=first.engine,
            engine_reason=f"the mean of the logits of {', '.join(variant.ensemble)}",
            size_bytes=sum(one.size_bytes for one in members),
            path=published.path,
            reused=published.reused,
            data=first.data,
            digest=hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
            weight_bits=max((one.weight_bits for one in members if one.weight_bits is not None), default=None),
        )

    def _parameters(self, chain: _Chain) -> dict[str, str]:
        parameters = {"engine": chain.kind, "max_batch": str(self.engine.max_batch)}
        if chain.kind == "openvino":
            parameters["precision_hint"] = self.engine.precision_hint
            if (bits := chain.weight_bits) is not None:
                parameters["int8_weight_bits"] = str(bits)
        return parameters

    def _card(self, chain: _Chain) -> Card:
        return Card(
            recipe=CardRecipe(
                name=self.recipe_name,
                data=asdict(self.data),
                model=asdict(self.model),
                train=asdict(self.train),
                variant=chain.variant.to_json(),
                engine=asdict(self.engine),
            ),
            data_digest=chain.data.digest,
            engine=chain.kind,
            versions={name: version for name in _PACKAGES if (version := _package_version(name)) is not None},
            stages=tuple(
                CardStage(name=each.report.name, digest=each.artifact.digest, figures=each.report.figures)
                for each in chain.done
            ),
        )


def _planned(variant: VariantConfig, kind: EngineKind) -> list[CompressStage]:
    """Returns the variant's steps; for TensorRT the float32 rest of a quantised graph becomes float16.

    Its networks are strongly typed, so a layer left in float32 would run in float32.
    """
    from temper.builder.compress.cast import CastConfig

    steps = list(variant.compress)
    if kind != "openvino" and steps and steps[-1].quantize is not None:
        steps.append(CompressStage(cast=CastConfig(precision="fp16")))
    return steps


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
