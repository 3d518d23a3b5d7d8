"""Ten mistakes of deployment, each served for real: does the gate ship one, and does the diagnosis name it?

A ResNet-18 is finetuned on crops of photographs. What is wrong lies in its graph, its engine, the CPU, or a client
that makes images with torchvision. The gate holds it against the network served right, on the same images.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import diagnose
from benchmarks.common import CACHE, write_results
from benchmarks.diagnose import FOLDER, Case, _environment, _graph, _nchw, _opened, publish_case, serving
from benchmarks.photos import cover, crops, make_network, photographs, transform, write_crops
from temper.builder.engines.isa import AVX2_ONLY
from temper.client.client import Client
from temper.client.images import softmax
from temper.gate.config import GateConfig
from temper.gate.decide import decide
from temper.gate.evidence import Answers, Evidence
from temper.gate.rules.accuracy import AccuracyRule
from temper.gate.rules.engine import EngineRule
from temper.gate.rules.flips import FlipsRule
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

SIZE = 64
NUM_EACH, NUM_TRAIN = 100, 40
EPOCHS, EARLY = 4, 1
GATE = GateConfig(
    accuracy=AccuracyRule(max_drop=1.0), flips=FlipsRule(max=1.0), engine=EngineRule(agreement_with_torch=0.995)
)


def _squashed(path: Any, size: int) -> Any:
    return np.asarray(transform((size, size), size)(_opened(path)))


def _nearest(path: Any, size: int) -> Any:
    from torchvision.transforms import InterpolationMode, functional  # type: ignore[import-untyped]

    sized = functional.resize(_opened(path), 73, interpolation=InterpolationMode.NEAREST)
    values = functional.to_tensor(functional.center_crop(sized, [size, size]))
    return np.asarray(functional.normalize(values, IMAGENET_MEAN, IMAGENET_STD))


def _right(path: Any, size: int) -> Any:
    return np.asarray(transform(73, size)(_opened(path)))


_EARLY_FILE = FOLDER / "early.safetensors"
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
MISTAKES = {
    "BGR for RGB": _graph("bgr", "colour", "BGR", front={"flip": True}),
    "wrong mean and std": _graph("mean", "mean and std", "0.5", front=_HALF),
    "wrong resize filter": _nchw("filter", "resize filter", "nearest", client=_nearest),
    "squashed instead of cropped": _nchw("squashed", "size and crop", "squashed to 64", client=_squashed),
    "swapped labels": _graph("labels", "labels", "sorted as text", front={"text_order": True}),
    "an engine of another epoch": _graph("epoch", "weights", "early", options=("--weights", str(_EARLY_FILE))),
    "calibration on unnormalised data": _graph("calibration", "precision", "calibrat", int8="unnormalised"),
    "NCHW read as NHWC": _graph("layout", "layout", "reshaped", front={"reshape": True}),
    "training-mode BatchNorm": _graph("batchnorm", "batch normalisation", "training mode", in_training=True),
    "int8 saturating without VNNI": _graph("saturating", "precision", "saturating", int8="full", avx2=True),
}
RIGHT = {
    "the same, served twice": Case(name="again"),
    "int8 of 7 bits": Case(name="int8", int8="reduced"),
    "the same, for clients": _nchw("again_nchw", client=_right),
}
REFERENCES = {True: Case(name="reference"), False: _nchw("reference_nchw", client=_right)}
"""What is served right, by whether it takes pixels."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """The test images: files, what they show, and what takes pixels is sent."""

    files: Sequence[Any]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    pixels: np.ndarray[Any, np.dtype[np.uint8]]

    def of(self, case: Case) -> np.ndarray[Any, Any]:
        """What a client sends: its own numbers, or pixels as Temper's does."""
        if case.client is None:
            return self.pixels
        made: np.ndarray[Any, Any] = np.stack([case.client(path, SIZE) for path in self.files])
        return made.astype(np.float32)


