"""What an attacker gets from an endpoint: the worst case against AutoAttack, and a trap that must be seen through.

AutoAttack: the networks of the recipes `digits` and `textures` are built and served in float32; the worst case of
APGD-CE, APGD-T and Square through the endpoint is compared with the authors' AutoAttack, its standard version, on
the same network in PyTorch, with the same images and budgets. (The network in PyTorch is the exported graph in
PyTorch's operators; the tests hold that to ONNX Runtime.)

Trap: the same network with its logits rounded to one decimal is served too. It is no more robust; an attack by
scores is misled, which must be said, and the worst case must not rank it above its original.

Defences: the network of `digits` behind each of them, attacked through them by gradients and by queries.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, measured_before, write_results
from temper.builder.built import Built
from temper.builder.compress.variant import VariantConfig
from temper.builder.contract import GRAPH_FILE, OUTPUT_NAME
from temper.builder.names import read_labels
from temper.builder.publish.defence import (
    BitDepthConfig,
    Defence,
    JpegConfig,
    RandomResizeConfig,
    render_defences,
)
from temper.builder.publish.switch import versions_with
from temper.builder.store.artifacts import Artifact, Store
from temper.client.robustness.attacks.noise import NoiseConfig
from temper.client.robustness.attacks.square import SquareConfig
from temper.client.robustness.attacks.transfer import ApgdCeConfig, ApgdTConfig
from temper.client.robustness.base import AttackConfig
from temper.client.robustness.draws import draw_images
from temper.client.robustness.result import INDICES_FILE, SURVIVED_FILE
from temper.client.stats import proportion
from temper.progress import Display
from temper.report.model import Variant
from temper.run.measure import Measurements, Subject, subject
from temper.run.recipe import load_recipe
from temper.run.workflow import build_recipe
from temper.run.worst_case import compare_worst_cases, with_worst_case
from temper.serve.endpoint import Endpoint

_EPSILONS = {"digits": (4.0, 8.0), "textures": (1.0, 2.0)}
_PARTS = ("digits", "textures", "trap", "defences")
_DEFENCES = {
    "jpeg": Defence(jpeg=JpegConfig(quality=75)),
    "bits": Defence(bit_depth=BitDepthConfig(bits=3)),
    "resize": Defence(random_resize=RandomResizeConfig(smallest=0.8)),
}
_ANSWERS = 10
"""Of a variant that draws at random, to each image."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = f"some of {', '.join(_PARTS)}; all when not given"
    parser.add_argument("parts", nargs="*", default=_PARTS, help=parts)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    options = parser.parse_args()
    measured = measured_before("robustness")
    with Display() as display:
        for name in _EPSILONS:
            if name in options.parts:
                measured[f"{name} against AutoAttack"] = _against_autoattack(name, options, display)
        if "trap" in options.parts:
            measured["trap"] = _trap(options, display)
        if "defences" in options.parts:
            measured["defences"] = _defences(options, display)
    write_results("robustness", {"measured": measured})


