"""Blame: ten networks, each with one planted fault, and which layer `temper explain` puts first.

Every network learns scikit-learn's digits from another seed and is quantised to int8, with one fault in one layer:
the scale of its weights multiplied by 4 (`scale`), a channel of its input 400 times as large as it was, taken back
in its weights (`outlier`; float32 answers as before), or a sixteenth of the scale of its input (`clip`).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.common import CACHE, ROOT, write_results
from temper.builder.built import Built
from temper.builder.compress.qdq import residual_adds, weighted_nodes
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.contract import CALIBRATION_IMAGES_FILE, GRAPH_FILE, TEST_LABELS_FILE
from temper.builder.engines.openvino import OpenVinoConfig
from temper.builder.explain.activations import activated, pick_runs_in
from temper.builder.explain.blame import ANSWERS_FILE, run_blame
from temper.builder.explain.images import write_images

if TYPE_CHECKING:
    from temper.run.recipe import Recipe

FAULTS = ("scale", "outlier", "clip")
ARCHS = ("resnet18", "resnet34", "resnet50")
SCALE, OUTLIER, CLIP = 4.0, 400.0, 16.0
EPOCHS = 6


def main() -> None:
    """Build, plant, blame, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=10)
    arguments = parser.parse_args()
    rows = [measure(number) for number in range(arguments.networks)]
    first = sum(row["is_first"] for row in rows)
    lost = [row for row in rows if row["accuracy_lost"] > 0]
    print(
        f"the faulty layer first: {first} of {len(rows)}; recovered at least 90 % of the lost accuracy: "
        f"{sum(row['recovered'] >= 0.9 for row in lost)} of {len(lost)} that lost some"
    )
    write_results("faults", {"epochs": EPOCHS, "networks": rows})


def measure(number: int) -> dict[str, Any]:
    """One network: what was planted, and what was found: layers by training images, accuracies on test images."""
    fault, arch = FAULTS[number % len(FAULTS)], ARCHS[number // len(FAULTS) % len(ARCHS)]
    built = build(number, arch)
    folder = CACHE / "faults" / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    float_graph, graph = folder / "float.onnx", folder / "int8.onnx"
    calibration = np.load(built.data.path / CALIBRATION_IMAGES_FILE)
    layer = plant(fault, built.snapshots[0].graph.path / GRAPH_FILE, float_graph, graph, calibration, number)
    sizes = {"num_images": 512, "num_train": 512, "seed": 0}
    write_images(recipe_of(number, arch).data, built.data.path, folder / "images", quietly, **sizes)
    runs_in = pick_runs_in(OpenVinoConfig(), onnx.load(graph))
    started = time.monotonic()
    info = run_blame((float_graph, graph), folder / "images", runs_in, folder, quietly, most=512, seed=0)
    seconds = time.monotonic() - started
    ranked = sorted((one for one in info["layers"] if one["share"]), key=lambda one: -one["share"][0])
    readers = readers_of(float_graph, layer) if fault == "clip" else {layer}
    labels = np.load(folder / "images" / TEST_LABELS_FILE)
    with np.load(folder / ANSWERS_FILE) as answers:
        accuracies = [float((answers[name] == labels).mean()) for name in ("float32", "quantized", "kept")]
    lost = accuracies[0] - accuracies[1]
    row = {
        "network": f"{arch}, seed {number}",
        "fault": fault,
        "layer": layer,
        "first": ranked[0]["name"],
        "is_first": ranked[0]["name"] in readers,
        "share": ranked[0]["share"],
        "findings": ranked[0]["findings"],
        "accuracy_float": accuracies[0],
        "accuracy_int8": accuracies[1],
        "accuracy_lost": lost,
        "suggested": info["kept"],
        "loss_recovered": info["recovered"],
        "accuracy_mended": accuracies[2],
        "recovered": (accuracies[2] - accuracies[1]) / lost if lost > 0 else None,
        "note": info["kept_note"],
        "tap_change": info["tap_change"],
        "read_note": info["note"],
        "seconds": seconds,
    }
    print(
        f"{row['network']:<18} {fault:<8} {layer.removeprefix('/model/'):<44} first: {row['is_first']!s:<6} "
        f"{100 * accuracies[0]:.1f} -> {100 * accuracies[1]:.1f} -> {100 * accuracies[2]:.1f} % with "
        f"{len(info['kept'])} put back, {seconds:.0f} s",
        flush=True,
    )
    return row


def quietly(done: int, total: int) -> None:
    """No progress."""


def build(number: int, arch: str) -> Built:
    """The float32 network of one seed."""
    from temper.progress import Display
    from temper.run.workflow import build_recipe

    with Display() as display:
        recipe, runs = recipe_of(number, arch), CACHE / "faults_runs"
        return build_recipe(recipe, repository=CACHE / "faults_repository", runs=runs, display=display)[0]


def recipe_of(number: int, arch: str) -> Recipe:
    """The demo's, with another seed and architecture."""
    from temper.builder.compress.variant import VariantConfig
    from temper.run.recipe import load_recipe

    recipe = load_recipe(ROOT / "recipes" / "digits.toml")
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, arch=arch),  # type: ignore[arg-type]  # one of torchvision's
        train=dataclasses.replace(recipe.train, epochs=EPOCHS, seed=number),
        variants=(VariantConfig(name=f"seed{number}"),),
        attacks=(),
        engine=OpenVinoConfig(),
    )


