"""What `temper init` sees in the weights that it is given: a checkpoint, a hub's folder, an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temper.builder.class_names import check_same_order
from temper.builder.data.labels import read_class_names
from temper.builder.errors import DataError, ModelError
from temper.builder.network.hub import Library
from temper.builder.network.resnet import ModelConfig
from temper.imaging.errors import show
from temper.imaging.folder import name_few
from temper.imaging.preprocess import sides

USUAL_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights that a recipe starts from."""

    given: str
    """A path, "torchvision" or "random"."""
    arch: str | None
    """The architecture; None of an ONNX file, which holds its own."""
    num_classes: int | None = None
    """Length of a file's output; None where there is no file, or no head in it."""
    described: str = ""
    """What a file is, in one line."""
    has_averaged: bool = False
    """Whether a checkpoint has averaged weights beside those as trained."""
    class_names: tuple[str, ...] | None = None
    """The classes in the order of the outputs, where the file carries them."""
    list_file: str | None = None
    """A file beside the weights that lists them."""
    size: tuple[int, int] | None = None
    """Height and width that an ONNX file is fixed to, in pixels."""
    pixels: dict[str, Any] = field(default_factory=dict)
    """Keys of `[data]` that the weights, or a file beside them, state."""
    pixels_from: str = ""
    """Which file that is."""
    pixels_open: tuple[str, ...] = ()
    """What timm's script, whose arguments they are, took from elsewhere."""
    library: Library | None = None
    """Whose network it is, where something tells."""

    @property
    def kind(self) -> str:
        """What a file is called."""
        return "ONNX file" if self.arch is None else "checkpoint"

    @property
    def is_file(self) -> bool:
        """Whether the weights come from a file or a folder."""
        return ModelConfig(weights=self.given).checkpoint is not None


def look_at_weights(weights: str) -> Weights:
    """Looks at a checkpoint, an ONNX file, or a folder that holds either.

    Raises:
        ModelError: A build would refuse it.
    """
    from temper.builder.network.hub import graph_in

    config = ModelConfig(weights=weights)
    if config.checkpoint is None:
        return Weights(given=weights, arch=config.arch)
    graph = config.graph or graph_in(config.checkpoint)
    return _look_at_checkpoint(weights, config.checkpoint) if graph is None else _look_at_graph(graph)


def _look_at_checkpoint(given: str, path: Path) -> Weights:
    from temper.builder.network.imported import open_checkpoint
    from temper.builder.network.preprocessing import left_to_timm, preprocessing_of, preprocessing_source

    checkpoint = open_checkpoint(path, prefer_averaged=True)
    script = {} if preprocessing_of(path) else checkpoint.timm_args  # what lies beside it says more
    return Weights(
        given=given,
        arch=checkpoint.arch,
        num_classes=checkpoint.num_classes,
        described=checkpoint.description,
        has_averaged=checkpoint.has_both,
        **_named(path, checkpoint.class_names),
        pixels=preprocessing_of(path, script) or {},
        pixels_from=preprocessing_source(path, script),
        pixels_open=tuple(left_to_timm(script)),
        library=checkpoint.library,
    )


def _look_at_graph(path: Path) -> Weights:
    from temper.builder.network.hub import class_names_beside, read_hub_config
    from temper.builder.network.onnx_import import describe_onnx
    from temper.builder.network.preprocessing import preprocessing_of, preprocessing_source

    pixels, source, hub = preprocessing_of(path) or {}, preprocessing_source(path), read_hub_config(path)
    size = sides(pixels.get("image_size", USUAL_SIZE))
    known = describe_onnx(path, usual_size=size)
    if pixels and known.size not in (None, size):
        fixed, stated = (" x ".join(map(str, each)) for each in (known.size, size))
        raise ModelError(
            f"ONNX file {show(path)}: takes images of {fixed} pixels, {source} beside it says {stated}; mend that "
            "file, or give the ONNX file alone"
        )
    return Weights(
        given=str(path),
        arch=None,
        num_classes=known.num_classes,
        described=known.note,
        size=known.size,
        **_named(path, class_names_beside(path, known.num_classes)),
        pixels=pixels,
        pixels_from=source,
        library=hub.library if hub is not None else None,
    )


def _named(path: Path, names: list[str] | None) -> dict[str, Any]:
    """What is known of the classes: their names, and the file beside the weights that lists them, if one does."""
    from temper.builder.network.hub import CONFIG_FILE, hub_folder

    if names is None:
        return {}
    beside = hub_folder(path) / CONFIG_FILE
    return {"class_names": tuple(names), "list_file": str(beside) if _lists(beside, names) else None}


def order_of(weights: Weights, found: Sequence[str], labels: Path | None) -> tuple[str, ...] | None:
    """Returns the classes in the order of a file's outputs, where that is another than the images' own.

    Args:
        weights: The file.
        found: The images' classes.
        labels: The list that they are from, if there is one.

    Raises:
        DataError: The file carries a list of classes in which the images' are not, or another order than `labels`.
        ModelError: An ONNX file has another number of classes.
    """
    names, what = weights.class_names, f"{weights.kind} {show(weights.given)}"
    order = None
    if names is not None and len(names) == weights.num_classes and list(names) != list(found):
        order = _order(what, names, found, labels)
    if weights.arch is None and weights.num_classes != len(order or found):
        raise ModelError(
            f"{what}: its head has {weights.num_classes} classes, the data has {len(found)}; use the classes that "
            "it was trained on, as an ONNX file's head cannot be replaced"
        )
    return order


def _order(what: str, names: tuple[str, ...], found: Sequence[str], labels: Path | None) -> tuple[str, ...] | None:
    if labels is not None:
        check_same_order(what, names, found, str(labels))
        return None
    unknown = [name for name in found if name not in names]
    if not unknown:
        return names
    if len(names) != len(found):
        return None  # another task: a new head is trained
    raise DataError(
        f"{what}: knows the classes {_few(names)}, the data has {_few(unknown)} instead; rename them, or list the "
        "data's names in the order of its outputs in a file, one a line, and give it with --labels"
    )


def _few(names: Sequence[str]) -> str:
    return name_few([show(name) for name in names])


def _lists(path: Path, names: Sequence[str]) -> bool:
    try:
        return read_class_names(path) == list(names)
    except DataError:
        return False
