"""int8 across instruction sets: the demo's digits model with weights of 8 and of 7 bits, at AVX2 and at the best.

Every graph runs in OpenVINO in processes of their own, held to AVX2 and not, on all test images, and in exact
arithmetic. What is counted depends neither on the machine's load nor, but for the column of the best, on its CPU.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import CACHE, ROOT, write_results

if TYPE_CHECKING:
    from temper.builder.built import Built

RANGES = {"full": False, "reduced": True, "auto": "auto"}


def main() -> None:
    """Build, print and write."""
    from temper.builder.engines.isa import instruction_set

    best = instruction_set()
    print(f"best here: {best}. accuracy: exact, AVX2, best; changed and rms: AVX2, best, best to AVX2")
    rows = [measure(built) for built in build()]
    for row in rows:
        accuracies, changes, rms = (
            "  ".join(f"{100 * value:.2f} %" for value in row[name].values())
            for name in ("accuracy", "changed", "rms")
        )
        print(f"{row['variant']:<15}{row['weight_bits'] or '-':>5}  {accuracies}; {changes}; {rms}")
    write_results("int8", {"best": best, "variants": rows})


def build() -> list[Built]:
    """Publishes the demo's float32 network, and int8 with each way to choose the range."""
    from temper.builder.compress.quantize import QuantizeConfig
    from temper.builder.compress.variant import ChosenStep, VariantConfig
    from temper.builder.engines.openvino import OpenVinoConfig
    from temper.progress import Display
    from temper.run.recipe import load_recipe
    from temper.run.workflow import build_recipe

    recipe = load_recipe(ROOT / "recipes" / "digits.toml")
    variants = [VariantConfig(name="fp32")]
    for name, reduce_range in RANGES.items():
        config = QuantizeConfig(reduce_range=reduce_range)  # type: ignore[arg-type]  # one of the three
        variants.append(VariantConfig(name=f"int8_{name}", compress=(ChosenStep(quantize=config),)))
    engine = OpenVinoConfig(max_batch=recipe.engine.max_batch)
    recipe = dataclasses.replace(recipe, variants=tuple(variants), engine=engine)
    with Display() as display:
        return build_recipe(recipe, repository=CACHE / "int8_repository", runs=CACHE / "runs", display=display)


def measure(built: Built) -> dict[str, Any]:
    """Returns a variant's accuracy, and how far its answers and logits are apart, each by instruction set."""
    from temper.builder.compress.saturation import run_openvino, weight_bits
    from temper.builder.engines.isa import AVX2_ONLY
    from temper.builder.network.export import compare_logits, run_onnx

    graph: Path = built.path / "model.onnx"
    images, labels = np.load(built.test_images), np.load(built.test_labels)
    logits = {
        "exact": run_onnx(graph, images),
        "avx2": run_openvino(graph, images, AVX2_ONLY),
        "best": run_openvino(graph, images, {}),
    }
    pairs = {
        "avx2": compare_logits(logits["exact"], logits["avx2"]),
        "best": compare_logits(logits["exact"], logits["best"]),
        "best_to_avx2": compare_logits(logits["best"], logits["avx2"]),
    }
    quantized = [stage.figures for stage in built.stages if "reduce_range" in stage.figures]
    return {
        "variant": built.variant,
        "weight_bits": weight_bits(graph),
        "num_images": len(images),
        "accuracy": {name: float((each.argmax(1) == labels).mean()) for name, each in logits.items()},
        "changed": {name: 1 - figures["agreement"] for name, figures in pairs.items()},
        "rms": {name: figures["relative_rms"] for name, figures in pairs.items()},
        "reduce_range": quantized[0]["reduce_range"] if quantized else None,
    }


if __name__ == "__main__":
    main()
