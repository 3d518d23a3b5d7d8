"""The attacker's network: its operators as ONNX Runtime computes them, its gradients, and files that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from temper.builder.network.export import export_onnx, run_onnx
from temper.builder.network.served import Served
from temper.client.errors import ClientError
from temper.client.robustness.surrogate import Surrogate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RNG = np.random.default_rng(0)
CLASSES = 5


def weights(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def write(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    """A classifier of images [N, 9, 9, 3]: the cast, NCHW, what is given, the mean over pixels, a matrix."""
    front = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["x"], perm=[0, 3, 1, 2]),
    ]
    used = {name for node in nodes for name in node.input if name.startswith(("w", "s", "z"))}
    back = [
        helper.make_node("GlobalAveragePool", ["y"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    constants = [tensor(name) for name in sorted(used | {"head"})]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 9, 9, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph([*front, *nodes, *back], "net", [image], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def tensor(name: str) -> TensorProto:
    if name == "z_float8":
        return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, [], [0.0])
    return numpy_helper.from_array(np.asarray(CONSTANTS[name]), name)


CONSTANTS: dict[str, Any] = {
    "head": weights(3, CLASSES),
    "w": weights(3, 3, 3, 3) / 100,
    "w_depthwise": weights(3, 1, 3, 3) / 100,
    "w_bias": weights(3),
    "w_var": np.abs(weights(3)) + 0.1,
    "w_low": np.float32(20.0),
    "w_high": np.float32(200.0),
    "w_shape": np.array([0, 3, -1, 1], np.int64),
    "w_axis": np.array([2], np.int64),
    "w_pads": np.array([0, 0, 1, 0, 0, 0, 2, 3], np.int64),
    "w_turned": np.array([2, 1, 0], np.int64),
    "w_slope": np.array([0.1, 0.2, 0.3], np.float32).reshape(3, 1, 1),
    "w_quantised": RNG.integers(-127, 128, (3, 3, 3, 3)).astype(np.int8),
    "s_weights": np.array([0.01, 0.02, 0.005], np.float32),
    "z_weights": np.zeros(3, np.int8),
    "s": np.float32(2.5),
    "z_int8": np.int8(-3),
    "z_uint8": np.uint8(7),
    "s_float8": np.float32(0.7),
}


def node(kind: str, inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


GRAPHS: dict[str, list[onnx.NodeProto]] = {
    "convolution with uneven ends": [node("Conv", "x w w_bias", pads=[0, 1, 1, 2], strides=[2, 1])],
    "convolution with automatic ends": [node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])],
    "convolution with lower ends": [node("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2])],
    "depthwise, dilated": [node("Conv", "x w_depthwise", group=3, dilations=[2, 2])],
    "largest of a window": [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])],
    "largest, rounded up": [node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)],
    "mean of a window": [node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
    "largest, one step at a time": [node("MaxPool", "x", kernel_shape=[3, 3])],
    "mean with uneven ends": [node("AveragePool", "x", kernel_shape=[2, 2], auto_pad="SAME_UPPER")],
    "mean with the ends counted": [
        node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    ],
    "batch normalisation": [node("BatchNormalization", "x w_bias w_bias w_bias w_var", epsilon=1e-3)],
    "arithmetic": [
        node("Sub", "x w_low", "a"),
        node("Div", "a w_high", "b"),
        node("Mul", "b b", "c"),
        node("Sigmoid", "c", "d"),
        node("Round", "a", "e"),
        node("Add", "d e"),
    ],
    "one more dimension and one less": [node("Unsqueeze", "x w_axis", "a"), node("Squeeze", "a w_axis")],
    "padded": [node("Pad", "x w_pads w_low")],
    "turned and joined": [node("Gather", "x w_turned", "a", axis=1), node("Concat", "a x", axis=2)],
    "other activations": [
        node("Sub", "x w_low", "a"),
        node("LeakyRelu", "a", "b", alpha=0.3),
        node("Elu", "b", "c"),
        node("Div", "c w_high", "d"),
        node("HardSigmoid", "d", "e", alpha=0.4),
        node("HardSwish", "d", "f"),
        node("PRelu", "d w_slope", "g"),
        node("Concat", "e f g", "h", axis=3),
        node("GlobalMaxPool", "h"),
    ],
    "clipped": [node("Clip", "x w_low w_high", "a"), node("Relu", "a", "b"), node("Identity", "b")],
    "reshaped": [node("Reshape", "x w_shape", "a"), node("Softmax", "a", "y", axis=2)],
    "int8 weights per channel": [
        node("DequantizeLinear", "w_quantised s_weights z_weights", "a", axis=0),
        node("Conv", "x a"),
    ],
    "int8 activations": [node("QuantizeLinear", "x s z_int8", "a"), node("DequantizeLinear", "a s z_int8")],
    "uint8 activations": [node("QuantizeLinear", "x s z_uint8", "a"), node("DequantizeLinear", "a s z_uint8")],
    "float8 activations": [
        node("QuantizeLinear", "x s_float8 z_float8", "a"),
        node("DequantizeLinear", "a s_float8 z_float8"),
    ],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_operators_are_those_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", GRAPHS[name])
    images = RNG.integers(0, 256, (3, 9, 9, 3)).astype(np.uint8)
    surrogate = Surrogate([path])
    surrogate.check((9, 9, 3), CLASSES)
    found = surrogate.logits(torch.from_numpy(images).to(surrogate.device, torch.float32)).cpu().numpy()
    np.testing.assert_allclose(found, run_onnx(path, images), rtol=1e-4, atol=1e-4)


class Net(nn.Module):
    def __init__(self) -> None:
        """Makes the layers."""
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Path]:
    """A network with statistics of its own, and its ONNX file."""
    torch.manual_seed(0)
    net, path = Net(), tmp_path_factory.mktemp("surrogate") / "net.onnx"
    net.train()
    for _ in range(3):
        net(torch.randn(8, 3, 9, 9) * 2 + 1)
    export_onnx(net.eval(), path, image_size=9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1))
    return Served(net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1)).eval(), path


@pytest.mark.parametrize("size", [32, 37])
def test_graph_of_pooled_shortcuts_and_a_head_of_two_layers_is_the_networks(tmp_path: Path, size: int) -> None:
    from temper.builder.network.resnet import ModelConfig, build_model, set_head

    torch.manual_seed(0)
    network, norm = build_model(ModelConfig(arch="resnet10t"), CLASSES), {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    set_head(network, 16, CLASSES)
    path = tmp_path / "net.onnx"
    export_onnx(network.eval(), path, image_size=size, **norm)
    pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = Served(network, **norm).eval()(pixels)
    np.testing.assert_allclose(run_onnx(path, pixels.numpy()), expected.numpy(), rtol=1e-4, atol=1e-5)
    found = Surrogate([path], device="cpu").logits(pixels.float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def gradient(logits: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    point = pixels.clone().requires_grad_()
    labels = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
    torch.nn.functional.cross_entropy(logits(point), labels).backward()  # type: ignore[no-untyped-call]
    assert point.grad is not None
    return point.grad


def test_gradients_are_those_of_the_network_in_evaluation_mode(exported: tuple[Served, Path]) -> None:
    served, path = exported
    pixels = torch.rand(4, 9, 9, 3) * 255
    expected, found = gradient(served, pixels), gradient(Surrogate([path], device="cpu").logits, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("name", GRAPHS)
def test_gpu_computes_what_the_processor_does(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", GRAPHS[name])
    pixels = torch.from_numpy(RNG.integers(0, 256, (8, 9, 9, 3)).astype(np.float32))
    # As the attacks compute: TensorFloat-32 would move what is near a step of the rounding.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        here, there = Surrogate([path], device="cpu"), Surrogate([path])
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.logits(pixels.cuda()).cpu(), here.logits(pixels), rtol=1e-4, atol=1e-4)
        found, expected = gradient(there.logits, pixels.cuda()).cpu(), gradient(here.logits, pixels)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_gradients_pass_through_rounding_but_not_through_what_is_clipped(tmp_path: Path) -> None:
    pixels = torch.full((1, 9, 9, 3), 100.3)
    quantised = Surrogate([write(tmp_path / "q.onnx", GRAPHS["int8 activations"])], device="cpu")
    found = gradient(quantised.logits, pixels)
    assert (found != 0).all()
    # 130 steps of 2.5 are more than int8 holds.
    assert (gradient(quantised.logits, torch.full_like(pixels, 330.0)) == 0).all()


def test_several_networks_are_the_mean_of_their_logits(exported: tuple[Served, Path], tmp_path: Path) -> None:
    one, two = exported[1], write(tmp_path / "other.onnx", GRAPHS["clipped"])
    pixels = torch.rand(2, 9, 9, 3) * 255
    first, second, both = (Surrogate(networks, device="cpu") for networks in ([one], [two], [one, two]))
    expected = (first.logits(pixels) + second.logits(pixels)) / 2
    torch.testing.assert_close(both.logits(pixels), expected)


def test_network_that_does_not_fit_is_refused_in_one_line(exported: tuple[Served, Path], tmp_path: Path) -> None:
    surrogate = Surrogate([exported[1]])
    with pytest.raises(ClientError, match=r"takes images \[9, 9, 3\], expected \[8, 8, 3\] as the endpoint does"):
        surrogate.check((8, 8, 3), CLASSES)
    with pytest.raises(ClientError, match="knows 5 classes, expected the endpoint's 10"):
        surrogate.check((9, 9, 3), 10)
    with pytest.raises(ClientError, match="has the operator Erf, expected some of Add"):
        Surrogate([write(tmp_path / "erf.onnx", [node("Erf", "x")])])
    with pytest.raises(ClientError, match="no such file"):
        Surrogate([tmp_path / "missing.onnx"])
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ClientError, match="text.onnx: not an ONNX file"):
        Surrogate([tmp_path / "text.onnx"])
