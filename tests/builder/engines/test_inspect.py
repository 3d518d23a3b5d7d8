"""The engine's audit, on JSON in the form that TensorRT's developer guide describes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from temper.builder.engines.inspect import audit_engine, check_engine
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
