"""The attacker's own network: an ONNX classifier as PyTorch operations, so that gradients reach the pixels.

What is read is the graph that an engine is made from, or anybody's: weights as they are, batch normalisation as in
evaluation, preprocessing inside. Q/DQ pairs round as they are written, and gradients pass straight through the
rounding (Bengio, Léonard, Courville, arXiv:1308.3432) but not through what is clipped: so an int8 or fp8 graph
attacks as a white box too. All arithmetic is float32. The only file of the client that needs torch and onnx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from temper.client.errors import ClientError
from temper.client.robustness.base import Network
from temper.client.scores import Float32Array

try:
    import onnx
    import torch
    from onnx import numpy_helper
    from torch import Tensor
    from torch.nn import functional

    from temper.client.robustness.defence import Defence
except ImportError as error:
    raise ClientError(
        f"an attack with gradients needs PyTorch and onnx ({error}); install them with: "
        "pip install 'temper[transfer]'"
    ) from error

_Axes = Tensor | list[int]  # an input of later opsets, and an attribute of earlier ones
# Largest finite values: what ONNX saturates to. Integers round to the nearest, ties to even.
_FLOAT8 = {
    onnx.TensorProto.FLOAT8E4M3FN: (torch.float8_e4m3fn, 448.0),
    onnx.TensorProto.FLOAT8E5M2: (torch.float8_e5m2, 57344.0),
}
_INTEGER = {
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT16: (0, 65535),
    onnx.TensorProto.INT16: (-32768, 32767),
}


class Surrogate:
    """One network, or the mean of the logits of several; on a GPU when PyTorch sees one."""

    def __init__(
        self,
        networks: Sequence[Path | Network],
        dtype: torch.dtype = torch.float32,
        num_draws: int = 1,
        device: str | None = None,
    ) -> None:
        """Read the graphs.

        Args:
            networks: ONNX files, each with the defence before it where there is one.
            dtype: what is computed in; float64 is for who compares implementations.
            num_draws: draws that a gradient is the mean of, where a defence is random.
            device: PyTorch's; None takes a GPU when there is one.

        Raises:
            ClientError: a file cannot be read, is no image classifier, or has an operator that is not known here.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype
        found = [one if isinstance(one, Network) else Network(one) for one in networks]
        self._graphs = [(_Graph(one.path, self.device, dtype), one.defend) for one in found]
        # Networks behind the same defence see the same image, as the members of an ensemble do.
        self._defences = {one.defend: Defence(one.defend) for one in found}
        self.draw_size = max(each.num_draws for each in self._defences.values())
        self.num_draws = num_draws if self.draw_size else 1

    def check(self, image_shape: Sequence[int], num_classes: int | None, num_labels: int = 1) -> int:
        """Refuse a network for other images or classes than the endpoint's.

        Args:
            image_shape: (H, W, 3) of the images to attack.
            num_classes: the endpoint's; None when it does not tell.
            num_labels: how many the images' labels ask for at least.

        Returns:
            How many classes the networks know.

        Raises:
            ClientError: names the file.
        """
        found = 0
        for graph, _ in self._graphs:
            if len(graph.image_shape) != 3 or any(
                size not in (None, wanted) for size, wanted in zip(graph.image_shape, image_shape, strict=True)
            ):
                raise ClientError(
                    f"{graph.path}: takes images {_listed(graph.image_shape)}, expected {_listed(image_shape)} as "
                    "the endpoint does; use a network that was trained for it"
                )
            with torch.no_grad():
                answer = graph.run(torch.zeros((1, *image_shape), dtype=self.dtype, device=self.device))
            if answer.ndim != 2 or len(answer) != 1:
                raise ClientError(
                    f"{graph.path}: answers {_listed(answer.shape)} to one image, expected [1, classes]; "
                    "use the ONNX file of a classifier"
                )
            found = answer.shape[1]
            if found != num_classes and (num_classes is not None or found < num_labels):
                wanted = f"the endpoint's {num_classes}" if num_classes else f"at least the labels' {num_labels}"
                raise ClientError(
                    f"{graph.path}: knows {found} classes, expected {wanted}; "
                    "use a network that was trained for it"
                )
        return found

    def logits(self, pixels: Tensor, draws: Float32Array | None = None) -> Tensor:
        """Return float32 [n, classes].

        Args:
            pixels: float32 [n, H, W, 3] in units of uint8, which need not be whole.
            draws: float32 [n, draw_size], 0 to 1, for random defences; without them these do nothing.
        """
        behind = {text: defence(pixels, draws) for text, defence in self._defences.items()}
        found = [graph.run(behind[text]) for graph, text in self._graphs]
        return found[0] if len(found) == 1 else torch.stack(found).mean(0)

    def feature_maps(self, pixels: Tensor, min_side: int) -> tuple[Tensor, Tensor]:
        """Return the last feature maps that are not too coarse, and the logits that depend on them alone.

        In a ResNet of images large enough they are what the global average pool reads; of smaller images it is the
        end of an earlier stage.

        Args:
            pixels: float32 [n, H, W, 3] in units of uint8, of a surrogate of one network; a defence is left out.
            min_side: rows and columns that the maps have at least.

        Returns:
            float32 [n, C, h, w], from where gradients are to be taken, and float32 [n, classes].

        Raises:
            ClientError: the network has no such maps.
        """
        ((graph, _),) = self._graphs
        return graph.feature_maps(pixels, min_side)


