"""Shared by Temper's tests: a report as a run on digits makes it, and a recipe that takes seconds."""

import copy
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from temper.progress import Stage
from temper.report.gallery import write_gallery
from temper.serve.server import TritonServer

DIGITS = [str(digit) for digit in range(10)]

CALIBRATION = {
    "precision": "int8",
    "method": "entropy",
    "num_calibration": 512,
    "num_conv": 20,
    "num_gemm": 1,
    "num_residual_adds": 8,
    "agreement": 1.0,
    "num_images": 64,
}


INT8 = {
    "weight_bits": 7,
    "reduce_range": {
        "asked": "auto",
        "used": True,
        "why": "at AVX2 8-bit weights change the answer to 7.5 %",
        "full": {"num_images": 256, "changed": 0.075, "rms": 0.31},
        "reduced": {"num_images": 256, "changed": 0.0, "rms": 0.01},
    },
    "verified_isa": "avx512_vnni",
    "serving_isa": "avx2",
    "warning": None,
    "exact": {
        "agreement": 0.998,
        "relative_rms": 0.006,
        "num_images": 450,
        "max_abs_diff": 0.1,
        "max_abs_logit": 12.5,
        "retries": {},
    },
}


def share(value: float, num_images: int) -> dict[str, Any]:
    low, high = max(value - 0.02, 0.0), min(value + 0.02, 1.0)
    return {"value": value, "low": low, "high": high, "num_images": num_images}


def load_run(mode: str, at: float, throughput: float, p50: float) -> dict[str, Any]:
    return {
        "mode": mode,
        "model": "digits",
        "version": "1",
        "batch_size": 1,
        "shed": 0,
        "shed_share": 0.0,
        "longest_s": 0.04,
        "num_processes": 1,
        "late_share": 0.01 if mode == "open" else None,
        "send_lag_p99_ms": 0.9 if mode == "open" else None,
        "concurrency": int(at) if mode == "closed" else None,
        "rate_rps": at if mode == "open" else None,
        "throughput_ips": throughput,
        "completed": int(throughput * 3),
        "errors": {"INTERNAL": 2} if at == 16 else {},
        "reasons": {"INTERNAL": "image: <is none>"} if at == 16 else {},
        "lost": 0,
        "latency_ms": {
            "p50": p50,
            "p90": p50 * 1.4,
            "p99": p50 * 2.2,
            "p999": p50 * 3.5,
            "mean": p50,
            "max": 40.0,
        },
        "server": {
            "queue_ms": 0.3,
            "compute_input_ms": 0.05,
            "compute_infer_ms": p50 * 0.7,
            "compute_output_ms": 0.02,
            "batch_size": 1.5,
        },
        "duration_s": 3.0,
        "interrupted": None,
        "stopped_by_user": False,
    }


def curve(end: float) -> list[dict[str, float]]:
    queries = [0, 1, 4, 9, 20, 41, 80, 130, 200, 300]
    return [{"num_queries": q, "accuracy": 0.98 - (0.98 - end) * i / 9} for i, q in enumerate(queries)]


def gallery(folder: Path, name: str, size: int = 32) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for index in range(6):
        original = np.zeros((size, size, 3), dtype=np.uint8)
        original[6:-6, 8 + index : 20] = 200
        noise = rng.choice(np.array([-24, 24]), size=original.shape)
        adversarial = np.clip(original.astype(int) + noise, 0, 255).astype(np.uint8)
        words = {
            "index": index,
            "label": str(index),
            "answer": str((index + 3) % 10),
            "num_queries": 1 + 17 * index,
        }
        entries.append({"original": original, "adversarial": adversarial, **words})
    written = write_gallery(entries, folder / "gallery" / name)
    kinds = ("original", "adversarial", "difference")
    return [{**entry, **{kind: f"gallery/{name}/{entry[kind]}" for kind in kinds}} for entry in written]


