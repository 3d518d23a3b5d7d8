"""ONNX files that cannot be taken: each its one line, and nothing beside the file is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser

from temper.builder.errors import ModelError
from temper.builder.network.onnx_import import Pixels, import_onnx
from temper.builder.network.onnx_read import fingerprint_onnx, read_classifier

PIXELS = Pixels(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
Write = Callable[[Path], object]


def graph(
    body: str, inputs: str = "float[N, 3, 8, 8] x", outputs: str = "float[N, 3] y", opset: int = 17
) -> bytes:
    """A model in ONNX's own text format."""
    head = f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>'
    text = f"{head} net ({inputs}) => ({outputs}) {{{body}}}"
    content: bytes = parser.parse_model(text).SerializeToString()
    return content


POOLED = "p = GlobalAveragePool(x) y = Flatten(p)"


def raw(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def external(location: str, num_bytes: int | None = None) -> Write:
    """A linear head whose weights are said to lie in another file, of which so many bytes are there."""

    def write(path: Path) -> None:
        weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
        nodes = [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ]
        ends = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4]),
        ]
        model = helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], [weight]), ir_version=8)
        model.opset_import[0].version = 17
        (tensor,) = model.graph.initializer
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "48")):
            tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
        if num_bytes is not None:
            (path.parent / location).write_bytes(bytes(num_bytes))

    return write


def many_external(path: Path) -> None:
    """Weights that all lie in the same quarter of a GiB, of which the file system keeps nothing."""
    external("w.bin")(path)
    model = onnx.load(path, load_external_data=False)
    for index in range(4):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"w{index}"
    for tensor in model.graph.initializer:
        tensor.external_data[2].value = str(1 << 28)
    path.write_bytes(model.SerializeToString())
    with (path.parent / "w.bin").open("wb") as file:
        file.truncate(1 << 28)


def constant_elsewhere(path: Path) -> None:
    external("w.bin", 48)(path)
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    path.write_bytes(model.SerializeToString())


def holding(kind: int, dims: list[int], **values: Any) -> Write:
    """A map instead of scores, beside a constant."""

    def write(path: Path) -> None:
        model = onnx.load_from_string(graph("y = Relu(x)", outputs="float[N, 3, 8, 8] y"))
        model.graph.initializer.append(TensorProto(name="k", data_type=kind, dims=dims, **values))
        model.graph.node.append(helper.make_node("Identity", ["k"], ["i"]))
        path.write_bytes(model.SerializeToString())

    return write


def calling(body: Callable[[int], list[onnx.NodeProto]], levels: int, times: int = 1, **given: Any) -> Write:
    """An image that goes through the last of some functions of x and z, "f0" to "f39", so many times."""

    def write(path: Path) -> None:
        model = onnx.load_from_string(graph(POOLED))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        for level in range(levels):
            made = helper.make_function("f", f"f{level}", ["x"], ["z"], body(level), opsets, list(given))
            model.functions.append(made)
        model.opset_import.append(opsets[1])
        for turn in range(times):
            ends = [f"i{turn - 1}" if turn else "x"], [f"i{turn}"]
            called = helper.make_node(f"f{levels - 1}", *ends, domain="f", **given)
            model.graph.node.insert(turn, called)
        model.graph.node[times].input[0] = f"i{times - 1}"
        path.write_bytes(model.SerializeToString())

    return write


def twice(level: int) -> list[onnx.NodeProto]:
    """Calls the function before it twice."""
    domain, called = ("f", f"f{level - 1}") if level else ("", "Relu")
    return [helper.make_node(called, [a], [b], domain=domain) for a, b in ("xy", "yz")]


def twice_in_branches(level: int) -> list[onnx.NodeProto]:
    nodes, ends = twice(level), [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    branch = helper.make_graph(nodes, "branch", [], ends)
    chosen = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    return [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))), chosen]


def itself(level: int) -> list[onnx.NodeProto]:
    return [helper.make_node(f"f{level}", ["x"], ["z"], domain="f")]


