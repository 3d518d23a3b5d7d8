"""Adversarial finetuning of a compressed network: as a step of its own, from a teacher, and through quantisers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.sample import Sample, make_context
from temper.builder.compress.adversarial import STEP, AdversarialStepConfig
from temper.builder.compress.distil import DistilConfig
from temper.builder.compress.prune import PruneConfig
from temper.builder.compress.qat import quantize_network
from temper.builder.compress.quantize import QuantizeConfig
from temper.builder.compress.sparsify import SparsifyConfig, run_sparsify
from temper.builder.compress.step import REGISTRY
from temper.builder.compress.teach import teach
from temper.builder.compress.variant import ChosenStep, VariantConfig
from temper.builder.network.adversarial import AdversarialConfig
from temper.builder.network.perturb import ascend
from temper.builder.network.served import Served


def test_step_trains_and_judges_and_keeps_zeros(sample: Sample, tmp_path: Path) -> None:
    context = make_context(tmp_path, teacher=sample.model)
    sparse, _ = run_sparsify(copy.deepcopy(sample.model), SparsifyConfig(), context)
    before = copy.deepcopy(sparse.state_dict())
    config = AdversarialStepConfig(epochs=1, validation_steps=2)
    network, info = STEP.run(sparse, config, context)
    found = {name: info[name] for name in ("method", "epsilon", "learning_rate", "num_validation", "best_epoch")}
    expected = {"method": "fast", "epsilon": 8, "learning_rate": 1e-3, "num_validation": 64, "best_epoch": 1}
    assert found == expected
    assert info["before"].keys() == {"accuracy", "robust_accuracy", "single_step_accuracy"}
    after = info["history"][0]["robust_accuracy"]
    assert STEP.note(info) == (
        f"{100 * after:.1f} % of 64 held-out images withstand epsilon 8, before "
        f"{100 * info['before']['robust_accuracy']:.1f} %"
    )
    assert STEP.note({**info, "warning": "it fell"}).endswith("; warning: it fell")
    assert info["num_sparse"] > 0
    changed = network.state_dict()
    for name in ("layer1.0.conv1.weight", "layer4.1.conv2.weight"):
        assert torch.equal(changed[name] == 0, before[name] == 0), name
        assert not torch.equal(changed[name], before[name]), name
    assert not network.training
    assert not list(tmp_path.iterdir())


def test_int8_learns_from_gradients_through_its_quantisers(sample: Sample, tmp_path: Path) -> None:
    context = make_context(tmp_path, teacher=sample.model, num_train=32)
    quantized, _ = quantize_network(sample.model, context, torch.device("cpu"))
    served = Served(quantized, mean=context.mean, std=context.std).eval()
    images, labels = torch.from_numpy(sample.images[:8]).float(), torch.from_numpy(sample.labels[:8])

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(served(pixels), labels)

    moved = ascend(loss, images, torch.zeros_like(images), epsilon=8.0, step_size=2.0, steps=4)
    assert loss(moved) > 2 * loss(images)
    adversarial = AdversarialConfig(validation_steps=1)
    info = teach(quantized, DistilConfig(epochs=1, learning_rate=1e-5, adversarial=adversarial), context)
    assert [epoch["epoch"] for epoch in info["history"]] == [1]
    assert 0 <= info["history"][0]["robust_accuracy"] <= info["history"][0]["accuracy"] <= 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["adversarial", "prune", "adversarial", "quantize"], None),
        (
            ["distil", "adversarial"],
            r"compress\[0\]: got distil first, .*; adversarial may stand before or after any",
        ),
        (["quantize", "adversarial"], r"compress\[1\]: got adversarial after quantize, expected prune"),
    ],
)
def test_step_stands_anywhere_before_the_graph(steps: list[str], message: str | None) -> None:
    configs = {"prune": PruneConfig(flops=0.5)}
    compress = tuple(ChosenStep(**{name: configs.get(name) or REGISTRY.get(name).config()}) for name in steps)
    if message is None:
        VariantConfig(name="robust", compress=compress)
    else:
        with pytest.raises(ValueError, match=message):
            VariantConfig(name="robust", compress=compress)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (AdversarialStepConfig, {"epochs": 0}, r"epochs: got 0, expected at least 1"),
        (AdversarialStepConfig, {"learning_rate": -1.0}, r"learning_rate: got -1.0, expected a positive number"),
        (AdversarialStepConfig, {"beta": 1.0}, r"beta: got it with method 'fast', expected 'trades'"),
        (
            QuantizeConfig,
            {"adversarial": AdversarialConfig()},
            r"adversarial: got it with method 'entropy', which",
        ),
    ],
)
def test_config_is_checked(config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
