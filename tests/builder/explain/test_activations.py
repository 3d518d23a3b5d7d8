"""Whether reading inner tensors changes what an engine computes: tried with one that does what a test says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from temper.builder.contract import OUTPUT_NAME, TEST_IMAGES_FILE
from temper.builder.engines.openvino import OpenVinoConfig
from temper.builder.errors import ExplainError
from temper.builder.explain.activations import (
    EXACTLY,
    RunsIn,
    block_outputs,
    run_logits,
    try_reading,
    with_pooled,
)
from temper.builder.explain.blame import Blame
from temper.builder.explain.features import Features
from temper.builder.explain.images import TRAIN_IMAGES_FILE
from temper.builder.explain.mend import measure_mended
from temper.builder.explain.networks import ANSWERS_FILE, run_network

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.sample import Sample
    from temper.builder.engines.kind import RunOutputs

Change = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class StandIn(RunsIn):
    """An engine that computes exactly, but for what is done to its outputs."""

    always: Change
    """Done whatever is asked for."""
    when_read: Change
    """Done when inner tensors are asked for."""

    def open(self, model: onnx.ModelProto, outputs: Sequence[str] = ()) -> RunOutputs:
        run = EXACTLY.open(model, outputs)

        def changed(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            found = run(batch)
            self.always(found)
            if outputs:
                self.when_read(found)
            return found

        return changed


def engine(*, always: Change = lambda found: None, when_read: Change = lambda found: None) -> StandIn:
    return StandIn("the engine", OpenVinoConfig(), "", always, when_read)


def shift_logits(found: dict[str, Any]) -> None:
    """The second half of the classes gets more, by 30 % of the spread and as a rule another answer."""
    logits = found[OUTPUT_NAME]
    logits[:, ::2] += 0.6 * logits.std()


def shift_tensors(share: float) -> Change:
    def change(found: dict[str, Any]) -> None:
        for name, values in found.items():
            if name != OUTPUT_NAME:
                values += share * values.std()

    return change


def both(found: dict[str, Any]) -> None:
    shift_logits(found)
    shift_tensors(0.4)(found)


@pytest.fixture(scope="module")
def pooling(toy_int8: Path) -> tuple[onnx.ModelProto, list[str]]:
    model = onnx.load(toy_int8)
    changed, pooled = with_pooled(model, list(block_outputs(model).values()))
    return changed, list(pooled.values())


@pytest.mark.parametrize(
    ("runs_in", "change", "note"),
    [
        (EXACTLY, 0.0, ""),
        (engine(), 0.0, ""),
        (engine(when_read=shift_tensors(0.04)), 0.0, ""),
        # As on a CPU on which int8 saturates: what is read is off by as much as what is not.
        (engine(always=both), 0.0, ""),
        (engine(when_read=shift_logits), 0.42, "the logits by 42 % of their spread"),
        (engine(when_read=both), 0.42, "the logits by 42 % of their spread"),
        (engine(when_read=shift_tensors(0.3)), 0.0, "a tensor by 30 % of its spread"),
        (engine(always=shift_tensors(0.3)), 0.0, "a tensor by 30 % of its spread"),
        (engine(when_read=shift_tensors(float("nan"))), 0.0, "a tensor by nan % of its spread"),
    ],
)
def test_engine_is_read_where_that_changes_nothing(
    runs_in: RunsIn, change: float, note: str, pooling: tuple[onnx.ModelProto, list[str]], sample: Sample
) -> None:
    found = try_reading(runs_in, *pooling, sample.images[:40])
    assert found.change == pytest.approx(change, abs=0.005)
    said = f"giving out inner tensors changes what the engine computes ({note})"
    assert (found.runs_in, found.note) == ((EXACTLY, said) if note else (runs_in, ""))
    assert found.num_values == 64 + 2 * (64 + 128 + 256 + 512) + 10


def test_blame_reads_in_exact_arithmetic_what_the_engine_changes(
    toy_onnx: Path, toy_int8: Path, sample: Sample
) -> None:
    found = {
        name: Blame(toy_onnx, toy_int8, sample.images[:8], runs_in).find(lambda done, total: None)
        for name, runs_in in (("exact", EXACTLY), ("same", engine()), ("changed", engine(when_read=both)))
    }
    assert [each.read_note for each in found.values()] == [
        "",
        "",
        "giving out inner tensors changes what the engine computes (the logits by 42 % of their spread), so the "
        f"noise is that of {EXACTLY.title}",
    ]
    assert [each.num_activations for each in found.values()] == [8, 8, 8]
    # What is said is what the engine does, not how far it is from the arithmetic that stands in for it.
    assert found["exact"].tap_change == found["same"].tap_change == 0.0
    assert found["changed"].tap_change == pytest.approx(0.42, abs=0.01)
    noise = [[layer.figures() for layer in each.layers] for each in found.values()]
    assert noise[0] == noise[1] == noise[2]


@pytest.mark.parametrize("changes", [False, True])
def test_answers_are_those_of_the_graph_that_gives_out_no_blocks(
    changes: bool, toy_int8: Path, sample: Sample, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    np.save(images / TEST_IMAGES_FILE, sample.images[:20])
    np.save(images / TRAIN_IMAGES_FILE, sample.calibration[:12])
    # Otherwise than the exact arithmetic in any case, as an engine is.
    runs_in = engine(always=shift_logits, when_read=both if changes else lambda found: None)
    seen: list[tuple[int, int]] = []
    info = run_network(toy_int8, images, runs_in, tmp_path, lambda *call: seen.append(call))
    assert info["runs_in"] == (EXACTLY.title if changes else "the engine")
    assert ("changes what the engine computes (the logits by " in info["note"]) == changes
    plain, exact = (run_logits(each, onnx.load(toy_int8), sample.images[:20]) for each in (runs_in, EXACTLY))
    answers = np.load(tmp_path / ANSWERS_FILE)
    assert np.array_equal(answers, plain.argmax(1))
    assert not np.array_equal(answers, exact.argmax(1))
    assert [Features(tmp_path / name).num_images for name in ("test", "train")] == [20, 12]
    assert seen == sorted(seen) and seen[-1] == (52, 52)


def test_network_without_residual_blocks_is_refused(toy_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(toy_onnx)
    plain = onnx.helper.make_model(onnx.helper.make_graph(list(model.graph.node)[:3], "plain", [], []))
    onnx.save(plain, tmp_path / "plain.onnx")
    message = "plain.onnx: has no residual blocks, expected a ResNet; only the part blame can look at it"
    with pytest.raises(ExplainError, match=message):
        run_network(tmp_path / "plain.onnx", tmp_path, EXACTLY, tmp_path, lambda done, total: None)


def test_what_was_mended_is_measured_on_all_images(
    toy_onnx: Path, toy_int8: Path, sample: Sample, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    graphs = [toy_onnx, toy_int8, toy_onnx]
    images = sample.images[:20]
    info = measure_mended(graphs, images, EXACTLY, None, tmp_path, lambda *call: seen.append(call))
    assert json.loads(json.dumps(info)) == {"recovered": [1, 1, 1], "latency_ms": None, "latency_ratio": None}
    assert seen == [(count, 60) for count in (16, 20, 36, 40, 56, 60)]
    answers = np.load(tmp_path / ANSWERS_FILE)
    expected = [run_logits(EXACTLY, onnx.load(path), images).argmax(1) for path in graphs]
    assert np.array_equal(answers, expected)


def test_logits_of_some_rows_are_those_of_these_images(toy_onnx: Path, sample: Sample) -> None:
    model, rows, done = onnx.load(toy_onnx), np.arange(40)[::2], list[int]()
    found = run_logits(EXACTLY, model, sample.images[:40], rows, done.append)
    np.testing.assert_array_equal(found, run_logits(EXACTLY, model, sample.images[rows]))
    assert done == [16, 20]
