"""A model of which two versions are there, told apart by what they answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from temper.builder.publish.defence import BitDepthConfig, Defence
from temper.builder.publish.ensemble import publish_ensemble, publish_jpeg
from temper.builder.publish.entry import publish
from temper.builder.publish.triton_config import EnsembleBackend, PluginBackend, TritonConfig

SHIFT = 1000.0
"""What the second version adds to every logit of the first."""


@pytest.fixture(scope="session")
def shifted_onnx(toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model whose logits are greater by `SHIFT`."""
    model = onnx.load(str(toy_onnx))
    last = next(node for node in model.graph.node if model.graph.output[0].name in node.output)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[2])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(SHIFT), bias.name))
    path = tmp_path_factory.mktemp("shifted") / "model.onnx"
    onnx.save(model, str(path))
    return path


@pytest.fixture
def two_versions(toy_onnx: Path, shifted_onnx: Path, tmp_path: Path) -> Path:
    """A repository with two versions of `toy`, whose class names differ, and `squeezed`, a defence before it.

    The first one is served.
    """
    root = tmp_path / "repository"
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    config = TritonConfig(
        name="toy", image_size=32, num_classes=10, max_batch=8, backend=backend, in_ensemble=True
    )
    for word, engine in (("digit", toy_onnx), ("number", shifted_onnx)):
        publish(root, config, engine_file=engine, labels=[f"{word} {n}" for n in range(10)], card={})
    defended = EnsembleBackend(members=("toy",), defend=(Defence(bit_depth=BitDepthConfig(bits=3)),))
    labels = [f"number {n}" for n in range(10)]
    publish_ensemble(root, replace(config, name="squeezed", backend=defended), labels=labels, card={})
    for name in ("config.pbtxt", "labels.txt"):
        shutil.copy(root / "toy" / "1" / name, root / "toy" / name)
    return root


@pytest.fixture
def two_with_jpeg(toy_onnx: Path, shifted_onnx: Path, tmp_path: Path) -> Path:
    """A repository with two versions of `toy`, of which the second takes fewer images at once, and its `_jpeg`."""
    root = tmp_path / "repository"
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    labels = [str(number) for number in range(10)]
    for max_batch, engine in ((8, toy_onnx), (4, shifted_onnx)):
        config = TritonConfig(
            name="toy", image_size=32, num_classes=10, max_batch=max_batch, backend=backend, in_ensemble=True
        )
        card = {"max_batch": max_batch}
        publish(root, config, engine_file=engine, labels=labels, card=card)
        publish_jpeg(root, config, labels=labels, card=card)
    return root


@pytest.fixture
def switch() -> Callable[[Path, int], None]:
    """Serves a version of `toy`, as a promotion does: in one rename."""

    def serve(repository: Path, version: int) -> None:
        model = repository / "toy"
        shutil.copy(model / str(version) / "config.pbtxt", repository.parent / "config")
        os.replace(repository.parent / "config", model / "config.pbtxt")

    return serve
