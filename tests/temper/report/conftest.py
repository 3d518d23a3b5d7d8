"""Shared by the report's tests: a parser of pages, and an explanation of made-up but plausible figures."""

import math
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from temper.builder.explain.config import ExplainConfig

Json = dict[str, Any]
VOID = {"meta", "img"}
BLOCKS = ("stem", *(f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)))


class Checker(HTMLParser):
    """Fails on a tag that is not closed or closed out of turn; collects what the page points to."""

    def __init__(self) -> None:
        """Starts with nothing open."""
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def parse_page() -> Callable[[str], Checker]:
    """Parses a page and fails unless it is well formed."""

    def parse(text: str) -> Checker:
        checker = Checker()
        checker.feed(text)
        checker.close()
        assert checker.open == []
        return checker

    return parse


def interval(value: float, margin: float = 0.03) -> Json:
    return {"value": value, "low": value - margin, "high": value + margin}


def share(value: float, num_images: int = 450) -> Json:
    return {
        "value": value,
        "low": max(value - 0.02, 0.0),
        "high": min(value + 0.02, 1.0),
        "num_images": num_images,
    }


def paired(difference: float) -> Json:
    return {"difference": difference, "low": difference - 0.01, "high": difference + 0.009, "p_value": 0.012,
            "num_images": 450, "num_only_first": 14, "num_only_second": 3}  # fmt: skip


def layer_names(blocks: tuple[str, ...], num_convs: int) -> list[str]:
    names = ["/model/conv1/Conv"]
    for block in blocks[1:]:
        path = f"/model/{block.split('.')[0]}/{block}"
        names += [f"{path}/conv{conv + 1}/Conv" for conv in range(num_convs)]
        if block.endswith(".0"):
            names.append(f"{path}/downsample/downsample.0/Conv")
    return [*names, "/model/fc/Gemm"]


def layer(name: str, place: float, found: float, **others: Any) -> Json:
    return {
        "name": name,
        "op": name.split("/")[-1],
        "quantized": True,
        "signal_to_noise_db": 38 - 22 * place + 3 * math.sin(40 * place),
        "cosine": 0.9999 - 0.01 * place,
        "share": interval(found, 0.01 + 0.1 * abs(found)),
        "num_images": 256,
        "clipped": 0.0004,
        "range_used": 0.93,
        "outlier": 2.4,
        "outlier_channel": 3,
        "num_dead": 0,
        "num_channels": 64,
        "findings": [],
        **others,
    }


def blame(names: list[str]) -> Json:
    count = len(names)
    layers = [layer(name, i / count, 0.02 * math.sin(i) + 0.01) for i, name in enumerate(names)]
    unknown = dict.fromkeys(("share", "signal_to_noise_db", "clipped", "range_used", "outlier", "outlier_channel"))
    layers[0] = layer(names[0], 0, 0, quantized=False, **unknown)
    findings = ["channel 17 is 41 times the median one, and sets the scale of all", "12 of 64 channels are dead"]
    layers[5] = layer(names[5], 5 / count, 0.62, outlier=41.2, outlier_channel=17, num_dead=12, findings=findings)
    layers[-2] = layer(names[-2], 1, 0.21, clipped=0.031, findings=["3.1 % of its input is clipped"])
    kept = [names[5], names[-2]]
    return {
        "variant": "int8",
        "precision": "int8",
        "runs_in": "OpenVINO 2026.4.1 on the CPU",
        "in_engine": True,
        "note": "",
        "num_images": 450,
        "num_search": 450,
        "num_activations": 450,
        "tap_change": 0.0019,
        "loss": 0.0412,
        "agreement": share(0.971),
        "accuracy": share(0.962),
        "accuracy_change": paired(-0.022),
        "layers": layers,
        "suggestion": {
            "keep_high": kept,
            "recovered": interval(0.93),
            "agreement": share(0.996),
            "accuracy": share(0.983),
            "accuracy_change": paired(0.021),
            "tried": True,
            "latency_ms": 1.31,
            "latency_ratio": interval(1.08),
            "size_bytes": 12_600_000,
        },
        "suggestion_note": "",
        "snippet": 'compress = [{ quantize = { precision = "int8", keep_high = ["' + '", "'.join(kept) + '"] } }]',
    }


