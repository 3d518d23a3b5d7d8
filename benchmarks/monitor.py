"""Query monitoring: how many attacks it notices and after how many queries, false alarms, and what it costs.

Attacks ask small models in process, and what they ask passes the plugin's own store of fingerprints; one image's
attack is a run, and it is noticed when a run in the store is as long as `watch_queries`. Ordinary traffic passes
the same store. The cost is measured with the served model, `watch_queries` on and off in turn, on images that
never repeat, and in process. How a metric reaches Triton is a test's job (tests/backends).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import ROOT, interleave, measured_before, random_images, ratio, write_results
from temper.client import Client
from temper.client.robustness.attacks.square import SquareConfig
from temper.client.robustness.harness import attack_endpoint
from temper.serve.server import TritonServer

sys.path.insert(0, str(ROOT / "backends" / "temper"))
from fingerprints import FingerprintStore

Images = npt.NDArray[np.uint8]
Ask = Callable[[Images], npt.NDArray[np.float32]]

_PARTS = ("attacks", "ordinary", "cost", "throughput")
_LONG_RUNS = (10, 25, 50, 100)
_CHOSEN = 25
_TOGETHER = 512  # as the plugin adds them
# More than the processor's caches hold.
_CACHES_BYTES = 32 << 20


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20, help="images that each attack is given")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=800, help="of each round, one image each")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=_PARTS, help="the others stay as they are")
    options = parser.parse_args()
    results = measured_before("monitor")
    for source, size in (("digits", 32), ("textures", 64)) if {"attacks", "ordinary"} & {*options.parts} else ():
        images, labels = _load(source, size)
        if "attacks" in options.parts:
            results.setdefault("attacks", {})[source] = _attacks(images, labels, options.images)
        if "ordinary" in options.parts:
            results.setdefault("ordinary", {})[source] = _ordinary(images)
    if "cost" in options.parts:
        results["cost_us"] = _cost()
    if "throughput" in options.parts:
        results["throughput"] = _throughput(options.rounds, options.requests)
    results = json.loads(json.dumps(results))  # as they were read
    _print(results)
    write_results("monitor", {"measured": results})


def _load(source: Any, size: int) -> tuple[Images, npt.NDArray[np.int64]]:
    """All images of a data set."""
    from temper.builder.data.config import DataConfig
    from temper.builder.data.sources import open_source

    opened = open_source(DataConfig(source=source, image_size=size))
    chosen = np.concatenate([opened.train, opened.test])
    return np.stack([opened.read(int(index)) for index in chosen]), opened.labels[chosen]


def _small_model(images: Images, labels: npt.NDArray[np.int64]) -> Ask:
    """A network of one layer of random 5x5 filters, pooled, under a head fitted in closed form: quick to ask."""
    import torch

    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(64, 3, 5, 5, generator=generator) / 9
    filters -= filters.mean(dim=(1, 2, 3), keepdim=True)

    def features(batch: Images) -> Any:
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            found = torch.nn.functional.conv2d(pixels, filters, stride=2).abs()
            pooled = torch.nn.functional.adaptive_avg_pool2d(found, 4).flatten(1)
        return torch.cat([pooled, torch.ones(len(batch), 1)], dim=1).double()

    known = torch.cat([features(images[start : start + 256]) for start in range(0, len(images), 256)])
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
    gram = known.T @ known
    head = torch.linalg.solve(gram + 1e-4 * gram.trace() / len(gram) * torch.eye(len(gram)), known.T @ targets)
    return lambda batch: (features(batch) @ head).float().numpy()


class _Watch:
    """A model, and the plugin's store of fingerprints before it."""

    def __init__(self, ask: Ask, shape: tuple[int, ...], num_between: int) -> None:
        self._ask = ask
        self._between = (num_between, *shape)
        self._rng = np.random.default_rng(1)
        self.store = FingerprintStore(int(np.prod(shape)), long_run=_CHOSEN, seed=0)
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self.num_queries = 0
        self.reached: dict[int, int] = {}

    def __call__(self, images: Images) -> npt.NDArray[np.float32]:
        answers = self._ask(images)
        for one in images[:, None]:
            self.num_queries += 1
            self.store.take(one)
            longest = int(self.store.add().runs.max())
            for long_run in _LONG_RUNS:
                if longest >= long_run:
                    self.reached.setdefault(long_run, self.num_queries)
            if self._between[0]:
                self.store.take(self._rng.integers(0, 256, self._between, np.uint8))
                self.store.add()
        return answers


