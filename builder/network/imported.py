"""A checkpoint as somebody else's training wrote it: its weights under our names, and what it is in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper.builder.errors import ModelError
from temper.builder.network.design import (
    ARCHITECTURES,
    TORCHVISION,
    Architecture,
    Design,
    arch_of,
    read_design,
    shapes_of,
)
from temper.builder.network.head import Head
from temper.builder.network.hub import HubConfig, Library, arch_called, check_name, class_names_in, read_hub_config
from temper.builder.network.pickled import Inert
from temper.builder.network.unwrap import (
    Found,
    Network,
    UnclearError,
    choose,
    find_networks,
    read_network,
    tensor_names,
)
from temper.builder.network.weights import check_tensor, read_content, state_dict_in
from temper.imaging.errors import show

if TYPE_CHECKING:
    import torch

# What makes a grey image of a colour one; Pillow's "L" and ITU-R BT.601.
_GREY = (0.299, 0.587, 0.114)
_NAMES_KEYS = (
    "class_names",
    "classes",
    "CLASSES",
    "class_to_idx",
    "idx_to_class",
    "id2label",
    "label_names",
    "labels",
)
_ARCH_KEYS = ("arch", "model", "model_name", "architecture", "backbone")
_INSIDE = ("meta", "args", "hyper_parameters", "config", "cfg")
"""Where training scripts keep what is no weight."""
_TIMM_KEYS = ("input_size", "img_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
"""Arguments of timm's training script that say how images are made."""
_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The network of a checkpoint."""

    weights: dict[str, torch.Tensor]
    """float32, under the names of the network that `resnet.build_model` builds; without a head no head's."""
    arch: Architecture
    """Whose layers they are."""
    num_classes: int | None
    """Length of the head's output; None without a head that can be taken."""
    hidden: int | None
    """Width between the head's two layers; None where it has one."""
    head_fault: str
    """Why it has no head, or one that cannot be taken; empty where it can."""
    description: str
    """What it is and what was made of it, in one line."""
    class_names: list[str] | None
    """The classes' names in the order of the outputs, where it carries them."""
    is_averaged: bool
    """Whether they are averaged weights."""
    is_grey: bool
    """Whether its network read one channel."""
    normalization: dict[str, list[float]]
    """A mean and a std that its owner's network had beside it, by their names: three numbers each."""
    library: Library | None
    """Whose network it is, by the files beside it, its name or its layers; None where nothing but torchvision's is
    known."""
    timm_args: dict[str, Any]
    """What timm's training script was told of the images, by its names; empty where it was told nothing."""
    has_both: bool
    """Whether there are others beside: as trained beside averaged, or the other way round."""


def open_checkpoint(path: Path, averaged: bool | None = None, *, prefer_averaged: bool = False) -> Checkpoint:
    """Reads a checkpoint and finds the ResNet in it.

    Args:
        path: A file or a hub's folder.
        averaged: Whether averaged weights are wanted where there are others beside; None where there are not.
        prefer_averaged: Take the averaged ones instead of refusing where nothing is wanted; `has_both` says so.

    Raises:
        ModelError: It cannot be read, holds no ResNet of those that are built here, or more than one.
    """
    content = read_content(path)
    networks = find_networks(content)
    if not networks:
        raise _no_network(path, tensor_names(content) or list(state_dict_in(path, content)))
    hub = read_hub_config(path)
    _check_evidence(path, content, hub)
    try:
        both = len({each.is_averaged for each in networks}) == 2
        found = choose(networks, True if both and averaged is None and prefer_averaged else averaged)
    except UnclearError as unclear:
        raise ModelError(f"checkpoint {show(path)}: {unclear}") from None
    network = read_network(found, networks)
    weights = {**network.body, **(network.head.weights if network.head else {})}
    for name, value in weights.items():
        check_tensor(path, name, value)
    design = _design(path, network)
    weights, notes = _as_float(path, {**weights, **network.body})
    is_grey = _spread_grey(weights)
    if is_grey:
        notes.append("reads grey images: mean and std must be the same for every channel")
    arch = _arch(path, design)
    timm_args = _timm_args(content)
    is_timms = timm_args is not None or arch not in TORCHVISION or _has_timms_name(content)
    class_names = hub.class_names if hub and hub.class_names else _class_names(content)
    if class_names is not None and network.head is not None and len(class_names) != network.head.num_classes:
        class_names = None
    return Checkpoint(
        weights=weights,
        arch=arch,
        num_classes=network.head.num_classes if network.head else None,
        hidden=network.head.hidden if network.head else None,
        head_fault=network.head_fault or ("" if network.head else "has no head"),
        description=_describe(_maker(path, content, hub), networks, found, network, class_names, notes),
        class_names=class_names,
        is_averaged=found.is_averaged,
        is_grey=is_grey,
        normalization=network.normalization,
        library=hub.library if hub is not None else "timm" if is_timms else None,
        timm_args=timm_args or {},
        has_both=both,
    )


