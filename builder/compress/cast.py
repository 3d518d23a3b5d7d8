"""Converts what is float32 in a graph to float16 or bfloat16, with ModelOpt's AutoCast.

TensorRT's networks are strongly typed: a layer runs in the type that the graph gives it, no flag does. So the rest
of a quantised graph, and the whole of one that is not quantised, is converted before it is compiled. The input is
still UINT8 and the output FP32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from temper.builder.compress.step import GraphContext, GraphStep, Step
from temper.builder.errors import QuantizeError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class CastConfig:
    """To which type a graph is converted."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    precision: Literal["fp16", "bf16"] = "fp16"
    """The half-precision type: float16 has the finer steps, bfloat16 the range of float32."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is not one of its choices.
        """
        if self.precision not in ("fp16", "bf16"):
            raise ValueError(f"precision: got {self.precision!r}, expected 'fp16' or 'bf16'")


class Cast(GraphStep[CastConfig]):
    """Converts what is float32 to a half-precision type."""

    name = "cast"
    about = "Convert what is float32 to a half-precision type."
    config = CastConfig
    place = 60

    def libraries(self, config: CastConfig) -> tuple[str, ...]:
        """ModelOpt converts, ONNX Runtime measures the range."""
        return ("nvidia-modelopt", "onnx", "onnxruntime-gpu")

    def precision(self, config: CastConfig) -> str:
        """The type, unless the network was quantised before."""
        return config.precision

    def check_after(self, config: CastConfig, earlier: Sequence[tuple[Step[Any], Any]]) -> None:
        """Refuses bfloat16 for a graph with scales.

        Raises:
            ValueError: As `Step.check_after`.
        """
        if config.precision == "bf16" and any(step.leaves_float(other) for step, other in earlier):
            # Its 8 bits round the scales themselves: an int8 network was right on 12 % of digits so.
            raise ValueError("compress: got cast to bf16 after quantize, expected fp16")

    def label(self, config: CastConfig) -> str:
        """Names the type."""
        return f"cast to {config.precision}"

    def note(self, info: dict[str, Any]) -> str:
        """The size."""
        return f"{info['size_bytes'] / 1e6:.1f} MB"

    def run(self, source: Path, target: Path, config: CastConfig, context: GraphContext) -> dict[str, Any]:
        """See `cast_onnx`; the range is measured on as many calibration images as a graph is compared on."""
        return cast_onnx(source, target, context.calibration[: len(context.images)], config)


STEP = Cast()


def cast_onnx(src: Path, dst: Path, images: NDArray[np.uint8], config: CastConfig) -> dict[str, Any]:
    """Writes a copy of a graph whose float32 tensors are half precision.

    Args:
        src: The graph, float32 or with Q/DQ pairs.
        dst: The file to write.
        images: uint8 [N, H, W, 3], at least one; the graph's activations on them must fit into float16.
        config: The type.

    Returns:
        precision, num_low (nodes that compute in it), largest_activation (`fp16` only), size_bytes.

    Raises:
        QuantizeError: An activation or a weight is outside of float16, or ModelOpt fails.
    """
    import onnx

    from temper.builder.quiet import quiet_modelopt

    model = onnx.load(src)
    info: dict[str, Any] = {"precision": config.precision}
    if config.precision == "fp16":
        info["largest_activation"] = _check_range(src, model, images)
    try:
        with quiet_modelopt():
            from modelopt.onnx.autocast import convert_to_f16  # type: ignore[import-untyped]  # ships none

            model = convert_to_f16(model, low_precision_type=config.precision, keep_io_types=True)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever ModelOpt or a graph library throws
        reason = (str(error).splitlines() or [""])[0]
        raise QuantizeError(
            f"{src.name}: ModelOpt cannot cast it to {config.precision}: {type(error).__name__}: {reason}"
        ) from error
    dst.write_bytes(model.SerializeToString())
    return {**info, "num_low": _count_low(model, config), "size_bytes": dst.stat().st_size}


def _count_low(model: onnx.ModelProto, config: CastConfig) -> int:
    """Counts the nodes whose first output is half precision, as shape inference sees it."""
    import onnx
    from onnx import TensorProto

    wanted = TensorProto.FLOAT16 if config.precision == "fp16" else TensorProto.BFLOAT16
    graph = onnx.shape_inference.infer_shapes(model).graph
    low = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == wanted}
    return sum(node.output[0] in low for node in graph.node)


def _check_range(src: Path, model: onnx.ModelProto, images: NDArray[np.uint8]) -> float:
    """Runs the graph in float32 and returns the largest absolute activation.

    Source: ModelOpt's AutoCast keeps a node in float32 by the same measure; a ResNet that overflows float16 is
    better served in bfloat16, so here it is an error that says so.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.dims:
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            _refuse_large(src, f"weight {tensor.name}", largest)
    largest = 0.0
    for name, value in _largest_activations(model, images).items():
        _refuse_large(src, f"activation {name}", value)
        largest = max(largest, value)
    return largest


def _refuse_large(src: Path, what: str, largest: float) -> None:
    if not largest <= _FLOAT16_MAX:  # also when it is NaN
        raise QuantizeError(
            f"{src.name}: {what} reaches {largest:.3g}, more than float16 holds (65504); "
            "cast it to bf16, or leave it in float32"
        )


def _largest_activations(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, float]:
    """Returns the largest absolute value of every convolution's, addition's and linear layer's output."""
    import numpy as np
    import onnx

    from temper.builder.contract import INPUT_NAME
    from temper.builder.network.export import open_session

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = [
        node.output[0] for node in probe.graph.node if node.op_type in ("Conv", "Add", "Mul", "Gemm", "MatMul")
    ]
    known = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = open_session(probe.SerializeToString())
    largest = dict.fromkeys(names, 0.0)
    for image in images:  # one by one: all activations of a batch would be gigabytes
        values = session.run(names, {INPUT_NAME: np.ascontiguousarray(image[None])})
        for name, value in zip(names, values, strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max()))
    return largest
