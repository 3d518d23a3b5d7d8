"""The story of docs/explain.md: int8 loses, `temper explain` says why, and the variant that it suggests is served.

The demo's network gets one channel that is 1,000 times as large as it was, inside a block, before the convolution
that takes it back; in float32 it answers as before, as networks do whose batch normalisation has such a channel.
Everything goes through the command line: run, explain --try, and run again with the suggested line.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import CACHE, ROOT, write_results

FACTOR = 1000.0
NUM_LAYERS = 4
"""The worst ones, as many as the story's table shows."""
BLOCK, CHANNEL = "layer3.1", 7
HOME = CACHE / "hold"
RECIPE = """
name = "hold"
data = {{ source = "digits", image_size = 32 }}
model = {{ arch = "resnet18", weights = "outlier.safetensors" }}
train = {{ epochs = 0 }}
engine = {{ kind = "openvino", max_batch = 32 }}
load = {{ concurrencies = [1, 16], duration_s = 3.0 }}
variants = [
  {{ name = "fp32" }},
  {{ name = "int8", compress = [{{ quantize = {{ precision = "int8", method = "max" }} }}] }},
{more}]
"""


def main() -> None:
    """Tell, and write."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    temper("build", ROOT / "recipes" / "digits.toml", runs=CACHE / "runs")
    spoil(next((CACHE / "runs" / "digits" / "stages").glob("weights-*/weights.safetensors")))
    recipe = HOME / "hold.toml"
    recipe.write_text(RECIPE.format(more=""))
    temper("run", recipe)
    explained = temper("explain", recipe, "--variant", "int8", "--part", "blame", "--try")
    (blame,) = explained["blames"]
    print(blame["snippet"])
    recipe.write_text(RECIPE.format(more=f'  {{ name = "mended", {blame["snippet"]} }},\n'))
    report = temper("run", recipe)
    for variant in report["variants"]:
        print(variant["name"], variant["accuracy"]["value"], variant["throughput_ips"], variant["size_bytes"])
    tried = [one for one in blame["layers"] if one["share"]]
    figures = ("name", "accuracy", "throughput_ips", "latency_ms", "size_bytes")
    write_results(
        "hold",
        {
            **{name: blame[name] for name in ("loss", "agreement", "accuracy_change", "tap_change", "note")},
            "layers": sorted(tried, key=lambda one: one["share"]["value"], reverse=True)[:NUM_LAYERS],
            "suggestion": blame["suggestion"],
            "snippet": blame["snippet"],
            "variants": [{name: variant[name] for name in figures} for variant in report["variants"]],
            "comparisons": report["comparisons"],
        },
    )


def spoil(weights: Path) -> None:
    """Writes the network with the large channel."""
    from safetensors.torch import load_file, save_file

    network = load_file(weights)
    for name in ("weight", "bias"):
        network[f"{BLOCK}.bn1.{name}"][CHANNEL] *= FACTOR
    network[f"{BLOCK}.conv2.weight"][:, CHANNEL] /= FACTOR
    save_file(network, HOME / "outlier.safetensors")


def temper(command: str, recipe: Path, *more: str, runs: Path = HOME / "runs") -> Any:
    """Runs a command line, which prints what it does, and returns its JSON."""
    places = ["--repository", str(HOME / "models"), "--runs", str(runs), "--json"]
    arguments = [sys.executable, "-m", "temper.cli.main", command, str(recipe), *more, *places]
    return json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    main()
