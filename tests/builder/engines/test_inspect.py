"""The engine's audit, on JSON in the form that TensorRT's developer guide describes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from temper.builder.engines.inspect import audit_engine, check_engine
from temper.builder.engines.run import LoadedEngine
from temper.builder.errors import EngineError


def tensor(kind: str) -> dict[str, Any]:
    return {"Name": "t", "Dimensions": [8, 64, 56, 56], "Format/Datatype": kind}


def conv(name: str, kind: str, *nodes: str) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "ParameterType": "Convolution",
        "Inputs": [tensor(kind), tensor("Row major linear FP32")],
        "Outputs": [tensor(kind)],
        "TacticName": "sm90_xmma_fprop_implicit_gemm",
        "Metadata": "".join(f"[ONNX Layer: {node}]\x1e" for node in nodes),
    }


LAYERS = [
    {"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat", "Inputs": [tensor("UInt8")]},
    conv("stem", "Channel major FP16 format where channel % 8 == 0", "/model/conv1/Conv"),
    conv(
        "a", "Thirty-two wide channel vectorized row major Int8 format", "/l/conv2/Conv", "/l/Add", "/l/relu/Relu"
    ),
    conv("b", "Thirty-two wide channel vectorized row major Int8 format", "/m/conv2/Conv"),
    {"Name": "pwn", "LayerType": "PointWiseV2", "Inputs": [tensor("Int8")], "Metadata": "[ONNX Layer: /m/Add_1]"},
    {
        "Name": "f",
        "LayerType": "CaskConvolution",
        "ParameterType": "Convolution",
        "Inputs": [{"Name": "t", "Format": "kLINEAR", "Datatype": "FP8"}],
    },
    {"Name": "g", "LayerType": "CaskConvolution", "ParameterType": "Convolution", "Inputs": [tensor("BF16")]},
    {  # as TensorRT 11 writes it
        "Name": "h",
        "LayerType": "CaskConvolution",
        "ParameterType": "Convolution",
        "Inputs": [{"Name": "t", "Format": "Row major linear FP32", "DataType": "Half"}],
    },
]


def test_audit_counts_what_runs_in_which_type() -> None:
    report = audit_engine(json.dumps({"Layers": LAYERS, "Bindings": ["image", "logits"]}))
    assert report.num_layers == 8
    assert report.convs == {"bf16": 1, "fp16": 2, "fp8": 1, "int8": 2}
    assert report.high_convs == {"stem": "fp16", "g": "bf16", "h": "fp16"}
    assert report.num_reformats == 1
    assert (report.fused_adds, report.separate_adds) == (["/l/Add"], ["/m/Add_1"])
    assert json.loads(json.dumps(report.to_json()))["convs"]["int8"] == 2


@pytest.mark.parametrize(
    ("precision", "convs", "reformats", "message"),
    [
        (
            "int8",
            1,
            None,
            r"3 convolutions run in a higher precision than int8, expected at most 1 .*stem \(fp16\)",
        ),
        ("int8", None, 0, r"1 layers only reformat a tensor, expected at most 0 \(engine.max_reformats\)"),
    ],
)
def test_limits_of_the_recipe_are_kept(precision: str, convs: Any, reformats: Any, message: str) -> None:
    report = audit_engine(json.dumps({"Layers": LAYERS}))
    with pytest.raises(EngineError, match=message):
        check_engine(report, precision, convs, reformats)


def test_engine_within_its_limits_passes() -> None:
    report = audit_engine(json.dumps({"Layers": LAYERS}))
    check_engine(report, "int8", 3, 1)
    check_engine(report, "fp16", 0, None)  # float16 is no higher than what was asked for
    check_engine(report, "int8", None, None)


BLIND = {"Name": "t", "Format/Datatype": "N/A due to dynamic shapes"}


@pytest.mark.parametrize(
    ("weights", "kernel", "expected"),
    [
        ({"Type": "Int8", "Count": 9408}, "", "int8"),
        ({"Type": "Half", "Count": 9408}, "", "fp16"),
        ({"Type": "FP8", "Count": 9408}, "", "fp8"),
        ({}, "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32", "int8"),
        ({}, "sm80_xmma_fprop_avdt_sparse_int8int8_tilesize64x64x64_tapsperload3", "int8"),
        ({}, "sm90_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x64", "fp16"),
        ({}, "sm89_xmma_fprop_implicit_gemm_e4m3e4m3_e4m3f32_f32_nhwckrsc", "fp8"),
        ({}, "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "bf16"),
        ({}, "sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nhwc", "fp32"),
        ({}, "", "unknown"),
    ],
)
def test_type_is_read_where_the_inspector_leaves_it_out(
    weights: dict[str, Any], kernel: str, expected: str
) -> None:
    """As TensorRT 10 writes of a free batch."""
    layer = {**conv("a", ""), "Inputs": [BLIND], "Outputs": [BLIND], "Weights": weights, "TacticName": kernel}
    assert audit_engine(json.dumps({"Layers": [layer]})).convs == {expected: 1}


class Inspected:
    """A library whose inspector tells formats only of a context with a shape, as NvInferRuntime.h says."""

    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self) -> None:
        """Nothing was set."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.context = SimpleNamespace(set_input_shape=lambda *given: self.shapes.update([given]) is None)
        self.inspector = SimpleNamespace(execution_context=None, get_engine_information=self.tell)
        self.engine = SimpleNamespace(
            create_execution_context=lambda: self.context,
            create_engine_inspector=lambda: self.inspector,
            get_tensor_profile_shape=lambda name, profile: [(size, 32, 32, 3) for size in (1, 8, 32)],
        )

    def tell(self, form: str) -> str:
        """The JSON."""
        known = self.inspector.execution_context is self.context and self.shapes
        kind = "Thirty-two wide channel vectorized row major Int8 format"
        layer = conv("a", kind if known else BLIND["Format/Datatype"])
        return json.dumps({"Layers": [{**layer, "TacticName": ""}]})


def test_inspector_is_asked_of_a_context_with_the_best_shape() -> None:
    library = Inspected()
    loaded = object.__new__(LoadedEngine)
    loaded._trt, loaded._engine = library, library.engine
    assert audit_engine(loaded.inspect()).convs == {"int8": 1}
    assert library.shapes == {"image": (8, 32, 32, 3)}


def test_unknown_type_counts_as_high() -> None:
    report = audit_engine(json.dumps({"Layers": [conv("a", "something new")]}))
    assert report.convs == {"unknown": 1}
    with pytest.raises(EngineError, match=r"1 convolutions run in a higher precision than fp32"):
        check_engine(report, "fp32", 0, None)


@pytest.mark.parametrize("content", ["", "[]", '{"Bindings": []}'])
def test_other_json_is_refused(content: str) -> None:
    with pytest.raises(EngineError, match=r"expected the inspector's JSON with \"Layers\""):
        audit_engine(content)


def test_names_alone_are_refused() -> None:
    with pytest.raises(EngineError, match=r"gives the layers' names only; build with ProfilingVerbosity.DETAILED"):
        audit_engine('{"Layers": ["conv1", "conv2"]}')