def attack(name: str, accuracy: float, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    bounds = share(accuracy, 200)
    return {
        "attack": name,
        "norm": "linf",
        "epsilon": 24.0,
        "max_queries": 300,
        "seed": 0,
        "errors": {},
        "retries": {},
        "stuck": 0.0,
        "queries_to_success": {"median": 40.0, "mean": 61.5},
        "distance": {"median": 23.5, "mean": 22.1, "num_images": 180},
        "duration_s": 28.9,
        "accuracy": accuracy,
        "low": bounds["low"],
        "high": bounds["high"],
        "num_images": 200,
        "num_queries": 23456,
        "queries_per_s": 812.0,
        "clean_accuracy": share(0.98, 200),
        "per_class": [{"label": digit, **share(max(accuracy - 0.02 * int(digit), 0.0), 20)} for digit in DIGITS],
        "pairs": [],
        "curve": curve(accuracy),
        "gallery": pictures,
    }


def worst_case(accuracy: float, epsilon: float = 24.0) -> dict[str, Any]:
    return {
        **share(accuracy, 200),
        "norm": "linf",
        "epsilon": epsilon,
        "attacks": ["noise", "square"],
        "per_class": [{"label": digit, **share(max(accuracy - 0.02 * int(digit), 0.0), 20)} for digit in DIGITS],
        "pairs": [],
        "doubt": None,
    }


def variant(name: str, folder: Path, speed: float, accuracy: float, square: float) -> dict[str, Any]:
    return {
        "name": name,
        "model": f"digits_{name}",
        "encoded_model": f"digits_{name}_jpeg",
        "version": 1,
        "engine": "openvino",
        "engine_reason": "no NVIDIA GPU",
        "size_bytes": 44_700_000 if name == "fp32" else 11_300_000,
        "accuracy": {**share(accuracy, 450), "errors": {}, "retries": {}},
        "per_class": [{"label": digit, **share(0.9 + 0.01 * int(digit), 45)} for digit in DIGITS],
        "parity": {
            "num_images": 64,
            "num_same_pixels": 63,
            "max_pixel_diff": 12.0,
            "agreement": share(1.0 if name == "fp32" else 0.984375, 64),
            "relative_rms": 1.5e-6 if name == "fp32" else 0.031,
            "max_abs_diff": 0.0000312 if name == "fp32" else 0.91,
            "max_abs_logit": 17.25,
            "runtime": "PyTorch",
            "num_same_encoded": 64,
            "retries": {},
        },
        "throughput_ips": speed * 1.5,
        "latency_ms": {
            "p50": 900 / speed,
            "p90": 1100 / speed,
            "p99": 1900 / speed,
            "p999": 3000 / speed,
            "mean": 950 / speed,
            "max": 40.0,
        },
        "latency_from": "open loop at 70 % of the best throughput",
        "load": [
            load_run("closed", 1, speed, 1000 / speed),
            load_run("closed", 4, speed * 1.4, 2900 / speed),
            load_run("closed", 16, speed * 1.5, 10800 / speed),
            load_run("open", speed, speed, 900 / speed),
        ],
        "robustness": [attack("noise", 0.96, []), attack("square", square, gallery(folder, f"{name}-square"))],
        "worst_case": [worst_case(square), worst_case(square / 9, 48.0)],
        "masks": [],
        "differential": [],
        "corruptions": corrupted(0.7 if name == "fp32" else 0.687),
        "calibration": CALIBRATION if name == "int8" else None,
        "int8": copy.deepcopy(INT8) if name == "int8" else None,
        "steps": [step("float32", None), step("quantize", 0.4)] if name == "int8" else [],
        "build": [{"name": "data", "figures": {"num_test": 450}, "reused": False}],
        "frontier": None,
    }


def step(name: str, ratio: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "flops": 71_000_000,
        "num_parameters": 11_181_642,
        "size_bytes": 44_700_000,
        "accuracy": share(0.98, 450),
        "agreement": 1.0,
        "latency_ms": 2.5,
        "latency_ratio": ratio,
        "latency_before_ms": 2.5 / ratio if ratio else None,
        "engine": "OpenVINO",
        "accuracy_change": paired(-0.002) if ratio else None,
        "verdict": None,
    }


def corrupted(value: float) -> dict[str, Any]:
    """Two kinds at two severities."""
    cells = [
        {"kind": kind, "severity": severity, **share(value - 0.1 * severity, 200)}
        for kind in ("gaussian_noise", "fog")
        for severity in (1, 5)
    ]
    return {
        "seed": 0,
        "clean_accuracy": share(0.98, 200),
        "accuracy": {"value": value, "low": value - 0.02, "high": value + 0.02},
        "cells": cells,
        "errors": {},
        "retries": {},
        "images_per_s": 640.0,
        "duration_s": 1.25,
    }


PAIRED_CORRUPTIONS = {
    "mce": {"value": 104.2, "low": 99.5, "high": 109.0},
    "relative_mce": None,
    "difference": {"value": -0.013, "low": -0.02, "high": -0.005},
    "corruption_errors": {"gaussian_noise": 104.2, "fog": None},
    "num_images": 200,
}


def paired(difference: float) -> dict[str, Any]:
    return {"difference": difference, "low": difference - 0.01, "high": difference + 0.009, "p_value": 0.42,
            "num_images": 450, "num_only_first": 4, "num_only_second": 3}  # fmt: skip


def make_report(folder: Path) -> dict[str, Any]:
    """The JSON of a complete report of two variants, whose gallery lies in `folder`."""
    budget = {"norm": "linf", "epsilon": 24.0}
    return {
        "format": 2,
        "recipe": "digits",
        "created": "2026-11-23 22:40 UTC",
        "seconds": 171.0,
        "server": "the embedded tritonserver",
        "stopped": None,
        "deaths": [],
        "warnings": [],
        "commit": "25c252350e69",
        "machine": {
            "cpu": "AMD EPYC",
            "flags": ["avx2", "avx512f", "avx512_vnni"],
            "cores": 2,
            "ram_bytes": 25_276_502_016,
            "gpu": None,
            "os": "Debian GNU/Linux 12 (bookworm)",
            "kernel": "6.18",
        },
        "versions": {"python": "3.11.7", "temper": "0.1.0", "torch": "2.13.0", "openvino": "2026.4.1"},
        "data": {"num_train": 1347, "num_test": 450},
        "config": {"name": "digits", "attacks": [{"name": "noise", "epsilon": 24.0}], "load": {"rates_rps": []}},
        "variants": [variant("fp32", folder, 310.0, 0.984, 0.31), variant("int8", folder, 960.0, 0.982, 0.29)],
        "comparisons": [
            {
                "variant": "int8",
                "baseline": "fp32",
                "accuracy": paired(-0.002),
                "throughput_ratio": 3.1,
                "size_ratio": 0.253,
                "robustness": [
                    {"attack": "noise", **budget, **paired(0.0), "masked": None},
                    {"attack": "square", **budget, **paired(-0.02), "masked": None},
                ],
                "worst_case": [
                    {**budget, **paired(-0.02), "doubt": None},
                    {**budget, "epsilon": 48.0, **paired(0.0), "doubt": None},
                ],
                "corruptions": PAIRED_CORRUPTIONS,
            }
        ],
        "failed": [],
        "explanation": None,
        "verdicts": [],
        "timings": [
            {"stage": "data", "seconds": 1.2, "reused": False, "note": "1347 train, 450 test images"},
            {"stage": "finetune", "seconds": 61.0, "reused": False, "note": "98.44 % of 450 test images"},
            {"stage": "int8: accuracy", "seconds": 0.0, "reused": True, "note": ""},
        ],
    }


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    """The JSON of a complete report of two variants, whose gallery lies in `tmp_path`."""
    return make_report(tmp_path)


QUICK = """
name = "quick"

[data]
source = "digits"
image_size = 32
test_fraction = 0.75
num_test = 60
num_calibration = 32

[model]
arch = "resnet18"

[train]
epochs = 1

[[variants]]
name = "fp32"

[[variants]]
name = "int8"
compress = [{ quantize = { precision = "int8", method = "max" } }]

[engine]
kind = "openvino"

[load]
concurrencies = [1, 2]
duration_s = 1.0
warmup_s = 0.1

[[attacks]]
name = "noise"
epsilon = 8
num_images = 8
max_queries = 4

[[attacks]]
name = "square"
epsilon = 48
num_images = 8
max_queries = 20
"""


@pytest.fixture(scope="session")
def quick_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two variants that is built and measured in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    path.write_text(QUICK)
    return path


Doom = Callable[..., None]


@pytest.fixture
def doom(monkeypatch: pytest.MonkeyPatch) -> Doom:
    """Plans deaths: the servers started from now on die in turn, each when a stage has gone some way."""

    def plan(*signals: signal.Signals, stage: str = "", share: float = 0.1, stub: bool = False) -> None:
        start, step, left, servers = TritonServer.start, Stage.__call__, list(signals), list[TritonServer]()

        def start_doomed(server: TritonServer) -> TritonServer:
            servers.append(start(server))
            return server

        def step_and_kill(shown: Stage, done: int, total: int) -> None:
            step(shown, done, total)
            if left and servers and stage in shown.label and done >= share * total:
                pid = servers.pop().pid
                os.kill(children(pid)[0] if stub else pid, left.pop(0))

        monkeypatch.setattr(TritonServer, "start", start_doomed)
        monkeypatch.setattr(Stage, "__call__", step_and_kill)

    return plan


def children(pid: int) -> list[int]:
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in " ".join(texts).split()]


@pytest.fixture(scope="session")
def http_server(
    request: pytest.FixtureRequest,
    share_server: Callable[..., AbstractContextManager[TritonServer]],
    publish_model: Callable[[Path, str], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """A tritonserver with `toy_fp32` that listens on HTTP as well, shared by the tests that do it no harm."""
    folder = tmp_path_factory.mktemp("http")
    publish_model(folder / "model_repository", "toy_fp32")
    with share_server(request, TritonServer(folder / "model_repository", http_port=0)) as running:
        yield running
