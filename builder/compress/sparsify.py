"""2:4 sparsity: of every four weights along the input channels two are zero, as sparse tensor cores need it.

ModelOpt chooses which: by magnitude, or by SparseGPT's estimate of what each weight is worth on real inputs
(Frantar and Alistarh, "SparseGPT", ICML 2023). Distilling afterwards recovers the accuracy; the zeros stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from temper.builder.compress.step import NetworkStep, StepContext
from temper.builder.errors import CompressError
from temper.imaging.preprocess import sides

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn


# ModelOpt's and ASP's rule: the kernels work on blocks of so many outputs and inputs.
_OUTPUT_BLOCK, _INPUT_BLOCK = 8, 16
_GROUP, _KEPT = 4, 2
_NUM_IMAGES = 256
_BATCH = 32
_DAMP = 1e-4


@dataclass(frozen=True, kw_only=True)
class SparsifyConfig:
    """How the zeros are chosen."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    method: Literal["magnitude", "sparsegpt"] = "magnitude"
    """The two largest of four weights stay, or the two that matter most on training images."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: A field is not one of its choices.
        """
        if self.method not in ("magnitude", "sparsegpt"):
            raise ValueError(f"method: got {self.method!r}, expected 'magnitude' or 'sparsegpt'")


@dataclass(frozen=True)
class SparsityReport:
    """The pattern in a graph; every layer either has it or has a reason."""

    sparse: list[str] = field(default_factory=list)
    """Layers with at most two of four weights along the input channels."""
    left_dense: dict[str, str] = field(default_factory=dict)
    """The others, with the reason."""

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return asdict(self)


class Sparsify(NetworkStep[SparsifyConfig]):
    """Sets two of every four weights to zero."""

    name = "sparsify"
    about = "Set two of every four weights to zero, as sparse tensor cores need it."
    config = SparsifyConfig
    place = 30
    sparse_weights = True

    def run(
        self, network: nn.Module, config: SparsifyConfig, context: StepContext
    ) -> tuple[nn.Module, dict[str, Any]]:
        """See `run_sparsify`."""
        return run_sparsify(network, config, context)

    def verify(self, graph: Path) -> dict[str, Any]:
        """Checks the 2:4 pattern in the graph that the engine is made from."""
        return {"sparsity": check_2_4(graph).to_json()}


STEP = Sparsify()


