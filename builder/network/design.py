"""What tells one ResNet from another: blocks, stem, shortcuts and widths, by the names of torchvision and timm.

All are torchvision's own class. timm's letters: `c` and `s` have three 3x3 convolutions in the place of the stem's
7x7 one, 32 or 64 channels wide; `d` the same as `c` and shortcuts that pool before they project; `t` a stem whose
width grows. Source: timm's resnet.py, and He et al., "Bag of Tricks", CVPR 2019.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import nn

Architecture = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnet10t",
    "resnet14t",
    "resnet18d",
    "resnet26",
    "resnet26d",
    "resnet26t",
    "resnet34d",
    "resnet50c",
    "resnet50d",
    "resnet50s",
    "resnet50t",
    "resnet101c",
    "resnet101d",
    "resnet101s",
    "resnet152c",
    "resnet152d",
    "resnet152s",
    "resnet200",
    "resnet200d",
    "resnext50d_32x4d",
    "resnext101_32x4d",
    "resnext101_32x16d",
    "resnext101_32x32d",
]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

TORCHVISION = ARCHITECTURES[: ARCHITECTURES.index("resnet10t")]
"""Those that torchvision has weights for."""

Block = Literal["basic", "bottleneck"]
Shapes = Mapping[str, Sequence[int]]

_NAME = re.compile(r"(wide_)?res(?:net|next)(\d+)([cdst]?)(?:_(\d+)x(\d+)d|_2)?")
_DEPTHS: dict[str, tuple[Block, tuple[int, ...]]] = {
    "10": ("basic", (1, 1, 1, 1)),
    "14": ("bottleneck", (1, 1, 1, 1)),
    "18": ("basic", (2, 2, 2, 2)),
    "26": ("bottleneck", (2, 2, 2, 2)),
    "34": ("basic", (3, 4, 6, 3)),
    "50": ("bottleneck", (3, 4, 6, 3)),
    "101": ("bottleneck", (3, 4, 23, 3)),
    "152": ("bottleneck", (3, 8, 36, 3)),
    "200": ("bottleneck", (3, 24, 36, 3)),
}
_STEMS = {"": (64,), "c": (32, 32, 64), "d": (32, 32, 64), "s": (64, 64, 128), "t": (24, 32, 64)}
_WIDTH = 64


@dataclass(frozen=True)
class Design:
    """A ResNet, but for its head."""

    block: Block
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with the stride in the second."""
    blocks: tuple[int, ...]
    """How many there are in each of the four stages."""
    stem: tuple[int, ...] = (_WIDTH,)
    """Output channels of its convolutions: of one 7x7, or of three 3x3."""
    pools_shortcut: bool = False
    """Whether a shortcut averages 2x2 and then projects, instead of projecting with a stride."""
    groups: int = 1
    """Of a block's 3x3 convolution."""
    base_width: int = _WIDTH
    """Channels of one of these groups in the first stage."""

    def __str__(self) -> str:
        """Returns it in words."""
        kernel = "7x7" if len(self.stem) == 1 else "3x3"
        blocks, stem = ", ".join(map(str, self.blocks)), " + ".join(map(str, self.stem))
        shortcut = "pooled" if self.pools_shortcut else "strided"
        return (
            f"{blocks} {self.block} blocks of {self.groups} x {self.base_width} channels, a stem of {stem} "
            f"({kernel}) and {shortcut} shortcuts"
        )


def design_of(arch: Architecture) -> Design:
    """Returns the design that an architecture's name stands for."""
    match = _NAME.fullmatch(arch)
    assert match is not None, arch
    wide, depth, letter, groups, base_width = match.groups()
    block, blocks = _DEPTHS[depth]
    return Design(
        block,
        blocks,
        _STEMS[letter],
        letter in ("d", "t"),
        int(groups or 1),
        int(base_width or (2 * _WIDTH if wide else _WIDTH)),
    )


def arch_of(design: Design) -> Architecture | None:
    """Returns the name of a design, if it has one."""
    return next((arch for arch in ARCHITECTURES if design_of(arch) == design), None)


def read_design(shapes: Shapes) -> Design | None:
    """Finds the design whose layers these may be: `shapes_of` tells whether they all are.

    Args:
        shapes: The shapes of a ResNet's weights, under torchvision's names.
    """
    stem = _read_stem(shapes)
    blocks = tuple(
        len({name.split(".")[1] for name in shapes if name.startswith(f"layer{n}.")}) for n in range(1, 5)
    )
    first = shapes.get("layer1.0.conv2.weight", ())
    if stem is None or not all((*stem, *blocks, *first)) or len(first) != 4:
        return None
    is_pooled = len(shapes.get("layer2.0.downsample.1.weight", ())) == 4
    if "layer1.0.conv3.weight" not in shapes:
        return Design("basic", blocks, stem, is_pooled)
    groups = max(first[0] // max(first[1], 1), 1)
    return Design("bottleneck", blocks, stem, is_pooled, groups, first[0] // groups)


def _read_stem(shapes: Shapes) -> tuple[int, ...] | None:
    whole = shapes.get("conv1.weight")
    if whole is not None:
        return tuple(whole[:1]) if tuple(whole[2:]) == (7, 7) else None
    deep = [shapes.get(f"conv1.{index}.weight", ()) for index in (0, 3, 6)]
    return tuple(shape[0] for shape in deep) if all(tuple(shape[2:]) == (3, 3) for shape in deep) else None


def shapes_of(design: Design) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a design's weights, under torchvision's names, without the head's."""
    import torch

    with torch.device("meta"):
        weights = new_resnet(design, 1).state_dict()
    return {name: tuple(weight.shape) for name, weight in weights.items() if not name.startswith("fc.")}


def new_resnet(design: Design, num_classes: int) -> nn.Module:
    """Builds torchvision's ResNet with random weights, and the stem and shortcuts that the design has."""
    from torchvision.models.resnet import (  # type: ignore[import-untyped]  # ships none
        BasicBlock,
        Bottleneck,
        ResNet,
    )

    block = BasicBlock if design.block == "basic" else Bottleneck
    network: Any = ResNet(
        block,
        list(design.blocks),
        num_classes=num_classes,
        groups=design.groups,
        width_per_group=design.base_width,
    )
    if design.stem != (_WIDTH,):
        _set_stem(network, block, design)
    if design.pools_shortcut:
        _pool_shortcuts(network)
    result: nn.Module = network
    return result


def _set_stem(network: Any, block: Any, design: Design) -> None:
    from torch import nn

    *inner, width = design.stem
    if inner:
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip((3, *inner), design.stem, strict=True)):
            layers.append(nn.Conv2d(inputs, outputs, 3, stride=1 if number else 2, padding=1, bias=False))
            if number < len(inner):
                layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        network.conv1 = nn.Sequential(*layers)
    else:
        network.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    changed = [network.conv1]
    if width != _WIDTH:
        network.bn1 = nn.BatchNorm2d(width)
        network.inplanes, network.dilation = width, 1  # what the class counts while it is built
        network.layer1 = network._make_layer(block, _WIDTH, design.blocks[0])
        changed.append(network.layer1)
    for module in (each for part in changed for each in part.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _pool_shortcuts(network: Any) -> None:
    from torch import nn

    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        if stage[0].downsample is None:
            continue
        conv, norm = stage[0].downsample
        pool: nn.Module = nn.Identity()
        if conv.stride != (1, 1):
            pool, conv.stride = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), (1, 1)
        stage[0].downsample = nn.Sequential(pool, conv, norm)
