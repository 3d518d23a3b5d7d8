"""What a quarter of the last features costs and buys: accuracy on digits and textures, speed and size as served.

recipes/select.toml is run as a user would run it, on its own digits and on the textures of recipes/textures.toml,
with the training of that recipe. The variants are compared on the same test images. A look at the float32 network
says what heads on some of its features give, by every way to choose them. Then the variants of the textures are
served together, and their throughput is measured interleaved. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks.common import ROOT, interleave, random_images, ratio, write_results
from benchmarks.compression import REPOSITORY, RUNS, measure_load, measure_steps
from temper.builder.explain.config import ExplainConfig
from temper.progress import Display
from temper.run.explain import explain_recipe
from temper.run.recipe import Recipe, load_recipe
from temper.run.workflow import build_recipe
from temper.serve.server import TritonServer


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    digits, textures = (
        load_recipe(ROOT / "recipes" / "select.toml"),
        load_recipe(ROOT / "recipes" / "textures.toml"),
    )
    textures = replace(textures, variants=digits.variants, attacks=())
    with Display() as display:
        results: dict[str, Any] = {
            name: _steps(recipe, display) for name, recipe in (("digits", digits), ("textures", textures))
        }
        results["served"] = _served(textures, options.rounds, options.seconds, display)
    write_results("select", results)


def _steps(recipe: Recipe, display: Display) -> dict[str, Any]:
    report, steps = measure_steps(recipe, display)
    return {
        **steps,
        "heads": _heads(recipe, display),
        "select": {
            variant.name: stage.figures
            for variant in report.variants
            for stage in variant.build
            if stage.name == "select"
        },
    }


def _heads(recipe: Recipe, display: Display) -> list[dict[str, Any]]:
    """Accuracy of heads on some features, all training anew, against one on all: by way to choose and number."""
    look = replace(recipe, explain=ExplainConfig(parts=("features",), num_images=2000, num_train=4000))
    built = build_recipe(look, repository=REPOSITORY, runs=RUNS, display=display)
    selection = explain_recipe(look, built, folder=RUNS / look.name, display=display).selection
    assert selection is not None, "asked for"
    rows = [asdict(curve) for curve in selection.curves]
    for row in rows:
        for count, change in zip(row["num_features"], row["change"], strict=True):
            figures = (f"{100 * change[name]:+.2f}" for name in ("difference", "low", "high"))
            print(f"{recipe.name:10} {row['method']:12} {count:4} features", *figures)
    return rows


def _served(recipe: Recipe, rounds: int, seconds: float, display: Display) -> dict[str, Any]:
    built = build_recipe(recipe, repository=REPOSITORY, runs=RUNS, display=display)
    images = random_images(64, recipe.data.preprocessing.height)
    results: dict[str, Any] = {}
    versions = {one.model: (one.version,) for one in built}
    with TritonServer(REPOSITORY, models=list(versions), versions=versions) as server:
        for concurrency in (1, 16):
            contenders = {
                one.variant: measure_load(server.grpc_url, one, images, concurrency, seconds) for one in built
            }
            row: dict[str, Any] = interleave(rounds, contenders)
            for over, under in (("selected", "fp32"), ("int8", "fp32"), ("selected_int8", "int8")):
                row[over]["ratio"] = ratio(row, over, under, "ips")
                spread = np.array(row[over]["ratio"]["rounds"])
                print(
                    f"concurrency {concurrency:2} {over:13} {row[over]['ips_median']:7.1f} images/s  "
                    f"{row[over]['ratio']['median']:.2f} x {under} ({spread.min():.2f} to {spread.max():.2f})"
                )
            results[f"concurrency {concurrency}"] = row
    return results


if __name__ == "__main__":
    main()
