"""Queries per second of attacks against a load test, and what the same attacks of a kept toolbox cost.

Speed: a model with random weights would fall, or never fall, to the first query; so Square runs against an
endpoint whose labels are what the server itself answers, and a budget too small to change them: every image uses
all its queries, and the harness does all its work.

Toolbox: a small model that reads digits is served, and adversarial-robustness-toolbox attacks it through the
client, its images rounded to uint8. Square is compared by the queries to the toolbox's success rate. HopSkipJump
works on 64 images with a budget that it never reaches, so that all queries are spent.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import (
    interleave,
    measured_before,
    publish_sample,
    random_images,
    ratio,
    resnet50_repository,
    write_results,
)
from temper.client import Client
from temper.client.load import LoadConfig, run_closed_loop
from temper.client.robustness import AttackConfig, AttackResult, attack
from temper.client.robustness.attacks.hop_skip_jump import HopSkipJumpConfig
from temper.client.robustness.attacks.square import SquareConfig
from temper.serve.server import TritonServer

_MODEL = "resnet50_int8"
_SAMPLE = "digits"
_CONCURRENCY = 4
_PARTS = ("speed", "square", "hop-skip-jump")
_ORDERS = {"linf": np.inf, "l2": 2}
_EPSILONS = {"linf": 12.0, "l2": 700.0}
_NUM_HOPPING = 64


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", default=_PARTS, help=f"some of {', '.join(_PARTS)}; all when not given"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--square-images", type=int, default=100)
    parser.add_argument("--square-steps", type=int, default=100)
    parser.add_argument("--hops", type=int, default=3, help="iterations of the toolbox's HopSkipJump")
    options = parser.parse_args()
    measured = measured_before("attack")
    if "speed" in options.parts:
        measured |= _speed(options.rounds, options.seconds)
    if {"square", "hop-skip-jump"} & {*options.parts}:
        with tempfile.TemporaryDirectory() as folder:
            measured |= _against_toolbox(Path(folder), options)
    write_results("attack", {"model": _MODEL, "concurrency": _CONCURRENCY, "measured": measured})


def _speed(rounds: int, seconds: float) -> dict[str, Any]:
    images = random_images(64)
    results: dict[str, Any] = {}
    with TritonServer(resnet50_repository(), models=[_MODEL]) as server:
        with Client(server.grpc_url) as client:
            labels = client.infer(_MODEL, images).argmax(axis=1)
        for batch_size in (1, 8, 32):
            # Enough queries for about `seconds` at 90 per second.
            config = SquareConfig(
                epsilon=1,
                max_queries=max(2, int(seconds * 90 / len(images))),
                batch_size=batch_size,
                concurrency=_CONCURRENCY,
            )
            contenders = {
                "square": _attack(server.grpc_url, _MODEL, images, labels, config),
                "load": _load(server.grpc_url, _MODEL, images, batch_size, seconds),
            }
            results[f"batch {batch_size}"] = interleave(rounds, contenders)
    for name, row in results.items():
        row["ratio"] = ratio(row, "square", "load", "ips")
        print(
            f"{name:10} square {row['square']['ips_median']:6.1f} queries/s  "
            f"load {row['load']['ips_median']:6.1f} images/s  "
            f"ratio {row['ratio']['median']:.3f}  {row['ratio']['rounds']}"
        )
    return results


def _attack(
    url: str, model: str, images: Any, labels: npt.NDArray[Any], config: AttackConfig
) -> Callable[[], dict[str, float]]:
    return lambda: {"ips": attack(url, model, images, labels, config).queries_per_s}


def _load(url: str, model: str, images: Any, batch_size: int, seconds: float) -> Callable[[], dict[str, float]]:
    config = LoadConfig(duration_s=seconds, warmup_s=1.0, batch_size=batch_size)
    return lambda: {
        "ips": run_closed_loop(url, model, images, concurrency=_CONCURRENCY, config=config).throughput_ips
    }


def _against_toolbox(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    sample = publish_sample(folder, {_SAMPLE: {}})
    found: dict[str, Any] = {}
    with TritonServer(folder / "models") as server, Client(server.grpc_url) as client:
        right = np.flatnonzero(client.infer(_SAMPLE, sample.images).argmax(axis=1) == sample.labels)
        for norm in _ORDERS if "square" in options.parts else ():
            rows = right[: options.square_images]
            row = _square(server.grpc_url, client, sample.images[rows], sample.labels[rows], norm, options)
            found[f"square {norm} against toolbox"] = row
            print(f"square {norm}: {row}")
        for norm in _ORDERS if "hop-skip-jump" in options.parts else ():
            rows = right[:_NUM_HOPPING]
            row = _hop(server.grpc_url, client, sample.images[rows], sample.labels[rows], norm, options)
            found[f"hop-skip-jump {norm} against toolbox"] = row
            print(f"hop-skip-jump {norm}: {row}")
    return found


@dataclass
class _Served:
    """What the toolbox takes for its model: the served one, with the queries counted."""

    client: Client
    num_queries: int = 0

    def classifier(self, shape: tuple[int, ...]) -> Any:
        from art.estimators.classification import (  # type: ignore[import-untyped]  # ART ships no types
            BlackBoxClassifierNeuralNetwork,
        )

        return BlackBoxClassifierNeuralNetwork(self.predict, shape, 10, channels_first=False, clip_values=(0, 255))

    def predict(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.num_queries += len(images)
        # Its Square in L2 divides by what is left of the budget, at times by nothing.
        return self.client.infer(_SAMPLE, np.rint(np.nan_to_num(images)).astype(np.uint8))


def _square(
    url: str, client: Client, images: Any, labels: npt.NDArray[Any], norm: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """Queries of both until as many images are fooled as by the toolbox."""
    from art.attacks.evasion import SquareAttack  # type: ignore[import-untyped]

    epsilon, served = _EPSILONS[norm], _Served(client)
    np.random.seed(0)
    toolbox = SquareAttack(
        served.classifier(images.shape[1:]),
        norm=_ORDERS[norm],
        eps=epsilon,
        max_iter=options.square_steps,
        p_init=0.8,
        batch_size=len(images),
        verbose=False,
    )
    with np.errstate(all="ignore"):
        adversarial = toolbox.generate(images.astype(np.float32), labels)
    theirs = served.num_queries
    sound = np.isfinite(adversarial).all(axis=(1, 2, 3))
    fooled = int(((served.predict(adversarial).argmax(axis=1) != labels) & sound).sum())
    # 0.4 of what the toolbox spends on an image that survives: three queries per step.
    config = SquareConfig(norm=norm, epsilon=epsilon, max_queries=int(1.2 * options.square_steps))
    result = attack(url, _SAMPLE, images, labels, config)
    at = np.sort(result.queries[result.correct & ~result.survived])
    # The query of each image at which as many are fooled; what is spent until then.
    limit = int(at[fooled - 1]) if 0 < fooled <= len(at) else config.max_queries
    ours = int(np.minimum(result.queries, limit).sum())
    return {
        "epsilon": epsilon,
        "num_images": len(images),
        "toolbox_success": fooled / len(images),
        "success": len(at) / len(images),
        "toolbox_queries": theirs,
        "queries_to_the_same": ours if len(at) >= fooled else None,
        "ratio": round(ours / theirs, 3) if len(at) >= fooled else None,
    }


def _hop(
    url: str, client: Client, images: Any, labels: npt.NDArray[Any], norm: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """Images per second and median distance of both at as many queries, and what the toolbox's distance costs."""
    from art.attacks.evasion import HopSkipJump

    served = _Served(client)
    np.random.seed(0)
    toolbox = HopSkipJump(
        served.classifier(images.shape[1:]), norm=_ORDERS[norm], max_iter=options.hops, verbose=False
    )
    start = time.perf_counter()
    adversarial = toolbox.generate(images.astype(np.float32), np.eye(10)[labels])
    theirs_s, num_queries = time.perf_counter() - start, served.num_queries
    adversarial = np.rint(adversarial)
    wrong = served.predict(adversarial).argmax(axis=1) != labels
    change = (adversarial - images)[wrong].reshape(int(wrong.sum()), -1)
    distance = float(np.median(np.linalg.norm(change, ord=_ORDERS[norm], axis=1)))
    config = HopSkipJumpConfig(norm=norm, epsilon=1, max_queries=num_queries // len(images))
    results: list[AttackResult] = []

    def all_queries() -> dict[str, float]:
        results.append(attack(url, _SAMPLE, images, labels, config))
        return {"ips": results[-1].queries_per_s}

    contenders = {"attack": all_queries, "load": _load(url, _SAMPLE, images, config.batch_size, 4.0)}
    speed = interleave(options.rounds, contenders)
    result = results[-1]
    # As near as half of the toolbox's images are, and no nearer.
    same = attack(url, _SAMPLE, images, labels, replace(config, epsilon=distance))
    found = np.isfinite(result.distances)
    return {
        "num_images": len(images),
        "toolbox_queries": num_queries,
        "queries": result.num_queries,
        "toolbox_images_per_s": len(images) / theirs_s,
        "images_per_s": len(images) / result.duration_s,
        "speed": round(theirs_s / num_queries * speed["attack"]["ips_median"], 2),
        "toolbox_wrong": int(wrong.sum()),
        "wrong": int(found.sum()),
        "toolbox_median_distance": distance,
        "median_distance": float(np.median(result.distances[found])),
        "speed_to_the_same": round(theirs_s / same.duration_s, 2),
        "queries_to_the_same": same.num_queries,
        "share_within": 1 - same.accuracy["value"],
        "measured": speed,
        "ratio": ratio(speed, "attack", "load", "ips"),
    }


if __name__ == "__main__":
    main()