def _attacks(images: Images, labels: npt.NDArray[np.int64], count: int) -> dict[str, Any]:
    """Per attack: runs, their queries, and how many were noticed after how many queries."""
    ask = _small_model(images, labels)
    right = np.nonzero(ask(images).argmax(axis=1) == labels)[0]
    chosen = np.random.default_rng(0).choice(right, count, replace=False)
    attacks: dict[str, tuple[Callable[..., None], int]] = {
        "Square, epsilon 2": (_square(2.0, 0), 0),
        "Square, epsilon 8, to the last query": (_square(8.0, 1), 0),
        "Square, epsilon 24, to the last query": (_square(24.0, 1), 0),
        "the same, 50 other images between two": (_square(24.0, 1), 50),
        "HopSkipJump": (_hop_skip_jump, 0),
        "SimBA, pixels": (_simba, 0),
        "noise, epsilon 2": (_noise(2), 0),
        "noise, epsilon 8": (_noise(8), 0),
    }
    rows = {}
    for name, (run, num_between) in attacks.items():
        watch, queries, reached = _Watch(ask, images.shape[1:], num_between), [], []
        for index in chosen:
            watch.begin()
            run(watch, images[index : index + 1], labels[index])
            queries.append(watch.num_queries)
            reached.append(watch.reached)
        rows[name] = {
            "runs": count,
            "queries_median": statistics.median(queries),
            "noticed": {long_run: _row(long_run, queries, reached) for long_run in _LONG_RUNS},
        }
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    return rows


def _row(long_run: int, queries: list[int], reached: list[dict[int, int]]) -> dict[str, Any]:
    after = [one[long_run] for one in reached if long_run in one]
    could = sum(spent >= long_run for spent in queries)
    return {
        "noticed": len(after),
        "of_runs_as_long": could,
        "after_queries_median": statistics.median(after) if after else None,
    }


def _square(epsilon: float, last: int) -> Callable[..., None]:
    """Square with 500 queries; `last`: on a model that never falls, so that it spends them all."""

    def run(watch: _Watch, image: Images, label: int) -> None:
        async def infer(batch: Images) -> npt.NDArray[np.float32]:
            answers = watch(batch).copy()
            if last:
                # The order of the scores decides the search, and the right class stays the largest.
                answers[:, label] += 100.0
            return answers

        config = SquareConfig(epsilon=epsilon, max_queries=500, batch_size=1, concurrency=1)
        asyncio.run(attack_endpoint(infer, image, [label], config))

    return run