def large(level: int) -> list[onnx.NodeProto]:
    """Adds a constant of a MB."""
    weight = numpy_helper.from_array(np.zeros(1 << 18, np.float32))
    added = helper.make_node("ReduceSum", ["k"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["z"])
    return [helper.make_node("Constant", [], ["k"], value=weight), *added]


def given_often(level: int) -> list[onnx.NodeProto]:
    """Has a thousand constants, all of them what the call gives."""
    nodes = [helper.make_node("Constant", [], [f"k{turn}"]) for turn in range(1000)]
    for node in nodes:
        node.attribute.add(name="value", ref_attr_name="value", type=onnx.AttributeProto.TENSOR)
    return [*nodes, helper.make_node("Relu", ["x"], ["z"])]


def straight(level: int) -> list[onnx.NodeProto]:
    nodes = [helper.make_node("Relu", [f"t{turn}"], [f"t{turn + 1}"]) for turn in range(1000)]
    return [helper.make_node("Relu", ["x"], ["t0"]), *nodes, helper.make_node("Relu", ["t1000"], ["z"])]


def branched(path: Path) -> None:
    then = helper.make_graph(
        [helper.make_node("Identity", ["f"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    model = onnx.load_from_string(graph("p = GlobalAveragePool(x) f = Flatten(p) y = Identity(f)"))
    model.graph.node.pop()
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=then))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    path.write_bytes(model.SerializeToString())


WRONG: dict[str, tuple[Write, str]] = {
    "nothing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "is a folder, expected a file"),
    "a dangling link": (lambda path: path.symlink_to("gone"), "is a link to nothing"),
    "a pipe": (lambda path: os.mkfifo(path), "is no regular file"),
    "empty": (raw(b""), "is empty, without any operator; export it again"),
    "text": (raw(b"hello there"), "is text; copy or export it again"),
    "an LFS pointer": (raw(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "a checkpoint": (lambda path: torch.save({"w": torch.ones(2)}, path), "is a zip archive; copy or export it"),
    "noise": (raw(bytes(range(255, 0, -1))), "is cut short, damaged or no ONNX at 255 bytes"),
    "cut short": (raw(graph(POOLED)[:-9]), "is cut short, damaged or no ONNX"),
    "damaged": (raw(graph("y = Flatten(z)")), "is not valid ONNX: .*; export it again"),
    "data elsewhere": (external("../w.bin"), r"names the data file \.\./w\.bin, expected one in its own folder"),
    "data at a full path": (external("/etc/hostname"), "names the data file /etc/hostname, expected one in"),
    "data missing": (external("w.bin"), r"its data file w\.bin is not beside it; copy it into the same folder"),
    "data cut short": (external("w.bin", 20), "its external data (ends within w|cannot be read)"),
    "data many times": (many_external, "has 1,342,177,280 bytes of external data, expected at most 1,073,741,824"),
    "a constant elsewhere": (constant_elsewhere, "keeps the values of w in another file, expected those of init"),
    "a text model": (
        raw(graph("y = Cast<to = 1>(ids)", "int64[N, 128] ids", "float[N, 128] y")),
        r"its input ids \(INT64 \[any, 128\]\) is no image, expected FLOAT or UINT8 \[N, 3, H, W\]",
    ),
    "two inputs": (
        raw(graph("y = Add(x, z)", "float[N, 3, 8, 8] x, float[N, 3, 8, 8] z", "float[N, 3, 8, 8] y")),
        r"has 2 inputs \(x, z\), expected one, the image",
    ),
    "a detector": (
        raw(graph("b = Relu(x) s = Abs(x)", outputs="float[N, 3, 8, 8] b, float[N, 3, 8, 8] s")),
        r"has 2 outputs \(b, s\), expected one, a score for every class",
    ),
    "a map": (raw(graph("y = Relu(x)", outputs="float[N, 3, 8, 8] y")), r"answers \['N', 3, 8, 8\], expected"),
    "a class": (
        raw(graph(f"{POOLED.replace('y', 'f')} y = ArgMax<axis = 1>(f)", outputs="int64[N, 1] y")),
        r"answers int64 \[1, 1\], expected a score for every class, as floats",
    ),
    "one score": (
        raw(graph("m = ReduceMean<axes = [1]>(x) p = GlobalMaxPool(m) y = Flatten(p)", outputs="float[N, 1] y")),
        "answers one number, expected a score for every class",
    ),
    "one channel": (
        raw(graph(POOLED, "float[N, 1, 8, 8] x", "float[N, 1] y")),
        r"its input x \(FLOAT \[any, 1, 8, 8\]\) has no three channels, expected \[N, 3, H, W\]",
    ),
    "another size": (
        raw(graph(POOLED, "float[N, 3, 16, 24] x")),
        r"takes images of 16 x 24 pixels, data\.image_size is 8 x 8; set data\.image_size = \[16, 24\]",
    ),
    "an operator of others": (
        raw(graph("p = com.microsoft.Gelu(x) q = GlobalAveragePool(p) y = Flatten(q)")),
        r"has the operator com\.microsoft\.Gelu, expected ONNX's own; export it without optimisation",
    ),
    "functions of functions": (calling(twice, 40), "its functions hold more than 100,000 operators; export it"),
    "functions in branches": (calling(twice_in_branches, 20), "its functions hold more than 100,000 operators"),
    "a function of itself": (calling(itself, 1), "its functions hold more than 100,000 operators"),
    "functions called often": (calling(straight, 1, 100), "its functions hold more than 100,000 operators"),
    "a constant called often": (calling(large, 1, 1025), "its functions hold more than 1,073,741,824 bytes"),
    "a constant given often": (
        calling(given_often, 1, value=numpy_helper.from_array(np.zeros(1 << 19, np.float32))),
        "its functions hold more than 1,073,741,824 bytes",
    ),
    "a constant cut short": (holding(1, [4], raw_data=bytes(7)), "its constant k cannot be read: .*; export"),
    "a constant of less than none": (holding(1, [-2, -2], raw_data=bytes(16)), "its constant k cannot be read"),
    "a map beside any bytes": (holding(8, [1], string_data=[bytes([255])]), r"answers \['N', 3, 8, 8\], expected"),
    "a type that is none": (
        raw(graph(f"k = Constant<value = float[1] {{1}}>() i = Cast<to = 0>(k) {POOLED}")),
        "nothing tells the size of Cast 'i'; export it again",
    ),
    "branches": (branched, "has the operator If, whose branches depend on the image"),
    "an early opset": (raw(graph(POOLED, opset=6)), "is of opset 6, expected 7 or later"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    write, message = WRONG[name]
    path = tmp_path / "model.onnx"
    write(path)
    with pytest.raises(ModelError, match=message) as caught:
        import_onnx(path, PIXELS)
    assert str(caught.value).startswith(f"ONNX file {path}: ") and "\n" not in str(caught.value)


def test_whole_external_data_is_read(tmp_path: Path) -> None:
    external("w.bin", 48)(tmp_path / "model.onnx")
    read = read_classifier(tmp_path / "model.onnx")
    assert numpy_helper.to_array(read.model.graph.initializer[0]).shape == (3, 4)


def test_fingerprint_is_of_the_data_files_too(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    external("w.bin", 48)(path)
    before = fingerprint_onnx(path)
    assert before == fingerprint_onnx(path)
    (tmp_path / "w.bin").write_bytes(b"\1" + bytes(47))
    changed = fingerprint_onnx(path)
    (tmp_path / "config.json").mkdir()
    assert fingerprint_onnx(path) == changed
    (tmp_path / "config.json").rmdir()
    (tmp_path / "config.json").write_text("{}")
    assert len({before, changed, fingerprint_onnx(path)}) == 3


def test_too_large_a_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(ModelError, match="has 1,073,741,825 bytes, expected at most 1,073,741,824"):
        read_classifier(path)
