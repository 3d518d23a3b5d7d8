"""What an engine really does, from the JSON of TensorRT's engine inspector.

The Q/DQ audit of the graph says what should run in int8 or fp8; this says what does. The fields are those of
TensorRT's developer guide, "Engine Inspector", at detailed profiling verbosity: `Layers`, and per layer `Name`,
`LayerType`, `ParameterType`, `Inputs` and `Outputs` with `Format/Datatype` (TensorRT 10) or `Format` and
`DataType` (TensorRT 11: its migration guide, "IEngineInspector JSON output"), `Weights`, `TacticName`, and in
`Metadata` the ONNX nodes that were fused into it. TensorRT-RTX has the same inspector.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from temper.builder.errors import EngineError

INSPECTION_FILE = "inspection.json"
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
# In this order: "BF16" holds "F16", and "FP8" would be found in no other.
_TYPES = (
    ("fp8", re.compile(r"fp8|float8|e4m3", re.I)),
    ("int8", re.compile(r"int8", re.I)),
    ("bf16", re.compile(r"bf16|bfloat16", re.I)),
    ("fp16", re.compile(r"fp16|half|float16", re.I)),
    ("fp32", re.compile(r"fp32|tf32|float", re.I)),
)
# Lower case: TensorRT 11 writes "DataType" for tensors and its guide has "Datatype".
_TYPE_KEYS = ("datatype", "format/datatype", "format")
# Of a kernel's input, before that of its output: sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_..., and int8int8_.
_KERNEL_TYPES = {
    "i8": "int8",
    "int8": "int8",
    "e4m3": "fp8",
    "f16": "fp16",
    "bf16": "bf16",
    "tf32": "fp32",
    "f32": "fp32",
}
_KERNEL_INPUT = re.compile(r"_(i8|int8|e4m3|bf16|f16|tf32|f32)(?:i8|int8|e4m3|bf16|f16|tf32|f32)_")
_RANK = {"int8": 0, "fp8": 0, "fp16": 1, "bf16": 1, "fp32": 2}


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """The counts over an engine's layers."""

    num_layers: int
    """Layers after fusion."""
    convs: dict[str, int]
    """Convolutions by the type of their input: `int8`, `fp8`, `fp16`, `bf16`, `fp32`, or `unknown`."""
    high_convs: dict[str, str] = field(default_factory=dict)
    """The convolutions that do not run in int8 or fp8, with the type."""
    num_reformats: int
    """Layers that only change the format or type of a tensor."""
    fused_adds: list[str] = field(default_factory=list)
    """ONNX names of the residual Adds that run inside a convolution."""
    separate_adds: list[str] = field(default_factory=list)
    """Those that are layers of their own, or part of a pointwise one."""

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return asdict(self)


def audit_engine(inspection: str) -> EngineReport:
    """Counts what the inspector tells of an engine.

    Args:
        inspection: Its JSON for the whole engine.

    Returns:
        The counts.

    Raises:
        EngineError: It is no such JSON, or holds names only because the engine was not built with detailed
            profiling verbosity.
    """
    try:
        layers = json.loads(inspection)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f'engine audit: got {inspection[:60]!r}, expected the inspector\'s JSON with "Layers"'
        ) from error
    if not layers or not all(isinstance(layer, Mapping) for layer in layers):
        raise EngineError(
            "engine audit: the inspector gives the layers' names only; build with ProfilingVerbosity.DETAILED"
        )
    convs = {layer["Name"]: _input_type(layer) for layer in layers if _is_conv(layer)}
    fused, separate = _adds(layers)
    return EngineReport(
        num_layers=len(layers),
        convs=dict(sorted(Counter(convs.values()).items())),
        high_convs={name: found for name, found in convs.items() if _RANK.get(found, 2) > 0},
        num_reformats=sum(_is_reformat(layer) for layer in layers),
        fused_adds=fused,
        separate_adds=separate,
    )


def check_engine(
    report: EngineReport, precision: str, max_high_precision_convs: int | None, max_reformats: int | None
) -> None:
    """Holds an engine to the recipe's limits.

    Args:
        report: From `audit_engine`.
        precision: The variant's: convolutions of a higher one are counted.
        max_high_precision_convs: The most of them; None for no limit.
        max_reformats: The most reformatting layers; None for no limit.

    Raises:
        EngineError: A limit is passed; names the first convolutions.
    """
    wanted = _RANK[precision]
    # A type that could not be read counts as high: what nobody can show is no int8.
    high = {name: found for name, found in report.high_convs.items() if _RANK.get(found, 3) > wanted}
    if max_high_precision_convs is not None and len(high) > max_high_precision_convs:
        shown = ", ".join(f"{name} ({found})" for name, found in list(high.items())[:3])
        raise EngineError(
            f"engine audit: {len(high)} convolutions run in a higher precision than {precision}, expected at most "
            f"{max_high_precision_convs} (engine.max_high_precision_convs): {shown}"
        )
    if max_reformats is not None and report.num_reformats > max_reformats:
        raise EngineError(
            f"engine audit: {report.num_reformats} layers only reformat a tensor, expected at most "
            f"{max_reformats} (engine.max_reformats)"
        )


def _is_conv(layer: Mapping[str, Any]) -> bool:
    kinds = (str(layer.get("ParameterType", "")), str(layer.get("LayerType", "")))
    return any("conv" in kind.lower() and "deconv" not in kind.lower() for kind in kinds)


def _is_reformat(layer: Mapping[str, Any]) -> bool:
    return "reformat" in f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()


def _input_type(layer: Mapping[str, Any]) -> str:
    """Returns the type of a layer's first input; where the inspector keeps it, that of the weights or the kernel.

    TensorRT 10 writes "N/A due to dynamic shapes" for the tensors of some layers even in a context with a shape.
    """
    inputs, weights = layer.get("Inputs") or [{}], layer.get("Weights")
    first = inputs[0] if isinstance(inputs[0], Mapping) else {}
    values = {key.lower(): str(value) for key, value in first.items()}
    told = [values.get(key, "") for key in _TYPE_KEYS]
    told.append(str(weights.get("Type", "")) if isinstance(weights, Mapping) else "")
    for text in told:
        for name, pattern in _TYPES:
            if pattern.search(text):
                return name
    kernel = _KERNEL_INPUT.search(str(layer.get("TacticName", "")).lower())
    return _KERNEL_TYPES[kernel[1]] if kernel else "unknown"


def _adds(layers: list[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Returns the residual Adds inside convolutions, and the others."""
    inside: dict[str, bool] = {}
    for layer in layers:
        for name in _ONNX_NODE.findall(str(layer.get("Metadata", ""))):
            if name.rsplit("/", 1)[-1].split("_")[0] == "Add":
                inside[name] = inside.get(name, False) or _is_conv(layer)
    fused = [name for name, is_fused in inside.items() if is_fused]
    return fused, [name for name, is_fused in inside.items() if not is_fused]
