"""`temper diagnose`: mistakes planted in graphs and clients, each served for real, and healthy models.

The networks tell photo patches apart (photos.py). What a client does wrong, torchvision does it, not Temper.
Long because the table of mistakes stands beside what plants them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms import functional  # type: ignore[import-untyped]  # ships none

from benchmarks.common import CACHE, ROOT, write_results
from benchmarks.photos import cover, crops, make_network, photographs, transform, write_crops
from temper.builder.engines.isa import AVX2_ONLY
from temper.cli.main import cli
from temper.client.client import Client
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = CACHE / "diagnose"
FOREIGN = """name: "{name}"
backend: "python"
max_batch_size: {batch}
input [ {{ name: "input.1" data_type: TYPE_{dtype} dims: [ {dims} ] }} ]
output [ {{ name: "scores" data_type: TYPE_FP32 dims: [ {outputs} ] }} ]
parameters {{ key: "hint" value {{ string_value: "{hint}" }} }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


class Front(nn.Module):
    """What stands before and behind a network in a graph, right or wrong."""

    def __init__(
        self,
        network: nn.Module,
        *,
        flip: bool = False,
        scale: float = 1 / 255,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels_last: bool = True,
        reshape: bool = False,
        text_order: bool = False,
        softmax: bool = False,
        gamma: float = 1.0,
        blur: bool = False,
    ) -> None:
        """Takes a network and the mistakes."""
        super().__init__()
        self.network, self.scale = network, scale
        self.flip, self.channels_last, self.reshape = flip, channels_last, reshape
        self.text_order, self.softmax, self.gamma, self.blur = text_order, softmax, gamma, blur
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """From what is sent to what is served."""
        values = image.float()
        if self.channels_last:
            num, height, width, channels = values.shape
            values = values.reshape(num, channels, height, width) if self.reshape else values.permute(0, 3, 1, 2)
        values = values.flip(1) if self.flip else values
        if self.gamma != 1:
            values = 255 * (values / 255) ** self.gamma
        if self.blur:
            values = functional.pad(values, [2], padding_mode="edge")
            values = nn.functional.avg_pool2d(values, 5, stride=1)
        values = (values * self.scale - self.mean) / self.std  # type: ignore[operator]  # buffers
        scores: torch.Tensor = self.network(values)
        scores = scores[:, sorted(range(scores.shape[1]), key=str)] if self.text_order else scores
        return scores.softmax(1) if self.softmax else scores


class BatchStatistics(nn.Module):
    """Batch normalisation as a graph has it that was exported in training mode."""

    def __init__(self, norm: nn.Module) -> None:
        """Takes the layer's weights."""
        super().__init__()
        self.norm: Any = norm

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Normalises with the batch's own statistics."""
        mean = values.mean((0, 2, 3), keepdim=True)
        variance = ((values - mean) ** 2).mean((0, 2, 3), keepdim=True)
        scaled = (values - mean) / torch.sqrt(variance + self.norm.eps)
        made: torch.Tensor = scaled * self.norm.weight.view(1, -1, 1, 1) + self.norm.bias.view(1, -1, 1, 1)
        return made


@dataclass(frozen=True, kw_only=True)
class Case:
    """One served model, or one client, and what is to be found."""

    name: str
    """Of the model too."""
    kinds: tuple[str, ...] = ()
    """The kinds of the causes; none of a healthy one."""
    words: str = ""
    """What the cause's words must hold."""
    arch: str = "resnet18"
    """The network."""
    size: int = 64
    """Its images, in pixels."""
    seed: int = 0
    """Decides its weights."""
    serves: int | None = None
    """The seed of the weights that are served, where that is another."""
    front: Mapping[str, Any] = field(default_factory=dict)
    """Of `Front`."""
    in_training: bool = False
    """The graph has batch statistics."""
    hint: str = "f32"
    """OpenVINO's precision."""
    int8: str = ""
    """Quantised: `full` or `reduced` range, or `unnormalised`: full, with scales of pixels from 0 to 255."""
    foreign: Mapping[str, Any] | None = None
    """None is Temper's; else what its config.pbtxt says."""
    client: Callable[[Path, int], np.ndarray[Any, Any]] | None = None
    """What a client of the user's sends for a file."""
    options: tuple[str, ...] = ()
    """Of the command."""
    avx2: bool = False
    """The server's CPU has no VNNI."""
    turned: bool = False
    """Some images have an EXIF orientation."""


FP32 = {"dtype": "FP32", "batch": 8, "channels_last": False}
RAW = {"scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_HALF = (0.5, 0.5, 0.5)


def _as_tensor(image: Image.Image, resize: Any, size: int, *, antialias: bool = True) -> np.ndarray[Any, Any]:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    sized = functional.center_crop(functional.resize(pixels, resize, antialias=antialias), [size, size])
    return np.asarray(functional.normalize(sized.float() / 255, IMAGENET_MEAN, IMAGENET_STD))


def _opened(path: Path, *, upright: bool = True) -> Image.Image:
    image = Image.open(path)
    return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")


def _right(path: Path, size: int) -> np.ndarray[Any, Any]:
    return np.asarray(transform(size * 8 // 7, size)(_opened(path)))


SIZED = ("--trained", "image_size = 64, resize = 73, upright = true")  # torchvision turns nothing
COVERED = ("--trained", 'resize = "cover"')
UINT8 = {"dtype": "UINT8", "batch": 8}


def _nchw(name: str, kind: str = "", words: str = "", **more: Any) -> Case:
    """A model of nobody's that takes what the network takes, and leaves all else to the client."""
    kinds = (kind,) if kind else ()
    usual: dict[str, Any] = {"foreign": FP32, "front": {**RAW, "channels_last": False}, "options": SIZED}
    return Case(name=name, kinds=kinds, words=words, **{**usual, **more})


def _graph(name: str, kind: str, words: str, arch: str = "resnet18", size: int = 64, **more: Any) -> Case:
    """One of Temper's with a mistake in its graph, but for what `more` says."""
    return Case(name=name, kinds=tuple(kind.split(" + ")), words=words, arch=arch, size=size, **more)


_NONE: dict[str, Any] = {"mean": RAW["mean"], "std": RAW["std"]}
MISTAKES = (
    _graph("bgr", "colour", "BGR", front={"flip": True}),
    _graph("no_mean_std", "mean and std", "no mean and std, pixels from 0 to 1", "resnet34", front=_NONE),
    _nchw("twice", "mean and std", "twice", front={"scale": 1.0, "channels_last": False}),
    _graph("half", "mean and std", "0.5", "resnet50", front={"mean": _HALF, "std": _HALF}),
    _graph("not_scaled", "scale", "from 0 to 255", size=96, front={"scale": 1.0}),
    _nchw(
        "no_antialias",
        "resize filter",
        "bilinear without",
        client=lambda path, size: _as_tensor(_opened(path), 73, size, antialias=False),
    ),
    _nchw(
        "squash",
        "size and crop",
        "squashed to 64",
        arch="resnet34",
        client=lambda path, size: np.asarray(transform((size, size), size)(_opened(path))),
    ),
    _nchw(
        "exif",
        "exif",
        "not turned upright",
        client=lambda path, size: np.asarray(transform(73, size)(_opened(path, upright=False))),
        turned=True,
    ),
    _graph("reshaped", "layout", "reshaped", "resnet50", front={"reshape": True}),
    _graph("text_order", "labels", "sorted as text", front={"text_order": True}),
    _graph(
        "softmax",
        "output",
        "softmax",
        size=96,
        foreign={"dtype": "UINT8", "batch": 0},
        front={"softmax": True},
        options=COVERED,
    ),
    _graph("training_mode", "batch normalisation", "training mode", in_training=True),
    _graph("other_weights", "weights", "another checkpoint", serves=7),
    _nchw("bf16", "precision", "bf16", arch="resnet50", hint="bf16"),
    # Beyond the fourteen; `UNKNOWN` has causes that no row of the table is, and none may be named.
    _graph("saturating", "precision", "saturating", "resnet50", int8="full", avx2=True),
    _graph("int8", "precision", "int8", int8="full", options=("--precision", "fp32")),
    _graph("two", "colour + mean and std", "BGR", front={"flip": True, **_NONE}),
    _graph("bgr_224", "colour", "BGR", "resnet50", 224, front={"flip": True}),
    _graph("other_224", "weights", "another", "resnet50", 224, serves=7),
    _graph("bgr_int8", "colour", "BGR", int8="reduced", front={"flip": True}),
    _graph(
        "softmax_bgr",
        "output + colour",
        "softmax",
        foreign=UINT8,
        front={"softmax": True, "flip": True},
        options=COVERED,
    ),
    _nchw(
        "bicubic",
        "resize filter",
        "bicubic with antialiasing",
        options=(*SIZED, "--sent", 'interpolation = "bicubic"'),
    ),
)
UNKNOWN = (
    Case(name="gamma", front={"gamma": 2.2}),
    Case(name="blurred", front={"blur": True}),
    Case(name="own_mean", arch="resnet34", front={"mean": (0.3, 0.35, 0.2), "std": (0.4, 0.3, 0.35)}),
    Case(name="dead", foreign=UINT8, front={"scale": 0.0}, options=COVERED),
)
PLANTED = 14
HEALTHY = (
    Case(name="fine_r18"),
    Case(name="fine_r34", arch="resnet34", size=96, seed=1),
    Case(name="fine_r50", arch="resnet50", seed=2),
    Case(name="fine_r18_224", size=224, seed=3),
    Case(name="fine_int8_7bit", seed=4, int8="reduced"),
    Case(name="fine_int8", arch="resnet50", seed=5, int8="full"),
    Case(name="fine_bf16", seed=6, hint="bf16"),
    _nchw("fine_nchw"),
    _nchw("fine_no_batch", arch="resnet34", foreign={"dtype": "FP32", "batch": 0}, front=RAW),
    _nchw("fine_client", client=_right, turned=True),
    _nchw(
        "fine_softmax",
        foreign={"dtype": "FP16", "batch": 8},
        front={**RAW, "softmax": True},
        options=(*SIZED, "--output", "softmax"),
    ),
)


def main() -> None:
    """Publish, serve, diagnose, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    only = set(filter(None, parser.parse_args().only.split(",")))
    shutil.rmtree(FOLDER, ignore_errors=True)
    cases = [case for case in (*MISTAKES, *UNKNOWN, *HEALTHY) if not only or case.name in only]
    for case in cases:
        publish_case(case)
    write_crops(FOLDER / "images", 4, seed=1)
    write_crops(FOLDER / "turned", 4, seed=1, turned=True)
    rows: dict[str, dict[str, Any]] = {}
    for avx2 in (False, True):
        chosen = [case for case in cases if case.avx2 == avx2]
        if chosen:
            with _environment(AVX2_ONLY if avx2 else {}), serving([case.name for case in chosen]) as server:
                rows |= {case.name: measure(case, server.grpc_url) for case in chosen}
    groups = {"planted": MISTAKES[:PLANTED], "further": MISTAKES[PLANTED:], "unknown": UNKNOWN, "healthy": HEALTHY}
    found = {name: [rows[case.name] for case in group if case.name in rows] for name, group in groups.items()}
    right = {name: f"{sum(row['right'] for row in group)} of {len(group)}" for name, group in found.items()}
    print(
        f"named right: {right['planted']}, and of further ones {right['further']}; none named of those not in the "
        f"table: {right['unknown']}; healthy: {right['healthy']}; "
        f"at most {max(row['seconds'] for row in rows.values()):.0f} s"
    )
    if not only:
        write_results("diagnose", {"images": 24, **found})


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def serving(models: Sequence[str]) -> TritonServer:
    """The embedded server, also with models that Temper did not publish."""
    return TritonServer(FOLDER / "repository", models=models, only_published=False)


@cache
def network_of(arch: str, size: int, seed: int) -> nn.Module:
    """A network, made once."""
    return make_network(arch, size, seed, num_each=8 if size > 100 else 16)


def publish_case(case: Case, network: nn.Module | None = None, served: nn.Module | None = None) -> None:
    """Writes a case's checkpoint, and its graph into the repository.

    Args:
        case: What is planted.
        network: What the checkpoint holds; the case's own, when not given.
        served: What is served, where that is another.
    """
    from temper.builder.network.resnet import save_weights

    folder = FOLDER / case.name
    folder.mkdir(parents=True)
    network = network or network_of(case.arch, case.size, case.seed)
    save_weights(network, folder / "weights.safetensors")
    if case.serves is not None:
        served = network_of(case.arch, case.size, case.serves)
    network = served or network
    if case.in_training:
        network = _in_training(network)
    front = Front(network, **case.front).eval()
    graph = folder / "model.onnx"
    _export(front, graph, case)
    if case.int8:
        _quantize(graph, case)
    if case.int8 == "unnormalised":
        raw = Front(network, **{**case.front, "scale": 0.999999, "mean": [1e-6] * 3, "std": [0.999999] * 3}).eval()
        other = folder / "raw.onnx"
        _export(raw, other, case)
        _quantize(other, case)
        take_scales(graph, other)
    if case.foreign is None:
        _publish(graph, case)
    else:
        _publish_foreign(graph, case)


def _in_training(network: nn.Module) -> nn.Module:
    import copy

    made = copy.deepcopy(network)
    for name, layer in list(made.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            made.set_submodule(name, BatchStatistics(layer))
    return made


def _export(front: Front, path: Path, case: Case) -> None:
    size, dtype = case.size, (case.foreign or {}).get("dtype", "UINT8")
    shape = (2, size, size, 3) if front.channels_last else (2, 3, size, size)
    example = torch.zeros(shape, dtype={"UINT8": torch.uint8, "FP32": torch.float32, "FP16": torch.float16}[dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            front,
            (example,),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=19,
            dynamo=False,
        )


def _quantize(graph: Path, case: Case) -> None:
    from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx

    images = np.stack([np.asarray(cover(image, case.size)) for image in crops(8, seed=77)[0]])
    source = graph.rename(graph.with_name("float.onnx"))
    quantize_onnx(source, graph, images, QuantizeConfig(reduce_range=case.int8 == "reduced"))


def take_scales(graph: Path, other: Path) -> None:
    """Gives a quantised graph the scales of activations that the same graph got from other images."""
    import onnx

    model, theirs = onnx.load(graph), onnx.load(other)
    weights = {each.name for each in model.graph.initializer}
    of_activations = {
        name
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in weights
        for name in node.input[1:]
    }
    values = {each.name: each for each in theirs.graph.initializer}
    changed = 0
    for each in model.graph.initializer:
        if each.name in of_activations and each != values[each.name]:
            each.CopyFrom(values[each.name])
            changed += 1
    if not changed:
        raise SystemExit(f"{graph}: no scale of an activation is another's")
    onnx.save(model, graph)


def _publish(graph: Path, case: Case) -> None:
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    parameters = {"precision_hint": case.hint}
    if case.int8:
        parameters["int8_weight_bits"] = "7" if case.int8 == "reduced" else "8"
    config = TritonConfig(
        name=case.name,
        image_size=case.size,
        num_classes=len(photographs()),
        max_batch=8,
        preprocessing=Preprocessing(height=case.size, width=case.size),
        backend=PluginBackend(engine="openvino", on_cpu=True, parameters=parameters),
    )
    publish(
        FOLDER / "repository", config, engine_file=graph, labels=list(photographs()), card={"recipe": "benchmarks"}
    )


def _publish_foreign(graph: Path, case: Case) -> None:
    assert case.foreign is not None
    place = FOLDER / "repository" / case.name
    shutil.copytree(
        ROOT / "benchmarks" / "models" / "foreign", place, ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(graph, place / "1" / "model.onnx")
    batch = case.foreign["batch"]
    sides = [case.size] * 2
    dims = [*sides, 3] if case.front.get("channels_last", True) else [3, *sides]
    text = FOREIGN.format(
        name=case.name,
        batch=batch,
        dtype=case.foreign["dtype"],
        dims=", ".join(map(str, dims if batch else [-1, *dims])),
        outputs=len(photographs()) if batch else f"-1, {len(photographs())}",
        hint=case.hint,
    )
    (place / "config.pbtxt").write_text(text)


def measure(case: Case, url: str, *, is_healthy: bool | None = None) -> dict[str, Any]:
    """Runs the command as a user does, and says whether it found what is to be found."""
    is_healthy = case in HEALTHY if is_healthy is None else is_healthy
    images = FOLDER / ("turned" if case.turned else "images")
    common = ["--images", images, "--weights", FOLDER / case.name / "weights.safetensors", "--json", *case.options]
    (FOLDER / "classes.txt").write_text("".join(f"{name}\n" for name in photographs()))
    if not case.front.get("text_order"):
        common += ["--classes", FOLDER / "classes.txt"]
    if case.client is not None:
        answers = FOLDER / case.name / "answers.npy"
        files = sorted(images.rglob("*.png"), key=lambda path: (str(path.parent), path.name))
        with Client(url) as client:
            sent = np.stack([case.client(path, case.size) for path in files])
            np.save(answers, client.infer(case.name, sent.astype(np.float32)))
        asked = ["--answers", answers]
    else:
        asked = [case.name, "--url", url]
    started = time.monotonic()
    done = CliRunner().invoke(cli, ["diagnose", *map(str, [*asked, *common])])
    seconds = time.monotonic() - started
    if done.exit_code not in (0, 3):
        raise SystemExit(f"{case.name}: exit {done.exit_code}: {done.output[-600:]}")
    found = json.loads(done.stdout)
    kinds = tuple(cause["kind"] for cause in found["causes"])
    words = " and ".join(cause["cause"] for cause in found["causes"])
    right = set(kinds) == set(case.kinds) and case.words in words and found["agrees"] == is_healthy
    row = {
        "case": case.name,
        "network": f"{case.arch}, {case.size} px",
        "right": right,
        "planted": list(case.kinds),
        "found": list(kinds),
        "cause": words,
        "explained": [cause["explained"] for cause in found["causes"]],
        "relative_rms": found["relative_rms"],
        "relative_rms_left": found["relative_rms_left"],
        "runner_up": next((one for one in found["candidates"] if one["cause"] != words), None),
        "accuracy": found["accuracy"],
        "note": found["note"],
        "seconds": seconds,
    }
    said = words or ("agrees" if found["agrees"] else found["note"])
    print(
        f"{'ok   ' if right else 'WRONG'} {case.name:<15} {row['network']:<16} "
        f"{100 * row['relative_rms']:8.3f} % -> {100 * row['relative_rms_left']:7.3f} %  {seconds:5.1f} s  {said}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
