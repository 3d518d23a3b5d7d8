"""What decoding on the server costs: ResNet-50 int8 at 224x224 with JPEG files, against pixels.

One server, the same cores: the model itself, and its twin `_jpeg`, in turn. Files of two sizes: 256 pixels on the
shorter side, which the contract (torchvision's: resize 256, crop 224) only cuts, and 500x375, as most of ImageNet
is, which it resizes. They are pieces of scikit-learn's two photographs. Beside the throughputs stands what a file
costs in process, by part, and what Triton says of the decoder.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import (
    CACHE,
    IMAGE_SIZE,
    MAX_BATCH,
    interleave,
    random_images,
    ratio,
    resnet50_repository,
    serve,
    write_results,
)
from temper.client.client import Client
from temper.client.load import LoadConfig, run_closed_loop
from temper.imaging.batch import Decoder
from temper.imaging.fit import fit_image
from temper.imaging.preprocess import Preprocessing
from temper.imaging.read import decode_image
from temper.serve.server import TritonServer

_HOW = Preprocessing(height=IMAGE_SIZE, width=IMAGE_SIZE, resize=256)
_SIZES = {"341x256": (341, 256), "500x375": (500, 375)}
_QUALITY = 90
_FILES = 32
_WANTED = 0.85


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    files = {name: _photographs(size) for name, size in _SIZES.items()}
    parts = {name: _in_process(of_size) for name, of_size in files.items()}
    measured, figures = {}, {}
    with TritonServer(_repository()) as server, Client(server.grpc_url, timeout_s=60) as client:
        for concurrency in (1, 16):
            contenders = {
                "pixels": _run(client, "resnet50_int8", random_images(_FILES), concurrency, options.seconds)
            }
            for name, of_size in files.items():
                contenders[name] = _run(client, "resnet50_int8_jpeg", of_size, concurrency, options.seconds)
            measured[concurrency] = rows = interleave(options.rounds, contenders)
            for name in files:
                figures[f"{name} / pixels, concurrency {concurrency}"] = _interval(
                    ratio(rows, name, "pixels", "ips")
                )
    for concurrency, rows in measured.items():
        for name, row in rows.items():
            told = "".join(f"  {key} {row[f'{key}_median']:.2f}" for key in row if f"{key}_median" in row)
            print(f"concurrency {concurrency:2}  {name:8} {told}")
    for name, of_file in parts.items():
        print(f"{name}: {', '.join(f'{key} {value:.2f}' for key, value in of_file.items())}")
    for name, value in figures.items():
        print(f"{name:34} {value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}], wanted {_WANTED}")
    write_results(
        "jpeg",
        {
            "measured": {str(key): value for key, value in measured.items()},
            "in_process": parts,
            "wanted": _WANTED,
            "ratios": figures,
        },
    )


def _repository() -> Any:
    """ResNet-50 int8 as the other benchmarks have it, its queue bounded by time, and its twin."""
    from temper.builder.publish.ensemble import publish_jpeg
    from temper.builder.publish.entry import publish
    from temper.builder.publish.triton_config import PluginBackend, TritonConfig

    engine = resnet50_repository() / "resnet50_int8" / "1" / "model.onnx"
    repository, labels = CACHE / "jpeg_repository", [str(number) for number in range(1000)]
    config = TritonConfig(
        name="resnet50_int8",
        image_size=IMAGE_SIZE,
        num_classes=1000,
        max_batch=MAX_BATCH,
        backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"}),
        preprocessing=_HOW,
        num_instances=2,
        in_ensemble=True,
    )
    serve(publish(repository, config, engine_file=engine, labels=labels, card={"recipe": "benchmarks"}))
    plain = replace(config, parameters={})
    serve(publish_jpeg(repository, plain, labels=labels, card={"recipe": "benchmarks"}))
    return repository


def _photographs(size: tuple[int, int]) -> list[bytes]:
    """JPEG files of one size, each another piece of a photograph."""
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]  # ships none

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng, files = np.random.default_rng(0), []
    for number in range(_FILES):
        photograph = photographs[number % len(photographs)]
        share = rng.uniform(0.8, 1.0)
        wide, high = (round(share * side) for side in (photograph.height * size[0] / size[1], photograph.height))
        left, top = (
            int(rng.uniform(0, whole - part)) for whole, part in zip(photograph.size, (wide, high), strict=True)
        )
        piece = photograph.crop((left, top, left + wide, top + high)).resize(size, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        piece.save(file, "JPEG", quality=_QUALITY)
        files.append(file.getvalue())
    return files


def _in_process(files: Sequence[bytes]) -> dict[str, float]:
    """Milliseconds of one thread for a file, by part, and of all threads together; the medians of 5."""
    images = [decode_image(io.BytesIO(file), 1 << 25) for file in files]
    decoder = Decoder(_HOW)
    parts: dict[str, Callable[[], object]] = {
        "decode_ms": lambda: [decode_image(io.BytesIO(file), 1 << 25) for file in files],
        "fit_ms": lambda: [np.asarray(fit_image(image, _HOW)) for image in images],
        "decoder_ms": lambda: decoder.decode(files),
    }
    found = {"kilobytes": statistics.mean(map(len, files)) / 1000}
    for name, run in parts.items():
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            taken.append((time.perf_counter() - start) / len(files) * 1e3)
        found[name] = statistics.median(taken)
    decoder.close()
    return found


def _run(
    client: Client, model: str, images: Any, concurrency: int, seconds: float
) -> Callable[[], dict[str, float]]:
    config = LoadConfig(duration_s=seconds, warmup_s=0.5)
    steps = {"model": "resnet50_int8"} | ({"decoder": f"{model}_decode"} if model.endswith("_jpeg") else {})

    def run() -> dict[str, float]:
        before = {step: client.statistics(name) for step, name in steps.items()}
        result = run_closed_loop(client.url, model, images, concurrency=concurrency, config=config)
        assert not (result.errors or result.shed or result.interrupted), result
        figures = {
            "ips": result.throughput_ips,
            "p50_ms": result.latency_ms["p50"],
            "p99_ms": result.latency_ms["p99"],
        }
        for step, name in steps.items():
            told = client.statistics(name).since(before[step]).mean_ms()
            figures |= {f"{step}_{key}": told[key] for key in ("queue_ms", "compute_infer_ms", "batch_size")}
        return figures

    return run


def _interval(found: dict[str, Any]) -> dict[str, Any]:
    """Adds the least and the greatest round, which hold the median with 1 - 2 ** (1 - n): 97 % of 6."""
    rounds = found["rounds"]
    return {**found, "low": min(rounds), "high": max(rounds), "level": 1 - 2.0 ** (1 - len(rounds))}


if __name__ == "__main__":
    main()