def main() -> None:
    """Train, publish, serve, judge, diagnose, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    only = set(filter(None, parser.parse_args().only.split(",")))
    shutil.rmtree(FOLDER, ignore_errors=True)
    chosen = {title: case for title, case in (MISTAKES | RIGHT).items() if not only or case.name in only}
    network, early = train()
    cases = [*REFERENCES.values(), *chosen.values()]
    for case in cases:
        publish_case(case, network, early if case.name == "epoch" else None)
    _save(early)
    images = make_images()
    write_crops(FOLDER / "images", 4, seed=1)
    scores: dict[str, np.ndarray[Any, Any]] = {}
    diagnoses: dict[str, dict[str, Any]] = {}
    for avx2 in (False, True):
        some = [case for case in cases if case.avx2 == avx2]
        if some:
            with _environment(AVX2_ONLY if avx2 else {}), serving([case.name for case in some]) as server:
                for case in some:
                    scores[case.name] = ask(server.grpc_url, case, images)
                diagnoses |= {
                    case.name: diagnose.measure(case, server.grpc_url, is_healthy=not case.kinds)
                    for case in some
                    if case in chosen.values()
                }
    torch_answers = {takes: classify(network, images.of(case), case) for takes, case in REFERENCES.items()}
    rows = [
        judge(title, case, scores, torch_answers, images, diagnoses[case.name]) for title, case in chosen.items()
    ]
    wrong = [row for row in rows if row["mistake"] in MISTAKES]
    shipped, named = (sum(row[key] for row in wrong) for key in ("shipped", "named"))
    false = sum(diagnoses[case.name]["found"] != [] for title, case in chosen.items() if title in RIGHT)
    print(f"{len(wrong)} mistakes: {shipped} shipped, {named} named; of the right ones {false} given a cause")
    if not only:
        write_results(
            "gate_mistakes",
            {"images": len(images.files), "rows": rows, "shipped": shipped, "named": named, "false": false},
        )


def train() -> tuple[nn.Module, nn.Module]:
    """The finetuned network, and the same after its first epochs, both in evaluation mode."""
    kept = CACHE / f"gate_mistakes-{NUM_TRAIN}-{EPOCHS}-{EARLY}.pt"
    network = make_network("resnet18", SIZE, seed=0)
    early = copy.deepcopy(network)
    if kept.is_file():
        for each, state in zip((network, early), torch.load(kept, weights_only=True), strict=True):
            each.load_state_dict(state)
        return network.eval(), early.eval()
    pictures, labels = crops(NUM_TRAIN, seed=11)
    prepare = transform(73, SIZE)
    whole = torch.stack([prepare(image) for image in pictures])
    whole = torch.cat([whole, normalise(np.stack([np.asarray(cover(image, SIZE)) for image in pictures]))])
    targets = torch.from_numpy(np.concatenate([labels, labels]))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    steps = EPOCHS * len(whole) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.02, total_steps=steps + EPOCHS)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        if epoch == EARLY:
            early.load_state_dict(network.state_dict())
        network.train()
        order = torch.randperm(len(whole), generator=generator)
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            flipped = whole[rows].flip(3) if torch.rand((), generator=generator) < 0.5 else whole[rows]
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(flipped), targets[rows]).backward()  # type: ignore[no-untyped-call]  # torch's
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save([network.state_dict(), early.state_dict()], kept)
    return network.eval(), early.eval()


def _save(early: nn.Module) -> None:
    from temper.builder.network.resnet import save_weights

    save_weights(early, _EARLY_FILE)


def normalise(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """Pixels, uint8 [N, H, W, 3], as the network takes them, float32 [N, 3, H, W]."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (values - mean) / std


def make_images() -> Images:
    """The test images, in an order that mixes the classes: batches of one class are nobody's traffic."""
    files = write_crops(FOLDER / "test", NUM_EACH, seed=2)
    files = [files[index] for index in np.random.default_rng(0).permutation(len(files))]
    names = list(photographs())
    pixels = np.stack([np.asarray(cover(_opened(path), SIZE)) for path in files])
    return Images(files=files, labels=np.array([names.index(path.parent.name) for path in files]), pixels=pixels)


def ask(url: str, case: Case, images: Images) -> np.ndarray[Any, Any]:
    """The served scores of all test images."""
    with Client(url, timeout_s=600) as client:
        return client.infer(case.name, images.of(case))


def classify(network: nn.Module, sent: np.ndarray[Any, Any], case: Case) -> np.ndarray[Any, Any]:
    """PyTorch's classes of what was sent, as it should have been."""
    values = normalise(sent) if case.client is None else torch.from_numpy(sent)
    with torch.no_grad():
        parts = [network(values[start : start + 100]) for start in range(0, len(values), 100)]
    answers: np.ndarray[Any, Any] = torch.cat(parts).argmax(1).numpy()
    return answers


def judge(
    title: str,
    case: Case,
    scores: dict[str, np.ndarray[Any, Any]],
    torch_answers: dict[bool, np.ndarray[Any, Any]],
    images: Images,
    found: dict[str, Any],
) -> dict[str, Any]:
    """One row of the table: the gate's answer, what decided it, and what the diagnosis said."""
    takes_pixels = case.client is None
    reference, candidate = (
        Answers(classes=each.argmax(1), confidence=softmax(each).max(1).astype(np.float32))
        for each in (scores[REFERENCES[takes_pixels].name], scores[case.name])
    )
    evidence = Evidence(
        class_names=list(photographs()),
        labels=images.labels,
        reference=reference,
        candidate=candidate,
        same_as_torch=candidate.classes == torch_answers[takes_pixels],
    )
    answer, findings, _ = decide(GATE, evidence)
    row = {
        "mistake": title,
        "answer": answer,
        "shipped": answer == "SHIP",
        "findings": {one.rule: {"figure": one.figure, "answer": one.answer} for one in findings},
        "accuracy": [float((each.classes == images.labels).mean()) for each in (reference, candidate)],
        "named": found["right"] if title in MISTAKES else None,
        "said": (found["cause"] or found["note"]).replace(f"{FOLDER}/", ""),
        "relative_rms": found["relative_rms"],
    }
    figures = "  ".join(f"{one.rule} {one.figure:.2f} {one.answer}" for one in findings if one.figure is not None)
    print(
        f"{answer:<15} {title:<34} {figures}  {'not named: ' if row['named'] is False else ''}{row['said']}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
