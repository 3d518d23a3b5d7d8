"""Designs: by name those of timm, layer for layer, and what is built from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from temper.builder.network.design import (
    ARCHITECTURES,
    TORCHVISION,
    arch_of,
    design_of,
    new_resnet,
    read_design,
    shapes_of,
)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_design_has_timms_layers(arch: Any) -> None:
    import timm

    with torch.device("meta"):
        weights = timm.create_model(arch, num_classes=3).state_dict()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items() if not name.startswith("fc.")}
    assert shapes_of(design_of(arch)) == shapes
    assert read_design(shapes) == design_of(arch)
    assert arch_of(design_of(arch)) == arch


@pytest.mark.parametrize("arch", TORCHVISION)
def test_network_is_torchvisions(arch: Any) -> None:
    import torchvision  # type: ignore[import-untyped]  # ships none

    with torch.device("meta"):
        theirs, ours = torchvision.models.get_model(arch, num_classes=3), new_resnet(design_of(arch), 3)
    assert str(ours) == str(theirs)


def test_seed_decides_the_network_as_it_does_torchvisions() -> None:
    import torchvision

    def draw(build: Any) -> torch.Tensor:
        torch.manual_seed(0)
        weight: torch.Tensor = build().get_parameter("fc.weight")
        return weight

    assert torch.equal(
        draw(lambda: new_resnet(design_of("resnet18"), 3)),
        draw(lambda: torchvision.models.resnet18(num_classes=3)),
    )
