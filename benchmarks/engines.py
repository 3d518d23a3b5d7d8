"""Every ResNet in every precision, compiled by TensorRT-RTX: what builds, its size, what the Q/DQ audit counts.

No GPU is needed. The weights are random, which decides neither whether an engine builds nor its size; the
calibration images are crops of scikit-learn's two photographs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import IMAGE_SIZE, write_results
from temper.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import nn

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
_NUM_CALIBRATION = 16
_SMALL = ("resnet18", "resnet50")


def main() -> None:
    """Build, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="*", help="architectures; all of the family when not given")
    parser.add_argument("--precision", nargs="*", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--small", action="store_true", help=f"only {' and '.join(_SMALL)}")
    options = parser.parse_args()
    from temper.builder.network.resnet import ARCHITECTURES

    archs = options.arch or (_SMALL if options.small else ARCHITECTURES)
    print(f"{'network':<18}{'precision':<10}{'MB':>7}{'seconds':>9}  quantised, kept high, residual Adds")
    rows = []
    # Each in a process of its own: the memory of one network is gone before the next one.
    context = multiprocessing.get_context("spawn")
    for arch in archs:
        with context.Pool(1) as pool:
            for row in pool.apply(build_all, (arch, tuple(options.precision))):
                rows.append(row)
                print(_line(row), flush=True)
    if not (options.arch or options.small):
        write_results("engines", {"image_size": IMAGE_SIZE, "num_calibration": _NUM_CALIBRATION, "engines": rows})
    failed = [row for row in rows if row["error"] is not None]
    sys.exit(f"{len(failed)} of {len(rows)} engines were not built" if failed else 0)


def build_all(arch: str, precisions: tuple[str, ...]) -> list[dict[str, Any]]:
    """Builds one network in every precision; an error is a row, not the end."""
    from temper.builder.errors import BuilderError
    from temper.builder.network.export import export_onnx
    from temper.builder.network.resnet import ModelConfig, build_model

    config = ModelConfig(arch=arch)  # type: ignore[arg-type]  # the command line offers these only
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = _calm(build_model(config, 1000))
        export_onnx(network, folder / "fp32.onnx", image_size=IMAGE_SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        del network
        for precision in precisions:
            row: dict[str, Any] = {"arch": arch, "precision": precision, "error": None}
            try:
                row |= _build(folder, precision)
            except BuilderError as error:
                row["error"] = str(error)
            rows.append(row)
    return rows


def _calm(network: nn.Module) -> nn.Module:
    """Makes every residual branch small, as training does: untrained deep networks overflow float16."""
    from torch import nn

    for module in network.modules():
        last = getattr(module, "bn3", None) or (getattr(module, "bn2", None) if module is not network else None)
        if isinstance(last, nn.BatchNorm2d):
            nn.init.constant_(last.weight, 0.2)
    return network


def _build(folder: Path, precision: str) -> dict[str, Any]:
    from temper.builder.compress.cast import CastConfig, cast_onnx
    from temper.builder.compress.qdq import audit_qdq
    from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
    from temper.builder.engines.build import build_engine
    from temper.builder.engines.tensorrt_rtx import TensorRtRtxConfig

    source, audit = folder / "fp32.onnx", None
    images = photographs(_NUM_CALIBRATION)
    started = time.monotonic()
    if precision in ("int8", "fp8"):
        source = folder / f"{precision}.onnx"
        quantize_onnx(folder / "fp32.onnx", source, images, QuantizeConfig(precision=precision, method="max"))  # type: ignore[arg-type]
    if precision != "fp32":
        cast = CastConfig(precision="bf16" if precision == "bf16" else "fp16")
        cast_onnx(source, folder / "cast.onnx", images[:1], cast)
        source = folder / "cast.onnx"
    if precision in ("int8", "fp8"):
        report = audit_qdq(source, precision)
        audit = {
            "num_quantized": len(report.nodes),
            "num_kept_high": len(report.kept_high),
            "num_residual_adds": report.num_residual_adds,
        }
    config = TensorRtRtxConfig(opt_batch=32, max_batch=256)
    info = build_engine(source, folder, config, precision=precision)
    return {
        "size_bytes": info["size_bytes"],
        "compile_s": info["build_s"],
        "total_s": round(time.monotonic() - started, 1),
        "runtime": info["runtime"],
        "qdq_audit": audit,
    }


def photographs(count: int, size: int = IMAGE_SIZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns crops of scikit-learn's photographs, uint8 [count, size, size, 3], the same ones every time."""
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]  # ships none

    rng = np.random.default_rng(0)
    sources = load_sample_images().images
    crops = []
    for index in range(count):
        image = sources[index % len(sources)]
        top, left = (int(rng.integers(0, length - size + 1)) for length in image.shape[:2])
        crops.append(image[top : top + size, left : left + size])
    images: np.ndarray[Any, np.dtype[np.uint8]] = np.stack(crops).astype(np.uint8)
    return images


def _line(row: dict[str, Any]) -> str:
    start = f"{row['arch']:<18}{row['precision']:<10}"
    if row["error"] is not None:
        return f"{start}not built: {row['error']}"
    audit = row["qdq_audit"]
    counts = f"{audit['num_quantized']}, {audit['num_kept_high']}, {audit['num_residual_adds']}" if audit else "-"
    return f"{start}{row['size_bytes'] / 1e6:>7.1f}{row['total_s']:>9.1f}  {counts}"


if __name__ == "__main__":
    main()
