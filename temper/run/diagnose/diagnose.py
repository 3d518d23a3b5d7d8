"""The whole: images, networks, what was served, the search for a cause, and accuracies beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.client.model import ModelInfo
from temper.client.stats import proportion
from temper.imaging.errors import ImageError, show
from temper.imaging.folder import name_few
from temper.run.diagnose.classes import accuracy, labels_of_folders, other_order, read_classes, with_names
from temper.run.diagnose.decide import Verdict, judge
from temper.run.diagnose.errors import DiagnoseError
from temper.run.diagnose.how import (
    Fields,
    fields_of_checkpoint,
    fields_of_server,
    make_pipeline,
    read_fields,
    say_pipeline,
)
from temper.run.diagnose.hypotheses import GEOMETRY, Hypothesis, Known, Side
from temper.run.diagnose.network import Networks, open_networks
from temper.run.diagnose.pipeline import Output, Picture, Pipeline, Precision, flat_pictures, open_picture
from temper.run.diagnose.search import Bench, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

Served = Callable[[Sequence[Picture], Pipeline], "NDArray[np.float32]"]
_ANSWERED = (1, 8, 16, 32)
"""The batches in which a client of somebody else's may have sent its images."""
_MAX_PIXELS = 1 << 29
"""Of all the images together, which are kept decoded: 1.6 GB."""
_PIXELS = ("colour", "scale", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be compared."""

    model: str
    """The served model, or a name for whoever gave the answers."""
    files: Sequence[Path]
    """The images, in the order of the answers where there are any."""
    root: Path
    """Their folder."""
    weights: Sequence[Path]
    """The checkpoint that should be served, and others that might be."""
    trained: Sequence[str] = ()
    """How the network's images were prepared."""
    sent: Sequence[str] = ()
    """How the client prepares them."""
    classes: Path | None = None
    """The names of the network's outputs."""
    labels: NDArray[np.int64] | None = None
    """The right output for each file; None takes class folders."""
    output: Output = "logits"
    """What should be served: logits or softmax."""
    precision: Precision | None = None
    """The arithmetic that is meant; None is what the server says, else float32."""
    num_images: int = 24
    """How many images are compared."""
    seed: int = 0
    """Draws them."""
    effort: float = 1.0
    """How much to search, whatever the machine: 1 is some 25 s on a core."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a comparison came to, ready for JSON."""

    model: str
    """The served model."""
    num_images: int
    """Images that were compared."""
    verdict: Verdict
    """Whether they agree, and the causes."""
    side: dict[int, Side]
    """Who makes each cause."""
    agreement: dict[str, Any]
    """The share of images with the same answer."""
    accuracy: dict[str, Any] | None
    """Of the served model and of the network, where the classes are known."""
    trained: str
    """How the network's images were prepared, and where that is from."""
    sent: str
    """How they were sent."""
    notes: Sequence[str]
    """What else there is to say."""
    seconds: float
    """How long it took."""

    def mend(self, index: int) -> str:
        """What to change for one of the causes."""
        return self.verdict.causes[index].hypothesis.mends[self.side[index]]

    def to_json(self) -> dict[str, Any]:
        """Returns it as a JSON object."""
        verdict = self.verdict
        return {
            "model": self.model,
            "agrees": verdict.agrees,
            "num_images": self.num_images,
            "relative_rms": verdict.before,
            "relative_rms_allowed": verdict.level,
            "relative_rms_left": verdict.left,
            "agreement": self.agreement,
            "causes": [
                {
                    "kind": one.hypothesis.kind,
                    "cause": one.hypothesis.words,
                    "explained": dict(one.share),
                    "side": self.side[index],
                    "mend": self.mend(index),
                    "note": one.note,
                }
                for index, one in enumerate(verdict.causes)
            ],
            "candidates": [
                {"kinds": [part.kind for part in one.parts], "cause": one.words, "explained": dict(share)}
                for one, share in verdict.candidates
            ],
            "note": verdict.note,
            "accuracy": self.accuracy,
            "trained": self.trained,
            "sent": self.sent,
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def diagnose(
    question: Question,
    progress: Progress,
    *,
    ask: Served | None = None,
    info: ModelInfo | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 8,
    answers: NDArray[np.float32] | None = None,
) -> Diagnosis:
    """Compares what was served with the network in PyTorch, and looks for the cause of a difference.

    Args:
        question: What is to be compared.
        progress: Called with (tries done, tries in all).
        ask: Sends pictures as they are to be prepared, and returns the scores [N, classes]; or `answers`.
        info: What the server says of the model.
        size: Height and width that it takes, where they are fixed.
        batch: Images that it is sent at once.
        answers: The scores of all the files, [N, classes].

    Raises:
        DiagnoseError: The images, the checkpoint and the answers do not fit together.
        ModelError: A checkpoint cannot be read.
    """
    started = time.monotonic()
    right, sent, sources = _pipelines(question, info, size)
    chosen = _chosen(question, answers is not None)
    pictures = _open(question, chosen, right)
    weights, networks, num_classes = _networks(question)
    if answers is not None:
        served = answers[chosen]
    else:
        assert ask is not None
        served = ask(pictures, sent)
    if served.shape[1] != num_classes:
        raise DiagnoseError(
            f"{question.model}: gives {served.shape[1]} scores, and {weights[0]} has {num_classes} classes; "
            " give the checkpoint that should be served"
        )
    names = read_classes(question.classes, num_classes) if question.classes else ()
    known = Known(
        num_classes=num_classes,
        batches=(batch,) if answers is None else (*_ANSWERED, len(chosen)),
        classes=names or (info.labels if info else ()),
        weights=weights,
        has_exif=any(one.orientation != 1 for one in pictures),
    )
    bench = Bench(pictures, networks, served)

    def probe() -> Bench:
        assert ask is not None
        flat = flat_pictures(right)
        return Bench(flat, networks, ask(flat, sent))

    verdict = judge(
        bench,
        right,
        known,
        sent=sent if answers is None else None,
        precision=question.precision or _stated_precision(info),
        effort=question.effort,
        progress=progress,
        probe=probe if ask is not None else None,
    )
    verdict = with_names(verdict, names, info)
    labels, said = question.labels, ""
    if labels is not None and (labels.min() < 0 or labels.max() >= num_classes):
        raise DiagnoseError(
            f"labels: got {labels.min()} to {labels.max()}, expected the network's outputs, 0 to {num_classes - 1}"
        )
    if labels is None:
        labels, said = labels_of_folders(question.files, question.root, known)
    reference = bench.answer(right)
    # Where the folders' own order is a guess, it says nothing of the network's.
    order = "" if labels is None or said else other_order(reference.argmax(1), labels[chosen], known.classes)
    return Diagnosis(
        model=question.model,
        num_images=len(pictures),
        verdict=verdict,
        side={index: _side(one.hypothesis, right, sent, info) for index, one in enumerate(verdict.causes)},
        agreement=dict(proportion(served.argmax(1) == reference.argmax(1))),
        accuracy=None if labels is None else accuracy(served, reference, labels[chosen]),
        trained=f"{say_pipeline(right)}; {sources[0]}",
        sent="by the client that got the answers"
        if answers is not None
        else f"{say_pipeline(sent, whole=info is None or info.input_dtype != 'UINT8')}; {sources[1]}",
        notes=[
            *([f"compared with {weights[0]}"] if len(weights) > len(question.weights) else []),
            *filter(None, [said, order]),
        ],
        seconds=round(time.monotonic() - started, 2),
    )


def _pipelines(
    question: Question, info: ModelInfo | None, size: tuple[int, int] | None
) -> tuple[Pipeline, Pipeline, tuple[str, str]]:
    """The right pipeline, the client's, and where each is from."""
    stated, own = read_fields(question.trained), fields_of_checkpoint(question.weights[0])
    server: Fields = fields_of_server(info) if info is not None else {}
    base, source = (own, "from beside the checkpoint") if own else (server, "as the server says")
    if not base:
        base, source = {"preset": "torchvision"}, "torchvision's, as nothing else is stated"
        if size is not None and size[0] != size[1]:  # of which a preset does not say the resize
            base["resize"] = "cover"
    if "preset" in stated:
        base = {}
    source = "as stated with --trained" if stated else source
    if info is None and not {"image_size", "preset"} & ((own or {}) | stated).keys():
        raise DiagnoseError(
            "image_size: got nothing, and no server says it; state how the images were prepared in training, as "
            "--trained 'image_size = 224, resize = 256'"
        )
    right = replace(make_pipeline({**base, **stated}, size), output=question.output)
    client = read_fields(question.sent)
    # The wire of a model that takes whole numbers is RGB, whatever its network takes.
    defaults: Fields = {"colour": "rgb"} if info is not None and info.input_dtype == "UINT8" else {}
    fields = {**base, **stated, **server, **defaults, **client}
    if "preset" in client:
        fields = {**defaults, **client}
    where = "as stated with --sent" if client else "as the server says" if server else "as in training"
    return right, make_pipeline(fields, size), (source, where)


def _chosen(question: Question, in_order: bool) -> list[int]:
    """The images that are compared: drawn, or the first, as a stranger's batches go by their order."""
    count = min(question.num_images, len(question.files))
    if in_order:
        return list(range(count))
    return [int(index) for index in np.random.default_rng(question.seed).permutation(len(question.files))[:count]]


def _open(question: Question, chosen: Sequence[int], how: Pipeline) -> list[Picture]:
    if len(chosen) < 2:
        raise DiagnoseError(f"{show(question.root)}: holds {len(chosen)} image, expected at least 2, better 24")
    found, failed, num_pixels = [], [], 0
    for index in chosen:
        try:
            found.append(open_picture(question.files[index], how))
            num_pixels += found[-1].image.width * found[-1].image.height
        except ImageError as error:
            failed.append(f"{show(question.files[index])} {error.reason}")
        if num_pixels > _MAX_PIXELS:
            raise DiagnoseError(
                f"--num-images: got {len(chosen)}, of which {len(found)} have {num_pixels:,} pixels, expected at "
                f"most {_MAX_PIXELS:,} in all; give fewer"
            )
    if failed:
        raise DiagnoseError(f"{len(failed):,} images cannot be used: {name_few(failed)}; repair or remove them")
    return found


def _networks(question: Question) -> tuple[tuple[str, ...], Networks, int]:
    """The names of the checkpoints' networks, the networks, and how many classes they tell apart."""
    opened = [one for path in question.weights for one in open_networks(path)]
    first, _, num_classes = opened[0]
    for name, _, num in opened:
        if num != num_classes:
            raise DiagnoseError(f"checkpoint {name}: has {num} classes, and {first} {num_classes}; leave it out")
    return tuple(name for name, _, _ in opened), Networks([network for _, network, _ in opened]), num_classes


def _stated_precision(info: ModelInfo | None) -> Precision:
    if info is None:
        return "fp32"
    if info.int8_weight_bits is not None:
        return "int8 of 7 bits" if info.int8_weight_bits == 7 else "int8"
    stated: dict[str, Precision] = {"bf16": "bf16", "f16": "fp16"}
    if info.input_dtype == "FP16":
        return "fp16"
    return stated.get(info.precision_hint or "", "fp32")


def _side(hypothesis: Hypothesis, right: Pipeline, sent: Pipeline, info: ModelInfo | None) -> Side:
    if info is None or hypothesis.kind in GEOMETRY:
        return "client"
    if info.input_dtype == "UINT8":  # pixels as they are: the rest is in what is served
        return "graph"
    differs = any(getattr(right, name) != getattr(sent, name) for name in _PIXELS)
    return "client" if differs and set(_PIXELS) & set(hypothesis.changes) else "graph"
