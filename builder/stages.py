"""What each stage does in its work folder; `build.py` says which stage follows which."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from temper.builder.compress.step import StepContext
from temper.builder.contract import (
    CALIBRATION_IMAGES_FILE,
    GRAPH_FILE,
    LABELS_FILE,
    NETWORK_FILE,
    REFERENCE_FILE,
    TEST_IMAGES_FILE,
    TEST_LABELS_FILE,
    WEIGHTS_FILE,
)
from temper.builder.data.prepare import load_train
from temper.builder.names import read_labels
from temper.builder.network.files import count_network, load_network, save_network
from temper.builder.network.resnet import build_model
from temper.builder.network.train import finetune

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from temper.builder.compress.cast import CastConfig
    from temper.builder.compress.quantize import QuantizeConfig
    from temper.builder.compress.variant import CompressStage, VariantConfig
    from temper.builder.data.config import DataConfig
    from temper.builder.engines.kind import EngineConfig
    from temper.builder.engines.latency import CompareLatency
    from temper.builder.network.resnet import ModelConfig
    from temper.builder.network.train import TrainConfig
    from temper.builder.store.artifacts import Artifact

NUM_VERIFY = 64
_HELD_OUT_SHARE = 0.1
_MAX_HELD_OUT = 1000

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all stages of a recipe share."""

    data: DataConfig
    """The images."""
    model: ModelConfig
    """The architecture and its weights."""
    train: TrainConfig
    """How they were finetuned."""


def images_of(data: Artifact, name: str) -> NDArray[Any]:
    """Opens an array of the data stage, mapped from its file."""
    images: NDArray[Any] = np.load(data.path / name, mmap_mode="r")
    return images


def labels_of(data: Artifact) -> list[str]:
    """Returns the class names."""
    return read_labels(data.path / LABELS_FILE)


def make_weights(setting: Setting, data: Artifact, folder: Path, progress: Progress) -> dict[str, Any]:
    """Builds the network and finetunes it."""
    # The seed decides a random network and a new head; the caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.train.seed)
        network = build_model(setting.model, len(labels_of(data)))
        evaluation = (images_of(data, TEST_IMAGES_FILE), images_of(data, TEST_LABELS_FILE))
        mean, std = setting.model.mean, setting.model.std
        train = load_train(setting.data)
        return finetune(network, train, evaluation, setting.train, folder, progress, mean=mean, std=std)


def open_network(setting: Setting, data: Artifact, weights: Artifact) -> nn.Module:
    """Loads the network of the weights stage, or of a compression step."""
    num_classes = len(labels_of(data))
    if (weights.path / NETWORK_FILE).exists():
        return load_network(setting.model, num_classes, weights.path)
    path = str(weights.path / WEIGHTS_FILE)
    return build_model(dataclasses.replace(setting.model, weights=path, replace_head=False), num_classes)


