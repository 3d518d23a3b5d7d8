"""What the benchmarks share: the models they serve, perf_analyzer, interleaved rounds and the results file."""

from __future__ import annotations

import datetime
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from benchmarks.sample import Sample
    from temper.builder.publish.entry import Published

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results"
IMAGE_SIZE = 224
MAX_BATCH = 32
# ResNet-50 with random weights: its speed does not depend on them. Its answers mean nothing and are not used.
_MODELS = {
    "resnet50_fp32": ("fp32", "f32", 2),
    "resnet50_bf16": ("fp32", "bf16", 2),
    "resnet50_int8": ("int8", "f32", 2),
    "resnet50_int8_x1": ("int8", "f32", 1),
}


def resnet50_repository() -> Path:
    """A model repository with ResNet-50 at 224x224: fp32 run in f32 and bf16; int8 in two instances and in one."""
    from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
    from temper.builder.network.export import export_onnx
    from temper.builder.network.resnet import ModelConfig, build_model
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    fp32, int8 = CACHE / "fp32" / "model.onnx", CACHE / "int8" / "model.onnx"
    if not int8.exists():
        config = ModelConfig(arch="resnet50")
        fp32.parent.mkdir(parents=True, exist_ok=True)
        int8.parent.mkdir(parents=True, exist_ok=True)
        model = build_model(config, 1000).eval()
        export_onnx(model, fp32, image_size=IMAGE_SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        quantize_onnx(fp32, int8, random_images(32), QuantizeConfig(method="max"))
    for name, (weights, hint, num_instances) in _MODELS.items():
        published = publish(
            CACHE / "model_repository",
            TritonConfig(
                name=name,
                image_size=IMAGE_SIZE,
                num_classes=1000,
                max_batch=MAX_BATCH,
                backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": hint}),
                num_instances=num_instances,
            ),
            engine_file={"fp32": fp32, "int8": int8}[weights],
            labels=[str(number) for number in range(1000)],
            card={"recipe": "benchmarks"},
        )
        serve(published)
    return CACHE / "model_repository"


def serve(published: Published) -> None:
    """Serve what was published, also in a repository that an older run left."""
    from temper.builder.publish.switch import switch

    repository = published.path.parent.parent
    switch(repository, published.model, published.version, event="promoted", reason="a benchmark")


def publish_sample(folder: Path, models: Mapping[str, Mapping[str, Any]]) -> Sample:
    """Publish a small model that reads digits at 32x32, in float32, into `folder`/models.

    Args:
        folder: Receives the repository, and the ONNX file beside it.
        models: Per name, what differs from an entry of one instance and batches of 32: fields of `TritonConfig`.
    """
    from benchmarks.sample import make_sample
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    sample = make_sample()
    sample.export(folder / "model.onnx")
    for name, more in models.items():
        settings: dict[str, Any] = {"max_batch": MAX_BATCH, **more}
        backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
        publish(
            folder / "models",
            TritonConfig(name=name, image_size=32, num_classes=10, backend=backend, **settings),
            engine_file=folder / "model.onnx",
            labels=sample.class_names,
            card={"recipe": "benchmarks"},
        )
    return sample


def random_images(count: int, size: int = IMAGE_SIZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [count, size, size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def interleave(rounds: int, contenders: Mapping[str, Callable[[], dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Run every contender once per round, so that a slow minute of the machine hits all of them.

    Returns:
        Per contender and figure: the value of each round, and their median under `<figure>_median`.
    """
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            seen[name].append(run())
            print(f"round {number + 1}/{rounds} {name}: {seen[name][-1]}", file=sys.stderr, flush=True)
    return {
        name: {
            **{figure: [row[figure] for row in rows] for figure in rows[0]},
            **{f"{figure}_median": statistics.median(row[figure] for row in rows) for figure in rows[0]},
        }
        for name, rows in seen.items()
    }


def ratio(results: Mapping[str, Mapping[str, Any]], over: str, under: str, figure: str) -> dict[str, Any]:
    """The median of the per-round ratios of a figure, with the rounds."""
    rounds = [a / b for a, b in zip(results[over][figure], results[under][figure], strict=True)]
    return {"median": statistics.median(rounds), "rounds": [round(value, 3) for value in rounds]}


def perf_analyzer() -> Path:
    """NVIDIA's perf_analyzer 2.50, out of tritonclient's wheel, in a folder with the two libraries it needs.

    The last wheel whose binary runs on glibc 2.36; libb64 and libcudart are those of the pytriton wheel.
    """
    import pytriton  # type: ignore[import-untyped]  # ships none

    folder = CACHE / "perf_analyzer"
    binary = folder / "perf_analyzer"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as wheels:
            options = ["--no-deps", "--only-binary=:all:", "--platform", "manylinux1_x86_64", "--quiet"]
            subprocess.run(
                [sys.executable, "-m", "pip", "download", *options, "-d", wheels, "tritonclient==2.50.0"],
                check=True,
            )
            with zipfile.ZipFile(next(Path(wheels).iterdir())) as wheel:
                name = next(name for name in wheel.namelist() if name.endswith("bin/perf_analyzer"))
                (folder / "unpacked").write_bytes(wheel.read(name))
        libraries = Path(pytriton.__file__).parent.parent / "nvidia_pytriton.libs"
        for wanted, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
            (folder / wanted).unlink(missing_ok=True)
            (folder / wanted).symlink_to(next(libraries.glob(pattern)))
        (folder / "unpacked").chmod(0o755)
        (folder / "unpacked").rename(binary)
    return binary


def run_perf_analyzer(url: str, model: str, concurrency: int, *, window_s: float) -> dict[str, float]:
    """One closed-loop measurement of perf_analyzer: infer/s, p50 and p99 in milliseconds."""
    binary = perf_analyzer()
    shape = [] if model == "echo" else ["--shape", f"image:{IMAGE_SIZE},{IMAGE_SIZE},3"]
    command = [str(binary), "-m", model, "-u", url, "-i", "grpc", *shape, "--concurrency-range", str(concurrency)]
    # Whatever three windows gave is the measurement: the rounds show the spread, not a stability search.
    command += ["-p", str(int(window_s * 1000)), "-r", "10", "-s", "999"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"LD_LIBRARY_PATH": str(binary.parent), "PATH": "/usr/bin"}
    )
    figures = {
        "ips": re.search(r"throughput: ([\d.]+) infer/sec", done.stdout),
        "p50_ms": re.search(r"p50 latency: (\d+) usec", done.stdout),
        "p99_ms": re.search(r"p99 latency: (\d+) usec", done.stdout),
    }
    if not all(figures.values()):
        raise SystemExit(f"perf_analyzer failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    values = {name: float(match[1]) for name, match in figures.items() if match}
    return {name: value / 1000 if name.endswith("_ms") else value for name, value in values.items()}


def results_file(name: str, folder: Path = RESULTS) -> Path:
    """Return `<name>.json`; where another kind of CPU measured that one, which stays, `<name>.avx2.json` or so."""
    from temper.host.machine import machine

    file, flags = folder / f"{name}.json", machine()["flags"]
    if file.exists() and json.loads(file.read_text())["machine"]["flags"] != flags:
        return folder / f"{name}.{'-'.join(flags) or 'other'}.json"
    return file


def measured_before(name: str) -> dict[str, Any]:
    """Return what `write_results` kept under "measured" on this kind of CPU, to add to it."""
    file = results_file(name)
    return dict(json.loads(file.read_text())["measured"]) if file.exists() else {}


def _command() -> str:
    """What was typed: this program as its make target, with its arguments."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).stem
    arguments = f" ARGS={shlex.quote(shlex.join(sys.argv[1:]))}" if sys.argv[1:] else ""
    return f"make bench-{module.removeprefix('benchmarks.')}{arguments}"


def write_results(name: str, results: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write `results_file` with the machine, the versions, the date and the commit."""
    from temper.host.machine import machine, versions

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    content = {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "command": _command(),
        "machine": machine(),
        "versions": versions(),
        **results,
    }
    folder.mkdir(exist_ok=True)
    results_file(name, folder).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
