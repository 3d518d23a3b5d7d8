"""Shared by the builder's tests: the sample model, quantised once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from builder.sample import Sample


@pytest.fixture(scope="session")
def toy_int8(sample: Sample, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model in int8, with entropy calibration on 64 images."""
    from builder.quantize import QuantizeConfig, quantize_onnx

    path = tmp_path_factory.mktemp("toy_int8") / "model.onnx"
    quantize_onnx(toy_onnx, path, sample.calibration[:64], QuantizeConfig())
    return path
