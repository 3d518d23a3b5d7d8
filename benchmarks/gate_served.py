"""Planted variants of one model, served for real, and what the gate says of each.

A variant answers another class for a known share of the images: its graph adds up the pixels and turns the logits
round where the sum, divided by a prime, leaves little. What it loses is therefore known, and is counted over all
images of a large pool. Each is judged on the images that there are, and where those do not decide once more on as
many as the gate asks for, out of the same pool.

    python -m benchmarks.gate_served [--pool N]
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import write_results
from benchmarks.sample import Sample, make_sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PRIME = 10_007
_MARGIN = 1.0
_DROPS = (0.0, 0.0, 0.0, 0.25, 0.25, 0.5, 1.0, 1.0, 1.25, 1.5, 2.0, 3.0)
"""True drops as multiples of the limit; those below it are good."""
_FIRST = 449
_REFERENCE = "planted_reference"


def plant(source: Path, target: Path, share: float, seed: int) -> None:
    """Writes a graph that turns the classes of a share of the images by one.

    Args:
        source: A graph with `image`, UINT8 [N, H, W, 3], and `logits`, FP32 [N, classes].
        target: The file to write.
        share: Of the images, 0 to 1.
        seed: Which images they are.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    (logits,) = graph.output
    shape = [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim][1:]
    classes = logits.type.tensor_type.shape.dim[1].dim_value
    for node in graph.node:
        node.output[:] = ["plain" if name == logits.name else name for name in node.output]
    weights = np.random.default_rng(seed).integers(1, 8, (1, *shape)).astype(np.int32)
    constants: dict[str, NDArray[Any]] = {
        "weights": weights,
        "axes": np.array([1, 2, 3], np.int64),
        "prime": np.array(_PRIME, np.int32),
        "below": np.array(round(share * _PRIME), np.int32),
        "turned": np.roll(np.arange(classes), 1).astype(np.int64),
        "column": np.array([1], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, f"plant_{name}") for name, value in constants.items())
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["image"], "whole", {"to": TensorProto.INT32}),
        ("Mul", ["whole", "weights"], "weighted", {}),
        ("ReduceSum", ["weighted", "axes"], "sum", {"keepdims": 0}),
        ("Mod", ["sum", "prime"], "rest", {}),
        ("Less", ["rest", "below"], "flat", {}),
        ("Unsqueeze", ["flat", "column"], "chosen", {}),
        ("Gather", ["plain", "turned"], "other", {"axis": 1}),
        ("Where", ["chosen", "other", "plain"], logits.name, {}),
    ]
    own = {graph.input[0].name, "plain", logits.name}

    def named(name: str) -> str:
        return graph.input[0].name if name == "image" else name if name in own else f"plant_{name}"

    graph.node.extend(
        helper.make_node(kind, [named(name) for name in takes], [named(gives)], **more)
        for kind, takes, gives, more in steps
    )
    onnx.checker.check_model(model)
    onnx.save(model, target)


def make_pool(sample: Sample, num: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns images, uint8 [num, H, W, 3], and their labels: the test images, shifted and with noise."""
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, len(sample.images), num)
    shifts = rng.integers(-2, 3, (num, 2))
    images = np.stack(
        [np.roll(sample.images[index], tuple(shift), (0, 1)) for index, shift in zip(chosen, shifts, strict=True)]
    )
    noise = rng.integers(-12, 13, images.shape, dtype=np.int16)
    return np.clip(images + noise, 0, 255).astype(np.uint8), sample.labels[chosen]


@contextlib.contextmanager
def _silent(label: str) -> Iterator[Callable[[int, int], None]]:
    del label
    yield lambda done, total: None


def measure(num_pool: int) -> dict[str, Any]:
    """Publishes the variants, serves them, and puts each to the gate."""
    from temper.builder.network.export import run_onnx
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig
    from temper.gate.config import GateConfig
    from temper.gate.decide import decide
    from temper.gate.rules.accuracy import AccuracyRule
    from temper.imaging.preprocess import Preprocessing
    from temper.run.gate_served import ask, gather, open_served
    from temper.serve.server import TritonServer

    sample = make_sample()
    images, labels = make_pool(sample, num_pool)
    config = GateConfig(accuracy=AccuracyRule(max_drop=_MARGIN))
    with tempfile.TemporaryDirectory() as folder:
        work, repository = Path(folder), Path(folder) / "repository"
        sample.export(work / "plain.onnx")
        accuracy = float((run_onnx(work / "plain.onnx", images).argmax(1) == labels).mean())
        names = [f"planted_{index}" for index in range(len(_DROPS))]
        for name, drop, seed in zip((_REFERENCE, *names), (0.0, *_DROPS), range(99), strict=False):
            file = work / name / "model.onnx"
            file.parent.mkdir()
            # The share that makes the accuracy fall by so much; what it really is, is counted as it is served.
            plant(work / "plain.onnx", file, drop * _MARGIN / 100 / accuracy, seed)
            triton = TritonConfig(
                name=name,
                image_size=32,
                num_classes=10,
                max_batch=32,
                preprocessing=Preprocessing(height=32, width=32),
                backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"}),
            )
            publish(repository, triton, engine_file=file, labels=sample.class_names, card={"recipe": "planted"})
        rows: list[dict[str, Any]] = []
        with TritonServer(repository) as server:
            reference = open_served(server.grpc_url, _REFERENCE, "", {})
            whole = ask(reference, images, labels, lambda done, total: None)
            for index, (name, drop) in enumerate(zip(names, _DROPS, strict=True)):
                candidate = open_served(server.grpc_url, name, "", {})
                truth = 100 * (whole.value - ask(candidate, images, labels, lambda done, total: None).value)
                order = np.random.default_rng(index).permutation(num_pool)
                looks: list[int] = []
                answer, needed = "NOT ENOUGH DATA", _FIRST
                while answer == "NOT ENOUGH DATA" and needed and len(looks) < 2:
                    rows_now = np.sort(order[: min(needed, num_pool)])
                    part = images[rows_now]
                    evidence = gather(config, candidate, reference, (part, part), labels[rows_now], _silent)
                    answer, (finding,), _ = decide(config, evidence)
                    looks.append(len(rows_now))
                    needed = finding.needed or 0
                rows.append({"wanted_drop": drop, "true_drop": truth, "answer": answer, "num_images": looks})
                said = f"{answer}, on {' then '.join(map(str, looks))} images"
                print(f"true drop {truth:5.2f} points: {said}", flush=True)
    groups = {
        "lossless": [row for row in rows if row["wanted_drop"] == 0],
        "small_loss": [row for row in rows if row["wanted_drop"] > 0 and row["true_drop"] < _MARGIN],
        "bad": [row for row in rows if row["true_drop"] >= _MARGIN],
    }
    return {
        "limit": _MARGIN,
        "accuracy": whole.value,
        "pool": num_pool,
        "variants": rows,
        "shipped": {
            name: f"{sum(row['answer'] == 'SHIP' for row in group)} of {len(group)}"
            for name, group in groups.items()
        },
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=20_000)
    arguments = parser.parse_args()
    found = measure(arguments.pool)
    print("shipped:", ", ".join(f"{name} {share}" for name, share in found["shipped"].items()))
    write_results("gate_served", found)


if __name__ == "__main__":
    main()
