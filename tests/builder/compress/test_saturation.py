"""int8 that is right on every CPU: what saturates at AVX2 is found by measuring, and 7-bit weights mend it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from temper.builder.compress.qdq import audit_qdq
from temper.builder.compress.saturation import is_worth_reducing, run_openvino, settle_range, weight_bits
from temper.builder.engines.isa import AVX2_ONLY, MAX_SAFE_WEIGHT
from temper.builder.errors import QuantizeError
from temper.builder.network.export import compare_logits, run_onnx

if TYPE_CHECKING:
    from benchmarks.sample import Sample


def dequantised(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every int8 weight times its scale."""
    graph = onnx.load(path).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    return {
        node.input[0]: constants[node.input[0]]
        * constants[node.input[1]].reshape(-1, *[1] * (constants[node.input[0]].ndim - 1))
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }


def test_reduced_weights_are_the_same_weights_on_a_grid_of_7_bits(
    toy_onnx: Path, toy_int8: Path, toy_reduced: Path
) -> None:
    assert (weight_bits(toy_onnx), weight_bits(toy_int8), weight_bits(toy_reduced)) == (None, 8, 7)
    assert len(audit_qdq(toy_reduced).nodes) == 21
    originals = {each.name: numpy_helper.to_array(each) for each in onnx.load(toy_onnx).graph.initializer}
    reduced = dequantised(toy_reduced)
    assert len(reduced) == 21
    for name, weight in reduced.items():
        largest = np.abs(originals[name]).reshape(len(weight), -1).max(1)
        # Rounded once: no weight is further than half a step from the original.
        step = largest / MAX_SAFE_WEIGHT * (1 + 1e-5)
        assert (np.abs(weight - originals[name]).reshape(len(weight), -1).max(1) <= step / 2 + 1e-7).all()


@pytest.mark.int8
@pytest.mark.slow
def test_reduced_weights_answer_alike_on_every_instruction_set(
    sample: Sample, toy_int8: Path, toy_reduced: Path
) -> None:
    exact = run_onnx(toy_reduced, sample.images)
    least = run_openvino(toy_reduced, sample.images, AVX2_ONLY)
    best = run_openvino(toy_reduced, sample.images, {})
    for one, other in ((exact, least), (exact, best), (best, least)):
        assert compare_logits(one, other)["agreement"] >= 0.99
    # The harm that this mends is there, whatever this machine has.
    full = run_openvino(toy_int8, sample.images, AVX2_ONLY)
    assert compare_logits(run_onnx(toy_int8, sample.images), full)["agreement"] < 0.97


@pytest.mark.slow
def test_auto_reduces_what_saturates_and_nothing_else(
    sample: Sample, toy_int8: Path, toy_reduced: Path, toy_onnx: Path
) -> None:
    images, steps = sample.calibration[:64], []
    used, info = settle_range("auto", toy_int8, images, toy_onnx, lambda *step: steps.append(step))
    assert used
    assert steps == [(0, 4), (1, 4), (2, 4), (2, 4), (3, 4), (4, 4)]
    assert not list(toy_int8.parent.glob("*-*"))  # nothing is left of what was written beside the graph
    assert info["full"]["changed"] > 0.02 >= info["reduced"]["changed"]
    assert info["why"].startswith("at AVX2, without VNNI, 8-bit weights change the answer to ")
    assert " of 64 images " in info["why"]
    used, info = settle_range("auto", toy_reduced, images, toy_onnx)
    assert (used, info["asked"], info["used"]) == (False, "auto", False)


@pytest.mark.parametrize(
    ("full", "reduced", "worth"),
    [  # (changed, rms)
        ((0.0, 0.2), (0.0, 0.02), True),
        ((0.0, 0.03), (0.0, 0.02), False),  # rounding moves as much
        ((0.0, 0.009), (0.0, 0.001), False),  # neither matters
        ((0.02, 0.03), (0.0, 0.02), True),  # the logits say no, the answers yes
        ((0.02, 0.009), (0.01, 0.009), True),
        ((0.02, 0.009), (0.02, 0.009), False),  # nothing to gain
        ((0.01, 0.03), (0.0, 0.02), False),  # as much as is promised
        ((0.0, 0.2), (0.02, 0.02), True),
    ],
)
def test_decision_weighs_logits_and_answers(
    full: tuple[float, float], reduced: tuple[float, float], worth: bool
) -> None:
    measured = [{"changed": changed, "rms": rms} for changed, rms in (full, reduced)]
    assert is_worth_reducing(*measured) == worth


@pytest.mark.parametrize(
    ("asked", "why"),
    [(True, "asked for in the recipe"), (False, "8 bits asked for, or an engine that no CPU runs")],
)
def test_asked_for_range_is_not_measured(sample: Sample, toy_int8: Path, asked: bool, why: str) -> None:
    used, info = settle_range(asked, toy_int8, sample.calibration)
    assert used is asked
    assert info == {"asked": asked, "used": asked, "why": why}


def test_graph_that_openvino_refuses_is_one_line(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(QuantizeError, match=r"bad.onnx: OpenVINO failed in a process .*reduce_range") as caught:
        run_openvino(tmp_path / "bad.onnx", sample.images[:1], AVX2_ONLY)
    assert "\n" not in str(caught.value)