def run_sparsify(
    network: nn.Module, config: SparsifyConfig, context: StepContext
) -> tuple[nn.Module, dict[str, Any]]:
    """Sets two of every four weights along the input channels to zero, in place, and measures batch norm anew.

    Args:
        network: Takes float32 [N, 3, H, W], normalised.
        config: The method.
        context: With the training images that `sparsegpt` looks at.

    Returns:
        The network in evaluation mode, and method, layers (those that are sparse now), left_dense (with the
        reason), share_zero (of all weights of convolutions and linear layers), note.

    Raises:
        CompressError: No layer can be made sparse.
    """
    import torch
    from torch import nn

    from temper.builder.compress.calibrate import recalibrate, training_batches

    layers = {
        name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    left = {name: reason for name, module in layers.items() if (reason := _why_dense(tuple(module.weight.shape)))}
    chosen = {name: module for name, module in layers.items() if name not in left}
    if not chosen:
        raise CompressError("sparsify: no layer can be made 2:4 sparse: every one is too narrow")
    hessians = _hessians(network, chosen, context) if config.method == "sparsegpt" else {}
    for position, (name, module) in enumerate(chosen.items()):
        context.progress(position, len(chosen))
        with torch.no_grad():
            module.weight.mul_(_mask(module.weight, hessians.get(name)))
    recalibrate(network, training_batches(context, _NUM_IMAGES))
    context.progress(len(chosen), len(chosen))
    zeros = sum(int((module.weight == 0).sum()) for module in layers.values())
    share = zeros / sum(module.weight.numel() for module in layers.values())
    return network.eval(), {
        "method": config.method,
        "layers": list(chosen),
        "left_dense": left,
        "share_zero": share,
        "note": f"{100 * share:.0f} % of the weights are zero, in {len(chosen)} layers",
    }


def keep_zeros(network: nn.Module) -> tuple[int, Callable[[], None]]:
    """Finds the layers that are 2:4 sparse.

    Returns:
        How many there are, and a function that sets their zeros to zero again, for after each step of training.
    """
    import torch
    from torch import nn

    masks = [
        (module, module.weight.detach() != 0)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and _is_sparse(module.weight)
    ]

    def zero_again() -> None:
        with torch.no_grad():
            for module, mask in masks:
                module.weight.mul_(mask)

    return len(masks), zero_again


def check_2_4(path: Path) -> SparsityReport:
    """Checks the pattern in an ONNX graph, float or quantised.

    Args:
        path: The file.

    Returns:
        The sparse layers and the others.

    Raises:
        CompressError: A layer that could be sparse is not; names it.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    report = SparsityReport()
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        source = producers.get(node.input[1])
        while source is not None and source.op_type in ("DequantizeLinear", "Cast"):
            stored = source.input[0]
            source = producers.get(stored)
            if stored in constants:
                break
        else:
            stored = node.input[1]
        if stored not in constants:
            raise CompressError(f"{path.name}: {node.op_type} {node.name!r}: its weight is no constant")
        weight = _channels_second(numpy_helper.to_array(constants[stored]), node)
        reason = _why_dense(weight.shape)
        if reason is not None:
            report.left_dense[node.name] = reason
        elif (most := _most_in_a_group(weight)) > _KEPT:
            raise CompressError(
                f"{path.name}: {node.op_type} {node.name!r}: has {most} of 4 weights along the input channels, "
                "expected at most 2; a step after sparsify filled its zeros"
            )
        else:
            report.sparse.append(node.name)
    return report


def _channels_second(weight: NDArray[Any], node: Any) -> NDArray[Any]:
    """Returns the weight as [outputs, inputs, ...]."""
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return weight if node.op_type == "Conv" or transposed else weight.T


def _most_in_a_group(weight: NDArray[Any]) -> int:
    """Returns the largest number of weights that are not zero in any four neighbours along the input channels."""
    import numpy as np

    used: NDArray[np.bool_] = np.asarray(weight).astype(np.float32) != 0
    groups = used.reshape(used.shape[0], used.shape[1] // _GROUP, _GROUP, -1)
    return int(groups.sum(2).max())


def _why_dense(shape: tuple[int, ...]) -> str | None:
    outputs, inputs = shape[:2]
    if outputs % _OUTPUT_BLOCK == 0 and inputs % _INPUT_BLOCK == 0:
        return None
    return f"{inputs} input and {outputs} output channels are no multiples of {_INPUT_BLOCK} and {_OUTPUT_BLOCK}"


def _is_sparse(weight: torch.Tensor) -> bool:
    if _why_dense(tuple(weight.shape)) is not None:
        return False
    return _most_in_a_group(weight.detach().cpu().numpy()) <= _KEPT


def _mask(weight: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
    """Returns what ModelOpt keeps of a weight, bool of its shape."""
    import torch

    from temper.builder.quiet import quiet_modelopt

    pattern = "2:4 sparsity"
    with quiet_modelopt():
        from modelopt.torch.sparsity.weight_sparsity import (  # type: ignore[import-untyped]  # ships none
            magnitude,
            sparsegpt,
        )

        if hessian is None:
            mask: torch.Tensor = magnitude.create_asp_mask(weight, pattern)
            return mask
        # Its searcher flattens a convolution with the kernel's positions innermost, so that its groups of four
        # would not lie along the channels, where the hardware looks. With the channels innermost they do.
        flat = weight.detach().flatten(2).transpose(1, 2).flatten(1) if weight.ndim == 4 else weight.detach()
        # ModelOpt drops every weight of an input that was zero on all of these images; a little energy keeps two
        # of four there too, for the images on which it is not.
        hessian = hessian + _DAMP * hessian.diagonal().mean() * torch.eye(len(hessian), device=hessian.device)
        settings = {"pattern": pattern, "col_block_size": 128, "row_block_size": -1, "hessian_damp": 0.1}
        mask = sparsegpt.create_sgpt_mask(flat.contiguous(), hessian, settings)
    if weight.ndim == 2:
        return mask
    area = weight.shape[2] * weight.shape[3]
    return mask.reshape(weight.shape[0], area, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _hessians(network: nn.Module, layers: dict[str, Any], context: StepContext) -> dict[str, torch.Tensor]:
    """Returns the second moment of every layer's inputs on training images, the channels innermost."""
    import torch
    from torch import nn
    from torch.nn import functional

    from temper.builder.compress.calibrate import training_batches

    found: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
            if isinstance(module, nn.Conv2d):
                assert not isinstance(module.padding, str), "torchvision's are numbers"
                patches = functional.unfold(
                    inputs[0],
                    module.kernel_size,
                    dilation=module.dilation,
                    padding=module.padding,
                    stride=module.stride,
                )
                area = module.kernel_size[0] * module.kernel_size[1]
                num_images, _, positions = patches.shape
                # A grouped convolution's weight sees the channels of its group; their mean stands for all.
                parts = patches.reshape(num_images, module.groups, -1, area, positions).mean(1)
                columns = parts.permute(2, 1, 0, 3).flatten(2).flatten(0, 1)
            else:
                columns = inputs[0].T
            moment = columns @ columns.T * (2 / columns.shape[1])
            found[name] = found.get(name, torch.zeros_like(moment)) + moment

        return add

    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        with torch.inference_mode():
            for batch in training_batches(context, _NUM_IMAGES):
                # Fewer at once when they are large: patches are nine times an activation.
                pixels = math.prod(sides(context.image_size))
                for part in torch.split(batch, max(1, min(_BATCH, _BATCH * 64**2 // pixels))):
                    network.eval()(part)
    finally:
        for handle in handles:
            handle.remove()
    return {name: moment.clone() for name, moment in found.items()}
