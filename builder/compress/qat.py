"""Quantisation by training: int8 weights and activations are simulated while the network learns from its teacher.

The network is quantised by ModelOpt's PyTorch path, after batch normalisation is folded into the convolutions, so
that what is trained is what is served. The ONNX graph has its Q/DQ pairs where `qdq.py` wants them: before every
convolution and linear layer, on every weight, and on one branch of every residual addition.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from temper.builder.compress.teach import TeachConfig, teach
from temper.builder.errors import CompressError, QuantizeError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from temper.builder.compress.step import StepContext

_NUM_CALIBRATION = 512
_INT8 = {"num_bits": 8, "axis": None}


@dataclass(frozen=True, kw_only=True)
class QatConfig(TeachConfig):
    """How a network is trained with its quantisers."""

    epochs: int = 1
    """Epochs over the training images."""
    learning_rate: float = 1e-4
    """The largest learning rate; small, as the network is nearly right."""
    temperature: float = 2.0
    """Softens the probabilities of the network and its teacher."""
    reduce_range: Literal["auto", True, False] = False
    """Whether the weights are trained with 7 bits; see `quantize.QuantizeConfig`."""


def run_qat(network: nn.Module, config: QatConfig, context: StepContext, dst: Path) -> dict[str, Any]:
    """Quantises a network to int8, trains it so, and writes its ONNX graph with Q/DQ pairs and int8 weights.

    An interrupted run goes on after its last epoch, with the same result as one that was not interrupted. Zeros of
    2:4 sparsity stay zeros.

    Args:
        network: Float32 [N, 3, H, W], normalised, to logits; one of torchvision's ResNets or a compressed one. It
            is not changed.
        config: The schedule and the loss.
        context: With the teacher, the training images and the folder of the checkpoint.
        dst: The ONNX file to write.

    Returns:
        precision, method, epochs, learning_rate, num_calibration, agreement_before and agreement (with the
        teacher, on the held-out images), num_held_out, num_sparse, reduce_range (from `settle_range`), size_bytes,
        resumed_epoch.

    Raises:
        CompressError: The network is quantised already, or its batch normalisation cannot be folded.
        QuantizeError: ModelOpt cannot quantise it.
        ExportError: It cannot be exported.
        TrainError: There is no such device or not enough memory, or the loss is not finite.
    """
    from temper.builder.network.train import pick_device

    device = pick_device(context.train_config)
    quantized, num_calibration = quantize_network(network, context, device)
    reduce, range_info = _settle_range(config, quantized, context, dst)
    if reduce:
        quantized, _ = quantize_network(network, context, device, weight_bits=7)
    taught = teach(quantized, config, context)
    export_quantized(quantized, context, dst)
    return {
        "precision": "int8",
        "method": "qat",
        "num_calibration": num_calibration,
        "reduce_range": range_info,
        **taught,
        "size_bytes": dst.stat().st_size,
    }


def _settle_range(
    config: QatConfig, quantized: nn.Module, context: StepContext, dst: Path
) -> tuple[bool, dict[str, Any]]:
    """Decides on the weights' range before the training, by the graph of the network as it is calibrated."""
    from temper.builder.compress.saturation import settle_range

    if config.reduce_range != "auto":
        return settle_range(config.reduce_range, dst, context.held_out[0])
    probe = dst.with_suffix(".probe.onnx")
    try:
        export_quantized(copy.deepcopy(quantized).cpu().eval(), context, probe)
        return settle_range("auto", probe, context.held_out[0], progress=context.progress)
    finally:
        probe.unlink(missing_ok=True)


def quantize_network(
    network: nn.Module, context: StepContext, device: torch.device, *, weight_bits: int = 8
) -> tuple[nn.Module, int]:
    """Returns a copy of a network with calibrated int8 quantisers, and the number of images they were set by.

    Args:
        network: As `run_qat` takes it.
        context: With the training images.
        device: Where the copy goes.
        weight_bits: 8, or 7 for weights of -64 to 63, whose products cannot saturate.

    Raises:
        CompressError: As `run_qat`.
        QuantizeError: ModelOpt fails.
    """
    import torch

    from temper.builder.compress.calibrate import training_batches
    from temper.builder.quiet import quiet_modelopt

    if any(hasattr(module, "weight_quantizer") for module in network.modules()):
        raise CompressError(
            "quantize: the network is quantised already; give the float network of an earlier step"
        )
    folded = fold_batch_norms(network).to(device)
    batches = training_batches(context, _NUM_CALIBRATION)

    def calibrate(model: nn.Module) -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch.to(device))

    try:
        with quiet_modelopt():
            import modelopt.torch.quantization as mtq  # type: ignore[import-untyped]  # ships none

            quantized: nn.Module = mtq.quantize(folded.eval(), _quantizers(weight_bits))
            # Not before: a network with a quantiser in it counts as quantised.
            _quantize_residuals(quantized)
            mtq.calibrate(quantized, "max", calibrate)
    except Exception as error:  # whatever ModelOpt throws
        reason = (str(error).splitlines() or [""])[0]
        raise QuantizeError(f"quantize: ModelOpt failed: {type(error).__name__}: {reason}") from error
    return quantized, sum(len(batch) for batch in batches)


