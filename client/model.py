"""What a client knows about a served model: shapes, types, labels, and the server's own timings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from temper.imaging.preprocess import Preprocessing

ENCODED = "BYTES"
"""Triton's data type of an input that takes image files as they are."""
# Triton's data types that have a fixed size; BYTES has none.
DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A served model, as the server describes it.

    Attributes:
        name: Model name.
        version: The version asked for, or the newest one served when none was.
        input_name: Name of the input tensor.
        image_shape: Shape of one input without the batch dimension: (height, width, 3) for an image model, (1,)
            for one that takes image files. -1 stands for a size that the server leaves open.
        output_name: Name of the output tensor.
        num_classes: Length of the last output dimension; -1 when the server leaves it open.
        max_batch_size: Largest batch of one request; 0 means that the model takes no batch dimension.
        labels: Class names by index; empty when the model has none or its output is not a vector of classes.
        input_dtype: Triton's name of the input type.
        output_dtype: Triton's name of the output type.
        output_shape: Shape of one output without the batch dimension.
        num_outputs: How many outputs the model has; only `output_name` is asked for.
        int8_weight_bits: Bits that the int8 weights of a Temper model use on CPUs: 8, which saturate without VNNI
            or AMX, or 7; None for any other model.
        preprocessing: How an image is made into the input, as the server says; None where it says nothing.
        precision_hint: The float arithmetic that a Temper model asks its engine for: f32, bf16 or f16; None where
            it asks for none.
    """

    name: str
    version: str
    input_name: str
    image_shape: tuple[int, ...]
    output_name: str
    num_classes: int
    max_batch_size: int
    labels: tuple[str, ...] = ()
    input_dtype: str = "UINT8"
    output_dtype: str = "FP32"
    output_shape: tuple[int, ...] = ()
    num_outputs: int = 1
    int8_weight_bits: int | None = None
    preprocessing: Preprocessing | None = None
    precision_hint: str | None = None

    @property
    def takes_encoded(self) -> bool:
        """Whether it takes image files as they are, and decodes them itself."""
        return self.input_dtype == ENCODED

    @property
    def answers_classes(self) -> bool:
        """Whether the output is one whole number per image, the class itself, in the place of scores."""
        return "INT" in self.output_dtype and self.output_shape in ((), (1,))

    def label(self, index: int) -> str:
        """Return the name of a class, or its index where the server gave no name."""
        return self.labels[index] if 0 <= index < len(self.labels) else str(index)


@dataclass(frozen=True, kw_only=True)
class ServerStatistics:
    """Triton's own counters of one model since it was loaded, summed over the versions asked for.

    Attributes:
        num_success: Requests answered.
        num_fail: Requests that failed.
        num_inferences: Images (batch entries) inferred.
        num_executions: Batches the model executed; inferences / executions is the mean batch.
        queue_ns: Time requests waited for a model instance, in nanoseconds, summed.
        compute_input_ns: Time of moving inputs into the model.
        compute_infer_ns: Time in the model.
        compute_output_ns: Time of moving outputs out of the model.
    """

    num_success: int = 0
    num_fail: int = 0
    num_inferences: int = 0
    num_executions: int = 0
    queue_ns: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0

    def since(self, before: ServerStatistics) -> ServerStatistics:
        """Return what was added after `before` was taken."""
        mine, theirs = vars(self), vars(before)
        return ServerStatistics(**{name: mine[name] - theirs[name] for name in mine})

    def mean_ms(self) -> dict[str, float]:
        """Return the mean time of an answered request in each phase, in ms, and the mean batch size.

        Returns:
            queue_ms, compute_input_ms, compute_infer_ms, compute_output_ms, batch_size; empty when no request was
            answered (a difference of two snapshots of a restarted server counts as none).
        """
        if self.num_success <= 0:
            return {}
        phases = ("queue", "compute_input", "compute_infer", "compute_output")
        times = {f"{phase}_ms": vars(self)[f"{phase}_ns"] / self.num_success / 1e6 for phase in phases}
        return times | {"batch_size": self.num_inferences / max(1, self.num_executions)}