def _no_network(path: Path, names: list[str]) -> ModelError:
    return ModelError(
        f"checkpoint {show(path)}: holds the layers of none of {', '.join(ARCHITECTURES[:4])} ...: {len(names)} "
        f"weights, {_listed(names)}; expected those of a ResNet; "
        "another network can be given as ONNX"
    )


def _check_evidence(path: Path, content: object, hub: HubConfig | None) -> None:
    """Refuses what is said beside the weights that they do not show."""
    if hub is not None:
        hub.check()
    for key in _ARCH_KEYS:
        for held in _holders(content):
            check_name(path, held.get(key))


def _holders(content: object) -> list[Mapping[str, Any]]:
    """The dicts of a checkpoint that may say something about the network."""
    if not isinstance(content, dict):
        return []
    inside = [content.get(key) for key in _INSIDE]
    plain = [each.attributes if isinstance(each, Inert) else each for each in inside]
    return [content, *(each for each in plain if isinstance(each, dict))]


def _timm_args(content: object) -> dict[str, Any] | None:
    """What timm's training script was told of the images; None of a file that is another's."""
    if not isinstance(content, dict) or not {"arch", "version", "state_dict"} <= content.keys():
        return None
    return {
        key: value
        for held in _holders(content)
        for key in _TIMM_KEYS
        if isinstance(value := held.get(key), int | float | str | list | tuple) and value
    }


def _has_timms_name(content: object) -> bool:
    """Whether the network is called as only timm calls one: `resnet50.a1_in1k`, `tv_resnet34`."""
    names = [held.get(key) for held in _holders(content) for key in _ARCH_KEYS]
    return any(arch_called(name) is not None and name not in TORCHVISION for name in names)


def _class_names(content: object) -> list[str] | None:
    found = (class_names_in(held.get(key)) for held in _holders(content) for key in _NAMES_KEYS)
    return next((names for names in found if names is not None), None)


def _design(path: Path, network: Network) -> Design:
    """Finds the design, and holds all layers to it; adds the counters that nothing depends on."""
    import torch

    shapes = {name: tuple(value.shape) for name, value in network.body.items()}
    inputs = next((shape[1] for name, shape in shapes.items() if name in ("conv1.weight", "conv1.0.weight")), 3)
    design = read_design(shapes)
    if design is None:
        raise ModelError(f"checkpoint {show(path)}: {_odd_stem(shapes)}")
    own = shapes_of(design)
    for name in own.keys() - shapes.keys():
        if name.endswith("num_batches_tracked"):
            network.body[name], shapes[name] = torch.zeros((), dtype=torch.int64), ()
    missing, unknown = sorted(own.keys() - shapes.keys()), sorted(shapes.keys() - own.keys()) + network.unknown
    first = next(name for name in own if name.endswith(".weight"))
    if inputs in (1, 3):
        own[first] = (own[first][0], inputs, *own[first][2:])
    wrong = [name for name in own if name in shapes and shapes[name] != own[name]]
    if unknown or missing or wrong:
        raise ModelError(f"checkpoint {show(path)}: {_misfit(unknown, missing, wrong, shapes, own)}")
    return design