def _quantizers(weight_bits: int) -> dict[str, Any]:
    # ModelOpt's own int8 config also quantises the inputs of pooling layers, which only costs accuracy here.
    inputs = [
        {"quantizer_name": "*input_quantizer", "parent_class": layer, "cfg": _INT8}
        for layer in ("nn.Conv2d", "nn.Linear")
    ]
    weights = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": weight_bits, "axis": 0}}
    return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, weights, *inputs], "algorithm": None}


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode whose batch normalisations are part of the convolutions before them.

    Raises:
        CompressError: A batch normalisation does not follow a convolution; names it.
    """
    from torch import nn
    from torch.fx import Tracer
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    folded = copy.deepcopy(network).cpu().eval()
    for node in Tracer().trace(folded).nodes:
        norm = folded.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        (source,) = node.all_input_nodes
        before = folded.get_submodule(str(source.target)) if source.op == "call_module" else None
        if not isinstance(before, nn.Conv2d) or len(source.users) > 1:
            raise CompressError(
                f"quantize: {node.target} does not follow a convolution of its own, expected torchvision's "
                "ResNet; quantise it with method 'entropy'"
            )
        folded.set_submodule(str(source.target), fuse_conv_bn_eval(before, norm))
        folded.set_submodule(str(node.target), nn.Identity())
    return folded


def _quantize_residuals(network: nn.Module) -> None:
    """Gives every residual block a quantiser on the branch that is not the convolutions'.

    The other branch comes from a convolution into whose kernel the runtimes fuse the addition.
    """
    from modelopt.torch.quantization.nn import TensorQuantizer  # type: ignore[import-untyped]  # ships none
    from torchvision.models.resnet import (  # type: ignore[import-untyped]  # ships none
        BasicBlock,
        Bottleneck,
    )

    class QuantBasicBlock(BasicBlock):  # type: ignore[misc]  # untyped
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return _add_quantized(self, out, x)

    class QuantBottleneck(Bottleneck):  # type: ignore[misc]  # untyped
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
            return _add_quantized(self, out, x)

    for block in list(network.modules()):
        if isinstance(block, BasicBlock | Bottleneck):
            block.__class__ = QuantBasicBlock if isinstance(block, BasicBlock) else QuantBottleneck
            block.residual_quantizer = TensorQuantizer()  # int8, one scale


def _add_quantized(block: Any, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    identity = x if block.downsample is None else block.downsample(x)
    result: torch.Tensor = block.relu(out + block.residual_quantizer(identity))
    return result


def export_quantized(quantized: nn.Module, context: StepContext, dst: Path) -> None:
    """Writes the graph of what `quantize_network` returned: weights stored in int8, one DequantizeLinear each.

    Raises:
        QuantizeError: It cannot be traced, or the graph is no valid ONNX.
        ExportError: As `temper.builder.network.export.export_onnx`.
    """
    import onnx

    from temper.builder.compress.saturation import clip_weights
    from temper.builder.network.export import export_onnx
    from temper.builder.quiet import quiet_modelopt

    temporary = dst.with_suffix(".new.onnx")
    try:
        with quiet_modelopt():
            from modelopt.onnx.quantization.qdq_utils import qdq_to_dq  # type: ignore[import-untyped]  # ships none

            exported, is_reduced = _in_eight_bits(quantized)
            export_onnx(exported, temporary, image_size=context.image_size, mean=context.mean, std=context.std)
            model = onnx.load(temporary)
            _clean(model.graph)
            model = qdq_to_dq(model)
            if is_reduced:
                clip_weights(model)
        onnx.checker.check_model(model, full_check=True)
        temporary.write_bytes(model.SerializeToString())
        os.replace(temporary, dst)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise QuantizeError(f"quantize: the trained network cannot be exported: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _in_eight_bits(quantized: nn.Module) -> tuple[nn.Module, bool]:
    """Returns a copy whose 7-bit weights have 8 bits and the same scale, and whether there were any.

    ModelOpt exports 8 bits only.
    """
    exported = copy.deepcopy(quantized)
    quantizers: list[Any] = [getattr(module, "weight_quantizer", None) for module in exported.modules()]
    reduced = [each for each in quantizers if each is not None and each.num_bits == 7]
    for quantizer in reduced:
        quantizer.amax = quantizer.amax * 127 / 63
        quantizer.num_bits = 8
    return exported, bool(reduced)


def _clean(graph: Any) -> None:
    """Makes initialisers of the scales and zero points, and drops casts of float32 to float32.

    The exporter leaves the former as nodes; ModelOpt's quantisers leave the latter.
    """
    from onnx import TensorProto, numpy_helper

    constants: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    inputs = {each.name for each in graph.input}
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        attributes = {each.name: each for each in node.attribute}
        if node.op_type == "Constant":
            array = numpy_helper.to_array(attributes["value"].t)
        elif node.op_type == "Cast" and node.input[0] in constants and attributes["to"].i == TensorProto.INT8:
            array = numpy_helper.to_array(constants[node.input[0]]).astype("int8")
        elif node.op_type == "Cast" and node.input[0] not in inputs and attributes["to"].i == TensorProto.FLOAT:
            renamed[node.output[0]] = node.input[0]
            graph.node.remove(node)
            continue
        else:
            continue
        constants[node.output[0]] = numpy_helper.from_array(array, node.output[0])
        graph.initializer.append(constants[node.output[0]])
        graph.node.remove(node)
