"""The table of causes: each a change of the right pipeline, its words, and the mend on either side of the wire.

A further cause is a further row. `causes` leaves out what changes nothing for the pipeline at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from temper.imaging.preprocess import Triple
from temper.run.diagnose.pipeline import IMAGENET, Pipeline

Kind = Literal[
    "colour", "mean and std", "scale", "resize filter", "size and crop", "exif", "layout", "labels", "output",
    "batch normalisation", "weights", "precision",
]  # fmt: skip
Side = Literal["client", "graph"]
GEOMETRY = ("resize filter", "size and crop", "exif")
"""The kinds that are about where pixels come from, not about their values."""

USUAL: dict[str, tuple[Triple, Triple]] = {
    "ImageNet's": IMAGENET,
    "0.5 and 0.5 (pixels from -1 to 1)": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's with the usual wrong std": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100's": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "MNIST's": ((0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)),
}
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_CAFFE = {"colour": "bgr", "scale": 255.0, "mean": (103.939, 116.779, 123.68), "std": _ONE}
_FILTERS = {
    ("nearest", True): "nearest neighbour, as Pillow's",
    ("nearest", False): "nearest neighbour, as OpenCV's INTER_NEAREST or PyTorch's interpolate",
    ("bilinear", True): "bilinear with antialiasing, as Pillow's and torchvision's on images",
    ("bilinear", False): "bilinear without antialiasing, as OpenCV's INTER_LINEAR or a tensor's antialias=False",
    ("bicubic", True): "bicubic with antialiasing, as Pillow's",
    ("bicubic", False): "bicubic without antialiasing, as OpenCV's INTER_CUBIC or a tensor's antialias=False",
    ("lanczos", True): "Lanczos, as Pillow's",
    ("box", True): "the mean of an area, as Pillow's BOX or OpenCV's INTER_AREA",
}
_CROPS = (0.8, 0.875, 0.9, 0.95, 224 / 232, 1.0)
_LAYOUTS = {
    "hwc as chw": "pixels [H, W, 3] read as [3, H, W] (reshaped, not transposed), before mean and std",
    "chw as hwc": "pixels [3, H, W] read as [H, W, 3] (reshaped, not transposed), before mean and std",
    "hwc as chw, after mean and std": "a tensor [H, W, 3] read as [3, H, W] (reshaped, not transposed)",
    "chw as hwc, after mean and std": "a tensor [3, H, W] read as [H, W, 3] (reshaped, not transposed)",
    "height and width swapped": "height and width swapped",
}
_OUTPUTS = {
    "softmax": "softmax at the end",
    "softmax twice": "softmax twice at the end",
    "log-softmax": "log-softmax at the end",
    "sigmoid": "a sigmoid at the end",
}


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One cause."""

    kind: Kind
    """What it is about."""
    words: str
    """What is done, to follow "served with"."""
    changes: Mapping[str, Any]
    """The fields of `Pipeline` that differ."""
    mends: Mapping[Side, str]
    """What to change: in the client that sends, and in the graph that is served."""

    def apply(self, how: Pipeline) -> Pipeline:
        """The pipeline with this mistake."""
        return replace(how, **self.changes)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the served model beside its answers."""

    num_classes: int
    """How many outputs there are."""
    batches: tuple[int, ...] = (8,)
    """The sizes of the batches that may have been answered together."""
    classes: tuple[str, ...] = ()
    """The names of the outputs; none when nobody knows."""
    weights: tuple[str, ...] = ("",)
    """The names of the checkpoints; the first is the one that should be served."""
    has_exif: bool = True
    """Whether any image is to be turned upright."""


def causes(right: Pipeline, known: Known, sent: Pipeline | None = None) -> list[Hypothesis]:
    """Returns all single causes for a pipeline, the likeliest first.

    Args:
        right: What the network was trained with.
        known: What is known of the served model.
        sent: How the client prepares the images, where that is known.
    """
    found = [
        *_of_checkpoints(known),
        *_of_colour(right),
        *_of_mean_and_std(right),
        *_of_client(right, sent),
        *_of_filter(right),
        *_of_size(right),
        *(_of_exif(right) if known.has_exif else ()),
        *_of_layout(),
        *_of_batch_norm(known),
        *_of_output(),
        *_of_order(known),
    ]
    kept: list[Hypothesis] = []
    seen = [right]
    for one in found:
        if (how := one.apply(right)) not in seen:
            seen.append(how)
            kept.append(one)
    return kept


def permuted(order: Sequence[int]) -> Hypothesis:
    """The outputs in an order that was found by their values."""
    moved = sum(index != source for index, source in enumerate(order))
    shown = ", ".join(f"{index} is {source}" for index, source in enumerate(order) if index != source)
    shown = shown if len(shown) < 80 else f"{shown[:76]} ..."
    return _labels(f"{moved} of {len(order)} outputs in other places (output {shown})", order)


def _of_checkpoints(known: Known) -> Iterator[Hypothesis]:
    for index, name in enumerate(known.weights):
        words = f"the weights of {name}"
        mend = f"publish {known.weights[0]} in their place, or take {name} for the right ones"
        yield Hypothesis(kind="weights", words=words, changes={"network": index}, mends=_both(mend))


def _of_colour(right: Pipeline) -> Iterator[Hypothesis]:
    other = "bgr" if right.colour == "rgb" else "rgb"
    yield Hypothesis(
        kind="colour",
        words=f"the colours as {other.upper()} where the network learnt {right.colour.upper()}",
        changes={"colour": other},
        mends={
            "client": f"send {right.colour.upper()}: image = image[..., ::-1] before it is sent "
            "(OpenCV: cv2.cvtColor(image, cv2.COLOR_BGR2RGB))",
            "graph": f'state it and export again: `colour = "{right.colour}"` in the recipe\'s [data], or take '
            "the swap of channels out of the graph",
        },
    )
    yield Hypothesis(
        kind="colour",
        words="grey pixels in place of colours",
        changes={"colour": "grey"},
        mends={
            "client": 'decode in colour: image.convert("RGB")',
            "graph": "take the step to grey out of the graph",
        },
    )


def _of_mean_and_std(right: Pipeline) -> Iterator[Hypothesis]:
    other = 255.0 if right.scale == 1.0 else 1.0
    rows: list[tuple[Kind, str, dict[str, Any]]] = [
        ("mean and std", "no mean and std, pixels from 0 to 1", {"scale": 1.0, "mean": _ZERO, "std": _ONE}),
        ("mean and std", "no mean and std, pixels from 0 to 255", {"scale": 255.0, "mean": _ZERO, "std": _ONE}),
        ("mean and std", "mean and std applied twice", {"times": 2}),
        ("scale", f"pixels from 0 to {other:g} where mean and std are of 0 to {right.scale:g}", {"scale": other}),
        ("scale", "pixels divided by 255 once too often", {"scale": right.scale / 255}),
        ("mean and std", "the mean left out", {"mean": _ZERO}),
        ("mean and std", "the std left out", {"std": _ONE}),
        ("mean and std", "mean and std in the order BGR", {"mean": right.mean[::-1], "std": right.std[::-1]}),
        ("mean and std", "Caffe's preprocessing (BGR, 0 to 255, a mean of 103.939, 116.779, 123.68)", _CAFFE),
    ]
    for name, (mean, std) in USUAL.items():
        rows.append(("mean and std", f"mean and std {name}", {"scale": 1.0, "mean": mean, "std": std, "times": 1}))
    for kind, words, changes in rows:
        yield Hypothesis(kind=kind, words=words, changes=changes, mends=_normalisation(right))


def _normalisation(right: Pipeline) -> dict[Side, str]:
    mean, std = list(right.mean), list(right.std)
    return {
        "client": f"send (image * {right.scale / 255:.6g} - {mean}) / {std}, once, of pixels from 0 to 255",
        "graph": f"export again with `mean = {mean}`, `std = {std}`, `scale = {right.scale:g}` in the "
        "recipe's [data], applied once",
    }


def _of_client(right: Pipeline, sent: Pipeline | None) -> Iterator[Hypothesis]:
    """What the client is known to do otherwise, as one cause."""
    if sent is None or sent.geometry == right.geometry:
        return
    names = ("resize", "crop_margin", "interpolation", "antialias", "upright")
    changes = {name: getattr(sent, name) for name in names if getattr(sent, name) != getattr(right, name)}
    if len(changes) == 1 and next(iter(changes)) not in ("resize", "crop_margin"):
        return  # in the rows of its own
    said = ", ".join(f"{name} = {_toml(value)}" for name, value in changes.items())
    yield Hypothesis(
        kind="size and crop",
        words=f"images sized as they are sent ({said})",
        changes=changes,
        mends=_sizing(right),
    )


def _sizing(right: Pipeline) -> dict[Side, str]:
    covers = "no `resize` and no `preset`" if right.height != right.width else f"`resize = {right.height}`"
    sized = covers if right.resize == "cover" else f"`resize = {_toml(right.resize)}`"
    line = (
        f"{sized}, `interpolation = {_toml(right.interpolation)}`, "
        f"`antialias = {_toml(right.antialias)}`, then the centre {right.height} x {right.width}"
    )
    return {
        "client": f"size images as in training: {line}",
        "graph": f"size images as in training: {line} in the recipe's [data], and publish again",
    }


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)


def _of_filter(right: Pipeline) -> Iterator[Hypothesis]:
    for (interpolation, antialias), words in _FILTERS.items():
        changes = {"interpolation": interpolation, "antialias": antialias}
        yield Hypothesis(
            kind="resize filter", words=f"images scaled by {words}", changes=changes, mends=_sizing(right)
        )


def _of_size(right: Pipeline) -> Iterator[Hypothesis]:
    height, width = right.height, right.width
    rows: list[tuple[str, object]] = [(f"squashed to {height} x {width}", (height, width))]
    for share in _CROPS:
        for side in sorted({math.floor(min(height, width) / share), round(min(height, width) / share)}):
            rows.append((f"with the shorter side at {side}, then cropped", side))
    rows += [(f"squashed to {side} x {side}, then cropped", (side, side)) for side in {round(height / 0.875)}]
    if height != width:  # of a square that is its shorter side
        rows.append((f"until they cover {height} x {width}, then cropped", "cover"))
    rows += [
        (f"until they fit in {height} x {width}, the rest black", "pad"),
        ("not at all, only cropped", "none"),
    ]
    for words, resize in rows:
        yield Hypothesis(
            kind="size and crop", words=f"images scaled {words}", changes={"resize": resize}, mends=_sizing(right)
        )


def _of_exif(right: Pipeline) -> Iterator[Hypothesis]:
    said = "not turned upright: EXIF's orientation ignored" if right.upright else "turned upright as EXIF says"
    mend = (
        "turn images upright: image = PIL.ImageOps.exif_transpose(image) (OpenCV's imread does so by itself)"
        if right.upright
        else "leave images as their files hold them, as in training (OpenCV: IMREAD_IGNORE_ORIENTATION)"
    )
    words = f"images {said}"
    yield Hypothesis(kind="exif", words=words, changes={"upright": not right.upright}, mends=_both(mend))


def _of_layout() -> Iterator[Hypothesis]:
    for layout, words in _LAYOUTS.items():
        mends: dict[Side, str] = {
            "client": "transpose, not reshape: image.transpose(2, 0, 1) from [H, W, 3] to [3, H, W]",
            "graph": "transpose, not reshape: image.permute(0, 3, 1, 2) at the graph's front",
        }
        yield Hypothesis(kind="layout", words=words, changes={"layout": layout}, mends=mends)


def _of_batch_norm(known: Known) -> Iterator[Hypothesis]:
    for size in known.batches:
        yield Hypothesis(
            kind="batch normalisation",
            words=f"batch normalisation in training mode (statistics of each batch of {size})",
            changes={"batch_norm": size},
            mends=_both(
                "call model.eval() before torch.onnx.export (training=TrainingMode.EVAL), and publish again"
            ),
        )


def _of_output() -> Iterator[Hypothesis]:
    yield Hypothesis(
        kind="output",
        words="logits where softmax is expected",
        changes={"output": "logits"},
        mends=_both("apply softmax to what is served, or say `--output logits`"),
    )
    for output, words in _OUTPUTS.items():
        once = output == "softmax twice"
        mends: dict[Side, str] = {
            "client": "send back logits, not what was made of them; or say `--output softmax` if that is meant",
            "graph": f"take the {'second softmax' if once else output} out of the graph"
            + ("" if output != "softmax" else "; or say `--output softmax` if that is meant"),
        }
        yield Hypothesis(kind="output", words=words, changes={"output": output}, mends=mends)


def _of_order(known: Known) -> Iterator[Hypothesis]:
    num = known.num_classes
    numbers = range(num)
    by_text = sorted(numbers, key=str)
    rows: list[tuple[str, Sequence[int]]] = [
        ("the outputs sorted as text (0, 1, 10, 2), where the network has them by number", by_text),
        ("the outputs by number, where the network has them sorted as text (0, 1, 10, 2)", _inverse(by_text)),
        ("the outputs from last to first", list(reversed(numbers))),
        ("the outputs one place too high", [(index - 1) % num for index in numbers]),
        ("the outputs one place too low", [(index + 1) % num for index in numbers]),
    ]
    if len(known.classes) == num:
        by_name = sorted(numbers, key=lambda index: known.classes[index])
        rows += [
            ("the outputs in the alphabet's order of the class names", by_name),
            ("the outputs in the network's order, where the names are in the alphabet's", _inverse(by_name)),
        ]
    for words, order in rows:
        if list(order) != list(numbers):
            yield _labels(words, order)


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=lambda index: order[index])


def _labels(words: str, order: Sequence[int]) -> Hypothesis:
    mend = "state the order of the network's outputs: `labels = \"classes.txt\"` in the recipe's [data]"
    return Hypothesis(kind="labels", words=words, changes={"order": tuple(order)}, mends=_both(mend))


def _both(mend: str) -> dict[Side, str]:
    return {"client": mend, "graph": mend}