def load_surrogate(networks: tuple[Network, ...], num_draws: int = 1) -> Surrogate:
    """Return the surrogate of these networks, which several attacks of one run share."""
    stats = [network.path.stat() for network in networks]
    return _load(networks, num_draws, tuple((one.st_mtime_ns, one.st_size) for one in stats))


@lru_cache(maxsize=4)
def _load(networks: tuple[Network, ...], num_draws: int, stats: tuple[tuple[int, int], ...]) -> Surrogate:
    """Load files as they are now: by `stats` another file of the same name is another network."""
    del stats
    return Surrogate(networks, num_draws=num_draws)


def unknown_operators(names: Iterable[str]) -> list[str]:
    """Return those of a graph's operators that no surrogate can have."""
    return sorted(set(names) - _OPERATORS.keys() - {"Constant"})


class _Graph:
    """One ONNX file. What depends on no input is worked out once."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.path, self._device, self._dtype = path, device, dtype
        try:
            model = onnx.load(path)
        except FileNotFoundError:
            raise ClientError(f"{path}: no such file, expected an ONNX classifier") from None
        except Exception as error:  # protobuf's and onnx's own, without a common base
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ClientError(f"{path}: not an ONNX file: {reason}") from error
        graph = model.graph
        self._values: dict[str, Tensor] = {one.name: self._constant(one) for one in graph.initializer}
        # What a zero point's type was says to which grid is rounded; its value, a float here, no longer does.
        self._types: dict[str, int] = {one.name: one.data_type for one in graph.initializer}
        inputs = [one for one in graph.input if one.name not in self._values]
        if len(inputs) != 1 or not graph.output:
            raise ClientError(f"{path}: has {len(inputs)} inputs, expected one: the image")
        self._input, self._output = inputs[0].name, graph.output[0].name
        shape = inputs[0].type.tensor_type.shape.dim
        self.image_shape = [dim.dim_value or None for dim in shape][1:]
        self._nodes: list[tuple[Callable[..., Tensor], dict[str, Any], list[str], str]] = []
        for node in graph.node:
            self._add(node)
        self._waists = self._find_waists()

    def _add(self, node: onnx.NodeProto) -> None:
        if node.op_type != "Constant" and node.op_type not in _OPERATORS:
            raise ClientError(
                f"{self.path}: has the operator {node.op_type}, expected some of {', '.join(sorted(_OPERATORS))}"
            )
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Constant":
            self._values[node.output[0]] = self._constant(attributes["value"])
            self._types[node.output[0]] = attributes["value"].data_type
            return
        if node.op_type == "QuantizeLinear":
            kind = self._types.get(node.input[2]) if len(node.input) > 2 else None
            attributes["kind"] = kind or attributes.get("output_dtype") or onnx.TensorProto.UINT8
        step = (_OPERATORS[node.op_type], attributes, list(node.input), node.output[0])
        if all(not name or name in self._values for name in node.input):
            with torch.no_grad():
                self._values[node.output[0]] = self._apply(step, self._values)
        else:
            self._nodes.append(step)

    def _constant(self, tensor: onnx.TensorProto) -> Tensor:
        array = np.asarray(numpy_helper.to_array(tensor))
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):  # shapes and axes
            return torch.from_numpy(array.astype(np.int64))
        return torch.from_numpy(array.astype(np.float32)).to(self._device, self._dtype)

    def run(self, pixels: Tensor) -> Tensor:
        """Return the output for pixels [n, H, W, 3]."""
        return self._run({**self._values, self._input: pixels})[self._output]

    def feature_maps(self, pixels: Tensor, min_side: int) -> tuple[Tensor, Tensor]:
        """Return maps and logits: see `Surrogate.feature_maps`."""
        with torch.no_grad():
            values = self._run({**self._values, self._input: pixels})
        for index, name, is_last in reversed(self._waists):
            found = values[name].detach()
            if found.ndim == 4 and min(found.shape[1:3] if is_last else found.shape[2:]) >= min_side:
                maps = (found.permute(0, 3, 1, 2) if is_last else found).requires_grad_()
                values[name] = maps.permute(0, 2, 3, 1) if is_last else maps
                return maps, self._run(values, index + 1)[self._output]
        raise ClientError(
            f"{self.path}: has no feature maps of {min_side}x{min_side} or more that all of it passes through; "
            "use the ONNX file of a ResNet for larger images"
        )

    def _run(self, values: dict[str, Tensor], first: int = 0) -> dict[str, Tensor]:
        """Compute from a node on, and return `values` with what was computed added."""
        for step in self._nodes[first:]:
            values[step[3]] = self._apply(step, values)
        return values

    def _find_waists(self) -> list[tuple[int, str, bool]]:
        """Return the nodes whose output is all that later ones know of the image.

        By position and output, and whether its channels are last, as those of the image are until they are moved.
        """
        last_use = {name: index for index, (_, _, inputs, _) in enumerate(self._nodes) for name in inputs}
        waists, alive, last = [], {self._input}, {self._input}
        for index, (operator, attributes, inputs, output) in enumerate(self._nodes):
            perm = attributes.get("perm")
            if perm == [0, 2, 3, 1] or (perm is None and last & set(inputs)):
                last.add(output)
            alive = {name for name in alive | {output} if last_use.get(name, -1) > index}
            if alive == {output} and operator is not _quantize:  # whole numbers, moved by the zero point
                waists.append((index, output, output in last))
        return waists

    def _apply(self, step: tuple[Callable[..., Tensor], dict[str, Any], list[str], str], values: Any) -> Tensor:
        operator, attributes, inputs, output = step
        try:
            return operator(*(values[name] if name else None for name in inputs), **attributes)
        except (RuntimeError, TypeError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ClientError(f"{self.path}: {output} cannot be computed: {reason}") from error


def _listed(shape: Sequence[object]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **given: Any) -> Tensor:
    dims = weight.ndim - 2
    x, padding = _padded(x, dims, given, 0.0, weight.shape[2:])
    return torch.conv2d(
        x,
        weight,
        bias,
        stride=given.get("strides", [1] * dims),
        padding=padding,
        dilation=given.get("dilations", [1] * dims),
        groups=given.get("group", 1),
    )


def _padded(
    x: Tensor, dims: int, given: dict[str, Any], value: float, kernel: Sequence[int]
) -> tuple[Tensor, list[int]]:
    """Return the input and the padding that the operator itself adds: unequal ends are added here."""
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        strides = given.get("strides", [1] * dims)
        excess = [
            max((math.ceil(size / stride) - 1) * stride + side - size, 0)
            for size, stride, side in zip(x.shape[2:], strides, kernel, strict=True)
        ]
        upper = given["auto_pad"] == b"SAME_UPPER"
        begins = [one // 2 if upper else one - one // 2 for one in excess]
        ends = [one - begin for one, begin in zip(excess, begins, strict=True)]
    else:
        pads = list(given.get("pads", [0] * 2 * dims))
        begins, ends = pads[:dims], pads[dims:]
    # max_pool2d itself pads no more than half of the kernel.
    if begins == ends and all(2 * pad <= side for pad, side in zip(begins, kernel, strict=True)):
        return x, begins
    around = [pad for pair in reversed(list(zip(begins, ends, strict=True))) for pad in pair]
    return functional.pad(x, around, value=value), [0] * dims


def _max_pool(x: Tensor, **given: Any) -> Tensor:
    kernel = given["kernel_shape"]
    x, padding = _padded(x, len(kernel), given, -math.inf, kernel)
    return functional.max_pool2d(
        x,
        kernel,
        given.get("strides", [1] * len(kernel)),
        padding,
        given.get("dilations", 1),
        bool(given.get("ceil_mode", 0)),
    )


def _average_pool(x: Tensor, **given: Any) -> Tensor:
    kernel, ones = given["kernel_shape"], torch.ones_like(x[:1, :1])
    # In the order of NCHW: CUDA's kernel for channels last forgets the padding in the gradient (torch 2.11 does);
    # goes when the oldest torch allowed has https://github.com/pytorch/pytorch/pull/188345.
    x, padding = _padded(x.contiguous(), len(kernel), given, 0.0, kernel)
    ones, _ = _padded(ones, len(kernel), given, 0.0, kernel)

    def mean(values: Tensor, counts_padding: bool) -> Tensor:
        strides = given.get("strides", [1] * len(kernel))
        ceil_mode = bool(given.get("ceil_mode", 0))
        return functional.avg_pool2d(values, kernel, strides, padding, ceil_mode, counts_padding)

    if given.get("count_include_pad"):
        return mean(x, True)
    # Zeros that were added here count for the library as values.
    return mean(x, False) / mean(ones, False)


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, **given: Any) -> Tensor:
    a, b = (a.t() if given.get("transA") else a), (b.t() if given.get("transB") else b)
    product: Tensor = given.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + given.get("beta", 1.0) * c


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, **given: Any) -> Tensor:
    return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=given.get("epsilon", 1e-5))


def _along(x: Tensor, parameter: Tensor, axis: int) -> Tensor:
    """Return a scale or zero point of one value per channel in a shape that fits the channels of `x`."""
    return parameter if parameter.numel() == 1 else parameter.reshape([-1] + [1] * (x.ndim - 1 - axis % x.ndim))


def _quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, **given: Any) -> Tensor:
    axis = given.get("axis", 1)
    exact = x / _along(x, scale, axis)
    if given["kind"] in _FLOAT8:
        dtype, largest = _FLOAT8[given["kind"]]
        exact = exact.clamp(-largest, largest)
        return exact + (exact.detach().to(dtype).to(exact.dtype) - exact).detach()
    low, high = _INTEGER[given["kind"]]
    shift = 0.0 if zero is None else _along(x, zero, axis)
    rounded = (exact.detach().round() + shift).clamp(low, high)
    exact = (exact + shift).clamp(low, high)
    return exact + (rounded - exact).detach()


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, **given: Any) -> Tensor:
    axis = given.get("axis", 1)
    shifted = x if zero is None else x - _along(x, zero, axis)
    return shifted * _along(x, scale, axis)


def _straight_round(x: Tensor) -> Tensor:
    return x + (x.detach().round() - x).detach()


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None, **given: Any) -> Tensor:
    return x.clamp(low if low is not None else given.get("min"), high if high is not None else given.get("max"))


def _reduce_mean(x: Tensor, axes: _Axes | None = None, **given: Any) -> Tensor:
    over = [int(axis) for axis in axes] if axes is not None else list(range(x.ndim))
    return x.mean(over, keepdim=bool(given.get("keepdims", 1)))


def _reshape(x: Tensor, shape: Tensor, **given: Any) -> Tensor:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape.tolist())])


def _flatten(x: Tensor, **given: Any) -> Tensor:
    axis = given.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _pad(
    x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, *axes: Tensor, **given: Any
) -> Tensor:
    if axes or given.get("mode", b"constant") != b"constant":
        raise TypeError("Pad of some axes, or with values that are no constant")
    ends = pads.tolist() if pads is not None else given["pads"]
    around = [end for axis in reversed(range(x.ndim)) for end in (ends[axis], ends[axis + x.ndim])]
    return functional.pad(x, [int(end) for end in around], value=0.0 if value is None else float(value))


def _squeeze(x: Tensor, axes: _Axes | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(int(axis) for axis in axes))


def _unsqueeze(x: Tensor, axes: _Axes) -> Tensor:
    for axis in sorted(int(one) % (x.ndim + len(axes)) for one in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(x: Tensor, indices: Tensor, **given: Any) -> Tensor:
    axis = given.get("axis", 0) % x.ndim
    taken = x.index_select(axis, (indices.reshape(-1) % x.shape[axis]).to(x.device))
    return taken.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _hard_sigmoid(x: Tensor, **given: Any) -> Tensor:
    line: Tensor = given.get("alpha", 0.2) * x + given.get("beta", 0.5)
    return line.clamp(0, 1)


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    # Every value is float32 here; what half precision rounds activations to is left out.
    "Cast": lambda x, **given: x,
    "Clip": _clip,
    "Concat": lambda *parts, **given: torch.cat(parts, given["axis"]),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda a, b: a / b,
    "Dropout": lambda x, *rest, **given: x,
    "Elu": lambda x, **given: functional.elu(x, given.get("alpha", 1.0)),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax((2, 3), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x: x * _hard_sigmoid(x, alpha=1 / 6),
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, **given: functional.leaky_relu(x, given.get("alpha", 0.01)),
    "MatMul": lambda a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda a, b: a * b,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Round": _straight_round,
    "Sigmoid": torch.sigmoid,
    "Softmax": lambda x, **given: torch.softmax(x, given.get("axis", -1)),
    "Squeeze": _squeeze,
    "Sub": lambda a, b: a - b,
    "Transpose": lambda x, **given: x.permute(given["perm"]),
    "Unsqueeze": _unsqueeze,
}