def plant(
    fault: str, source: Path, float_graph: Path, graph: Path, calibration: np.ndarray[Any, Any], seed: int
) -> str:
    """Writes a float32 graph and its int8 copy with one fault, and returns the layer that has it.

    Args:
        fault: One of `FAULTS`.
        source: The float32 graph.
        float_graph: The file for the float32 graph; another than the source only for an outlier.
        graph: The file for the int8 graph; where it exists already it is what gets a wrong scale.
        calibration: uint8 [M, H, W, 3].
        seed: Decides the layer and the channel.
    """
    rng = np.random.default_rng([seed, 12])
    model = onnx.load(source)
    convs = weighted_nodes(model.graph)[1:-1]  # the stem and the head have other ranges than the rest
    if fault == "outlier":
        made = {activated(model.graph, node): node for node in convs}
        convs = [node for node in convs if node.input[0] in made]
    node = convs[rng.integers(len(convs))]
    if fault == "outlier":
        channel = int(rng.integers(_values(model, node.input[1]).shape[1]))
        for name in made[node.input[0]].input[1:]:
            _multiply(model, name, np.s_[channel], OUTLIER)
        _multiply(model, node.input[1], np.s_[:, channel], 1 / OUTLIER)
    onnx.save(model, float_graph)
    if fault == "outlier" or not graph.exists():
        quantize_onnx(float_graph, graph, calibration, QuantizeConfig(method="max", reduce_range=True))
    if fault != "outlier":
        _spoil(fault, graph, node.name)
    return str(node.name)


def _spoil(fault: str, graph: Path, layer: str) -> None:
    """Gives a quantised layer a wrong scale."""
    model = onnx.load(graph)
    producers = {name: each for each in model.graph.node for name in each.output}
    (node,) = [each for each in model.graph.node if each.name == layer]
    if fault == "scale":
        _multiply(model, producers[node.input[1]].input[1], np.s_[...], SCALE)
    else:
        pair = producers[node.input[0]]
        for name in {pair.input[1], producers[pair.input[0]].input[1]}:
            _multiply(model, name, np.s_[...], 1 / CLIP)
    onnx.save(model, graph)


def readers_of(float_graph: Path, layer: str) -> set[str]:
    """The layers that read what a layer reads: where its input is clipped, it is clipped for all of them."""
    graph = onnx.load(float_graph).graph
    (own,) = [node for node in graph.node if node.name == layer]
    both = [*weighted_nodes(graph), *residual_adds(graph)]
    return {node.name for node in both if own.input[0] in node.input}


def _values(model: onnx.ModelProto, name: str) -> np.ndarray[Any, Any]:
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    return numpy_helper.to_array(tensor)


def _multiply(model: onnx.ModelProto, name: str, where: Any, factor: float) -> None:
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    values = numpy_helper.to_array(tensor).copy()
    values[where] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, name))


if __name__ == "__main__":
    main()
