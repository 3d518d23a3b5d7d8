"""Reads an ONNX file that somebody else made: what it is, and that it takes one image and answers with scores.

Nothing of it is run here, and nothing is read but the file and the data files beside it that it names. What a
classifier may be is said in `read_classifier`; turning it into the project's own form is `onnx_import.py`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx
import onnx.inliner
from onnx import TensorProto

from temper.builder.contract import NUM_CHANNELS
from temper.builder.errors import ModelError, reason_of
from temper.builder.network.hub import CONFIG_FILE, PREPROCESSOR_FILE, hub_folder
from temper.builder.network.onnx_functions import count_inlined
from temper.builder.store.files import sha256_file
from temper.imaging.content import name_content
from temper.imaging.errors import show

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

Layout = Literal["NCHW", "NHWC"]

# A protobuf ends at 2 GiB, and a ResNet-152 has 240 MB.
MAX_BYTES = 1 << 30
_HEAD_BYTES = 1024
_MAX_NODES = 100_000  # a ResNet-152 has 600
_MIN_OPSET = 7  # ONNX Runtime reads none before it
_IMAGE_TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT8: "uint8",
}
# They keep the layout of an image; the one after them tells which it is.
_ELEMENTWISE = ("Cast", "Sub", "Mul", "Div", "Add", "Identity", "QuantizeLinear", "DequantizeLinear", "Pad")
_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """An ONNX classifier as its file has it."""

    path: Path
    """The file."""
    model: ModelProto
    """With external data in it, functions of its own in line, and nothing in training mode."""
    input_name: str
    """Of the image."""
    output_name: str
    """Of the answer."""
    dtype: str
    """numpy's name of the input's type: float32, float16, float64 or uint8."""
    layout: Layout
    """Where the channels are."""
    batch: int | None
    """The number of images that it is fixed to; None for any."""
    size: tuple[int | None, int | None]
    """Height and width in pixels; None for any."""
    is_quantized: bool
    """It has Q/DQ pairs."""
    num_training: int
    """BatchNorms that were in training mode."""


def wrong(path: Path, what: str) -> ModelError:
    """An error about an ONNX file: what it is or has, what was expected, what to do."""
    return ModelError(f"ONNX file {show(path)}: {what}")


def fingerprint_onnx(path: Path) -> str:
    """Returns a digest of a file, of the data files that it names, and of a hub's files beside it.

    Raises:
        ModelError: As `read_classifier`.
    """
    digest = hashlib.sha256(sha256_file(path).encode())
    for file in sorted({path.parent / name for name, _ in _external(_parse(path))}):
        digest.update(sha256_file(_check_external(path, file.name)).encode())
    for beside in (hub_folder(path) / name for name in (CONFIG_FILE, PREPROCESSOR_FILE)):
        if beside.is_file():  # the classes may stand in it, or what images are made into
            digest.update(sha256_file(beside).encode())
    return digest.hexdigest()


def read_classifier(path: Path) -> Classifier:
    """Reads an ONNX file that takes an image and answers with a score for every class.

    Args:
        path: A `.onnx` file; external data must lie in its folder. One input of rank 4 with three channels first
            or last, float32, float16, float64 or uint8; one output. Only ONNX's own operators, from opset 7 on.

    Raises:
        ModelError: It is missing, damaged or something else; one line that says what.
    """
    model = _parse(path)
    _load_external(path, model)
    _check_functions(path, model)
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except Exception as error:  # the checker's own, and RuntimeError and ValueError from below it
        raise wrong(path, f"is not valid ONNX: {reason_of(error)}; export it again") from error
    _check_operators(path, model)
    num_training = _end_training(model.graph)
    graph, constants = model.graph, {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in graph.input if one.name not in constants]
    if len(inputs) != 1:
        raise wrong(path, f"has {_listed(inputs, 'input')}, expected one, the image; use a classifier's file")
    if len(graph.output) != 1:
        found = _listed(graph.output, "output")
        raise wrong(path, f"has {found}, expected one, a score for every class; export the classifier alone")
    image, dims = inputs[0], shape_of(inputs[0])
    dtype = _IMAGE_TYPES.get(image.type.tensor_type.elem_type)
    if dtype is None or len(dims) != 4:
        raise wrong(path, f"its input {_described(image)} is no image, expected FLOAT or UINT8 [N, 3, H, W]")
    layout = _find_layout(path, graph, image)
    height, width = (dims[2], dims[3]) if layout == "NCHW" else (dims[1], dims[2])
    return Classifier(
        path=path,
        model=model,
        input_name=image.name,
        output_name=graph.output[0].name,
        dtype=dtype,
        layout=layout,
        batch=dims[0],
        size=(height, width),
        is_quantized=any(node.op_type == "DequantizeLinear" for node in graph.node),
        num_training=num_training,
    )


def shape_of(value: onnx.ValueInfoProto) -> list[int | None]:
    """Returns a tensor's dimensions; None for each that is free."""
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def _parse(path: Path) -> ModelProto:
    content = _read(path, "no such file")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own, which differs between its implementations
        what = name_content(content[:_HEAD_BYTES])
        if what is None or what == "an ONNX model":
            what = f"cut short, damaged or no ONNX at {len(content):,} bytes"
        raise wrong(path, f"is {what}; copy or export it again") from error
    if not model.graph.node:
        what = name_content(content[:_HEAD_BYTES]) or "no ONNX model"
        raise wrong(path, f"is {what}, without any operator; export it again")
    return model


