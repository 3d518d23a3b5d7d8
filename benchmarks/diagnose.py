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
from benchmarks.photos import MEAN, PHOTOS, STD, cover, crops, make_network, transform, write_crops
from temper.builder.engines.isa import AVX2_ONLY
from temper.cli.main import cli
from temper.client.client import Client
from temper.serve.server import TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = CACHE / "diagnose"
NAMES = [photo.partition(".")[0] for photo in PHOTOS]
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
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        channels_last: bool = True,
        reshape: bool = False,
        order: Sequence[int] | None = None,
        softmax: bool = False,
        gamma: float = 1.0,
        blur: bool = False,
    ) -> None:
        """Takes a network and the mistakes."""
        super().__init__()
        self.network, self.scale = network, scale
        self.flip, self.channels_last, self.reshape = flip, channels_last, reshape
        self.order, self.softmax, self.gamma, self.blur = order, softmax, gamma, blur
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
        scores = scores if self.order is None else scores[:, list(self.order)]
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
    """Quantised: `full` or `reduced` range."""
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
    return np.asarray(functional.normalize(sized.float() / 255, MEAN, STD))


def _opened(path: Path, *, upright: bool = True) -> Image.Image:
    image = Image.open(path)
    return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")


def _right(path: Path, size: int) -> np.ndarray[Any, Any]:
    return np.asarray(transform(size * 8 // 7, size)(_opened(path)))


SIZED = ("--trained", "image_size = 64, resize = 73")
MISTAKES = (
    Case(name="bgr", kinds=("colour",), words="BGR", front={"flip": True}),
    Case(
        name="no_mean_std",
        kinds=("mean and std",),
        words="no mean and std, pixels from 0 to 1",
        arch="resnet34",
        front={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    ),
    Case(
        name="twice",
        kinds=("mean and std",),
        words="twice",
        foreign=FP32,
        front={"scale": 1.0, "channels_last": False},
        options=SIZED,
    ),
    Case(name="half", kinds=("mean and std",), words="0.5", arch="resnet50", front={"mean": _HALF, "std": _HALF}),
    Case(name="not_scaled", kinds=("scale",), words="from 0 to 255", size=96, front={"scale": 1.0}),
    Case(
        name="no_antialias",
        kinds=("resize filter",),
        words="bilinear without",
        foreign=FP32,
        front={**RAW, "channels_last": False},
        client=lambda path, size: _as_tensor(_opened(path), 73, size, antialias=False),
        options=SIZED,
    ),
    Case(
        name="squash",
        kinds=("size and crop",),
        words="squashed to 64",
        arch="resnet34",
        foreign=FP32,
        front={**RAW, "channels_last": False},
        client=lambda path, size: np.asarray(transform((size, size), size)(_opened(path))),
        options=SIZED,
    ),
    Case(
        name="exif",
        kinds=("exif",),
        words="not turned upright",
        foreign=FP32,
        front={**RAW, "channels_last": False},
        client=lambda path, size: np.asarray(transform(73, size)(_opened(path, upright=False))),
        options=SIZED,
        turned=True,
    ),
    Case(name="reshaped", kinds=("layout",), words="reshaped", arch="resnet50", front={"reshape": True}),
    Case(
        name="text_order",
        kinds=("labels",),
        words="sorted as text",
        front={"order": sorted(range(len(PHOTOS)), key=str)},
    ),
    Case(
        name="softmax",
        kinds=("output",),
        words="softmax",
        size=96,
        foreign={"dtype": "UINT8", "batch": 0},
        front={"softmax": True},
        options=("--trained", 'resize = "cover"'),
    ),
    Case(name="training_mode", kinds=("batch normalisation",), words="training mode", in_training=True),
    Case(name="other_weights", kinds=("weights",), words="another checkpoint", serves=7),
    Case(
        name="bf16",
        kinds=("precision",),
        words="bf16",
        arch="resnet50",
        foreign=FP32,
        hint="bf16",
        front={**RAW, "channels_last": False},
        options=SIZED,
    ),
    # Beyond the fourteen; `UNKNOWN` has causes that no row of the table is, and none may be named.
    Case(name="saturating", kinds=("precision",), words="saturating", arch="resnet50", int8="full", avx2=True),
    Case(name="int8", kinds=("precision",), words="int8", int8="full", options=("--precision", "fp32")),
    Case(
        name="two",
        kinds=("colour", "mean and std"),
        words="BGR",
        front={"flip": True, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    ),
    Case(name="bgr_224", kinds=("colour",), words="BGR", arch="resnet50", size=224, front={"flip": True}),
    Case(name="other_224", kinds=("weights",), words="another", arch="resnet50", size=224, serves=7),
    Case(name="bgr_int8", kinds=("colour",), words="BGR", int8="reduced", front={"flip": True}),
    Case(
        name="softmax_bgr",
        kinds=("output", "colour"),
        words="softmax",
        foreign={"dtype": "UINT8", "batch": 8},
        front={"softmax": True, "flip": True},
        options=("--trained", 'resize = "cover"'),
    ),
    Case(
        name="bicubic",
        kinds=("resize filter",),
        words="bicubic with antialiasing",
        foreign=FP32,
        front={**RAW, "channels_last": False},
        options=(*SIZED, "--sent", 'interpolation = "bicubic"'),
    ),
)
UNKNOWN = (
    Case(name="gamma", front={"gamma": 2.2}),
    Case(name="blurred", front={"blur": True}),
    Case(name="own_mean", arch="resnet34", front={"mean": (0.3, 0.35, 0.2), "std": (0.4, 0.3, 0.35)}),
)
PLANTED = 14
HEALTHY = (
    Case(name="fine_r18"),
    Case(name="fine_r34", arch="resnet34", size=96, seed=1),
    Case(name="fine_r50", arch="resnet50", seed=2),
    Case(name="fine_r18_224", size=224, seed=3),
    Case(name="fine_int8_7bit", arch="resnet18", seed=4, int8="reduced"),
    Case(name="fine_int8", arch="resnet50", seed=5, int8="full"),
    Case(name="fine_bf16", arch="resnet18", seed=6, hint="bf16"),
    Case(name="fine_nchw", foreign=FP32, front={**RAW, "channels_last": False}, options=SIZED),
    Case(
        name="fine_no_batch",
        arch="resnet34",
        foreign={"dtype": "FP32", "batch": 0},
        front=RAW,
        options=SIZED,
    ),
    Case(
        name="fine_client",
        foreign=FP32,
        front={**RAW, "channels_last": False},
        client=_right,
        options=SIZED,
        turned=True,
    ),
    Case(
        name="fine_softmax",
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
    results = [rows[case.name] for case in cases]
    planted = [rows[case.name] for case in MISTAKES if case.name in rows]
    unknown = [rows[case.name] for case in UNKNOWN if case.name in rows]
    healthy = [rows[case.name] for case in HEALTHY if case.name in rows]
    print(
        f"named right: {sum(row['right'] for row in planted[:PLANTED])} of {len(planted[:PLANTED])}, "
        f"and of further ones {sum(row['right'] for row in planted[PLANTED:])} of {len(planted[PLANTED:])}; "
        f"none named of those not in the table: {sum(row['right'] for row in unknown)} of {len(unknown)}; "
        f"healthy: {sum(row['right'] for row in healthy)} of {len(healthy)}; "
        f"at most {max(row['seconds'] for row in results):.0f} s"
    )
    if not only:
        write_results(
            "diagnose",
            {
                "images": 24,
                "planted": planted[:PLANTED],
                "further": planted[PLANTED:],
                "unknown": unknown,
                "healthy": healthy,
            },
        )


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


def publish_case(case: Case) -> None:
    """Writes a case's checkpoint, and its graph into the repository."""
    from temper.builder.network.resnet import save_weights

    folder = FOLDER / case.name
    folder.mkdir(parents=True)
    network = network_of(case.arch, case.size, case.seed)
    save_weights(network, folder / "weights.safetensors")
    if case.serves is not None:
        network = network_of(case.arch, case.size, case.serves)
    if case.in_training:
        network = _in_training(network)
    front = Front(network, **case.front).eval()
    graph = folder / "model.onnx"
    _export(front, graph, case)
    if case.int8:
        _quantize(graph, case)
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


def _publish(graph: Path, case: Case) -> None:
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig
    from temper.imaging.preprocess import Preprocessing

    parameters = {"precision_hint": case.hint}
    if case.int8:
        parameters["int8_weight_bits"] = "7" if case.int8 == "reduced" else "8"
    config = TritonConfig(
        name=case.name,
        image_size=case.size,
        num_classes=len(PHOTOS),
        max_batch=8,
        preprocessing=Preprocessing(height=case.size, width=case.size),
        backend=PluginBackend(engine="openvino", on_cpu=True, parameters=parameters),
    )
    publish(FOLDER / "repository", config, engine_file=graph, labels=NAMES, card={"recipe": "benchmarks"})


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
        outputs=len(PHOTOS) if batch else f"-1, {len(PHOTOS)}",
        hint=case.hint,
    )
    (place / "config.pbtxt").write_text(text)


def measure(case: Case, url: str) -> dict[str, Any]:
    """Runs the command as a user does, and says whether it found what is to be found."""
    images = FOLDER / ("turned" if case.turned else "images")
    common = ["--images", images, "--weights", FOLDER / case.name / "weights.safetensors", "--json", *case.options]
    (FOLDER / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    if not case.front.get("order"):
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
    right = set(kinds) == set(case.kinds) and case.words in words and found["agrees"] == (case in HEALTHY)
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
