"""Joins the stages: data -> weights -> graph -> compress -> engine -> published model, each kept in the store.

data ──┬─────────────┬──────────────┬─ calibration images
       └─> weights ──┴─> graph ──┬──┴─> compressed graph ──> engine ──> model repository
                                 └─ (a variant without compression) ──> engine ──> model repository
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from builder.artifacts import Artifact, Store
from builder.data import CALIBRATION_IMAGES_FILE, LABELS_FILE, TEST_IMAGES_FILE, TEST_LABELS_FILE
from builder.engines import EngineConfig, EngineKind
from builder.errors import ModelError
from builder.files import sha256_file
from builder.quantize import QuantizeConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from builder.data import DataConfig
    from builder.model import ModelConfig
    from builder.train import TrainConfig

GRAPH_FILE = "model.onnx"
_NUM_VERIFY = 64
_PACKAGES = (
    "temper",
    "torch",
    "torchvision",
    "nvidia-modelopt",
    "onnx",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-rtx",
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


@dataclass(frozen=True, kw_only=True)
class CompressStage:
    """One step of a variant's compression; a table with exactly one key, for example `quantize`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    quantize: QuantizeConfig | None = None
    """Quantise weights and activations."""

    def __post_init__(self) -> None:
        """Checks that the step says what to do.

        Raises:
            ValueError: It does not.
        """
        if self.quantize is None:
            raise ValueError(
                "quantize: got nothing, expected what to do, as in { quantize = { precision = 'int8' } }"
            )


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """One model to publish: how the finetuned network is compressed."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """Names the model, after the recipe's name and `_`."""
    compress: tuple[CompressStage, ...] = ()
    """The steps, in order; none is the float32 network."""

    def __post_init__(self) -> None:
        """Checks the steps together.

        Raises:
            ValueError: They cannot follow one another.
        """
        if len(self.compress) > 1:
            raise ValueError(f"compress: got {len(self.compress)} quantize steps, expected at most one")