def _read(path: Path, missing: str) -> bytes:
    try:
        # A pipe must not be waited for; for regular files this changes nothing.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise wrong(path, "is no regular file")
            if status.st_size > MAX_BYTES:
                raise wrong(path, f"has {status.st_size:,} bytes, expected at most {MAX_BYTES:,}")
            return file.read()
    except FileNotFoundError as error:
        raise wrong(path, "is a link to nothing" if path.is_symlink() else missing) from error
    except IsADirectoryError as error:
        raise wrong(path, "is a folder, expected a file") from error
    except OSError as error:
        raise wrong(path, f"cannot be read: {error.strerror}") from error


def _external(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """The tensors whose values lie in another file, with its name."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            yield next((one.value for one in tensor.external_data if one.key == "location"), ""), tensor


def _check_external(path: Path, name: str) -> Path:
    """Refuses a data file that lies elsewhere: whoever gave the model must not choose what is read here."""
    if not name or name in (".", "..") or Path(name).name != name:
        raise wrong(path, f"names the data file {show(name)}, expected one in its own folder")
    file = path.parent / name
    if file.is_symlink() or not file.is_file():
        raise wrong(path, f"its data file {show(name)} is not beside it; copy it into the same folder")
    return file


def _load_external(path: Path, model: ModelProto) -> None:
    _check_constants(path, model)
    # Of every tensor: thousands may name the same bytes.
    sizes = [_external_bytes(_check_external(path, name), tensor) for name, tensor in _external(model)]
    if not sizes:
        return
    total = sum(sizes)
    if total > MAX_BYTES:
        raise wrong(path, f"has {total:,} bytes of external data, expected at most {MAX_BYTES:,}")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # an offset past the end is a ValueError, a file that cannot be read an OSError
        raise wrong(path, f"its external data cannot be read: {reason_of(error)}; export it again") from error
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != _num_bytes(tensor):
            raise wrong(path, f"its external data ends within {show(tensor.name)}; copy or export it again")


def _check_constants(path: Path, model: ModelProto) -> None:
    """Refuses constants with values elsewhere: libraries look for them in whatever folder this runs in."""
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        tensors = [tensor for one in node.attribute for tensor in (one.t, *one.tensors)]
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors):
            raise wrong(
                path,
                f"keeps the values of {show(node.output[0] if node.output else node.op_type)} in another file, "
                "expected those of initializers alone; export it again",
            )


def _external_bytes(file: Path, tensor: TensorProto) -> int:
    length = next((one.value for one in tensor.external_data if one.key == "length"), "")
    return int(length) if length.isdecimal() and len(length) < 20 else file.stat().st_size


def _num_bytes(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return -(-count // 2)
    size: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return count * size


def _check_operators(path: Path, model: ModelProto) -> None:
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < _MIN_OPSET:
        raise wrong(path, f"is of opset {opset}, expected {_MIN_OPSET} or later; export it again")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            name = f"{node.domain}.{node.op_type}"
            raise wrong(
                path, f"has the operator {show(name)}, expected ONNX's own; export it without optimisation"
            )
        if any(one.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for one in node.attribute):
            raise wrong(
                path, f"has the operator {node.op_type}, whose branches depend on the image; export without"
            )


def _check_functions(path: Path, model: ModelProto) -> None:
    """Refuses functions that call each other until there are more operators, or bytes, than memory."""
    counts = count_inlined(model) if model.functions else (0, 0)
    for count, allowed, what in zip(counts, (_MAX_NODES, MAX_BYTES), ("operators", "bytes"), strict=True):
        if count > allowed:
            raise wrong(path, f"its functions hold more than {allowed:,} {what}; export it without functions")


def _end_training(graph: GraphProto) -> int:
    """Sets what was exported in training mode to evaluation: nobody is served with the statistics of a batch."""
    count = 0
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            count += len(node.output) > 1
            del node.output[1:]
            kept = [one for one in node.attribute if one.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
        elif node.op_type == "Dropout":
            del node.input[1:], node.output[1:]
    return count


def _find_layout(path: Path, graph: GraphProto, image: onnx.ValueInfoProto) -> Layout:
    dims = shape_of(image)
    first, last = dims[1] == NUM_CHANNELS, dims[3] == NUM_CHANNELS
    if first != last:
        return "NCHW" if first else "NHWC"
    if dims[1] in (None, NUM_CHANNELS) or dims[3] in (None, NUM_CHANNELS):
        node = _first_telling(graph, image.name)
        if node is not None and node.op_type == "Conv":
            return "NCHW"
        if node is not None and attribute(node, "perm") == _TO_NCHW:
            return "NHWC"
        if first and last:
            return "NCHW"
    raise wrong(
        path, f"its input {_described(image)} has no three channels, expected [N, 3, H, W] or [N, H, W, 3]"
    )


def _first_telling(graph: GraphProto, name: str) -> NodeProto | None:
    """Returns what an image goes into first, beside operators that keep its layout."""
    nodes: Sequence[NodeProto] = graph.node
    for node in nodes:  # in the order of their dependence
        if name in node.input:
            if node.op_type not in _ELEMENTWISE:
                return node
            name = node.output[0]
    return None


def attribute(node: NodeProto, name: str) -> object:
    """Returns an attribute's value; None when it is not given."""
    found = next((one for one in node.attribute if one.name == name), None)
    return None if found is None else onnx.helper.get_attribute_value(found)


def _listed(values: object, what: str) -> str:
    names = [show(one.name) for one in values]  # type: ignore[attr-defined]  # protobuf's repeated field
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}s ({shown})" if names else f"no {what}"


def _described(value: onnx.ValueInfoProto) -> str:
    kind = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    dims = ", ".join("any" if dim is None else str(dim) for dim in shape_of(value))
    return f"{show(value.name)} ({kind} [{dims}])"
