"""Distillation: the student comes nearer to its teacher; an interrupted lesson ends as an uninterrupted one."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.sample import Sample, make_context
from temper.builder.compress.calibrate import recalibrate
from temper.builder.compress.distil import STEP, DistilConfig
from temper.builder.compress.step import StepContext
from temper.builder.errors import CompressError
from temper.builder.network.resnet import ModelConfig, build_model
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD


def calibrated(sample: Sample, train: Any) -> Any:
    """The sample, made from nothing but a head, with the statistics of batch norm that training would see."""
    network = copy.deepcopy(sample.model)
    pixels = torch.stack([train[index][0] for index in range(len(train))]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    recalibrate(network, [(pixels - mean) / std])
    return network


def make_lesson(sample: Sample, folder: Path, **changes: Any) -> StepContext:
    context = make_context(folder, **changes)
    return dataclasses.replace(context, teacher=calibrated(sample, context.train))


def damaged(context: StepContext) -> Any:
    """The teacher with noise in its head."""
    network = copy.deepcopy(context.teacher)
    head: Any = network.get_submodule("fc")
    with torch.no_grad():
        noise = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
        head.weight += head.weight.std() * noise
    return network


@pytest.mark.slow
def test_student_comes_nearer_to_its_teacher(sample: Sample, tmp_path: Path) -> None:
    # Scored on images that it learns from: a network that was never trained does not carry over to others.
    seen = (sample.calibration[64:128], np.zeros(64, np.int64))
    context = make_lesson(sample, tmp_path, num_train=128, held_out=seen)
    config = DistilConfig(epochs=5, learning_rate=1e-4)
    student, info = STEP.run(damaged(context), config, context)
    assert info["agreement_before"] < 0.9
    assert info["agreement"] > info["agreement_before"]
    assert not student.training
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interrupted_lesson_ends_as_an_uninterrupted_one(sample: Sample, tmp_path: Path) -> None:
    config = DistilConfig(epochs=2)
    torch.manual_seed(0)
    context = make_lesson(sample, tmp_path / "whole")
    whole, _ = STEP.run(damaged(context), config, context)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        STEP.run(damaged(context), config, make_lesson(sample, tmp_path / "cut", progress=stop))
    again, info = STEP.run(damaged(context), config, make_lesson(sample, tmp_path / "cut"))
    assert info["resumed_epoch"] == 1
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_features_of_another_shape_are_refused(sample: Sample, tmp_path: Path) -> None:
    wider = build_model(ModelConfig(arch="resnet50"), 10)
    with pytest.raises(
        CompressError, match=r"feature_weight: the features are \[2048, 1, 1\], the teacher's \[512"
    ):
        STEP.run(wider, DistilConfig(feature_weight=1.0), make_lesson(sample, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, r"epochs: got 0, expected at least 1"),
        ({"temperature": 0.0}, r"temperature: got 0.0, expected a positive number"),
        ({"learning_rate": -1.0}, r"learning_rate: got -1.0, expected a positive number"),
        ({"label_weight": 2.0}, r"label_weight: got 2.0, expected 0 to 1"),
        ({"feature_weight": -1.0}, r"feature_weight: got -1.0, expected 0 or more"),
    ],
)
def test_config_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistilConfig(**changes)