def _build(
    name: str, options: argparse.Namespace, display: Display, more: Sequence[VariantConfig] = ()
) -> list[Built]:
    """Build the first variant of a recipe, and others beside it."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    recipe = dataclasses.replace(recipe, variants=(recipe.variants[0], *more), attacks=(), corruptions=None)
    return build_recipe(recipe, repository=options.repository, runs=options.runs, display=display)


def _endpoint(options: argparse.Namespace, models: Sequence[tuple[str, int]], display: Display) -> Endpoint:
    """A server of these versions, served or not."""
    names, versions = [name for name, _ in models], versions_with(options.repository, models)
    return Endpoint(None, options.repository, models=names, versions=versions, display=display)


def _measurements(built: Built, endpoint: Endpoint, options: argparse.Namespace, display: Display) -> Measurements:
    store = Store(options.runs / "benchmark-robustness" / "stages")
    return Measurements(store=store, endpoint=endpoint, data=built.data, display=display)


def _attacks(images: int, epsilons: Sequence[float]) -> list[AttackConfig]:
    first, *others = epsilons
    budget: dict[str, Any] = {"epsilon": first, "curve": tuple(others), "num_images": images}
    found: list[AttackConfig] = [
        ApgdCeConfig(**budget, max_queries=2, steps=100),
        ApgdTConfig(**budget, max_queries=9, steps=50),
        SquareConfig(**budget, max_queries=500),
    ]
    return [one for config in found for one in config.each_budget()]


def _against_autoattack(name: str, options: argparse.Namespace, display: Display) -> dict[str, Any]:
    (built,) = _build(name, options, display)
    graph, target = built.snapshots[-1].graph, subject("fp32", built.model, built.version, built.path)
    configs = _attacks(options.images, _EPSILONS[name])
    with _endpoint(options, [(built.model, built.version)], display) as endpoint:
        measurements = _measurements(built, endpoint, options, display)
        images, labels = measurements.test_images()
        attacks = [measurements.attack(target, config, {"own": [(graph, "")]}) for config in configs]
    found: dict[str, Any] = {}
    rows = draw_images(len(images), options.images, 0)
    for epsilon in _EPSILONS[name]:
        started = time.monotonic()
        reference = _autoattack(graph.path / GRAPH_FILE, np.array(images[rows]), labels[rows], epsilon)
        served = np.ones(len(rows), dtype=np.bool_)
        for artifact in attacks:
            if artifact.info["epsilon"] <= epsilon:
                assert np.array_equal(np.load(artifact.path / INDICES_FILE), rows)
                served &= np.load(artifact.path / SURVIVED_FILE)
        own = [one for one in attacks if one.info["epsilon"] == epsilon]
        row = {
            "worst_case": dict(proportion(served)),
            "autoattack": dict(proportion(reference)),
            "difference": float(served.mean() - reference.mean()),
            "autoattack_s": round(time.monotonic() - started, 1),
            "attacks_s": round(sum(one.info["duration_s"] for one in own), 1),
        }
        found[f"epsilon {epsilon:g}"] = row
        print(
            f"{name}, epsilon {epsilon:g}: worst case {100 * row['worst_case']['value']:.1f} %, "
            f"AutoAttack {100 * row['autoattack']['value']:.1f} % of {len(rows)} images",
            flush=True,
        )
    return found


def _autoattack(graph: Path, images: Any, labels: Any, epsilon: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which images are right after the standard AutoAttack in PyTorch, without rounding."""
    import torch
    from pyautoattack import AutoAttack  # type: ignore[import-untyped]  # ships none

    from temper.client.robustness.surrogate import Surrogate

    surrogate = Surrogate([graph])

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # NCHW, 0 to 1: what FAB and Square ask for
            return surrogate.logits(255 * x.permute(0, 2, 3, 1))

    network = Network()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
    y = torch.from_numpy(labels)
    theirs = AutoAttack(network, norm="Linf", eps=epsilon / 255, version="standard", seed=0)
    theirs.verbose = False
    adversarial, *_ = theirs.run_standard_evaluation(x, y, batch_size=100)
    with torch.no_grad():
        right: np.ndarray[Any, np.dtype[np.bool_]] = (network(adversarial).argmax(1) == y).numpy()
    return right


