from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from temper.builder.errors import ModelError, StoreError
from temper.builder.explain.features import Features, FeaturesWriter

_BLOCKS = {"stem": 3, "layer1.0": 5}


def _arrays(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(count, width)).astype(np.float32) for name, width in _BLOCKS.items()}


@pytest.mark.parametrize("rows", [[0, 1, 2], [249, 3, 3, 120], []], ids=str)
def test_rows_come_back_in_the_order_asked(make_features: Callable[..., Features], rows: list[int]) -> None:
    arrays = _arrays(250)
    features = make_features(arrays)
    assert (features.num_images, list(features.blocks.items())) == (250, list(_BLOCKS.items()))
    wanted = np.array(rows, int)
    taken = features.take(wanted)
    for name, array in arrays.items():
        assert np.array_equal(taken[name], array[rows])
        assert np.array_equal(features.block(name, wanted), array[rows])


def test_numpy_reads_the_file(make_features: Callable[..., Features]) -> None:
    arrays = _arrays(30)
    found = np.load(make_features(arrays).folder / "features.npy")
    assert np.array_equal(found, np.concatenate(list(arrays.values()), axis=1))


_PROGRAM = """
import re, sys
from pathlib import Path
import numpy as np
from temper.builder.explain.features import Features, FeaturesWriter

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def work(count):
    folder = Path(sys.argv[1], str(count))
    with FeaturesWriter(folder, {"block": 512}, count) as writer:
        for _ in range(count // 100):
            writer.append({"block": np.ones((100, 512), np.float32)})
    features = Features(folder)
    for start in range(0, count, 100):
        features.take(np.arange(start, start + 100))
    return folder / "features.npy"

work(100)
peaks = [peak_mib()]
path = work(32000)
peaks.append(peak_mib())
kept = np.load(path, mmap_mode="r")
kept.sum()
print(*peaks, peak_mib())
"""


def test_writing_and_reading_need_no_more_memory_for_more_images(tmp_path: Path) -> None:
    """The file of 32,000 images has 62 MiB. A memory map that is kept shows that the peak would tell."""
    program = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    told = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    few, many, mapped = map(float, told.split())
    assert many - few < 8
    assert mapped - many > 40


@pytest.mark.parametrize(
    ("append", "error", "message"),
    [
        ({"stem": np.zeros((2, 3))}, ValueError, r"features: got \{'stem': \(3,\)\}, expected \[n, features\] of"),
        ({"stem": np.zeros((2, 3)), "layer1.0": np.zeros((2, 4))}, ValueError, r"'layer1.0': \(4,\)"),
        ({"stem": np.zeros((1, 3)), "layer1.0": np.zeros((1, 5))}, ValueError, "got 1 images, expected 2"),
        (
            {"stem": np.zeros((2, 3)), "layer1.0": np.full((2, 5), np.nan)},
            ModelError,
            "features of layer1.0: got NaN or infinity",
        ),
    ],
)
def test_wrong_features_are_refused(
    tmp_path: Path, append: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), FeaturesWriter(tmp_path, _BLOCKS, 2) as writer:
        writer.append(append)


@pytest.mark.parametrize("damage", ["missing", "short", "text", "blocks"])
def test_damaged_files_are_refused(make_features: Callable[..., Features], damage: str) -> None:
    features = make_features(_arrays(30))
    array = features.folder / "features.npy"
    match damage:
        case "missing":
            array.unlink()
        case "short":
            array.write_bytes(array.read_bytes()[:-4])
        case "text":
            array.write_text("none")
        case "blocks":
            (features.folder / "blocks.json").write_text('{"stem": 3}')
    with pytest.raises(StoreError, match=r"features .*; make them anew"):
        Features(features.folder)


def test_a_file_that_is_cut_while_it_is_read_is_refused(make_features: Callable[..., Features]) -> None:
    features = make_features(_arrays(30))
    with (features.folder / "features.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(StoreError, match="got no image 29, expected 30"):
        features.block("layer1.0", np.array([0, 29]))
