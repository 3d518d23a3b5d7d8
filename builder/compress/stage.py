"""The stages of compression: what a step is given, and where its result goes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from temper.builder.compress.step import GraphContext, GraphStep, NetworkStep, Step, StepContext, Training
from temper.builder.contract import CALIBRATION_IMAGES_FILE, GRAPH_FILE, TEST_IMAGES_FILE
from temper.builder.data.prepare import hold_out, load_train
from temper.builder.network.files import save_network
from temper.builder.network.stage import NUM_VERIFY, Progress, Setting, images_of, open_network

if TYPE_CHECKING:
    from temper.builder.engines.latency import CompareLatency
    from temper.builder.store.artifacts import Artifact

_HELD_OUT_SHARE = 0.1


def run_network_step(
    step: Step[Any],
    config: Any,
    setting: Setting,
    data: Artifact,
    original: Artifact,
    before: Artifact,
    folder: Path,
    progress: Progress,
    compare_latency: CompareLatency | None,
) -> dict[str, Any]:
    """Runs one step on the PyTorch network and saves what it returns."""
    assert isinstance(step, NetworkStep), "the caller looks at what it works on"
    network = open_network(setting, data, before)
    context = step_context(setting, data, original, folder, progress)
    context = dataclasses.replace(context, compare_latency=compare_latency)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        compressed, info = step.run(network, config, context)
    save_network(compressed, folder)
    return dict(info)


def run_graph_step(
    step: Step[Any],
    config: Any,
    setting: Setting,
    data: Artifact,
    original: Artifact,
    network: Artifact,
    graph: Artifact,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Runs one step on the ONNX graph, which writes model.onnx."""
    assert isinstance(step, GraphStep), "the caller looks at what it works on"

    def open_training() -> Training:
        assert "training" in step.needs(config), "what a step reads is part of its stage's key"
        context = step_context(setting, data, original, folder, progress)
        return Training(network=open_network(setting, data, network), context=context)

    context = GraphContext(
        calibration=images_of(data, CALIBRATION_IMAGES_FILE),
        images=images_of(data, TEST_IMAGES_FILE)[:NUM_VERIFY],
        folder=folder,
        progress=progress,
        open_training=open_training,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.train.seed)
        return step.run(graph.path / GRAPH_FILE, folder / GRAPH_FILE, config, context)


def step_context(
    setting: Setting, data: Artifact, original: Artifact, folder: Path, progress: Progress
) -> StepContext:
    """Gathers what a step is given; a tenth of the training images is held out to score candidates with."""
    train, seed = load_train(setting.data), setting.train.seed
    train, held_out = hold_out(train, _HELD_OUT_SHARE, seed)
    mean, std = setting.data.normalization
    return StepContext(
        train=train,
        held_out=held_out,
        teacher=open_network(setting, data, original),
        folder=folder,
        progress=progress,
        image_size=setting.data.image_size,
        mean=mean,
        std=std,
        num_classes=len(train.source.class_names),
        train_config=setting.train,
        seed=seed,
    )