def _trap(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    (built,) = _build("digits", options, display)
    graph = built.snapshots[-1].graph
    targets = {
        "fp32": subject("fp32", built.model, built.version, built.path),
        "rounded": _publish_rounded(built, options),
    }
    configs: list[AttackConfig] = [
        SquareConfig(epsilon=8, num_images=options.images, max_queries=300),
        ApgdCeConfig(epsilon=8, num_images=options.images),
    ]
    models = [(target.model, target.version) for target in targets.values()]
    with _endpoint(options, models, display) as endpoint:
        measurements = _measurements(built, endpoint, options, display)
        labels = measurements.test_images()[1]
        attacks = {
            name: [measurements.attack(target, config, {"own": [(graph, "")]}) for config in configs]
            for name, target in targets.items()
        }
    found: dict[str, Any] = {}
    for name, number in (("square alone", 1), ("with gradients", 2)):
        found[name] = row = _compare({one: each[:number] for one, each in attacks.items()}, labels)
        print(f"trap, {name}: {row}", flush=True)
    return found


def _defences(options: argparse.Namespace, display: Display) -> dict[str, Any]:
    variants = [VariantConfig(name=name, ensemble=("fp32",), defend=(one,)) for name, one in _DEFENCES.items()]
    all_built = _build("digits", options, display, variants)
    graph, models = all_built[0].snapshots[-1].graph, [(built.model, built.version) for built in all_built]
    found: dict[str, Any] = {}
    with _endpoint(options, models, display) as endpoint:
        for built in all_built:
            measurements = _measurements(built, endpoint, options, display)
            labels = measurements.test_images()[1]
            target = subject(built.variant, built.model, built.version, built.path)
            defence = [_DEFENCES[built.variant]] if built.variant in _DEFENCES else []
            answers = _ANSWERS if any(one.is_random for one in defence) else 1
            budget: dict[str, Any] = {"epsilon": 4, "num_images": options.images, "expectation": answers}
            configs: list[AttackConfig] = [
                ApgdCeConfig(**budget, steps=100, max_queries=2 * answers),
                SquareConfig(**budget, max_queries=200 * answers),
                NoiseConfig(**budget | {"epsilon": 1}, max_queries=200 * answers),
            ]
            own = {"own": [(graph, render_defences(defence))]}
            attacks = [measurements.attack(target, config, own) for config in configs]
            judged = _judge(built.variant, attacks, labels)
            worst = judged.worst_at(("linf", 4.0))
            assert worst is not None
            found[built.variant] = row = {
                "clean": attacks[0].info["clean_accuracy"]["value"],
                **{one.info["attack"]: one.info["accuracy"]["value"] for one in attacks},
                "worst_case": worst.value,
                "doubt": worst.doubt,
            }
            print(f"{built.variant}: {row}", flush=True)
    return found


def _judge(name: str, attacks: list[Artifact], labels: Any) -> Variant:
    """Return a variant of which nothing is known but what the attacks left."""
    blank: dict[str, Any] = {"version": 1, "engine": "", "engine_reason": "", "size_bytes": 1, "build": ()}
    names = [str(label) for label in range(int(labels.max()) + 1)]
    variant = Variant(name=name, model=name, calibration=None, int8=None, **blank)
    return with_worst_case(variant, attacks, labels, names)


def _compare(attacks: dict[str, list[Artifact]], labels: Any) -> dict[str, Any]:
    one, two = (_judge(name, each, labels) for name, each in attacks.items())
    first, second = attacks.values()
    (paired,) = compare_worst_cases(first, second, (one, two))
    return {
        "worst_case": {each.name: each.worst_case[0].value for each in (one, two)},
        "difference": [paired.difference, paired.low, paired.high],
        "doubt": paired.doubt,
        "masks": {each.name: [f"{mask.attack}: {mask.evidence}" for mask in each.masks] for each in (one, two)},
    }


def _publish_rounded(built: Built, options: argparse.Namespace) -> Subject:
    """Publish the graph again, with its logits rounded to one decimal."""
    import onnx
    from onnx import helper, numpy_helper

    from temper.builder.contract import LABELS_FILE
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    model = onnx.load(built.snapshots[-1].graph.path / GRAPH_FILE)
    for node in model.graph.node:
        node.output[:] = ["exact" if name == OUTPUT_NAME else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array(10, dtype=np.float32), "ten"))
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["exact", "ten"], ["tenfold"]),
            helper.make_node("Round", ["tenfold"], ["whole"]),
            helper.make_node("Div", ["whole", "ten"], [OUTPUT_NAME]),
        ]
    )
    folder = options.runs / "benchmark-robustness"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / GRAPH_FILE)
    name, labels = "benchmark_rounded", read_labels(built.data.path / LABELS_FILE)
    backend = PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"})
    published = publish(
        options.repository,
        TritonConfig(name=name, image_size=32, num_classes=len(labels), max_batch=32, backend=backend),
        engine_file=folder / GRAPH_FILE,
        labels=labels,
        card={"recipe": "benchmarks"},
    )
    return subject("rounded", published.model, published.version, published.path)


if __name__ == "__main__":
    main()