def compress_network(
    setting: Setting,
    step: CompressStage,
    engine: EngineConfig,
    data: Artifact,
    original: Artifact,
    before: Artifact,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Runs one step on the PyTorch network and saves what it returns."""
    network = open_network(setting, data, before)
    context = step_context(setting, data, original, folder, progress)
    run = getattr(importlib.import_module(f"builder.{step.name}"), f"run_{step.name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        arguments = [_compare_latency(setting, engine)] if step.prune and step.prune.latency else []
        compressed, info = run(network, step.config, context, *arguments)
    save_network(compressed, folder)
    return dict(info)


def _compare_latency(setting: Setting, engine: EngineConfig) -> CompareLatency:
    from temper.builder.engines.latency import compare_in_engine

    size, mean, std = setting.data.image_size, setting.model.mean, setting.model.std
    return compare_in_engine(engine, image_size=size, mean=mean, std=std)


def step_context(
    setting: Setting, data: Artifact, original: Artifact, folder: Path, progress: Progress
) -> StepContext:
    """Gathers what a step is given; a tenth of the training images is held out to score candidates with."""
    train, seed = load_train(setting.data), setting.train.seed
    source = train.source
    order = np.random.default_rng([seed, 2]).permutation(source.train)
    num_held_out = max(1, min(_MAX_HELD_OUT, int(_HELD_OUT_SHARE * len(order))))
    held_out = np.sort(order[:num_held_out])
    images = np.stack([source.read(int(index)) for index in held_out])
    train.source = dataclasses.replace(source, train=np.sort(order[num_held_out:]))
    return StepContext(
        train=train,
        held_out=(images, source.labels[held_out]),
        teacher=open_network(setting, data, original),
        folder=folder,
        progress=progress,
        image_size=setting.data.image_size,
        mean=setting.model.mean,
        std=setting.model.std,
        num_classes=len(source.class_names),
        train_config=setting.train,
        seed=seed,
    )


def export_graph(setting: Setting, data: Artifact, weights: Artifact, folder: Path) -> dict[str, Any]:
    """Exports the network, compares the graph with PyTorch, and keeps PyTorch's logits for the engine's turn."""
    from temper.builder.network.export import Served, export_onnx, predict, verify_onnx

    network = open_network(setting, data, weights)
    size, mean, std = setting.data.image_size, setting.model.mean, setting.model.std
    export_onnx(network, folder / GRAPH_FILE, image_size=size, mean=mean, std=std)
    images = images_of(data, TEST_IMAGES_FILE)[:NUM_VERIFY]
    figures = verify_onnx(folder / GRAPH_FILE, network, images, mean=mean, std=std)
    np.save(folder / REFERENCE_FILE, predict(Served(network, mean=mean, std=std), images))
    return {**figures, **dataclasses.asdict(count_network(network, size))}


def quantize_graph(
    config: QuantizeConfig, data: Artifact, graph: Artifact, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Quantises a graph after training, checks where its Q/DQ pairs are, and compares it with float32."""
    from temper.builder.compress.quantize import quantize_onnx
    from temper.builder.compress.saturation import reduce_weights, settle_range

    source, target = graph.path / GRAPH_FILE, folder / GRAPH_FILE
    calibration = images_of(data, CALIBRATION_IMAGES_FILE)

    def quantize(config: QuantizeConfig) -> dict[str, Any]:
        if config.max_loss is None:
            return quantize_onnx(source, target, calibration, config, progress)
        from temper.builder.compress.sensitivity import quantize_within

        return quantize_within(source, target, calibration, config, progress)

    info = quantize(config)
    if config.precision == "int8":
        reduce, range_info = settle_range(config.reduce_range, target, calibration, source, progress)
        if reduce and config.reduce_range == "auto":
            if config.max_loss is None:
                reduce_weights(target, source)
            else:  # other weights lose something else
                info = quantize(dataclasses.replace(config, reduce_range=True))
        info |= {"reduce_range": range_info}
    return {**info, **_check_quantized(config, data, graph, target, info["kept_high"])}


def train_quantized(
    setting: Setting,
    config: QuantizeConfig,
    data: Artifact,
    original: Artifact,
    network: Artifact,
    graph: Artifact,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Trains a network with its quantisers, and checks the graph as one that was quantised after training."""
    from temper.builder.compress.qat import QatConfig, run_qat

    context = step_context(setting, data, original, folder, progress)
    schedule = QatConfig(
        epochs=config.epochs, learning_rate=config.learning_rate, reduce_range=config.reduce_range
    )
    target = folder / GRAPH_FILE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        info = run_qat(open_network(setting, data, network), schedule, context, target)
    return {**info, **_check_quantized(config, data, graph, target, [])}


def _check_quantized(
    config: QuantizeConfig, data: Artifact, graph: Artifact, target: Path, kept_high: list[str]
) -> dict[str, Any]:
    from temper.builder.compress.qdq import audit_qdq
    from temper.builder.compress.saturation import weight_bits
    from temper.builder.network.export import compare_logits, run_onnx

    images = images_of(data, TEST_IMAGES_FILE)[:NUM_VERIFY]
    audit = audit_qdq(target, config.precision, kept_high=kept_high).to_json()
    against = compare_logits(run_onnx(graph.path / GRAPH_FILE, images), run_onnx(target, images))
    return {"against_float32": against, "audit": audit, "weight_bits": weight_bits(target)}


def cast_graph(config: CastConfig, data: Artifact, graph: Artifact, folder: Path) -> dict[str, Any]:
    """Converts what is float32 in a graph to a half-precision type."""
    from temper.builder.compress.cast import cast_onnx

    images = images_of(data, CALIBRATION_IMAGES_FILE)[:NUM_VERIFY]
    return cast_onnx(graph.path / GRAPH_FILE, folder / GRAPH_FILE, images, config)


def check_sparse(graph: Artifact) -> dict[str, Any]:
    """Checks the 2:4 pattern in the graph that the engine is made from."""
    from temper.builder.compress.sparsify import check_2_4

    return check_2_4(graph.path / GRAPH_FILE).to_json()


def served_module(setting: Setting, data: Artifact, weights: Artifact) -> nn.Module:
    """Loads a network behind its preprocessing: uint8 [N, S, S, 3] to logits."""
    from temper.builder.network.export import Served

    return Served(open_network(setting, data, weights), mean=setting.model.mean, std=setting.model.std)


def build_engine_file(
    engine: EngineConfig,
    variant: VariantConfig,
    data: Artifact,
    graph: Artifact,
    reference: Artifact,
    folder: Path,
    timing_cache: Path,
    module: nn.Module | None,
) -> dict[str, Any]:
    """Builds the engine and compares it with PyTorch's logits where it runs here."""
    from temper.builder.engines.build import AgreementLimits, build_engine

    return build_engine(
        graph.path / GRAPH_FILE,
        folder,
        engine,
        images_of(data, TEST_IMAGES_FILE)[:NUM_VERIFY],
        reference=np.load(reference.path / REFERENCE_FILE),
        limits=AgreementLimits(min_agreement=variant.min_agreement, max_logit_diff=variant.max_logit_diff),
        precision=variant.precision,
        sparse_weights=variant.is_sparse,
        timing_cache=timing_cache,
        module=module,
    )
