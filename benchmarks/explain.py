"""What `temper explain` computes and what it takes: CKA against a kept implementation, memory, and seconds.

`cka` writes random features as wide as ResNet-50's blocks, seventeen with 15,168 features in all. Values are
compared with torch_cka's on the same batches, in float64 and in float32, in which torch_cka itself rounds. Each
number of images is measured in a process of its own, on one core.

`cost` looks into a ResNet-50 with random weights and its int8 copy, at 224 x 224 pixels, on 512 test images:
blame, then representation, whose probes learn from 1,000 training images. What builds the two is not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import CACHE, measured_before, write_results

if TYPE_CHECKING:
    from temper.builder.explain.features import Features

_PARTS = ("cka", "cost")
_STAGES = ((1, 256, 3), (2, 512, 4), (3, 1024, 6), (4, 2048, 3))
_BLOCKS = {"stem": 64} | {
    f"layer{stage}.{number}": width for stage, width, count in _STAGES for number in range(count)
}
_COUNTS = (1000, 10_000)
_CHECKED = 512
_BATCH = 256
_ONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="the others stay as they are")
    parser.add_argument("--compare", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        print(json.dumps(_compare(*options.compare)))
        return
    results = measured_before("explain")
    if "cka" in options.parts:
        results["cka"] = _cka()
    if "cost" in options.parts:
        results["cost"] = _cost()
    write_results("explain", {"measured": results})


def _cka() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"deviation": _deviation(Path(folder))}
        for count in _COUNTS:
            pair = [_write(Path(folder) / f"{count} {seed}", count, seed).folder for seed in (1, 2)]
            command = [sys.executable, "-m", "benchmarks.explain", "--compare", *map(str, pair)]
            told = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **_ONE})
            found[str(count)] = row = json.loads(told.stdout)
            print(
                f"CKA of {len(_BLOCKS)} x {len(_BLOCKS)} blocks, {count:6} images: {row['seconds']:6.2f} s, "
                f"peak {row['peak_mib']:.1f} MiB, of which {row['imports_mib']:.1f} MiB are imports"
            )
    for name, value in found["deviation"].items():
        print(f"largest deviation from {name}: {value:.1e}")
    return found


def _write(folder: Path, count: int, seed: int) -> Features:
    """Features of `count` images, 32 numbers each, as the random network `seed` sees them."""
    from temper.builder.explain.features import Features, FeaturesWriter

    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=(32, width)) for name, width in _BLOCKS.items()}
    images, noise = np.random.default_rng(0), np.random.default_rng(seed + 10)
    with FeaturesWriter(folder, _BLOCKS, count) as writer:
        for start in range(0, count, _BATCH):
            batch = images.normal(size=(min(_BATCH, count - start), 32))
            seen = {name: batch @ each for name, each in weights.items()}
            for each in seen.values():
                each += noise.normal(size=each.shape)
            writer.append({name: np.maximum(each, 0).astype(np.float32) for name, each in seen.items()})
    return Features(folder)


def _compare(first: Path, second: Path) -> dict[str, float]:
    """In a process of its own: seconds, and the largest memory that it ever held."""
    from temper.builder.explain.cka import compare
    from temper.builder.explain.features import Features

    imports, start = _peak_mib(), time.perf_counter()
    compare(Features(first), Features(second), batch_size=_BATCH, progress=lambda done, total: None)
    return {"seconds": time.perf_counter() - start, "peak_mib": _peak_mib(), "imports_mib": imports}


def _peak_mib() -> float:
    # Not getrusage's: a child begins with its parent's there.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024


def _cost() -> dict[str, Any]:
    from temper.builder.compress.quantize import QuantizeConfig
    from temper.builder.compress.variant import ChosenStep, VariantConfig
    from temper.builder.data.config import DataConfig
    from temper.builder.engines.openvino import OpenVinoConfig
    from temper.builder.explain.config import ExplainConfig
    from temper.builder.network.resnet import ModelConfig
    from temper.builder.network.train import TrainConfig
    from temper.progress import Display
    from temper.run.explain import explain_recipe
    from temper.run.recipe import Recipe
    from temper.run.workflow import build_recipe

    int8 = ChosenStep(quantize=QuantizeConfig(method="max", reduce_range=True))
    recipe = Recipe(
        name="explain_cost",
        data=DataConfig(source="textures", image_size=224, num_test=512, num_calibration=32),
        model=ModelConfig(arch="resnet50"),
        train=TrainConfig(epochs=0),
        variants=(VariantConfig(name="fp32"), VariantConfig(name="int8", compress=(int8,))),
        engine=OpenVinoConfig(),
    )
    runs, found = CACHE / "runs", {}
    for path in (runs / recipe.name / "stages").glob("*"):
        if path.name.split("-")[0] in ("blame", "features", "blocks", "similarity"):
            shutil.rmtree(path)
    with Display() as display:
        built = build_recipe(recipe, repository=CACHE / "explain_repository", runs=runs, display=display)
        for part in ("blame", "representation"):
            look = dataclasses.replace(recipe, explain=ExplainConfig(parts=(part,)))
            found[f"{part}_s"] = explain_recipe(look, built, folder=runs / look.name, display=display).seconds
    print(
        f"ResNet-50, 512 images: blame {found['blame_s']:.0f} s, representation {found['representation_s']:.0f} s"
    )
    return {**found, "num_images": 512}


def _deviation(folder: Path) -> dict[str, float]:
    """The largest difference of a value from torch_cka's, on the same batches."""
    import torch
    from torch import nn
    from torch_cka import CKA  # type: ignore[import-untyped]  # ships none

    from temper.builder.explain.cka import batches, compare

    class Network(nn.Module):
        """Gives what was written as the outputs of its blocks."""

        def __init__(self, features: Features) -> None:
            super().__init__()
            self.arrays = [torch.from_numpy(features.block(name)) for name in features.blocks]
            self.layers = nn.ModuleList(nn.Identity() for _ in self.arrays)

        def forward(self, rows: torch.Tensor) -> None:
            for layer, array in zip(self.layers, self.arrays, strict=True):
                layer(array[rows].to(torch.get_default_dtype()))

    one, two = (_write(folder / f"checked {seed}", _CHECKED, seed) for seed in (1, 2))
    ours = compare(one, two, batch_size=_BATCH, progress=lambda done, total: None)
    found = {}
    for name, dtype in (("torch_cka in float64", torch.float64), ("torch_cka in float32", torch.float32)):
        torch.set_default_dtype(dtype)
        layers = [f"layers.{number}" for number in range(len(_BLOCKS))]
        reference = CKA(Network(one), Network(two), "one", "two", layers, layers)
        order = [rows.tolist() for rows in batches(_CHECKED, _BATCH)]
        data = torch.utils.data.TensorDataset(torch.arange(_CHECKED))
        loaders = [torch.utils.data.DataLoader(data, batch_sampler=order) for _ in range(2)]
        reference.compare(*loaders)
        found[name] = float(np.abs(np.asarray(reference.export()["CKA"]) - ours.values).max())
    return found


if __name__ == "__main__":
    main()