@dataclass(frozen=True)
class StageReport:
    """What one stage of a variant did."""

    name: str
    """`data`, `weights`, `export`, `quantize` or `engine`."""
    figures: dict[str, Any]
    """Its figures, as JSON."""
    reused: bool
    """True when nothing ran."""

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Built:
    """One published variant, with what the workflow and the report need."""

    variant: str
    """The variant's name in the recipe."""
    model: str
    """Its model in the repository."""
    version: int
    """The version that is served."""
    engine: EngineKind
    """What runs it."""
    engine_why: str
    """Why that one."""
    size_bytes: int
    """Size of the engine file."""
    path: Path
    """The version's folder in the repository."""
    reused: bool
    """True when the repository already served exactly this."""
    data: Artifact
    """The images: test_images.npy, test_labels.npy, calibration_images.npy, labels.txt."""
    engine_artifact: Artifact
    """The engine in the store; its digest stands for everything that made this variant."""
    stages: list[StageReport] = field(default_factory=list)
    """Every stage, in order."""

    @property
    def test_images(self) -> Path:
        """uint8 [N, S, S, 3]; open it with `mmap_mode="r"`."""
        return self.data.path / TEST_IMAGES_FILE

    @property
    def test_labels(self) -> Path:
        """int64 [N]."""
        return self.data.path / TEST_LABELS_FILE


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

    Returns:
        One entry per variant, in order.

    Raises:
        BuilderError: Any of the stages failed; the message is one line.
    """
    return _Build(recipe_name, data, model, train, engine, store, repository, progress_factory).run(variants)


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
    ) -> None:
        self.recipe_name = recipe_name
        self.data = data
        self.model = model
        self.train = train
        self.engine = engine
        self.store = store
        self.repository = repository
        self.progress_factory = progress_factory

    def run(self, variants: Sequence[VariantConfig]) -> list[Built]:
        from builder.engines import pick_engine

        kind, why = pick_engine(self.engine)
        data = self._prepare_data()
        weights = self._make_weights(data.artifact)
        graph = self._export(data.artifact, weights.artifact)
        shared = [data, weights, graph]
        return [self._build_variant(variant, kind, why, shared) for variant in variants]

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

    def _prepare_data(self) -> _Done:
        from builder.data import fingerprint_data, prepare_data

        return self._stage(
            "data",
            "data",
            {"data": self.data, "content": fingerprint_data(self.data)},
            [],
            lambda folder, view: prepare_data(self.data, folder, view),
            lambda info: f"{info['num_train']} train, {info['num_test']} test images",
        )

    def _make_weights(self, data: Artifact) -> _Done:
        checkpoint = self.model.checkpoint
        if checkpoint is not None and not checkpoint.is_file():
            raise ModelError(f"checkpoint {checkpoint}: no such file")
        content = sha256_file(checkpoint) if checkpoint is not None else None
        return self._stage(
            "weights",
            "finetune" if self.train.epochs + self.train.head_epochs > 0 else "weights",
            {"model": self.model, "content": content, "train": self.train},
            [data],
            lambda folder, view: self._finetune(data, folder, view),
            lambda info: f"{100 * info['accuracy']:.2f} % of {info['num_images']} test images",
        )

    def _finetune(self, data: Artifact, folder: Path, view: StageView) -> dict[str, Any]:
        import torch

        from builder.data import load_train
        from builder.model import build_model
        from builder.train import finetune

        # The seed decides a random network and a new head; the caller's random state stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            network = build_model(self.model, len(_labels(data)))
            evaluation = (_images(data, TEST_IMAGES_FILE), _images(data, TEST_LABELS_FILE))
            train = load_train(self.data)
            config, mean, std = self.train, self.model.mean, self.model.std
            return finetune(network, train, evaluation, config, folder, view, mean=mean, std=std)

    def _export(self, data: Artifact, weights: Artifact) -> _Done:
        return self._stage(
            "export",
            "export to ONNX",
            {"mean": self.model.mean, "std": self.model.std},
            [data, weights],
            lambda folder, view: self._export_graph(data, weights, folder),
            lambda info: f"within {info['max_abs_diff']:.1g} of PyTorch",
        )

    def _export_graph(self, data: Artifact, weights: Artifact, folder: Path) -> dict[str, Any]:
        from builder.export import export_onnx, verify_onnx

        network = self._load(data, weights)
        path, mean, std = folder / GRAPH_FILE, self.model.mean, self.model.std
        export_onnx(network, path, image_size=self.data.image_size, mean=mean, std=std)
        images = _images(data, TEST_IMAGES_FILE)[:_NUM_VERIFY]
        return verify_onnx(path, network, images, mean=mean, std=std)

    def _load(self, data: Artifact, weights: Artifact) -> nn.Module:
        from dataclasses import replace

        from builder.model import build_model
        from builder.train import WEIGHTS_FILE

        config = replace(self.model, weights=str(weights.path / WEIGHTS_FILE), replace_head=False)
        return build_model(config, len(_labels(data)))

    def _build_variant(self, variant: VariantConfig, kind: EngineKind, why: str, shared: Sequence[_Done]) -> Built:
        data, _, graph = shared
        done = list(shared)
        for step in variant.compress:
            if step.quantize is not None:
                done.append(self._quantize(variant, step.quantize, data.artifact, graph.artifact))
        engine = self._build_engine(variant, kind, data.artifact, done[-1].artifact)
        done.append(engine)
        return self._publish(variant, kind, why, done)

    def _quantize(self, variant: VariantConfig, config: QuantizeConfig, data: Artifact, graph: Artifact) -> _Done:
        return self._stage(
            "quantize",
            f"{variant.name}: quantise to {config.precision}",
            config,
            [data, graph],
            lambda folder, view: _quantize_graph(config, data, graph, folder, view),
            lambda info: f"agrees with float32 on {100 * info['against_float32']['agreement']:.1f} %",
        )

    def _build_engine(self, variant: VariantConfig, kind: EngineKind, data: Artifact, graph: Artifact) -> _Done:
        from builder.engines import build_engine

        def make(folder: Path, view: StageView) -> dict[str, Any]:
            images = _images(data, TEST_IMAGES_FILE)[:_NUM_VERIFY]
            return build_engine(kind, graph.path / GRAPH_FILE, folder, self.engine, images)

        return self._stage(
            "engine",
            f"{variant.name}: {kind} engine",
            {"kind": kind, "engine": self.engine, "package": _version(kind)},
            [data, graph],
            make,
            lambda info: f"{info['size_bytes'] / 1e6:.1f} MB",
        )

    def _publish(self, variant: VariantConfig, kind: EngineKind, why: str, done: Sequence[_Done]) -> Built:
        from builder.publish import publish

        data, engine = done[0].artifact, done[-1].artifact
        labels = _labels(data)
        size_bytes: int = engine.info["size_bytes"]
        name = f"{self.recipe_name}_{variant.name}"
        with self.progress_factory(f"{variant.name}: publish") as view:
            published = publish(
                self.repository,
                model=name,
                engine_file=engine.path / engine.info["file"],
                labels=labels,
                card=self._card(variant, kind, done),
                image_size=self.data.image_size,
                num_classes=len(labels),
                max_batch=self.engine.max_batch,
                parameters=self._parameters(kind),
                num_instances=self.engine.num_instances,
            )
            view.reused = published.reused
            view.note = f"{published.model} version {published.version}"
        return Built(
            variant=variant.name,
            model=published.model,
            version=published.version,
            engine=kind,
            engine_why=why,
            size_bytes=size_bytes,
            path=published.path,
            reused=published.reused,
            data=data,
            engine_artifact=engine,
            stages=[each.report for each in done],
        )

    def _parameters(self, kind: EngineKind) -> dict[str, str]:
        shared = {"engine": kind, "max_batch": str(self.engine.max_batch)}
        return {**shared, "precision_hint": self.engine.precision_hint} if kind == "openvino" else shared

    def _card(self, variant: VariantConfig, kind: EngineKind, done: Sequence[_Done]) -> dict[str, Any]:
        return {
            "recipe": {
                "name": self.recipe_name,
                "data": asdict(self.data),
                "model": asdict(self.model),
                "train": asdict(self.train),
                "variant": asdict(variant),
                "engine": asdict(self.engine),
            },
            "data_digest": done[0].artifact.digest,
            "engine": kind,
            "versions": {name: version for name in _PACKAGES if (version := _package_version(name)) is not None},
            "stages": [
                {"name": each.report.name, "digest": each.artifact.digest, "figures": each.report.figures}
                for each in done
            ],
        }


@dataclass(frozen=True)
class _Done:
    artifact: Artifact
    report: StageReport


def _quantize_graph(
    config: QuantizeConfig, data: Artifact, graph: Artifact, folder: Path, view: StageView
) -> dict[str, Any]:
    from builder.audit import audit_qdq
    from builder.export import compare_logits, run_onnx
    from builder.quantize import quantize_onnx

    source, target = graph.path / GRAPH_FILE, folder / GRAPH_FILE
    info = quantize_onnx(source, target, _images(data, CALIBRATION_IMAGES_FILE), config, view)
    images = _images(data, TEST_IMAGES_FILE)[:_NUM_VERIFY]
    audit = audit_qdq(target).to_json()
    against = compare_logits(run_onnx(source, images), run_onnx(target, images))
    return {**info, "against_float32": against, "audit": audit}


def _images(data: Artifact, name: str) -> NDArray[Any]:
    import numpy as np

    images: NDArray[Any] = np.load(data.path / name, mmap_mode="r")
    return images


def _labels(data: Artifact) -> list[str]:
    return (data.path / LABELS_FILE).read_text().splitlines()


def _version(kind: EngineKind) -> str | None:
    return _package_version(kind)


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