def _odd_stem(shapes: Mapping[str, tuple[int, ...]]) -> str:
    stem = shapes.get("conv1.weight") or shapes.get("conv1.0.weight")
    if stem is not None and tuple(stem[2:]) != (7, 7):
        return (
            f"its first convolution is {'x'.join(map(str, stem[2:]))}, as in ResNets for CIFAR, and its stride "
            "and the pooling behind it are not in the weights; expected 7x7, or three 3x3; give the model as ONNX"
        )
    return "lacks layers of a ResNet's four stages, expected those of torchvision's; give another network as ONNX"


def _misfit(
    unknown: list[str],
    missing: list[str],
    wrong: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    own: Mapping[str, tuple[int, ...]],
) -> str:
    if wrong:
        name = wrong[0]
        return f"{name} is {list(shapes[name])}, expected {list(own[name])} beside its other layers"
    found = [
        f"{what} {_listed(names)}" for what, names in (("has the unknown", unknown), ("lacks", missing)) if names
    ]
    return f"is no ResNet as torchvision builds it: {'; '.join(found)}; give the model as ONNX"


def _listed(names: list[str]) -> str:
    return ", ".join(show(name[:80]) for name in names[:_MAX_NAMED]) + (" ..." if len(names) > _MAX_NAMED else "")


def _arch(path: Path, design: Design) -> Architecture:
    arch = arch_of(design)
    if arch is None:
        raise ModelError(
            f"checkpoint {show(path)}: is a ResNet of {design}, which has no name, expected one of "
            f"{', '.join(ARCHITECTURES)}; give the model as ONNX"
        )
    return arch


def _as_float(path: Path, weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Makes float32 of the weights; the notes say of what."""
    import torch

    notes = []
    kinds = {value.dtype for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    whole = [name for name, value in weights.items() if not value.is_floating_point()]
    whole = [name for name in whole if not name.endswith("num_batches_tracked")]
    if whole:
        name = whole[0]
        kind = str(weights[name].dtype).removeprefix("torch.")
        raise ModelError(
            f"checkpoint {show(path)}: {name} holds {kind} values, expected floating-point ones; save the network "
            "as it was before it was quantised"
        )
    if kinds != {torch.float32}:
        names = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
        notes.append(f"{', '.join(names)} as float32")
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}, notes


def _spread_grey(weights: dict[str, torch.Tensor]) -> bool:
    """Gives a stem that reads one channel three, with the same result for the grey image of a colour one."""
    import torch

    first = "conv1.weight" if "conv1.weight" in weights else "conv1.0.weight"
    is_grey = weights[first].shape[1] == 1
    if is_grey:
        weights[first] = weights[first] * torch.tensor(_GREY).view(1, 3, 1, 1)
    return is_grey


def _describe(
    maker: str,
    networks: list[Found],
    found: Found,
    network: Network,
    class_names: list[str] | None,
    notes: list[str],
) -> str:
    head: Head | None = network.head
    left = list(dict.fromkeys(name.partition(".")[0] for name in network.left_out))
    parts = [
        maker,
        found.place,
        *(f"`{wrapper}.` left out" for wrapper in found.wrappers),
        "averaged (EMA) weights used" if found.is_averaged else "",
        "averaged ones beside not used"
        if not found.is_averaged and any(each.is_averaged for each in networks)
        else "",
        head.note if head is not None else network.head_fault or "has no head",
        *notes,
        f"names of {len(class_names)} classes" if class_names else "",
        f"left out: {', '.join(show(name[:40]) for name in left[:_MAX_NAMED])}" if left else "",
    ]
    return ", ".join(filter(None, parts))


def _maker(path: Path, content: object, hub: HubConfig | None) -> str:
    if hub is not None:
        return "timm model" if hub.library == "timm" else "Hugging Face model"
    if isinstance(content, dict) and "pytorch-lightning_version" in content:
        return "Lightning checkpoint"
    if any(arch_called(held.get("arch")) for held in _holders(content)):
        return "training checkpoint"
    return "safetensors file" if path.suffix == ".safetensors" else "torch.save file"