def network(name: str, kind: str, blocks: tuple[str, ...], skill: float, epoch: int | None = None) -> Json:
    def block(index: int, name: str) -> Json:
        depth = (index + 1) / len(blocks)
        return {
            "name": name,
            "num_features": 64 * 2 ** max(int(4 * depth) - 1, 0),
            "num_dead": index % 3,
            "probe": share(0.4 + 0.58 * skill * depth**0.5),
            "effective_rank": interval(4 + 40 * depth * skill, 1.2),
            "rank_limited": index == len(blocks) - 1,
        }

    return {
        "name": name,
        "kind": kind,
        "epoch": epoch,
        "runs_in": "PyTorch",
        "accuracy": share(0.4 + 0.58 * skill),
        "blocks": [block(index, name) for index, name in enumerate(blocks)],
    }


def similarity(first: str, second: str, blocks: tuple[str, ...], distance: float) -> Json:
    def value(row: int, column: int) -> Json | None:
        if row == 0 and column == 1:
            return None
        apart = abs(row - column) / len(blocks)
        drift = distance * max(row, column) / len(blocks)
        return interval(max((1 - 0.9 * apart) * (1 - drift), -0.01), 0.005 + 0.01 * apart)

    count = range(len(blocks))
    values = [[value(row, column) for column in count] for row in count]
    return {
        "first": first,
        "second": second,
        "rows": blocks,
        "columns": blocks,
        "num_images": 450,
        "values": values,
    }


def curve(method: str, end: float, stability: Json | None) -> Json:
    counts = [16, 32, 64, 128, 256, 512]
    values = [end + (0.984 - end) * (1 - 2.0**-i) for i in range(6)]
    return {
        "method": method,
        "num_features": counts,
        "accuracy": [share(value) for value in values],
        "change": [paired(value - 0.984) for value in values],
        "stability": stability,
    }


def attribution(folder: Path, index: int) -> Json:
    rng = np.random.default_rng(index)
    (folder / "explain").mkdir(parents=True, exist_ok=True)

    def picture(kind: str) -> str:
        name = f"explain/{index:02d}-{kind}.png"
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(pixels).save(folder / name)
        return name

    maps = [
        {
            "network": name,
            "answer": answer,
            "integrated_gradients": picture(f"{name}-ig"),
            "grad_cam": picture(f"{name}-cam"),
            "completeness_error": 0.014,
        }
        for name, answer in (("fp32", "3"), ("int8", "8"))
    ]
    return {"index": index, "label": "3", "image": picture("image"), "maps": maps}


def make_explanation(folder: Path, blocks: tuple[str, ...] = BLOCKS, num_convs: int = 2) -> Json:
    """The JSON of a complete explanation, whose pictures lie in `folder`."""
    rng = np.random.default_rng(0)
    networks = [
        network("float32", "original", blocks, 1.0),
        network("before finetuning", "initial", blocks, 0.5),
        network("int8", "variant", blocks, 0.97),
        network("pruned", "variant", blocks, 0.95),
        *(network(f"epoch {epoch}", "snapshot", blocks, 0.5 + 0.12 * epoch, epoch) for epoch in (1, 2, 3)),
    ]
    return {
        "format": 1,
        "recipe": "digits",
        "created": "2026-11-27 19:22 UTC",
        "seconds": 83.0,
        "commit": "651172c50f63",
        "cpu": "AMD EPYC",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "graphs": {"fp32": "aa", "int8": "bb", "pruned": "cc"},
        "config": asdict(ExplainConfig(num_images=450)),
        "variants": ["fp32", "int8", "pruned"],
        "notes": [{"part": None, "variant": None, "words": "fp8 was left out: nothing here runs it"}],
        "blames": [blame(layer_names(blocks, num_convs))],
        "networks": networks,
        "similarities": [
            similarity("float32", "float32", blocks, 0.0),
            similarity("before finetuning", "float32", blocks, 0.7),
            similarity("float32", "int8", blocks, 0.05),
            similarity("float32", "pruned", blocks, 0.15),
            similarity("epoch 1", "float32", blocks, 0.5),
        ],
        "selection": {
            "num_train": 1347,
            "num_images": 450,
            "importance": [
                {"method": method, "values": [float(value) for value in rng.gamma(shape, 1, 512)]}
                for method, shape in (("activation", 4.0), ("taylor", 0.5))
            ],
            "curves": [
                curve("activation", 0.7, interval(0.81)),
                curve("taylor", 0.86, interval(0.62)),
                curve("all at random", 0.5, None),
            ],
            "note": "L1 paths were cut at 64 features.",
        },
        "attributions": [attribution(folder, index) for index in (17, 203)],
    }


@pytest.fixture
def explanation(tmp_path: Path) -> Json:
    """The JSON of a complete explanation, whose pictures lie in `tmp_path`."""
    return make_explanation(tmp_path)