def _hop_skip_jump(watch: _Watch, image: Images, label: int) -> None:
    """ART's, L2, with about 500 queries; what it sends is rounded, as a served model takes uint8."""
    from art.attacks.evasion import HopSkipJump  # type: ignore[import-untyped]  # ships none
    from art.estimators.classification import BlackBoxClassifier  # type: ignore[import-untyped]  # ships none

    def predict(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return watch(np.clip(np.rint(batch), 0, 255).astype(np.uint8))

    num_classes = watch(image).shape[1]
    watch.begin()
    np.random.seed(0)  # ART draws from the global generator
    classifier = BlackBoxClassifier(predict, image.shape[1:], num_classes, clip_values=(0.0, 255.0))
    attack = HopSkipJump(classifier, targeted=False, max_iter=5, max_eval=300, init_eval=50, verbose=False)
    attack.generate(image.astype(np.float32))


def _simba(watch: _Watch, image: Images, label: int) -> None:
    """One value of the image at a time, 51 up or down (Guo et al., ICML 2019, arXiv:1905.07121), 500 queries."""

    def probability(candidate: npt.NDArray[Any]) -> float:
        answers = watch(candidate.astype(np.uint8))[0]
        return float(1 / np.exp(10 * (answers - answers[label])).sum())

    best = image.astype(np.int64)
    lowest = probability(image)
    for place in np.random.default_rng(0).permutation(image.size):
        for step in (51, -51):
            if watch.num_queries >= 500:
                return
            candidate = best.copy()
            candidate.flat[place] = np.clip(candidate.flat[place] + step, 0, 255)
            found = probability(candidate)
            if found < lowest:
                best, lowest = candidate, found
                break


def _noise(epsilon: int) -> Callable[..., None]:
    """500 queries, each with new noise on every value."""

    def run(watch: _Watch, image: Images, label: int) -> None:
        rng = np.random.default_rng(0)
        for _ in range(500):
            noise = rng.integers(-epsilon, epsilon + 1, image.shape)
            watch(np.clip(image + noise, 0, 255).astype(np.uint8))

    return run


def _ordinary(images: Images) -> dict[str, Any]:
    """Per kind of traffic: images, how many were flagged at each length, and the longest run."""
    rng = np.random.default_rng(0)
    shuffled = images[rng.permutation(len(images))]
    size = images.shape[1]
    few = shuffled[np.arange(10_000) % 64]
    static = np.clip(shuffled[0].astype(int) + rng.normal(0, 2, (300, *images.shape[1:])), 0, 255).astype(np.uint8)
    traffic = {
        "every image once, shuffled": shuffled,
        "64 images again and again": few,
        "one image again and again": few[:1].repeat(10_000, axis=0),
        "every image small, anywhere on black": _small_on_black(shuffled[:2000], rng),
        "video, the camera moves 1 pixel a frame": _pan(shuffled, size, 600),
        "video, nothing moves, sensor noise of 2 levels": static,
    }
    rows = {}
    for name, sent in traffic.items():
        store = FingerprintStore(int(np.prod(sent.shape[1:])), long_run=_CHOSEN, seed=0)
        runs = np.concatenate(
            [_add(store, sent[start : start + _TOGETHER]) for start in range(0, len(sent), _TOGETHER)]
        )
        rows[name] = {
            "images": len(sent),
            "longest_run": int(runs.max()),
            "flagged": {long_run: int(np.count_nonzero(runs >= long_run)) for long_run in _LONG_RUNS},
        }
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    return rows


def _add(store: FingerprintStore, images: Images) -> npt.NDArray[np.int64]:
    store.take(images)
    return store.add().runs


def _small_on_black(images: Images, rng: np.random.Generator) -> Images:
    """Images at half their size on black of their full size: three quarters of every image are alike."""
    size = images.shape[1] // 2
    canvas = np.zeros_like(images)
    for number, (top, left) in enumerate(rng.integers(0, size + 1, (len(images), 2)).tolist()):
        canvas[number, top : top + size, left : left + size] = images[number, ::2, ::2]
    return canvas


def _pan(images: Images, size: int, frames: int) -> Images:
    """A window that moves over images side by side."""
    strip = np.concatenate(list(images[: frames // size + 2]), axis=1)
    return np.stack([strip[:, left : left + size] for left in range(frames)])


def _cost() -> dict[str, float]:
    """Microseconds per image that was never sent before, by image size and images per request; the median of 5.

    Between two requests the caches are filled with something else, as a network does it.
    """
    cost, network = {}, np.zeros(_CACHES_BYTES, np.uint8)
    for size in (32, 64, 224):
        for per_request in (1, 32):
            store = FingerprintStore(3 * size * size, long_run=_CHOSEN)
            taken = []
            for number in range(5):
                images = np.random.default_rng(number).integers(0, 256, (_TOGETHER, size, size, 3), np.uint8)
                spent = 0.0
                for batch in _cut(images, per_request):
                    network[::64] += 1
                    batch = batch.copy()  # as it has just been received
                    start = time.perf_counter()
                    store.take(batch)
                    if store.num_taken >= _TOGETHER:
                        store.add()
                    spent += time.perf_counter() - start
                taken.append(spent / len(images) * 1e6)
            cost[f"{size}x{size}, {per_request} per request"] = float(np.median(taken))
    return cost


def _cut(images: Images, size: int) -> Iterator[Images]:
    return (images[start : start + size] for start in range(0, len(images), size))


def _throughput(rounds: int, count: int) -> dict[str, Any]:
    """Images per second of the served ResNet-18 at 32x32, fp32 and int8, with the monitor on and off."""
    from benchmarks.sample import make_sample
    from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
    from temper.builder.publish.entry import publish
    from temper.builder.publish.serving import ServingConfig
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    sample = make_sample()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {precision: folder / precision / "model.onnx" for precision in ("fp32", "int8")}
        for file in files.values():
            file.parent.mkdir()
        sample.export(files["fp32"])
        quantize_onnx(files["fp32"], files["int8"], sample.calibration[:64], QuantizeConfig())
        for precision, file in files.items():
            for state, watch in (("off", None), ("on", _CHOSEN)):
                config = TritonConfig(
                    name=f"{precision}_{state}",
                    image_size=32,
                    num_classes=10,
                    max_batch=32,
                    backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"}),
                    serving=ServingConfig(watch_queries=watch),
                )
                publish(folder / "models", config, engine_file=file, labels=sample.class_names, card={})
        for precision in files:
            models = [f"{precision}_{state}" for state in ("off", "on")]
            with TritonServer(folder / "models", models=models) as server, Client(server.grpc_url) as client:
                for per_request in (1, 32):
                    runs = {model: _sender(server.pid, client, model, per_request, count) for model in models}
                    rows = interleave(rounds, runs)
                    rows["on / off"] = ratio(rows, models[1], models[0], "ips")
                    rows["cpu on / off"] = ratio(rows, models[1], models[0], "cpu_us")
                    figures[f"{precision}, {per_request} per request"] = rows
    return figures


def _sender(
    server: int, client: Client, model: str, per_request: int, count: int
) -> Callable[[], dict[str, float]]:
    """Sends images that were never sent before, 8 requests at a time; the processor's time is the server's."""
    seeds = iter(range(1000))
    client.infer(model, random_images(256, 32))

    def run() -> dict[str, float]:
        rng = np.random.default_rng((next(seeds), per_request))
        images = rng.integers(0, 256, (count * (1 if per_request == 1 else 4), 32, 32, 3), np.uint8)
        with ThreadPoolExecutor(8) as pool:
            before, start = _cpu_s(server, model), time.perf_counter()
            for _ in pool.map(lambda batch: client.infer(model, batch), _cut(images, per_request)):
                pass
            took = time.perf_counter() - start
        cpu_us = (_cpu_s(server, model) - before) / len(images) * 1e6
        return {"ips": len(images) / took, "cpu_us": cpu_us}

    return run


def _cpu_s(server: int, model: str) -> float:
    """Seconds of a core that tritonserver and the model's own process have used."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended
        is_instance = int(fields[1]) == server and f"/{model}/" in command
        if process.name == str(server) or is_instance:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _print(results: dict[str, Any]) -> None:
    for source, rows in results.get("attacks", {}).items():
        for name, row in rows.items():
            cells = "  ".join(
                f"{length}: {one['noticed']}/{one['of_runs_as_long']} ({one['after_queries_median']})"
                for length, one in row["noticed"].items()
            )
            print(f"{source:8} {name:66} {row['queries_median']:7.0f} queries  {cells}")
    for source, rows in results.get("ordinary", {}).items():
        for name, row in rows.items():
            print(
                f"{source:8} {name:48} {row['images']:6} images  longest {row['longest_run']:4}  {row['flagged']}"
            )
    for name, cost in results.get("cost_us", {}).items():
        print(f"{name:24} {cost:6.1f} us an image")
    for name, rows in results.get("throughput", {}).items():
        for figure in ("on / off", "cpu on / off"):
            print(f"{name:20} {figure:12} {rows[figure]['median']:.3f}  {rows[figure]['rounds']}")


if __name__ == "__main__":
    main()
