"""What the steps of a compression cost and buy: accuracy on generated textures, speed of a served ResNet-50.

The recipe recipes/textures.toml is run as a user would run it, and its report's steps are printed. Then ResNet-50
at 224x224 is served in float32, int8, and int8 with chains of small convolutions at half of its FLOPs; their
throughput is measured interleaved. Its weights are random, on which its speed does not depend. A search for
narrower layers would have nothing to go by, so pruning is not measured here. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import CACHE, IMAGE_SIZE, ROOT, interleave, random_images, ratio, write_results
from temper.builder.built import Built
from temper.builder.compress.low_rank import LowRankConfig
from temper.builder.compress.quantize import QuantizeConfig
from temper.builder.compress.variant import ChosenStep, VariantConfig
from temper.builder.data.config import DataConfig
from temper.builder.engines.openvino import OpenVinoConfig
from temper.builder.network.resnet import ModelConfig
from temper.builder.network.train import TrainConfig
from temper.client.load import LoadConfig, run_closed_loop
from temper.progress import Display
from temper.report.measured import Paired
from temper.report.model import Report
from temper.run.recipe import Recipe, load_recipe
from temper.run.workflow import build_recipe, run_recipe
from temper.serve.server import TritonServer

_INT8 = ChosenStep(quantize=QuantizeConfig(method="max"))
_HALF = ChosenStep(low_rank=LowRankConfig(method="tucker", flops=0.5))
REPOSITORY = CACHE / "model_repository"
RUNS = CACHE / "runs"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "textures.toml")
    parser.add_argument("--only", choices=("steps", "served"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    with Display() as display:
        if options.only != "served":
            write_results("compression_steps", measure_steps(load_recipe(options.recipe), display)[1])
        if options.only != "steps":
            write_results("compression_served", _served(options.rounds, options.seconds, display))


def measure_steps(recipe: Recipe, display: Display) -> tuple[Report, dict[str, Any]]:
    """Run a recipe; return its report, and of it what every step cost and bought, which is printed too."""
    report = run_recipe(recipe, repository=REPOSITORY, runs=RUNS, display=display)
    _print_steps(report)
    found = report.to_json()
    variants = {variant["name"]: variant["steps"] for variant in found["variants"]}
    return report, {"variants": variants, "comparisons": found["comparisons"]}


def _print_steps(report: Report) -> None:
    """Print what every step cost and bought, and how the variants compare as served."""
    for variant in report.variants:
        for step in variant.steps:
            against = "" if step.accuracy_change is None else _points(step.accuracy_change)
            sizes = f"{step.flops / 1e9:6.3f} GFLOPs {step.num_parameters / 1e6:6.2f} M parameters"
            cost = f"{step.size_bytes / 1e6:6.1f} MB {step.latency_ms:6.2f} ms {100 * step.accuracy.value:6.2f} %"
            print(f"{variant.name:14} {step.name:9} {sizes} {cost} {against:26} {step.verdict or ''}")
    for row in report.comparisons:
        robust = " ".join(map(_points, row.robustness))
        accuracy = "" if row.accuracy is None else _points(row.accuracy)
        print(f"{row.variant:14} served, against {row.baseline}: {accuracy}  attacked {robust or 'not'}")


def _points(change: Paired) -> str:
    return f"{100 * change.difference:+.2f} ({100 * change.low:+.2f} to {100 * change.high:+.2f})"


def _served(rounds: int, seconds: float, display: Display) -> dict[str, Any]:
    recipe = Recipe(
        name="resnet50",
        data=DataConfig(source="folder", path=str(_images()), image_size=IMAGE_SIZE, num_calibration=32),
        model=ModelConfig(arch="resnet50", weights="random"),
        train=TrainConfig(epochs=0, head_epochs=0),
        variants=(
            VariantConfig(name="fp32"),
            VariantConfig(name="int8", compress=(_INT8,)),
            VariantConfig(name="half_int8", compress=(_HALF, _INT8)),
        ),
        engine=OpenVinoConfig(num_instances=2),
    )
    built = build_recipe(recipe, repository=REPOSITORY, runs=RUNS, display=display)
    share = built[2].snapshots[-1].flops / built[0].snapshots[-1].flops
    print(f"half_int8 has {share:.3f} of the FLOPs")
    results: dict[str, Any] = {"flops_share": share}
    images = random_images(16)
    versions = {one.model: (one.version,) for one in built}
    with TritonServer(REPOSITORY, models=list(versions), versions=versions) as server:
        for concurrency in (1, 16):
            contenders = {
                one.variant: measure_load(server.grpc_url, one, images, concurrency, seconds) for one in built
            }
            row: dict[str, Any] = interleave(rounds, contenders)
            for name in ("int8", "half_int8"):
                row[name]["ratio"] = ratio(row, name, "fp32", "ips")
            results[f"concurrency {concurrency}"] = row
            for name, figures in row.items():
                times = f"{figures['ratio']['median']:.2f} x fp32" if "ratio" in figures else ""
                print(f"concurrency {concurrency:2} {name:10} {figures['ips_median']:7.1f} images/s  {times}")
    return results


def measure_load(
    url: str, built: Built, images: np.ndarray[Any, Any], concurrency: int, seconds: float
) -> Callable[[], dict[str, float]]:
    """What measures the throughput of a served variant in a closed loop, in images/s."""
    config = LoadConfig(duration_s=seconds, warmup_s=1.0)
    return lambda: {
        "ips": run_closed_loop(url, built.model, images, concurrency=concurrency, config=config).throughput_ips
    }


def _images() -> Path:
    """A folder of noise in two classes, enough for every stage to have its share."""
    folder = CACHE / "noise"
    for index, pixels in enumerate(random_images(96)):
        file = folder / str(index % 2) / f"{index:02}.png"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return folder


if __name__ == "__main__":
    main()
