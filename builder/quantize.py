"""ModelOpt's post-training quantisation of an ONNX graph.

ModelOpt is not typed, prints, and sets up logging of its own; everything about that stays in this file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from builder.errors import QuantizeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_CALIBRATION_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How a graph is quantised."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    precision: Literal["int8"] = "int8"
    """The type of weights and activations."""
    method: Literal["entropy", "max"] = "entropy"
    """How an activation's range is chosen: least loss of information, or the largest value seen."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is not one of its choices.
        """
        if self.precision != "int8":
            raise ValueError(f"precision: got {self.precision!r}, expected 'int8'")
        if self.method not in ("entropy", "max"):
            raise ValueError(f"method: got {self.method!r}, expected 'entropy' or 'max'")


def quantize_onnx(
    src: Path,
    dst: Path,
    calibration: NDArray[np.uint8],
    config: QuantizeConfig,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes a quantised copy of a graph: weights int8 per output channel, activations int8 per tensor.

    Args:
        src: The float32 graph, from `export_onnx`.
        dst: The file to write.
        calibration: Real images, uint8 [M, S, S, 3]; they are read in batches and may be memory-mapped.
        config: Precision and calibration method.
        progress: Called with (calibration images done, images in all).

    Returns:
        precision, method, num_calibration, size_bytes.

    Raises:
        QuantizeError: There are no calibration images, they do not fit the graph, or ModelOpt fails.
    """
    _check_calibration(src, calibration)
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quantize-", dir=dst.parent) as folder:
        work = Path(folder)
        # ModelOpt writes intermediate files beside its source.
        shutil.copyfile(src, work / "source.onnx")
        _run_modelopt(work / "source.onnx", work / "quantized.onnx", calibration, config, progress)
        os.replace(work / "quantized.onnx", dst)
    return {
        "precision": config.precision,
        "method": config.method,
        "num_calibration": len(calibration),
        "size_bytes": dst.stat().st_size,
    }


def _check_calibration(src: Path, images: NDArray[np.uint8]) -> None:
    import onnx

    if len(images) == 0:
        raise QuantizeError(
            f"{src}: got no calibration images, expected real ones; int8 scales are never made up, so give the "
            "training split at least one image"
        )
    (graph_input,) = onnx.load(src, load_external_data=False).graph.input
    expected = [dim.dim_value for dim in graph_input.type.tensor_type.shape.dim][1:]
    if str(images.dtype) != "uint8" or list(images.shape[1:]) != expected:
        raise QuantizeError(
            f"{src}: got calibration images {images.dtype} {list(images.shape)}, expected uint8 "
            f"{['N', *expected]}; prepare the data with the model's image size"
        )


def _run_modelopt(
    src: Path,
    dst: Path,
    calibration: NDArray[np.uint8],
    config: QuantizeConfig,
    progress: Callable[[int, int], None] | None,
) -> None:
    import onnx

    try:
        with _quiet():
            from modelopt.onnx.quantization import quantize  # type: ignore[import-untyped]  # ships none

            quantize(
                str(src),
                quantize_mode=config.precision,
                calibration_method=config.method,
                calibration_data_reader=_reader(calibration, progress),
                calibration_eps=["cpu"],
                output_path=str(dst),
                high_precision_dtype="fp32",
                dq_only=True,
                log_level="WARNING",
                # A rule for TensorRT: it would leave a head of fewer than 16 classes in float.
                enable_gemv_detection_for_trt=False,
            )
        onnx.checker.check_model(str(dst))  # ModelOpt only warns
    except OSError:
        raise  # the disk, not the model: the store says what to do
    except Exception as error:  # whatever ModelOpt, ONNX Runtime or a graph library throws
        reason = (str(error).splitlines() or [""])[0]
        raise QuantizeError(f"{src.name}: ModelOpt failed: {type(error).__name__}: {reason}") from error


def _reader(images: NDArray[np.uint8], progress: Callable[[int, int], None] | None) -> Any:
    """Returns what ONNX Runtime's calibrator reads batches from."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader  # type: ignore[import-untyped]  # ships none

    from builder.triton_config import INPUT_NAME

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self.position = 0

        def get_first(self) -> dict[str, NDArray[np.uint8]]:
            return {INPUT_NAME: np.ascontiguousarray(images[:_CALIBRATION_BATCH])}

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = images[self.position : self.position + _CALIBRATION_BATCH]
            if progress is not None:
                progress(self.position, len(images))
            self.position += len(batch)
            return {INPUT_NAME: np.ascontiguousarray(batch)} if len(batch) else None

        def rewind(self) -> None:
            self.position = 0

    return Reader()


class _LogWriter(io.TextIOBase):
    """Turns what is printed into debug messages."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.debug("%s", text.rstrip())
        return len(text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps ModelOpt's prints, bars and log handlers away from the terminal and from our stdout."""
    root, null = logging.getLogger(), logging.NullHandler()
    # Without a handler, its logging.warning() would set up one on stderr for the whole process.
    root.addHandler(null)
    foreign = logging.getLogger("modelopt.onnx")
    try:
        with contextlib.redirect_stdout(_LogWriter()):
            from modelopt.onnx.quantization import ort_patching

            bar = ort_patching.tqdm
            ort_patching.tqdm = functools.partial(bar, disable=True)  # a bar per batch, without a switch
            try:
                yield
            finally:
                ort_patching.tqdm = bar
    finally:
        foreign.handlers.clear()
        root.removeHandler(null)
