"""Shared by the builder's tests: the sample model, quantised once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from builder.sample import Sample


@pytest.fixture(scope="session")
def toy_int8(sample: Sample, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model in int8, with entropy calibration on 64 images; its 8-bit weights saturate without VNNI."""
    from builder.quantize import QuantizeConfig, quantize_onnx

    path = tmp_path_factory.mktemp("toy_int8") / "model.onnx"
    quantize_onnx(toy_onnx, path, sample.calibration[:64], QuantizeConfig())
    return path


@pytest.fixture(scope="session")
def toy_reduced(toy_int8: Path, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 7-bit weights: right on every CPU."""
    from builder.saturation import reduce_weights

    path = tmp_path_factory.mktemp("toy_reduced") / "model.onnx"
    shutil.copyfile(toy_int8, path)
    reduce_weights(path, toy_onnx)
    return path
